"""What a program says to the person who typed it: progress, and mistakes in one line."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

try:
    from rich.console import Console
    from rich.markup import escape
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("programs need rich: pip install 'jaxvae[all]'") from error

SECONDS_BETWEEN_LINES = 30.0  # where no line can be written over

console = Console(soft_wrap=True, markup=False)  # a path or a name may have brackets in it
if not (console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ):
    console.width = 160  # a file has no edge at which the columns of a table would have to be cut


def complain(kind: str, message: object) -> None:
    """Print an error or a warning in one line to the standard error, from whichever process."""
    line = f"[bold red]{kind}:[/] {escape(str(message))}"
    Console(stderr=True, soft_wrap=True).print(line, highlight=False)


@contextmanager
def user_errors(words: Callable[[str], str] = str) -> Iterator[None]:
    """Where a mistake is the user's, say it in one line, in the words that `words` makes of it, and exit with 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        complain("error", words(str(error)))
        sys.exit(2)


def counter(label: str) -> Callable[[int, int], None]:
    """A `progress` callback: a counting line on a terminal; elsewhere one every half a minute, and one at the end."""
    newest = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal newest
        now = time.monotonic()
        if done == total or console.is_terminal or now - newest >= SECONDS_BETWEEN_LINES:
            newest = now
            end = "\r" if console.is_terminal and done < total else "\n"
            console.print(f"{label}: {done:,} of {total:,}", end=end, highlight=False)

    return show
