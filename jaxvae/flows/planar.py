"""Flows that bend space along a few directions: planar (Rezende and Mohamed, 2015) and Sylvester (2018)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.flows._parameters import amortized, check_input
from jaxvae.types import Array

SHIFT = math.log(math.e - 1)  # softplus of it is 1
TINY = 1e-6  # added to a squared length that could be zero


class Planar(nn.Module):
    r"""y = x + û tanh(wᵀx + b), one direction û for each example or for all.

    .. math:: \log |\det| = \log(1 + (1 - \tanh^2(w^T x + b)) w^T \hat u), \quad w^T \hat u > -1

    which keeps it invertible; it begins as the identity. It has no inverse in closed form.

    References:
      Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015, appendix A.1.
    """

    @nn.compact
    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        """x [B, D], and context [B, C] or none -> y [B, D] and log |det dy/dx| [B].

        Raises:
          ValueError: as the other bijections of `jaxvae.flows`, for other shapes.
        """
        check_input(x, context)
        dim = x.shape[1]
        v = amortized(self, "direction", dim, context, nn.initializers.zeros)
        w = amortized(self, "normal", dim, context, nn.initializers.normal(1 / math.sqrt(dim)))
        b = amortized(self, "offset", 1, context, nn.initializers.zeros)
        along = (v * w).sum(axis=1, keepdims=True)
        # The paper's û = u + (m(wᵀu) - wᵀu) w / |w|² at u = v + SHIFT w / |w|², where v = 0 is the identity.
        squared = jnp.square(w).sum(axis=1, keepdims=True) + TINY
        u = v + (jax.nn.softplus(along + SHIFT) - 1 - along) * w / squared
        bend = jnp.tanh((x * w).sum(axis=1, keepdims=True) + b)
        slope = 1 - jnp.square(bend)
        log_det = jnp.log1p(slope * (w * u).sum(axis=1, keepdims=True))
        return x + u * bend, log_det[:, 0]

    __call__ = forward


class Sylvester(nn.Module):
    r"""y = x + Q R tanh(R̃ Qᵀ x + b), with R and R̃ upper triangular: M planar flows at once.

    .. math:: \log |\det| = \sum_i \log(1 + (1 - \tanh^2(\cdot)_i) R_{ii} \tilde R_{ii})

    with diagonals within (-1, 1). It begins as the identity, and has no inverse in closed form.

    Attributes:
      units: M, at most D; D unless given.
      orthogonal: Q [D, M] is orthonormal, a product of M Householder reflections of each example's own. Otherwise Q is
        the identity, or where `reverse` is true the latents from the last to the first (triangular flows).
      reverse: of triangular flows, every other one of which should have it.

    References:
      Van den Berg et al., Sylvester Normalizing Flows for Variational Inference, 2018.
    """

    units: int | None = None
    orthogonal: bool = True
    reverse: bool = False

    @nn.compact
    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        """x [B, D], and context [B, C] or none -> y [B, D] and log |det dy/dx| [B].

        Raises:
          ValueError: more units than D, or as the other bijections of `jaxvae.flows`, for other shapes.
        """
        check_input(x, context)
        dim = x.shape[1]
        units = dim if self.units is None else self.units
        at_least(1, units=units)
        if units > dim or (units < dim and not self.orthogonal):
            raise ValueError(f"units must be at most D = {dim}, and D in a triangular flow, got {units}")
        upper = units * (units - 1) // 2
        small, zeros = nn.initializers.normal(0.1), nn.initializers.zeros
        q = self._basis(dim, units, context)
        r = _triangular(
            amortized(self, "outer", upper, context, zeros), amortized(self, "outer_diagonal", units, context, zeros)
        )
        r_tilde = _triangular(
            amortized(self, "inner", upper, context, small), amortized(self, "inner_diagonal", units, context, small)
        )
        b = amortized(self, "offset", units, context, zeros)
        turned = jnp.einsum("bdm,bd->bm", jnp.broadcast_to(q, (len(x), dim, units)), x)
        bend = jnp.tanh((r_tilde @ turned[..., None])[..., 0] + b)
        moved = (q @ (r @ bend[..., None]))[..., 0]
        diagonals = jnp.diagonal(r, axis1=1, axis2=2) * jnp.diagonal(r_tilde, axis1=1, axis2=2)
        return x + moved, jnp.log1p((1 - jnp.square(bend)) * diagonals).sum(axis=1)

    __call__ = forward

    def _basis(self, dim: int, units: int, context: tuple[Array, ...]) -> Array:
        """Q, [B or 1, D, M], with orthonormal columns."""
        q = jnp.eye(dim, units)[None]
        if not self.orthogonal:
            return q[:, ::-1] if self.reverse else q
        normals = amortized(self, "reflections", units * dim, context, nn.initializers.normal(1.0))
        normals = normals.reshape(-1, units, dim).astype(jnp.promote_types(normals.dtype, jnp.float32))
        unit = normals / jnp.sqrt(jnp.square(normals).sum(axis=2, keepdims=True) + TINY**2)
        # The product of all reflections at once, the first on the right: I - Vᵀ L⁻¹ V, where L + Lᵀ = V Vᵀ.
        lower = jnp.tril(unit @ unit.mT, -1) + jnp.eye(units, dtype=unit.dtype)[None] / 2
        return q - unit.mT @ jax.lax.linalg.triangular_solve(lower, unit[..., :units], left_side=True, lower=True)


def _triangular(above: Array, diagonal: Array) -> Array:
    """Upper triangular [B, M, M]: what is above the diagonal as it is, and the diagonal through tanh."""
    units = diagonal.shape[1]
    matrix = jnp.zeros((len(diagonal), units, units), diagonal.dtype)
    matrix = matrix.at[:, *jnp.triu_indices(units, 1)].set(above)
    return matrix.at[:, jnp.arange(units), jnp.arange(units)].set(jnp.tanh(diagonal))
