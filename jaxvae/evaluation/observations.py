"""What is observed of an x: some of its entries, or a linear function of it with noise."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import check_shape, check_x
from jaxvae._host import check_unmasked
from jaxvae.distributions import DiagGaussian, Masked
from jaxvae.keys import noise
from jaxvae.losses._arrays import floating
from jaxvae.models.vae import mean_shape, with_mask
from jaxvae.types import Array, Batch, PRNGKey

LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, eq=False)
class Visible:
    """The entries of x where a mask is true, as in inpainting; what stands in the others is never read.

    They are scored by the decoder's own likelihood (`Masked`), whose elements must be independent given z. Where the
    batch has "observed", entries that are not there are not visible either.

    Attributes:
      mask: boolean, of the shape of one x, for all examples alike; None where each has its own in batch["visible"],
        [B, ...].

    Raises (when it is made):
      TypeError: the mask is not boolean.
    """

    mask: Any = None

    def __post_init__(self) -> None:
        """Keep the mask on the host: it is a part of the compiled program."""
        if self.mask is not None:
            check_unmasked(self.mask, "mask")
            mask = np.asarray(self.mask)
            if mask.dtype != bool:
                raise TypeError(f"mask must be bool, true where x is visible, got {mask.dtype}")
            object.__setattr__(self, "mask", mask)

    def visible(self, batch: Batch) -> Array:
        """Which entries of a batch are visible, [B, ...].

        Raises:
          TypeError: a mask of the batch is not boolean.
          ValueError: nothing says which, or the mask does not have the shape of x.
        """
        masks = {name: batch[name] for name in ("visible", "observed") if name in batch}
        if self.mask is not None:
            if self.mask.shape != batch["x"].shape[1:]:
                raise ValueError(f"mask must be {batch['x'].shape[1:]}, as one x is, got {self.mask.shape}")
            masks["visible"] = jnp.broadcast_to(self.mask[None], batch["x"].shape)
        if not masks:
            raise ValueError(
                "nothing says which entries are visible: pass Visible(mask) of the shape of one x, or put 'visible', "
                "boolean of x's shape, into the source"
            )
        visible = jnp.ones(batch["x"].shape, bool)
        for name, mask in masks.items():
            if mask.dtype != bool:
                raise TypeError(f"{name} must be bool, true where x is visible, got {mask.dtype}")
            if mask.shape != visible.shape:
                raise ValueError(f"{name} must be {visible.shape}, as x is, got {mask.shape}")
            visible &= mask
        return visible

    def simulated(self, batch: Batch, *, key: PRNGKey) -> Batch:
        """The batch itself, of which a part is visible."""
        del key
        return batch

    def seen(self, batch: Batch) -> Array:
        """What an encoder of it sees, [B, ..., 2C]: x, zero where it is hidden, and the mask beside it."""
        check_x(batch["x"])
        return with_mask(batch["x"], self.visible(batch))

    def log_prob(self, record: Any, batch: Batch) -> Array:
        """The nats of what is visible under a likelihood's record, [B]."""
        check_x(batch["x"])
        check_shape(mean_shape(record), batch["x"].shape)
        return Masked(record, self.visible(batch)).log_prob(batch["x"])

    def known(self, batch: Batch) -> Array | None:
        """Which entries of x need not be drawn, [B, ...]."""
        return self.visible(batch)


@dataclass(frozen=True, eq=False)
class Linear:
    r"""A linear function of x with Gaussian noise, y = A x + σ ε, such as a smaller picture or the mean of its colours.

    y is batch["y"], [B, ...]; the batch needs no x. With a `DiagGaussian` likelihood N(m, diag v) it is scored exactly,

    .. math:: y | z \sim N(A m,\; A\, \mathrm{diag}(v)\, A^T + \sigma^2 I)

    which takes a covariance of y for each draw. With `of_mean`, of any likelihood, y is compared with A of the
    decoder's mean, N(A m, σ² I), as if the decoder drew nothing: an approximation, near where A averages many elements
    or σ is large beside what the likelihood adds.

    Attributes:
      operator: a linear function of x [B, ...] -> [B, ...], example by example, or a matrix [M, D] on x as a vector.
      scale: σ, the standard deviation of the noise, above 0.
      of_mean: compare with the mean alone.

    Raises (when it is made):
      TypeError: the operator is neither a function nor a matrix.
      ValueError: the scale is not a positive number.

    Raises (where it meets a model):
      TypeError: the likelihood is no `DiagGaussian`, and `of_mean` is false.
      ValueError: the operator is not linear, mixes examples or does not fit x, or y has another shape than A x.
    """

    operator: Any
    scale: float
    of_mean: bool = False
    _checked: dict[Any, np.ndarray | None] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Take a matrix to the host: it is a part of the compiled program."""
        if not callable(self.operator):
            check_unmasked(self.operator, "operator")
            matrix = np.asarray(self.operator)
            if matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.floating):
                raise TypeError(
                    f"operator must be a function of x [B, ...] or a floating matrix [M, D], got "
                    f"{type(self.operator).__name__} {matrix.dtype}{list(matrix.shape)}"
                )
            object.__setattr__(self, "operator", matrix)
        if not (0 < self.scale < np.inf):
            raise ValueError(f"scale must be a positive number, the standard deviation of the noise, got {self.scale}")

    def __call__(self, x: Array) -> Array:
        """A x, [B, ...], without noise."""
        if callable(self.operator):
            return self.operator(x)
        flat = x.reshape(len(x), -1)
        if flat.shape[1] != self.operator.shape[1]:
            raise ValueError(
                f"operator {self.operator.shape} takes vectors of {self.operator.shape[1]}, but x {x.shape[1:]} has "
                f"{flat.shape[1]} entries"
            )
        return jnp.matmul(flat, self.operator.T.astype(flat.dtype), precision=jax.lax.Precision.HIGHEST)

    def observe(self, x: Array, *, key: PRNGKey) -> Array:
        """y = A x + σ ε, with one key or with one for each example."""
        projected = self(x)
        return projected + self.scale * noise(jax.random.normal, key, projected.shape).astype(projected.dtype)

    def simulated(self, batch: Batch, *, key: PRNGKey) -> Batch:
        """The batch with y drawn anew from its x."""
        return batch | {"y": self.observe(batch["x"], key=key)}

    def seen(self, batch: Batch) -> Array:
        """What an encoder of it sees: y."""
        if "y" not in batch:
            raise ValueError("the source needs 'y', what is observed of each example: observation.observe(x, key=key)")
        return batch["y"]

    def log_prob(self, record: Any, batch: Batch) -> Array:
        """The nats of y under a likelihood's record, [B]; a density."""
        y, mean = self.seen(batch), floating(record.mean, "mean")  # no covariance of a narrow type can be factorised
        matrix = self._checked_matrix(mean.shape[1:], mean.dtype)
        projected = self(mean)
        if y.shape != projected.shape:
            raise ValueError(f"y must be {projected.shape}, as A x is, got {y.shape}")
        residual = (y - projected).reshape(len(y), -1)
        if matrix is None:
            standard = residual / self.scale
            return -0.5 * jnp.square(standard).sum(axis=1) - residual.shape[1] * (np.log(self.scale) + 0.5 * LOG_2PI)
        if type(record) is not DiagGaussian:
            raise TypeError(
                f"y = A x + noise has no simple density where p(x|z) is a {type(record).__name__}, only where it is a "
                "DiagGaussian: pass Linear(..., of_mean=True) to compare y with A of the decoder's mean instead"
            )
        variance = jnp.broadcast_to(jnp.exp(floating(record.log_var, "log_var")), mean.shape).reshape(len(y), -1)
        own = jnp.square(self.scale) * jnp.eye(len(matrix), dtype=mean.dtype)
        highest = jax.lax.Precision.HIGHEST
        covariance = jnp.einsum("md,bd,nd->bmn", matrix, variance, matrix, precision=highest) + own[None]
        root = jnp.linalg.cholesky(covariance)
        standard = jax.scipy.linalg.solve_triangular(root, residual[..., None], lower=True)[..., 0]
        log_det = jnp.log(jnp.diagonal(root, axis1=1, axis2=2)).sum(axis=1)
        return -0.5 * jnp.square(standard).sum(axis=1) - log_det - 0.5 * LOG_2PI * residual.shape[1]

    def known(self, batch: Batch) -> Array | None:
        """None: no entry of x is known."""
        del batch
        return None

    def _checked_matrix(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray | None:
        """A as a matrix [M, D], or None where the mean is enough; raises unless it is linear; once for each."""
        which = shape, dtype
        if which not in self._checked:
            with jax.ensure_compile_time_eval():
                _check_linear(self, shape, dtype)
                self._checked[which] = None if self.of_mean else _matrix_of(self, shape, dtype)
        return self._checked[which]


def _check_linear(operator: Callable[[Array], Array], shape: tuple[int, ...], dtype: Any) -> None:
    """Raise `ValueError` unless A (2u - 3v) = 2 A u - 3 A v, and A of one example is the same beside others."""
    u, v = (jnp.asarray(each, dtype) for each in np.random.default_rng(0).normal(size=(2, 3, *shape)))
    one, other = operator(u), operator(v)
    if one.ndim == 0 or len(one) != len(u):
        raise ValueError(f"operator must map x {u.shape} to ({len(u)}, ...), example by example, got {one.shape}")
    for found, expected, fault in (
        (operator(2 * u - 3 * v), 2 * one - 3 * other, "is not linear: A (2u - 3v) is not 2 A u - 3 A v"),
        (operator(u[:1]), one[:1], "mixes the examples of a batch"),
    ):
        unit = 1e-3 * float(jnp.abs(one).max() + jnp.abs(other).max()) + 1e-6
        if found.shape != expected.shape or not float(jnp.abs(found - expected).max()) <= unit:
            raise ValueError(f"operator {fault}")


def _matrix_of(operator: Linear, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """[M, D], from what becomes of each entry of x by itself."""
    if not callable(operator.operator):
        return operator.operator.astype(dtype)
    size = int(np.prod(shape))
    columns = operator(jnp.eye(size, dtype=dtype).reshape(size, *shape))
    return np.asarray(columns).reshape(size, -1).T
