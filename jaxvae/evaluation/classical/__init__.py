"""Classical latent-variable models in closed form: oracles that a trained model must meet, baselines it must beat.

Everything is float64 NumPy on the host, whatever JAX computes in. Examples are `[N, ...]`, flattened to `[N, d]` for
the algebra; means and samples come back in the shape of an example, and every method raises `ValueError` for examples
of another shape, and `TypeError` for masked arrays and for keys that are not typed. Densities are in nats and depend
on the scale of the data: figures for pixels in [0, 1] are not those for pixels in 0 .. 255.
"""

from jaxvae.evaluation.classical._bernoulli import (
    binarization_entropy,
    class_bernoulli_nll,
    independent_bernoulli_nll,
)
from jaxvae.evaluation.classical._factors import FactorAnalysis, fit_factor_analysis
from jaxvae.evaluation.classical._gaussian import (
    PPCA,
    GaussianModel,
    fit_gaussian,
    fit_ppca,
    ppca_from_gaussian,
    ppca_max_log_prob,
)
from jaxvae.evaluation.classical._mixture import GaussianMixture, fit_gaussian_mixture
from jaxvae.evaluation.classical._texture import periodic_smooth, random_phase_noise, spot_noise

__all__ = [
    "PPCA",
    "FactorAnalysis",
    "GaussianMixture",
    "GaussianModel",
    "binarization_entropy",
    "class_bernoulli_nll",
    "fit_factor_analysis",
    "fit_gaussian",
    "fit_gaussian_mixture",
    "fit_ppca",
    "independent_bernoulli_nll",
    "periodic_smooth",
    "ppca_from_gaussian",
    "ppca_max_log_prob",
    "random_phase_noise",
    "spot_noise",
]
