"""The command `jaxvae`; `jaxvae --help` and `jaxvae train --help` say what it does."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line, that of the process unless another is given; a mistake in it is one line, and exit code 2."""
    try:
        from jaxvae._command import run  # which needs an extra
    except ImportError as error:
        print(f"error: {error}", file=sys.stderr)
        if list(sys.argv[1:] if argv is None else argv) == ["doctor"]:  # it says what else is missing
            from jaxvae._doctor import as_text, examine

            print(as_text(examine()))
        sys.exit(2)
    run(argv)


if __name__ == "__main__":
    main()
