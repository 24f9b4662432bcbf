"""The run that another one stands on: a VQ-VAE under a prior of its codes, a VAE under a prior of its latents."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxvae.types import PyTree


def checksum(*arrays: PyTree) -> str:
    """Of parameters and model state: for `run_checksum` in the config.json of the run that stands on them."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        values = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]


def check_made_by(settings: Any, directory: Path, experiment: str) -> None:
    """Raise `ValueError` where a run was made by another experiment, whose settings may mean another model."""
    made_by = getattr(settings, "experiment", experiment)  # of earlier runs it is not known
    if made_by != experiment:
        raise ValueError(
            f"{directory} holds a run of experiments.{made_by}; pass the directory of one of experiments.{experiment}"
        )


def check_unchanged(settings: Any, directory: Path, found: str) -> None:
    """Raise `ValueError` where `directory` holds other parameters than the run with these settings stands on."""
    expected = getattr(settings, "run_checksum", None)
    if expected is not None and expected != found:
        raise ValueError(
            f"{directory} was trained further since, and its latents mean something else now: its parameters have the "
            f"checksum {found}, this run stands on {expected}; train it anew with another --out"
        )
