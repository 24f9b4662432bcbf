"""Quantisers: what replaces an encoder's vectors by codes. Each is a record of `jaxvae.types.Quantizer`.

`EMACodebook`, `GradientCodebook` and `SimVQ` look up the nearest of K codes, `GumbelCodebook` draws one; `FiniteScalar`
and `LookupFree` round, and have no codebook. `Grouped` takes one for each slice of the vector, `Residual` one after the
other, `Projected` one in fewer dimensions; they nest.
"""

from jaxvae.quantizers.finite_scalar import FiniteScalar
from jaxvae.quantizers.grouped import Grouped
from jaxvae.quantizers.gumbel import GumbelCodebook
from jaxvae.quantizers.lookup_free import LookupFree
from jaxvae.quantizers.projected import Projected
from jaxvae.quantizers.residual import Residual
from jaxvae.quantizers.sim_vq import SimVQ
from jaxvae.quantizers.vector import EMACodebook, GradientCodebook

__all__ = [
    "EMACodebook",
    "FiniteScalar",
    "GradientCodebook",
    "Grouped",
    "GumbelCodebook",
    "LookupFree",
    "Projected",
    "Residual",
    "SimVQ",
]
