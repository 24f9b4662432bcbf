"""The command `jaxvae`: one file of commands that train, one of those that use what was trained.

A command is a dataclass: its fields are the options, its docstring the help, and calling it does the work.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

try:
    import tyro
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the command jaxvae needs tyro: pip install 'jaxvae[all]'") from error

from jaxvae._cache import keep_programs
from jaxvae._command.compress import Compress, Decompress
from jaxvae._command.doctor import Doctor
from jaxvae._command.train import Train
from jaxvae._command.use import Encode, Evaluate, Impute, Reconstruct, Sample
from jaxvae._terminal import complain, user_errors
from jaxvae.training.fit import NonFiniteError

COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "sample": Sample,
    "encode": Encode,
    "reconstruct": Reconstruct,
    "evaluate": Evaluate,
    "impute": Impute,
    "compress": Compress,
    "decompress": Decompress,
    "doctor": Doctor,
}
HELP = """Train a variational autoencoder on your data, and use it.

DATA is a folder of pictures (PNG, JPEG, WebP), a .npy or .npz file whose array x is [N, ...], a .csv or .parquet table,
or the name of a set such as digits or mnist. RUN is the directory that a training wrote. It is data: nothing in it is
run. What is compiled is kept in ~/.cache/jaxvae/programs ($JAXVAE_CACHE_DIR/programs), at most half a gigabyte;
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.

    jaxvae train pictures/ --out run
    jaxvae sample run
    jaxvae encode run pictures/ --out codes.csv
"""


def run(argv: Sequence[str] | None = None) -> None:
    """Read a command line and do what it says."""
    command = _parse(sys.argv[1:] if argv is None else argv)
    keep_programs()
    with user_errors(_as_typed):
        try:
            command()
        except NonFiniteError as error:  # nobody's mistake that the command line shows
            complain("error", error)
            sys.exit(1)
        except KeyboardInterrupt:  # while nothing was trained: a training notes it and ends with a checkpoint
            complain("stopped", "by Ctrl-C")
            sys.exit(130)


def _as_typed(message: str) -> str:
    """The way out that an error names, an argument of Python, as the option that it is here."""
    message = re.sub(r"\b(drop|missing)=\[([^]]*)\]", r"--\1 \2", message)
    message = re.sub(r"\bcolumns=\{'([^']*)': '(\w+)'\}", r"--columns \1=\2", message)
    arguments = r"\b(size|fit|colour|levels|validation|skip_unreadable|resume|out|label|drop|columns|decimal)=(True)?"
    return re.sub(arguments, lambda found: f"--{found[1].replace('_', '-')}{'' if found[2] else ' '}", message)


def _parse(argv: Sequence[str]) -> Callable[[], None]:
    """The command that was typed; what tyro says of a mistake, a box of some lines, becomes one line."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="jaxvae", description=HELP, args=list(argv), config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if stop.code:
            lines = [re.sub(r"^[│|]\s*|\s*[│|]$", "", line) for line in box.getvalue().splitlines()]
            said = " ".join(line.strip() for line in lines if not line.startswith(("╭", "╰", "+")))
            command = f" {argv[0]}" if argv and argv[0] in COMMANDS else ""
            complain("error", f"{re.split('─{3,}', said)[0].strip()} (jaxvae{command} --help says what there is)")
        raise
