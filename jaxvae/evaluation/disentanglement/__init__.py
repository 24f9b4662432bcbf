"""How well single latents name the factors of variation: MIG, SAP, DCI, the FactorVAE and the BetaVAE score.

Functions of arrays on the host, NumPy's or JAX's, of any model: `codes` [N, D], usually the posterior means, and the
`factors` [N, F] that made the data, as integers. Definitions and settings are those of the study by Locatello et al.,
Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations, 2019, so that the figures
compare with its tables.

Every score draws its points with replacement from the N that it is given, as that study draws from the factor grid: a
grid smaller than `num_train` serves too. The seed decides every draw. `fixed_points` says what a score is worth.
"""

from jaxvae.evaluation.disentanglement._information import factor_entropy, mig, mutual_information
from jaxvae.evaluation.disentanglement._prediction import DCI, dci, sap
from jaxvae.evaluation.disentanglement._scores import CHEAP_SCORES, SCORES, disentanglement_scores, fixed_points
from jaxvae.evaluation.disentanglement._still import beta_vae_score, factor_vae_score

__all__ = [
    "CHEAP_SCORES",
    "DCI",
    "SCORES",
    "beta_vae_score",
    "dci",
    "disentanglement_scores",
    "factor_entropy",
    "factor_vae_score",
    "fixed_points",
    "mig",
    "mutual_information",
    "sap",
]
