"""Quantisers: what replaces an encoder's vectors by codes. Each is a record of `jaxvae.types.Quantizer`."""

from jaxvae.quantizers.grouped import Grouped
from jaxvae.quantizers.vector import EMACodebook, GradientCodebook

__all__ = ["EMACodebook", "GradientCodebook", "Grouped"]
