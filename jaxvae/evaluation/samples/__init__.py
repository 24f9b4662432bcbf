"""How good samples are, as numbers: distances between sets of features, quality and variety apart, modes, classes.

Functions of arrays on the host, NumPy's or JAX's, in float64; no pair of sets is ever held as one table. Features are
`[N, D]`, what a network makes of each example: a figure compares with others of the same network, the same number of
examples and the same data, and with no other. Their spread over draws of the samples is that of `jackknife`, unless a
function returns one itself.
"""

from jaxvae.evaluation.samples._classes import (
    ClassBalance,
    ModeCoverage,
    class_balance,
    mode_coverage,
    read_rate,
)
from jaxvae.evaluation.samples._distances import frechet_distance, kernel_distance
from jaxvae.evaluation.samples._features import Estimate, jackknife
from jaxvae.evaluation.samples._neighbours import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    nearest_neighbors,
    precision_recall,
)

__all__ = [
    "ClassBalance",
    "DensityCoverage",
    "Estimate",
    "ModeCoverage",
    "PrecisionRecall",
    "class_balance",
    "density_coverage",
    "frechet_distance",
    "jackknife",
    "kernel_distance",
    "mode_coverage",
    "nearest_neighbors",
    "precision_recall",
    "read_rate",
]
