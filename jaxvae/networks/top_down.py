"""The networks of a top-down VAE: what climbs from x, the rungs that it comes down by, and what they end in.

Dense, or convolutional in 1, 2 or 3 dimensions; residual blocks whose normalisation looks at one example alone.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least, check_shape
from jaxvae.convolution import Conv, ConvTranspose, lecun_normal, widen
from jaxvae.networks._arrays import as_tuples, check_not_empty, crop, flatten
from jaxvae.networks.mlp import LOG_VAR_LIMIT
from jaxvae.networks.scales import soft_bound
from jaxvae.types import Array

Normalization = Callable[..., nn.Module]


class Stage(NamedTuple):
    """Groups of latents of one resolution.

    Attributes:
      width: channels of the features there.
      latents: channels of each group, the one at x first; none where a stage only passes on.
      shrink: how many times smaller each axis is than in the stage before, or than x in the first; 1 keeps the size.
        None: vectors, without positions.
    """

    width: int
    latents: tuple[int, ...]
    shrink: int | None = None


class BottomUp(nn.Module):
    """x [B, ...] -> features of every group, z_1 first: [B, *positions, width] or [B, width], those of its stage.

    A stage begins with a strided convolution, or a dense layer where it has no positions, and goes on by residual
    blocks.

    Attributes:
      stages: from x upwards.
      blocks: residual blocks of a stage.
      bottleneck: how many times fewer channels there are inside a block.
      windows: how many positions of each axis its layers see, one after the other; odd. (3, 3) sees farther than
        (3, 1) and costs more; (1, 3, 3, 1) with a bottleneck of 4 is the block of Child (Very Deep VAEs, 2021). Vectors
        have no positions: there it says how many dense layers there are.
      activation: between the layers.
      normalization: makes the layer before them, such as `functools.partial(nn.GroupNorm, num_groups=8)`; None for
        none. Not `nn.BatchNorm`, which looks at the other examples.
      checkpoint: whether a block is computed again in the backward pass in place of being kept in memory.
      dtype: what the network computes in.
      input_shape: of x without the batch, which is then checked.
    """

    stages: Sequence[Stage]
    blocks: int = 1
    bottleneck: int = 1
    windows: Sequence[int] = (3, 1)
    activation: Callable[[Array], Array] = nn.silu
    normalization: Normalization | None = nn.LayerNorm
    checkpoint: bool = False
    dtype: DTypeLike | None = None
    input_shape: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        self.stages = checked_stages(self.stages)
        if self.input_shape is not None:
            as_tuples(self, "input_shape")
        at_least(0, blocks=self.blocks)
        _check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Climb."""
        check_not_empty(x)
        if self.input_shape is not None:
            check_shape((0, *self.input_shape), x.shape)
        features, of_groups, block = x, [], 0
        for stage in self.stages:
            if stage.shrink is None:
                features = nn.Dense(stage.width, dtype=self.dtype)(flatten(features))
            else:
                features = _shrink(stage, features, self.dtype)
            for _ in range(self.blocks):
                features = features + _body(self, stage.width, stage.width, name=f"block_{block}")(features)
                block += 1
            of_groups += [features] * len(stage.latents)
        return tuple(of_groups)


class Rung(nn.Module):
    """One group of latents of a `TopDownVAE`: its prior, what x says of it, and what the groups below are told.

    Attributes:
      latent: channels of the group.
      width: channels of the state.
      positions: of state and group; () for vectors.
      blocks: residual blocks after the latent has joined the state.
      conditional: whether the groups above tell prior and posterior of this one. If not, its prior is N(0, I) and its
        posterior sees x alone: the variational ladder autoencoder (Zhao, Song and Ermon, 2017).
      bottleneck, windows, activation, normalization, checkpoint, dtype: as in `BottomUp`.
    """

    latent: int
    width: int
    positions: Sequence[int] = ()
    blocks: int = 1
    conditional: bool = True
    bottleneck: int = 1
    windows: Sequence[int] = (3, 1)
    activation: Callable[[Array], Array] = nn.silu
    normalization: Normalization | None = nn.LayerNorm
    checkpoint: bool = False
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "positions")
        at_least(1, latent=self.latent, width=self.width, positions=self.positions)
        at_least(0, blocks=self.blocks)
        _check_sizes(self)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers; those that no method runs have no parameters."""
        body = functools.partial(_body, self, self.width)
        zeros = nn.initializers.zeros
        self.enter = nn.Dense(math.prod(self.positions) * self.width, dtype=self.dtype)
        self.refine = Conv(self.width, (1,) * len(self.positions), dtype=self.dtype)
        self.before = body(2 * self.latent + self.width, zeros)  # so that p starts at N(0, I)
        self.of_x = body(2 * self.latent)
        self.project = nn.Dense(self.width, dtype=self.dtype)
        self.after = [body(self.width) for _ in range(self.blocks)]

    @nn.compact
    def start(self, num: int) -> Array:
        """What is known before anything was said, [num, *positions, width]."""
        state = self.param("start_state", nn.initializers.normal(1.0), (*self.positions, self.width), jnp.float32)
        return jnp.broadcast_to(state, (num, *state.shape))

    def prior(self, state: Array) -> tuple[Array, Array, Array]:
        """The state at this rung, and mean and log-variance of the group given those above."""
        state = self._placed(state)
        if not self.conditional:
            zeros = jnp.zeros((*state.shape[:-1], self.latent))
            return state, zeros, zeros
        mean, log_var, rest = jnp.split(self.before(state), (self.latent, 2 * self.latent), axis=-1)
        return state + rest, widen(mean), soft_bound(widen(log_var), LOG_VAR_LIMIT)

    def posterior(self, state: Array, features: Array) -> tuple[Array, Array]:
        """What x says of the group beside those above: mean and log-variance."""
        if features.shape[:-1] != state.shape[:-1]:
            raise ValueError(
                f"the encoder's features {features.shape} must have the positions of this rung's state {state.shape}"
            )
        seen = jnp.concatenate([state, features], axis=-1) if self.conditional else features
        mean, log_var = jnp.split(self.of_x(seen), 2, axis=-1)
        return widen(mean), soft_bound(widen(log_var), LOG_VAR_LIMIT)

    def merge(self, state: Array, latent: Array) -> Array:
        """The state after the group."""
        state = state + self.project(latent)
        for block in self.after:
            state = state + block(state)
        return state

    def _placed(self, state: Array) -> Array:
        """The state of the rung above, with this one's positions and width."""
        shape = (*self.positions, self.width)
        if state.shape[1:] == shape:
            return state
        if state.ndim == 2:
            return self.enter(state).reshape(-1, *shape)
        if state.ndim != len(shape) + 1:
            raise ValueError(f"a rung of positions {self.positions} cannot stand below a state {state.shape}")
        for axis, (size, wanted) in enumerate(zip(state.shape[1:-1], self.positions, strict=True), start=1):
            state = jnp.repeat(state, -(-wanted // size), axis=axis)
        return self.refine(crop(state, self.positions))


class StateDecoder(nn.Module):
    """The state below z_1, [N, *positions, width] or [N, width] -> a likelihood's parameters, [N, *output_shape].

    Attributes:
      output_shape: of the parameters of one example.
      shrink: how many times smaller each axis of the state is than that of x; None: the state is vectors.
      hidden: channels of one more layer, which has the size of x; 0: none.
      activation, normalization, dtype: as in `BottomUp`.
    """

    output_shape: Sequence[int]
    shrink: int | None = None
    hidden: int = 0
    activation: Callable[[Array], Array] = nn.silu
    normalization: Normalization | None = nn.LayerNorm
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "output_shape")
        at_least(1, output_shape=self.output_shape)
        at_least(0, hidden=self.hidden)
        _check_normalization(self.normalization)
        super().__post_init__()

    @nn.compact
    def __call__(self, state: Array) -> Array:
        """Grow to the size of x."""
        shape, space = tuple(self.output_shape), state.ndim - 2
        features, shrink = self.activation(_normalized(self, state)), self.shrink
        if shrink is None:
            if self.hidden:
                features = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name="grow")(features))
            return widen(nn.Dense(math.prod(shape), dtype=self.dtype, name="output")(features)).reshape(-1, *shape)
        spatial, channels = shape[:space], math.prod(shape[space:])
        if self.hidden:
            features = self.activation(crop(self._growing(self.hidden, shrink, space, "grow")(features), spatial))
            shrink = 1
        output = self._growing(channels, shrink, space, "output")(features)
        return widen(crop(output, spatial)).reshape(-1, *shape)

    def _growing(self, features: int, shrink: int, space: int, name: str) -> nn.Module:
        if shrink == 1:
            return Conv(features, (3,) * space, dtype=self.dtype, name=name)
        return ConvTranspose(features, (2 * shrink,) * space, strides=shrink, dtype=self.dtype, name=name)


def checked_stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages as they can be hashed.

    Raises:
      TypeError: one is no stage.
      ValueError: sizes that do not fit; no group at all; positions above vectors.
    """
    made = []
    for stage in stages:
        if not isinstance(stage, tuple) or len(stage) not in (2, 3) or not isinstance(stage[1], Sequence):
            raise TypeError(
                "stages must be of jaxvae.networks.Stage(width, latents, shrink), with the channels of each group in "
                f"latents, such as Stage(24, (1, 1), 2), got {stage!r}"
            )
        width, latents, *shrink = stage
        made.append(Stage(width, tuple(latents), *shrink))
        at_least(1, width=width, latents=made[-1].latents)
        if made[-1].shrink is not None:
            at_least(1, shrink=made[-1].shrink)
            if len(made) > 1 and made[-2].shrink is None:
                raise ValueError(f"stage {len(made) - 1} has positions, but stands above one without: {made}")
    if not made or not made[-1].latents:
        raise ValueError(f"the last stage must have a group of latents, got {made}")
    return tuple(made)


def _shrink(stage: Stage, x: Array, dtype: DTypeLike | None) -> Array:
    if x.ndim < 3:
        raise ValueError(f"a stage with positions needs x [B, *positions, C], got {x.shape}: use Stage(shrink=None)")
    window = 3 if stage.shrink == 1 else 2 * (stage.shrink or 1)
    return Conv(stage.width, (window,) * (x.ndim - 2), strides=stage.shrink or 1, dtype=dtype)(x)


class Body(nn.Module):
    """Normalisation, then an activation and a layer for each window: [..., F] -> `features`.

    A layer sees its window's positions of each axis, or is dense where there are none; all but the last have `hidden`
    channels.
    """

    hidden: int
    features: int
    kernel_init: nn.initializers.Initializer = lecun_normal
    windows: Sequence[int] = (3, 1)
    activation: Callable[[Array], Array] = nn.silu
    normalization: Normalization | None = nn.LayerNorm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Run the layers."""
        space, features = x.ndim - 2, _normalized(self, x)
        for window in self.windows[:-1]:
            features = self._layer(window, self.hidden, space)(self.activation(features))
        last = self._layer(self.windows[-1], self.features, space, kernel_init=self.kernel_init, name="output")
        return last(self.activation(features))

    def _layer(self, window: int, features: int, space: int, **options: Any) -> nn.Module:
        if space and window > 1:
            return Conv(features, (window,) * space, dtype=self.dtype, **options)
        return nn.Dense(features, dtype=self.dtype, **options)


def _body(
    network: Any, width: int, features: int, kernel_init: Any = lecun_normal, name: str | None = None
) -> nn.Module:
    """A body of so wide a state, with the options of the network that it belongs to."""
    kind: Any = nn.remat(Body) if network.checkpoint else Body
    options = {name: getattr(network, name) for name in ("windows", "activation", "normalization", "dtype")}
    hidden = max(1, width // network.bottleneck)
    made: nn.Module = kind(hidden, features, kernel_init, **options, name=name)
    return made


def _normalized(network: Any, x: Array) -> Array:
    """x after the network's normalisation, where it has one."""
    if network.normalization is None:
        return x
    normalized: Array = network.normalization(dtype=network.dtype)(x)
    return normalized


def _check_sizes(network: BottomUp | Rung) -> None:
    """Raise for what both have."""
    as_tuples(network, "windows")
    at_least(1, bottleneck=network.bottleneck, windows=network.windows)
    if not network.windows or not all(window % 2 for window in network.windows):
        raise ValueError(f"windows must be odd, one for each layer of a block, got {network.windows}")
    _check_normalization(network.normalization)


def _check_normalization(normalization: Normalization | None) -> None:
    """Raise `ValueError` for a normalisation that looks at the other examples."""
    kind = normalization
    while isinstance(kind, functools.partial):
        kind = kind.func
    if kind is nn.BatchNorm:
        raise ValueError(
            "normalization must look at one example alone, such as nn.LayerNorm or "
            "functools.partial(nn.GroupNorm, num_groups=8), got nn.BatchNorm"
        )
