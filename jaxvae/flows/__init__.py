"""Normalizing flows: bijections with the logarithm of their determinant, and what they make of distributions.

A bijection is a Linen module with `forward(x, *context) -> (y, log_det)`, of x [B, D] and at most one context [B, C],
and where it comes cheaply `inverse(y, *context) -> (x, log_det)`. `FlowPosterior` and `jaxvae.priors.FlowPrior` chain
them for `VAE(posterior=, prior=)`; what is drawn one pass at a time decides which bijection suits which.
"""

from jaxvae.flows.autoregressive import Autoregressive
from jaxvae.flows.coupling import AffineCoupling, SplineCoupling
from jaxvae.flows.planar import Planar, Sylvester
from jaxvae.flows.transformed import Bijection, FlowPosterior, FlowPrior, FullCovariance, Pullback, Pushforward

__all__ = [
    "AffineCoupling",
    "Autoregressive",
    "Bijection",
    "FlowPosterior",
    "FlowPrior",
    "FullCovariance",
    "Planar",
    "Pullback",
    "Pushforward",
    "SplineCoupling",
    "Sylvester",
]
