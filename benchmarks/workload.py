"""What the workloads share: the problem that a table's contestants are given, and the rows of jaxvae and PyTorch."""

import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks import runner
from jaxvae import data

OURS = "jaxvae, epoch program"


def make_parser(description, *, tolerance, steps, data=None):
    """The runner's options, and those of training; `data` is the set that may be in place of random images."""
    parser = runner.make_parser(description, tolerance=tolerance)
    parser.add_argument("--steps", type=int, default=steps, help="in a turn, 10 or more; for a GPU many times as many")
    parser.add_argument("--devices", type=int, default=1, help="more than 1: a row of jaxvae over so many devices")
    if data is not None:
        parser.add_argument("--data", choices=("random", data), default="random")
    return parser


@contextmanager
def problem_file():
    """A path for the problem, in a folder that goes away; from here on the device is left to the contestants."""
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        yield str(Path(scratch) / "problem.npz")


def digits(name, count):
    """As many images of MNIST, or for "random" patterns that are about as bright, [count, 28, 28, 1] uint8."""
    if name == "random":
        return enlarge(patterns(count, 7, brightness=0.13), 28)
    return np.asarray(data.load(name, "train").x[:count])


def patterns(count, size, *, brightness):
    """Images of 0 and 255, of which there is this share, [count, size, size, 1] uint8."""
    white = np.random.default_rng(0).random((count, size, size, 1)) < brightness
    return np.where(white, 255, 0).astype(np.uint8)


def enlarge(x, size):
    """Images [N, size, size, C]. Of pixels that are all noise no loss would tell much."""
    scale = size // x.shape[1]
    return x.repeat(scale, axis=1).repeat(scale, axis=2)


def init_params(model, x):
    """The parameters that all contestants start from."""
    return jax.jit(model.init)(jax.random.key(0), x[:1] / np.float32(255))


def narrow(params):
    """The same with posteriors of σ² = e⁻⁴: the noise, which is everyone's own, then moves the losses little."""
    head = params["params"]["encoder"]["head"]
    head["log_var"]["bias"] -= 4
    return params


def shuffled(count, batch):
    """The examples of a turn's steps, each once, [count / batch, batch] int32."""
    return np.random.default_rng(0).permutation(count).astype(np.int32).reshape(-1, batch)


def write_vae_problem(path, model, x, batch):
    """The problem of a model with Gaussian posteriors."""
    write_problem(path, x, batch, narrow(init_params(model, x)))


def write_problem(path, x, batch, params, **arrays):
    """x, the indices of a turn and the parameters to start from, in an npz that needs neither jax nor torch."""
    indices = shuffled(len(x), batch)
    np.savez(path, x=x, indices=indices, **flatten_dict(jax.device_get(params)["params"], sep="/"), **arrays)


def row(name, python, module, *options):
    """A contestant under the given Python; None, the one that runs this, has jaxvae."""
    return runner.Contestant(name, [python or sys.executable, "-m", f"benchmarks.contestants.{module}", *options])


def jaxvae_rows(module, problem, args, *options, convolutions=False):
    """The epoch program, also on several devices where asked for, and the same step under a jit of its own.

    With `convolutions` the last also on XLA's own.
    """
    rows = [row(OURS, None, module, problem, *options)]
    if args.devices > 1:
        devices = str(args.devices)
        rows.append(row(f"{OURS}, {devices} devices", None, module, problem, *options, "--devices", devices))
    rows.append(row("jaxvae, jit", None, module, problem, *options, "--per-step"))
    if convolutions:
        rows.append(row("stock convolutions, jit", None, module, problem, *options, "--per-step", "--stock"))
    return rows


def torch_rows(module, problem, args, *options, convolutions=False):
    """PyTorch from memory with a fused Adam: eager, compiled, and on CUDA as graphs; none without `--peers`."""
    kinds = {
        "PyTorch": [],
        "torch.compile": ["--compile"],
        "torch.compile, CUDA graphs": ["--cuda-graphs"],
    }
    if convolutions:
        kinds |= {
            "PyTorch, channels last": ["--channels-last"],
            "torch.compile, channels last": ["--channels-last", "--compile"],
        }
    return [row(name, args.peers, module, problem, *options, *kind) for name, kind in kinds.items() if args.peers]
