"""`jaxvae compress` and `decompress`: a run as a lossless codec."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxvae._command import outputs
from jaxvae._command.use import Out, RunDirectory, read_data
from jaxvae._terminal import console, counter
from jaxvae.evaluation import compress, decompress
from jaxvae.figures._page import replace_file
from jaxvae.keys import seed_key
from jaxvae.run import load

SUFFIX = ".bits"


@dataclass(frozen=True)
class Compress:
    """Compress data of zeros and ones without loss, by bits back: about as many nats for each x as evaluate's -ELBO."""

    run: RunDirectory
    """The directory that a training wrote: of a vae on data of two values."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A .npy or .npz file with x [N, ...], or a set's name."""
    batch_size: int = 8
    """Examples that go through the networks together; more are faster, and the file a little longer."""
    out: Out = None
    """Where to, .bits. Default: compressed.bits in RUN."""

    def __call__(self) -> None:
        """Compress and write."""
        path = outputs.checked_suffix(self.out or self.run / f"compressed{SUFFIX}", SUFFIX)
        run, dataset = read_data(self.run, self.data)
        x = np.asarray(dataset.prepared(len(dataset), key=seed_key(0))["x"])
        parts = (run.model, run.params, run.model_state)
        written = compress(*parts, x, batch_size=self.batch_size, progress=counter("compressing, batch"))
        replace_file(path, (SUFFIX,), lambda unfinished: unfinished.write_bytes(written))
        console.print(f"{len(written):,} bytes, {8 * len(written) / x.size:.4f} bits for each value", highlight=False)
        outputs.print_paths(compressed=path)


@dataclass(frozen=True)
class Decompress:
    """Write what a file of compress was made of, bit for bit: by the same run, on the same kind of machine."""

    run: RunDirectory
    """The directory that a training wrote."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """What compress wrote."""
    out: Out = None
    """Where to, .npy. Default: decompressed.npy in RUN."""

    def __call__(self) -> None:
        """Decompress and write."""
        path = outputs.checked_suffix(self.out or self.run / "decompressed.npy", ".npy")
        run = load(self.run)
        show = counter("decompressing, batch")
        x = decompress(run.model, run.params, run.model_state, self.file.expanduser().read_bytes(), progress=show)
        outputs.save_array(path, x)
        console.print(f"x {x.shape} of zeros and ones", highlight=False)
        outputs.print_paths(decompressed=path)
