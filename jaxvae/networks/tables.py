"""Tables with columns of several kinds: what an encoder sees of them, and the likelihood of a decoder's output."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae.distributions import Categorical, DiagGaussian, Heterogeneous, NegativeBinomial
from jaxvae.networks._run import run
from jaxvae.networks.scales import PixelScale
from jaxvae.types import Array, Column, PRNGKey


class TableEncoder(nn.Module):
    """Rows x [B, C] as numbers of one size, then an encoder: real columns as they are, log(1 + count), one-hot.

    Where entries are missing, x is [B, 2C], zeros in their place and the mask beside it, as a `VAE` gives it: they are
    zeros here too, and the mask follows.

    Attributes:
      columns: of the set, `dataset.domain.columns`.
      encoder: [B, F] -> what the posterior takes; told of training as in `Conditioned`.
    """

    columns: tuple[Column, ...]
    encoder: Callable[..., Any]

    @nn.compact
    def __call__(self, x: Array, *, train: bool = True) -> Any:
        """Encode a batch, in training only where the model is."""
        count = len(self.columns)
        if x.ndim != 2 or x.shape[1] not in (count, 2 * count):
            raise ValueError(f"a table of {count} columns is x (B, {count}), got {x.shape}")
        mask = x[:, count:]
        widths = [len(column.categories) if column.kind == "categories" else 1 for column in self.columns]
        starts = np.cumsum([0, *widths])
        seen, places = [], []
        for (kind, _), members in _groups(self.columns).items():  # all columns of a group at once: compiled in no time
            own = x[:, np.array(members)]
            if kind == "categories":
                known = (own >= 0) & (own < widths[members[0]])  # a NaN would be the first category, others none
                shown = jax.nn.one_hot(own.astype(jnp.int32), widths[members[0]], dtype=x.dtype)
                shown = jnp.where(known[..., None], shown, jnp.nan)
            else:
                shown = (jnp.log1p(own) if kind == "counts" else own)[..., None]
            if mask.size:
                shown = shown * mask[:, np.array(members), None]
            seen.append(shown.reshape(len(x), -1))
            places += [starts[i] + place for i in members for place in range(widths[i])]
        in_order = jnp.concatenate(seen, axis=1)[:, np.argsort(places)]
        seen_by_encoder = jnp.concatenate([in_order, mask], axis=1)
        return run(self.encoder, seen_by_encoder, train=train and self.has_rng("dropout"))


class InUnits(NamedTuple):
    """A record of standardised values that says nats in the units in which they were measured.

    The density of a value x · scale + location is that of x over `scale`.

    Attributes:
      record: over [B, ...].
      log_scale: of each element, broadcasts to [B, ...].
    """

    record: Any
    log_scale: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        scales = jnp.broadcast_to(self.log_scale, x.shape).reshape(len(x), -1)
        return self.record.log_prob(x) - scales.sum(axis=1)

    def elementwise(self, x: Array) -> Array:
        """Nats of each element, [B, ...]: of a `DiagGaussian`, whose elements are independent."""
        parameters = (jnp.broadcast_to(each, x.shape).reshape(-1) for each in self.record)
        return type(self.record)(*parameters).log_prob(x.reshape(-1)).reshape(x.shape) - self.log_scale

    def sample(self, *, key: PRNGKey) -> Array:
        """A draw, standardised."""
        return self.record.sample(key=key)

    def mode(self) -> Array:
        """The record's."""
        return self.record.mode()

    @property
    def mean(self) -> Array:
        """The record's."""
        return self.record.mean


class TableLikelihood(nn.Module):
    """A decoder's output [B, `num_parameters`] -> `Heterogeneous` over rows [B, C].

    Of each real column a Gaussian's mean and variance, in nats of the column's own units; of counts a negative
    binomial's mean and dispersion; of categories their logits. Columns of a kind share one record.

    Attributes:
      columns: of the set, `dataset.domain.columns`.
      lowest: below which no standardised column's log-variance goes.
    """

    columns: tuple[Column, ...]
    lowest: float = -7.0

    @property
    def num_parameters(self) -> int:
        """How many numbers the decoder gives for a row."""
        return sum(map(_parameters, self.columns))

    @nn.compact
    def __call__(self, output: Array) -> Heterogeneous:
        """The record."""
        if output.ndim != 2 or output.shape[1] != self.num_parameters:
            raise ValueError(f"the decoder's output must be (B, {self.num_parameters}), got {output.shape}")
        groups = _groups(self.columns)
        starts = np.cumsum([0, *map(_parameters, self.columns)])
        records: list[Any] = []
        for (kind, _), members in groups.items():
            size = _parameters(self.columns[members[0]])
            places = np.array([starts[i] + np.arange(size) for i in members])
            parameters = output[:, places]  # [B, members, size]
            if kind == "categories":
                records.append(Categorical(parameters))
            elif kind == "counts":
                records.append(PixelScale(NegativeBinomial)(parameters))
            else:
                log_scale = jnp.asarray([np.log(self.columns[i].scale) for i in members], output.dtype)[None]
                records.append(InUnits(PixelScale(DiagGaussian, self.lowest)(parameters), log_scale))
        return Heterogeneous(records, list(groups.values()))


def _groups(columns: tuple[Column, ...]) -> dict[tuple[str, int], list[int]]:
    """The places of the columns of each kind and number of categories."""
    groups: dict[tuple[str, int], list[int]] = {}
    for i, column in enumerate(columns):
        groups.setdefault((column.kind, len(column.categories)), []).append(i)
    return groups


def _parameters(column: Column) -> int:
    return len(column.categories) if column.kind == "categories" else 2
