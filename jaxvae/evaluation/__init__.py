"""Evaluation of trained models: bounds on the likelihood, and what the latents are used for.

`jaxvae.evaluation.disentanglement`, `.classical` and `.samples` come on first use.
"""

import importlib
from typing import Any

from jaxvae.evaluation.code_compression import compress_codes, decompress_codes
from jaxvae.evaluation.compression import compress, decompress
from jaxvae.evaluation.diagnostics import (
    AggregatePosterior,
    active_latents,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    sharpness_ratio,
)
from jaxvae.evaluation.imputation import Imputed, impute
from jaxvae.evaluation.inversion import Gibbs, Importance, Inverted, Langevin, TrainedEncoder, invert
from jaxvae.evaluation.likelihood import LogLikelihood, log_likelihood
from jaxvae.evaluation.map import map_batches
from jaxvae.evaluation.observations import Linear, Visible
from jaxvae.evaluation.probing import Probe, principal_components, probe
from jaxvae.evaluation.refinement import Refined, refine

__all__ = [
    "AggregatePosterior",
    "Gibbs",
    "Importance",
    "Imputed",
    "Inverted",
    "Langevin",
    "Linear",
    "LogLikelihood",
    "Probe",
    "Refined",
    "TrainedEncoder",
    "Visible",
    "active_latents",
    "active_units",
    "aggregate_posterior",
    "compress",
    "compress_codes",
    "decompress",
    "decompress_codes",
    "impute",
    "invert",
    "kl_per_dimension",
    "log_likelihood",
    "map_batches",
    "principal_components",
    "probe",
    "refine",
    "sharpness_ratio",
]

ON_FIRST_USE = ("classical", "disentanglement", "samples")


def __getattr__(name: str) -> Any:
    if name in ON_FIRST_USE:
        return importlib.import_module(f"jaxvae.evaluation.{name}")
    raise AttributeError(f"module 'jaxvae.evaluation' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *ON_FIRST_USE])
