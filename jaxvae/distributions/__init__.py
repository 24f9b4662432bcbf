"""Distributions as records: what a network says, with `log_prob`, `sample`, `mode` and `mean`.

Axis 0 is the batch, every other axis belongs to the example, and `log_prob` returns `[B]` nats. `sample` takes one
key of shape `()` for the whole batch, or `[B]` keys, one per example. What describes any number of examples alike, as
`StandardNormal` and `Mixture` do, has `sample(num, key=)` instead.
"""

from jaxvae.distributions.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from jaxvae.distributions.gaussian import DiagGaussian, FullGaussian, Mixture, StandardNormal
from jaxvae.distributions.mixtures import EqualMixture, GaussianMixtures, equal_mixture
from jaxvae.distributions.one_hot import OneHotCategorical, RelaxedOneHot, SharedOneHot, StraightThroughOneHot
from jaxvae.distributions.pixels import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    UnitInterval,
)
from jaxvae.distributions.rates import rate
from jaxvae.distributions.reals import ContinuousBernoulli, Laplace, LogNormal, StudentT
from jaxvae.distributions.tables import Heterogeneous, Masked

__all__ = [
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiagGaussian",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "EqualMixture",
    "FullGaussian",
    "GaussianMixtures",
    "Heterogeneous",
    "Laplace",
    "LogNormal",
    "Masked",
    "Mixture",
    "NegativeBinomial",
    "OneHotCategorical",
    "Poisson",
    "RelaxedOneHot",
    "SharedOneHot",
    "StandardNormal",
    "StraightThroughOneHot",
    "StudentT",
    "UnitInterval",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
    "equal_mixture",
    "rate",
]
