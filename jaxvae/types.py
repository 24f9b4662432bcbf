"""The shapes of things that pass between rooms: aliases and protocols, no code that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax

Array = jax.Array  # of JAX, a tracer too
PRNGKey = jax.Array  # a typed key, from jax.random.key
PyTree = Any  # arrays in nested dictionaries, tuples and records
Metrics = dict[str, Array]  # scalars, each a mean over the batch, in nats unless its name says otherwise
Batch = dict[str, Array]  # "x" [B, ...], "index" [B] int32; optional "label", "condition", "observed", "weight"
Schedule = Callable[[Array], Array]  # an optax schedule: step -> value


class Column(NamedTuple):
    """What a column of a table holds.

    Attributes:
      name: its title.
      kind: "real", "counts" or "categories".
      categories: the values of "categories"; x holds their places here, from 0.
      location: of "real": x is the value less this, ...
      scale: ... divided by this.
    """

    name: str
    kind: Literal["real", "counts", "categories"]
    categories: tuple[Any, ...] = ()
    location: float = 0.0
    scale: float = 1.0


class Distribution(Protocol):
    """A record over examples [B, ...]: a posterior, a likelihood, or what a prior says given a condition."""

    @property
    def mean(self) -> Array:
        """Their means, [B, ...]."""
        ...

    def log_prob(self, x: Array) -> Array:
        """One number for each example, [B] nats."""
        ...

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw [B, ...] with one key, or with one for each example."""
        ...


class Likelihood(Distribution, Protocol):
    """What a decoder's output stands for: any record of `jaxvae.distributions`."""

    def mode(self) -> Array:
        """The most probable value of each example, [B, ...]."""
        ...


class Prior(Protocol):
    """A record over latents: of every example alike, or of each given its condition."""

    def log_prob(self, z: Array) -> Array:
        """One number for each example, [B] nats."""
        ...

    @property
    def sample(self) -> Callable[..., Array]:
        """`sample(num, key=)` of a prior that is the same for every example, else `sample(key=)` of each example."""
        ...


class Terms(NamedTuple):
    """What every latent-variable model says about a batch of B at S draws z ~ q(z|x); nats.

    Attributes:
      log_likelihood: log p(x|z), [S, B].
      log_ratio: log p(z) - log q(z|x) at the same draws, [S, B].
      rates: the name of a group of latents -> its part of the rate. Where KL(q || p) has a closed form, that of each
        latent, [1, B, D], or [S, B, D] where it depends on draws of the groups above; otherwise
        log q(z|x) - log p(z) at the draws, [S, B, 1].
    """

    log_likelihood: Array
    log_ratio: Array
    rates: dict[str, Array]


class LatentModel(Protocol):
    """A Linen module that objectives and estimates can read: they call `terms` and nothing else."""

    def apply(self, variables: PyTree, *inputs: Any, **options: Any) -> Any:
        """Run a method of the module, as Flax does."""
        ...

    @property
    def terms(self) -> Callable[..., Terms]:
        """`terms(*inputs, key, num_samples)` of x [B, ...], or of x and a condition; the key has shape () or [B]."""
        ...


class Quantized(NamedTuple):
    """What a quantiser makes of vectors.

    Attributes:
      vectors: those of the codes chosen, [B, *positions, D].
      indices: of these codes, [B, *positions] int32; with an axis more where a position takes several. `num_codes`,
        which is none, where a vector is NaN and so is that of its code.
      commitment: how far the vectors were from their codes, [B]: the squared difference, its mean over the example.
      loss: what moves parameters of the quantiser's own, [B]; zero where it has none.
      metrics: scalars that are means over the examples; what looks at the batch as a whole comes from `update`.
      latent: `vectors` with the gradient that the decoder's is to take, [B, *positions, D]; None: it goes to the
        encoder as it is (`codebook.straight_through`).
      encoded: what the codes were chosen for, as `update` is to be given it, [B, *positions, D']: projected, say, or
        the rests of a residual quantiser one after the other. None: the encoder's vectors.
    """

    vectors: Array
    indices: Array
    commitment: Array
    loss: Array
    metrics: Metrics
    latent: Array | None = None
    encoded: Array | None = None


@runtime_checkable
class Quantizer(Protocol):
    """A codebook or its like. Parameters are what the gradient moves, the state is moved by `update` alone.

    One that draws has a true attribute `needs_key`; in training its call then gets `key=`, a key for each example [B].
    """

    @property
    def num_codes(self) -> int | tuple[int, ...]:
        """The number of codes of a position, or of each of its parts."""
        ...

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Parameters and state for vectors of D dimensions, each a (nested) dictionary of arrays, or `{}` for none.

        `encoded` [..., D], the encoder's vectors, seeds them where it is given.
        """
        ...

    def __call__(self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None) -> Quantized:
        """Quantise vectors [B, *positions, D]; where `mask` [B, *positions] is false they count nowhere."""
        ...

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The next state, after a batch and what it was quantised to, and scalars about the change.

        `encoded` is that of the `Quantized`, where it has one.
        """
        ...

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices; NaN for those out of range."""
        ...


class CodePrior(Protocol):
    """A Linen module that is a density over arrays of code indices, such as `PixelCNN` or `TransformerPrior`.

    `jaxvae.objectives.code_prior_loss` also gives `log_prob` what such a module says it takes: the label where it has
    an attribute `num_classes`, `prefix=` where it has one of that name, `mask=` where the batch has a mask.
    """

    def apply(self, variables: PyTree, *inputs: Any, **options: Any) -> Any:
        """Run a method of the module, as Flax does."""
        ...

    def log_prob(self, indices: Array, *condition: Array) -> Array:
        """One number for each example, [B] nats."""
        ...


class LossFn(Protocol):
    """An objective: where models and training meet."""

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Return the scalar loss, the new model state and the metrics."""
        ...


class Prepare(Protocol):
    """Turns stored examples into what a model sees, inside the compiled step."""

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        """Return the batch with "x" as the model sees it: floating."""
        ...


class LogWeightsFn(Protocol):
    """Importance weights log p(x, z) - log q(z | x), [S, B] nats, with z drawn from q."""

    def __call__(self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int) -> Array:
        """Return one log weight for each sample and example."""
        ...


class Feed(Protocol):
    """Hands the epoch program its examples: the same ones for the same steps, however they are asked for."""

    steps_per_epoch: int
    total_steps: int
    batch_size: int
    chunk: int  # n, the most steps of one call

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return a source of examples and the rows [n, B] of it that steps `start` to `start + count` take.

        n is the same in every call and `count` at most n; rows past `count` hold -1. Where the source is split over
        devices, so is each row, and its numbers count within the device's part of the source.
        """
        ...


class Checkpointer(Protocol):
    """Where `fit` puts states that must survive it."""

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint that is known to be sound."""
        ...

    def save(self, state: PyTree, *, value: float | None = None) -> None:
        """Save a state; the smallest finite `value` so far marks the best one."""
        ...

    def save_failed(self, state: PyTree) -> Path:
        """Save a state that stopped at a non-finite step, apart from the others."""
        ...

    def wait(self) -> None:
        """Return when everything saved so far is on disk; raise if a save failed."""
        ...
