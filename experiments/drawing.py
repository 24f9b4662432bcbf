"""Samples of finished runs, which `experiments.samples` measures: what the experiments' `draw` share.

An experiment takes part by one function at the top of its module,

    draw(directory, num, *, key) -> images [num, H, W, C] in [0, 1], float32

which loads the run in `directory` (`jaxvae.checkpoint.load`) and draws `num` pictures as the run would show them: means
of a likelihood where these are pictures, 0 and 1 where the model is of binary pixels and draws them one by one. Equal
keys give equal pictures. The first pictures are the same for every larger `num`. A conditional model draws its labels
too, equally many of each in expectation. A run that draws nothing raises `ValueError`. config.json of the run names its
module ("experiment"), and as "data" the set that the samples are compared with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import counter
from experiments.report import as_pictures
from jaxvae import checkpoint
from jaxvae._json import read_json_object
from jaxvae._run import absolute
from jaxvae._sealed import nested, read_arrays
from jaxvae.types import Array, PRNGKey, PyTree

BLOCK = 100  # pictures that are drawn at a time: one program serves all


def in_blocks(draw_block: Callable[[PRNGKey], Array], num: int, *, key: PRNGKey) -> np.ndarray:
    """`num` pictures, `BLOCK` at a time from `draw_block(key)`, each block with a key of its own."""
    count = -(-num // BLOCK)
    show = counter(f"drawing {num:,} samples, block")
    pictures = []
    for block in range(count):
        pictures.append(as_pictures(draw_block(jax.random.fold_in(key, block))).astype(np.float32))
        show(block + 1, count)
    return np.concatenate(pictures)[:num]


def draw_means(
    directory: Path, make_model: Callable[[SimpleNamespace], Any], num: int, *, key: PRNGKey, averaged: bool = False
) -> np.ndarray:
    """Means of p(x|z) at draws of a run's prior, of its parameters as they are or of their moving average."""
    model, params, _, settings = checkpoint.load(directory, make_model)
    if not hasattr(model, "sample"):
        raise ValueError(f"{directory} holds no one model that draws samples: its preset is {settings.preset}")
    return means_of(model, averaged_params(directory, params) if averaged else params, num, key=key)


def means_of(model: Any, params: PyTree, num: int, *, key: PRNGKey, num_classes: int | None = None) -> np.ndarray:
    """Means of p(x|z) at draws of the prior of a model with `sample(num, key=)`, or of labels of its classes."""

    @jax.jit
    def draw_block(params: PyTree, key: PRNGKey) -> Array:
        given: Any = BLOCK
        if num_classes is not None:
            key, label_key = jax.random.split(key)
            given = jax.random.randint(label_key, (BLOCK,), 0, num_classes)
        return model.apply(params, given, key=key, method="sample").mean

    return in_blocks(lambda each: draw_block(params, each), num, key=key)


def averaged_params(directory: Path, params: PyTree) -> PyTree:
    """The moving average of the parameters that `jaxvae.training.with_ema` kept; `params` where it kept none.

    Of the newest checkpoint, which is what `jaxvae.checkpoint.load` takes where no best one is recorded.
    """
    steps = [int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal()]
    kept = nested(*read_arrays(directory / "checkpoints" / str(max(steps))), "opt_state")
    if not (isinstance(kept, Mapping) and "average" in kept and "decay" in kept):
        return params
    count, decay = np.asarray(kept["average"]["count"]), np.float64(kept["decay"])
    if count == 0:
        return params
    weight = jnp.float32(-np.expm1(count * np.log(decay)))
    return jax.tree.map(lambda average, like: (average / weight).astype(like.dtype), kept["average"]["ema"], params)


def settings_of(directory: Path) -> dict[str, Any]:
    """The settings of a run; `ValueError` where there is none."""
    file = directory / "config.json"
    if not file.is_file():
        raise ValueError(f"no run in {directory}: {file} does not exist")
    return read_json_object(file)


def data_of(directory: Path) -> str:
    """The name of the set that a run's pictures are like: of a model of codes, that of the VQ-VAE."""
    settings = settings_of(directory)
    if settings.get("run") is not None:
        return data_of(absolute(settings["run"], "the run that it stands on"))
    if "data" not in settings:
        raise ValueError(f"{directory / 'config.json'} does not say which data its run is of: it is of another kind")
    return str(settings["data"])
