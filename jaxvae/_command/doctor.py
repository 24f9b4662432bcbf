"""`jaxvae doctor`: what there is on this machine, and what is wrong with it."""

import json
import sys
from dataclasses import dataclass

from jaxvae import _doctor


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, paths, caches and settings, and what is wrong with them: exit code 1 if anything is.

    Paste it into an issue. It changes, downloads and sends nothing.
    """

    json: bool = False
    """Print it as JSON."""

    def __call__(self) -> None:
        """Examine and print."""
        examination = _doctor.examine()
        text = json.dumps(examination._asdict(), indent=1) if self.json else _doctor.as_text(examination)
        print(text)
        if examination.problems:
            sys.exit(1)
