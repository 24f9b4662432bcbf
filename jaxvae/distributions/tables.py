"""Likelihoods of tables: what is missing counts nowhere, and each group of columns has a record of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least
from jaxvae.distributions.counts import (
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from jaxvae.distributions.gaussian import DiagGaussian
from jaxvae.distributions.pixels import Bernoulli, Categorical, DiscretizedLogistic, UnitInterval
from jaxvae.distributions.reals import ContinuousBernoulli, Laplace, LogNormal, StudentT
from jaxvae.keys import sample_keys
from jaxvae.types import Array, PRNGKey

# Their own types: a subclass may have another log_prob.
INDEPENDENT = (
    *(Bernoulli, Categorical, ContinuousBernoulli, DiagGaussian, DiscretizedLogistic, Laplace, LogNormal, StudentT),
    *(NegativeBinomial, Poisson, UnitInterval, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson),
)


class Masked(NamedTuple):
    """A record whose `log_prob` sums over the observed elements alone.

    What stands in place of the others, a NaN as well, changes neither the value nor a gradient. The elements must be
    independent given the record's parameters: those of every likelihood here are, and a record of yours says so by a
    method `elementwise(x)`, the nats of each element, [B, ...]. Draws, the mean and the mode are the record's own: of
    all elements.

    Attributes:
      record: a likelihood over [B, ...].
      observed: bool, [B, ...] or what broadcasts to it; true where a value counts.

    Raises (`log_prob`):
      TypeError: `observed` is not boolean, or nothing says that the record's elements are independent.
      ValueError: `observed`, or a parameter of the record, does not broadcast to x.

    References:
      Nazábal et al., Handling Incomplete Heterogeneous Data Using VAEs, 2020.
    """

    record: Any
    observed: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; zero for an example of which nothing is observed."""
        return self.elementwise(x).reshape(len(x), -1).sum(axis=1)

    def elementwise(self, x: Array) -> Array:
        """Nats of each element of x, zero where it is not observed."""
        x, observed = jnp.asarray(x), jnp.asarray(self.observed)
        if observed.dtype != bool:
            raise TypeError(f"observed must be bool, true where a value counts, got {observed.dtype}")
        try:
            observed = jnp.broadcast_to(observed, x.shape)
        except ValueError:
            raise ValueError(f"observed must broadcast to x {x.shape}, got {observed.shape}") from None
        some_value = jnp.ones((), x.dtype)  # which every likelihood here can take
        return jnp.where(observed, _of_each_element(self.record, jnp.where(observed, x, some_value)), 0)

    def sample(self, *, key: PRNGKey) -> Array:
        """A draw of all elements."""
        return self.record.sample(key=key)

    def mode(self) -> Array:
        """The record's mode."""
        return self.record.mode()

    @property
    def mean(self) -> Array:
        """The record's mean."""
        return self.record.mean


@partial(jax.tree_util.register_dataclass, data_fields=["records"], meta_fields=["columns"])
@dataclass(frozen=True)
class Heterogeneous:
    """The columns of a table [B, C] in groups, each with a record of its own.

    Such as `DiagGaussian` or `StudentT` for real numbers, `LogNormal` for positive ones, `NegativeBinomial` for counts,
    `Categorical` for categories 0 .. V-1 and `Bernoulli` for what is 0 or 1. The table has one type: a group whose
    record has integer modes, as `Categorical` does, is given its columns as integers, every other one as floating
    numbers. Where values are missing, wrap it: `Masked(Heterogeneous(...), observed)`. For a table of three columns,

        def likelihood(output):  # the decoder's, [B, 5]
            mean, log_rate, logits = jnp.split(output, (1, 2), axis=1)
            groups = DiagGaussian(mean, 0.0), Poisson(log_rate), Categorical(logits[:, None])
            return Heterogeneous(groups, [[0], [1], [2]])

    Attributes:
      records: one for each group, over [B, columns of the group].
      columns: those of each group, in the order of its record.

    Raises (when it is made):
      TypeError: a column is no integer.
      ValueError: there are not as many groups as records, or the columns are not each of 0 .. C-1 once.

    References:
      Nazábal et al., Handling Incomplete Heterogeneous Data Using VAEs, 2020.
    """

    records: Sequence[Any]
    columns: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        """Check the groups, and keep them as tuples: they are a part of the compiled program."""
        groups = tuple(tuple(group) for group in self.columns)
        order = [column for group in groups for column in group]
        at_least(0, columns=order)
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"columns must be each of 0 .. {len(order) - 1} once, got {groups}")
        if len(groups) != len(self.records):
            raise ValueError(f"there must be a record for each group, got {len(self.records)} for {len(groups)} groups")
        object.__setattr__(self, "records", tuple(self.records))
        object.__setattr__(self, "columns", groups)

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of a table [B, C].

        Raises:
          TypeError: x holds no real numbers.
          ValueError: it is not [B, C].
        """
        return jnp.stack([record.log_prob(part) for record, part in self._groups_of(x)]).sum(axis=0)

    def elementwise(self, x: Array) -> Array:
        """Nats of each element, [B, C]."""
        return self._table([_of_each_element(record, part) for record, part in self._groups_of(x)])

    def sample(self, *, key: PRNGKey) -> Array:
        """A table [B, C], floating."""
        keys = sample_keys(key, len(self.records))
        return self._table([_values(record, record.sample(key=keys[i])) for i, record in enumerate(self.records)])

    def mode(self) -> Array:
        """The most probable value of each element, floating."""
        return self._table([_values(record, record.mode()) for record in self.records])

    @property
    def mean(self) -> Array:
        """What each record calls its mean, in the table's units: of a `Categorical` the expected value, 0 .. V-1."""
        return self._table([_mean_of_values(record) for record in self.records])

    def _groups_of(self, x: Array) -> list[tuple[Any, Array]]:
        """The records, and their columns in the type that they take."""
        x, num_columns = jnp.asarray(x), sum(map(len, self.columns))
        if x.ndim != 2 or x.shape[1] != num_columns:
            raise ValueError(f"x must be [B, {num_columns}], got {x.shape}")
        if not (jnp.issubdtype(x.dtype, jnp.integer) or jnp.issubdtype(x.dtype, jnp.floating)):
            raise TypeError(f"x must be integer or floating, got {x.dtype}")
        pairs = zip(self.records, self.columns, strict=True)
        return [(record, _as_events(record, x[:, np.array(group, int)])) for record, group in pairs]

    def _table(self, parts: list[Array]) -> Array:
        """Columns in the order of the table."""
        order = np.array([column for group in self.columns for column in group], int)
        dtype = jnp.promote_types(jnp.result_type(*parts), jnp.float32)
        return jnp.concatenate([part.astype(dtype) for part in parts], axis=1)[:, np.argsort(order)]


def _as_events(record: Any, x: Array) -> Array:
    """Columns in the type that a record's `log_prob` takes: integers where its mode is one."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if not jnp.issubdtype(jax.eval_shape(record.mode).dtype, jnp.integer):
        return x if floating else x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if floating:
        x = jnp.where(jnp.isnan(x), -1, jnp.rint(x))  # out of range: a cast would make it 0
    return x.astype(jnp.int32)


def _values(record: Any, events: Array) -> Array:
    """A record's events; of a `Categorical` NaN for what is none of its values."""
    if not isinstance(record, Categorical):
        return events
    return jnp.where(events < record.logits.shape[-1], events, jnp.nan)


def _mean_of_values(record: Any) -> Array:
    """A record's mean, which of a `Categorical` is of intensities in [0, 1]."""
    return record.mean * (record.logits.shape[-1] - 1) if isinstance(record, Categorical) else record.mean


def _of_each_element(record: Any, x: Array) -> Array:
    """Nats of each element of x [B, ...]: to a record of independent elements, each may be an example by itself."""
    if hasattr(record, "elementwise"):
        return record.elementwise(x)
    of = record.symmetric if isinstance(record, UnitInterval) else record
    if type(of) not in INDEPENDENT:
        raise TypeError(
            f"nothing says that the elements of a {type(of).__name__} are independent of each other, so it cannot "
            "be asked for some of them alone: give it a method elementwise(x), the nats of each element of x [B, ...]"
        )

    def alone(parameter: Array) -> Array:
        own = jnp.shape(parameter)[x.ndim :]  # of one element, such as the logits of its categories
        try:
            return jnp.broadcast_to(parameter, x.shape + own).reshape(x.size, *own)
        except ValueError:
            raise ValueError(
                f"a parameter of {type(record).__name__} must broadcast to x {x.shape}, got {jnp.shape(parameter)}: "
                "the elements must be independent"
            ) from None

    return jax.tree.map(alone, record).log_prob(x.reshape(-1)).reshape(x.shape)
