"""Convolutions that are fast on every backend, inside a `lax.scan` too.

XLA on CPU has two traps: the gradient of a convolution inside a scan is many times slower than outside,
and the weight gradient of a transposed convolution is slow everywhere. So a CPU gets matrix products here,
and every other platform the stock operation; the two agree to rounding. `benchmarks/convolution.py` measures
the gain.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike

from jaxvae.types import Array, PRNGKey

P = ParamSpec("P")
Pads = Sequence[tuple[int, int]]  # low and high for each spatial axis; a negative one crops

# Channels last, by the rank of the input.
LAYOUTS = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC"), 5: ("NDHWC", "DHWIO", "NDHWC")}


def lecun_normal(key: PRNGKey, shape: Sequence[int], dtype: Any = None, out_sharding: Any = None) -> Array:
    """`nn.initializers.lecun_normal()`, in a form that pickles."""
    return nn.initializers.lecun_normal()(key, shape, dtype, out_sharding)


class Conv(nn.Module):
    """`conv` and a bias, [B, *spatial, C] -> [B, *output, features]; its parameters fit `flax.linen.Conv`.

    Parameters are float32; `dtype` is the type of the computation, by default that of input and parameters
    together.
    """

    features: int
    window: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer = lecun_normal
    dilation: int = 1

    def __post_init__(self) -> None:
        """Make tuples of sequences: a list could not be hashed."""
        _freeze(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the convolution of `x`."""
        x, kernel, bias = _promoted(self, x)
        y = conv(x, kernel, strides=self.strides, padding=self.padding, dilation=self.dilation)
        return _add_bias(y, bias)


class ConvTranspose(nn.Module):
    """`conv_transpose` and a bias; otherwise as `Conv`. Its parameters fit `flax.linen.ConvTranspose`."""

    features: int
    window: Sequence[int]
    strides: int | Sequence[int] = 1
    padding: str = "SAME"
    use_bias: bool = True
    dtype: DTypeLike | None = None
    kernel_init: Initializer = lecun_normal

    def __post_init__(self) -> None:
        """Make tuples of sequences: a list could not be hashed."""
        _freeze(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the transposed convolution of `x`."""
        x, kernel, bias = _promoted(self, x)
        return _add_bias(conv_transpose(x, kernel, strides=self.strides, padding=self.padding), bias)


def conv(
    x: Array, kernel: Array, *, strides: int | Sequence[int] = 1, padding: str = "SAME", dilation: int = 1
) -> Array:
    """Convolution in 1, 2 or 3 dimensions, channels last; equals `lax.conv_general_dilated`.

    Args:
      x: `[B, *spatial, C]` floating.
      kernel: `[*window, C, O]`, of the type of `x`.
      strides: one for all spatial axes, or one for each.
      padding: "SAME" (output: size / stride, rounded up) or "VALID".
      dilation: steps between the places of a window, along every axis; above 1 only with strides of 1.

    Returns:
      `[B, *output, O]` in the type of `x`; narrow types accumulate in float32.

    Raises:
      TypeError: `x` is not floating, `kernel` has another type, or the dilation is no integer.
      ValueError: shapes, strides, padding and dilation do not fit together.
    """
    strides = _checked_strides(x, kernel, strides, padding)
    if isinstance(dilation, bool) or not isinstance(dilation, int | np.integer):
        raise TypeError(f"dilation must be one integer, for all axes, got {dilation!r}")
    if dilation < 1 or (dilation > 1 and math.prod(strides) > 1):
        raise ValueError(f"dilation must be 1, or above 1 with strides of 1, got {dilation} with strides {strides}")
    spatial, window = x.shape[1:-1], tuple((w - 1) * dilation + 1 for w in kernel.shape[:-2])
    if padding == "VALID" and any(n < w for n, w in zip(spatial, window, strict=True)):
        raise ValueError(f'padding "VALID" needs x to cover the window {window} of kernel, got {x.shape}')
    if math.prod(window) == math.prod(strides) == 1:
        return _matmul(x, kernel)

    pads = []
    for n, w, s in zip(spatial, window, strides, strict=True):
        output = -(-n // s) if padding == "SAME" else (n - w) // s + 1
        extent = (output - 1) * s + w  # what the windows cover
        low = max(extent - n, 0) // 2 if padding == "SAME" else 0
        pads.append((low, extent - n - low))

    def products(x: Array, kernel: Array) -> Array:
        return _conv_products(widen(x), widen(kernel), strides, pads, dilation).astype(x.dtype)

    def stock(x: Array, kernel: Array) -> Array:
        gaps = (dilation,) * len(strides)
        return lax.conv_general_dilated(
            x, kernel, strides, padding, rhs_dilation=gaps, dimension_numbers=LAYOUTS[x.ndim]
        )

    return lax.platform_dependent(x, kernel, cpu=products, default=stock)


def conv_transpose(x: Array, kernel: Array, *, strides: int | Sequence[int] = 1, padding: str = "SAME") -> Array:
    """Transposed convolution, channels last; equals `lax.conv_transpose` with `transpose_kernel=False`.

    Args:
      x: `[B, *spatial, C]` floating.
      kernel: `[*window, C, O]`, of the type of `x`.
      strides: one for all spatial axes, or one for each.
      padding: "SAME" (output: size · stride) or "VALID" (output: size · stride + max(window - stride, 0)).

    Returns:
      `[B, *output, O]` in the type of `x`; narrow types accumulate in float32.

    Raises:
      TypeError: `x` is not floating, or `kernel` has another type.
      ValueError: shapes, strides and padding do not fit together.
    """
    strides = _checked_strides(x, kernel, strides, padding)

    def products(x: Array, kernel: Array) -> Array:
        return _conv_transpose_products(widen(x), widen(kernel), strides, padding).astype(x.dtype)

    def stock(x: Array, kernel: Array) -> Array:
        return lax.conv_transpose(x, kernel, strides, padding, dimension_numbers=LAYOUTS[x.ndim])

    return lax.platform_dependent(x, kernel, cpu=products, default=stock)


def _not_inlined(*static: int) -> Callable[[Callable[P, Array]], Callable[P, Array]]:
    """Have XLA fuse the function with nothing: on CPU whoever reads its result would otherwise compute it again.

    Args:
      *static: positions of the arguments that are no arrays.
    """

    def decorate(function: Callable[P, Array]) -> Callable[P, Array]:
        compiled = jax.jit(function, static_argnums=static)

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> Array:
            with set_xla_metadata(inlineable="false"):
                return compiled(*args, **kwargs)

        return call

    return decorate


def _conv_products(x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads, dilation: int = 1) -> Array:
    """Convolution as one matrix product, on the phases of `x` where the strides divide the window.

    The s·s phases of an image are channels of a smaller one, and the convolution over them has stride 1: its
    slices are contiguous, and its axes can be shifted. Other windows would need zeros in the kernel, which
    is slower.
    """
    unit = (1,) * len(strides)
    if strides != unit and all(w % s == 0 for w, s in zip(kernel.shape, strides, strict=False)):
        features = kernel.shape[-1]
        x = _split_phases(_pad(x, pads), strides, first_axis=1)
        x = x.reshape(*x.shape[: len(strides) + 1], -1)
        kernel = _split_phases(kernel, strides, first_axis=0)
        kernel = kernel.reshape(*kernel.shape[: len(strides)], -1, features)
        strides, pads = unit, [(0, 0)] * len(unit)
    shifted = _shifted_axes(kernel.shape) if strides == unit else 0
    return _beside_and_shifted(x, kernel, strides, pads, shifted, dilation)


def _shifted_axes(shape: tuple[int, ...]) -> int:
    """How many of the first axes are shifted: the split that writes least, g·C inputs and s·O outputs a position."""
    *window, channels, features = shape
    splits = [(math.prod(window[i:]), math.prod(window[:i])) for i in range(len(window) + 1)]
    writes = [(beside * channels if beside > 1 else 0) + shifted * features for beside, shifted in splits]
    return int(np.argmin(writes))


def _conv_transpose_products(x: Array, kernel: Array, strides: tuple[int, ...], padding: str) -> Array:
    """Transposed convolution as a convolution of stride 1 whose s·s·O outputs are the phases of the result.

    Adding up interior-padded maps instead was slower in every layer tried.
    """
    rank, features = len(strides), kernel.shape[-1]
    sizes = list(zip(x.shape[1:-1], kernel.shape[:-2], strides, strict=True))
    taps = [-(-w // s) for _, w, s in sizes]

    # Input j reaches outputs j·s to j·s + w - 1, last tap of the window first; padding crops that range.
    kernel = _pad(kernel, [(t * s - w, 0) for t, (_, w, s) in zip(taps, sizes, strict=True)], first_axis=0)
    kernel = lax.rev(_split_phases(kernel, strides, first_axis=0), range(rank, 2 * rank))
    kernel = jnp.moveaxis(kernel, -2, rank).reshape(*taps, x.shape[-1], -1)

    pads, crops = [], []
    for t, (n, w, s) in zip(taps, sizes, strict=True):
        output = n * s + (max(w - s, 0) if padding == "VALID" else 0)
        cropped = max(w - s, 0) // 2 if padding == "SAME" else 0
        whole, part = divmod(cropped, s)
        blocks = -(-(part + output) // s)
        low = t - 1 - whole
        pads.append((low, blocks + t - 1 - n - low))
        crops.append((-part, part + output - blocks * s))
    y = _conv_products(x, kernel, (1,) * rank, pads)
    y = y.reshape(*y.shape[:-1], *strides, features)
    return _pad(_join_phases(y, strides), crops)


def _beside_and_shifted(
    x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads, shifted: int, dilation: int
) -> Array:
    """One product for a convolution: of what windows cover along the last axes, to a map for each place on the first.

    All axes beside each other would be im2col, which writes w·w·C numbers for each position, all axes shifted w·w·O;
    w·C and w·O are far fewer.
    """
    rank = len(strides)
    first, last = kernel.shape[:shifted], kernel.shape[shifted:rank]
    unit, none = (1,), ((0, 0),)
    x = _pad(x, [*none * shifted, *pads[shifted:]])
    windows = _windows_beside(x, unit * shifted + last, strides, dilation)
    kernel = jnp.moveaxis(kernel, range(shifted), range(rank - shifted + 1, rank + 1))  # [*last, C, *first, O]
    maps = _matmul(windows, kernel.reshape(windows.shape[-1], -1))
    if not shifted:
        return maps
    return _add_shifted(maps, first + unit * (rank - shifted), (*pads[:shifted], *none * (rank - shifted)), dilation)


def _windows_beside(x: Array, window: tuple[int, ...], strides: tuple[int, ...], dilation: int) -> Array:
    """[B, *spatial, C] -> [B, *output, w·w·C], what each window covers; a slice for each position in it."""
    slices = []
    for offset in _offsets(window, dilation):
        ends = zip(x.shape[1:-1], window, offset, strict=True)
        stop = [n - (w - 1) * dilation + o for n, w, o in ends]
        start, limit = (0, *offset, 0), (x.shape[0], *stop, x.shape[-1])
        slices.append(lax.slice(x, start, limit, (1, *strides, 1)))
    return lax.concatenate(slices, x.ndim - 1)


def _offsets(window: tuple[int, ...], dilation: int) -> Iterator[tuple[int, ...]]:
    """Where the places of a window lie."""
    return itertools.product(*(range(0, w * dilation, dilation) for w in window))


@_not_inlined(1, 2, 3)
def _add_shifted(maps: Array, window: tuple[int, ...], pads: Pads, dilation: int) -> Array:
    """[B, *spatial, w·w·O] -> [B, *output, O]: the sum of the maps, each where its place in the window puts it."""
    features = maps.shape[-1] // math.prod(window)
    parts = lax.split(maps, [features] * math.prod(window), axis=maps.ndim - 1)
    shifted = []
    for part, offset in zip(parts, _offsets(window, dilation), strict=True):
        ends = zip(pads, offset, window, strict=True)
        shifted.append(_pad(part, [(low - o, high + o - (w - 1) * dilation) for (low, high), o, w in ends]))
    return functools.reduce(jnp.add, shifted)


def _split_phases(x: Array, strides: tuple[int, ...], first_axis: int) -> Array:
    """Axes n·s into blocks and phases: [..., n·s, m·s, ...] -> [..., n, m, s, s, ...]."""
    rank, shape = len(strides), x.shape
    last = first_axis + rank
    split = [size for n, s in zip(shape[first_axis:last], strides, strict=True) for size in (n // s, s)]
    x = x.reshape(*shape[:first_axis], *split, *shape[last:])
    blocks = range(first_axis, first_axis + 2 * rank, 2)
    phases = range(first_axis + 1, first_axis + 2 * rank, 2)
    return x.transpose(*range(first_axis), *blocks, *phases, *range(last + rank, x.ndim))


def _join_phases(x: Array, strides: tuple[int, ...]) -> Array:
    """Join them again, in images: [B, n, m, s, s, O] -> [B, n·s, m·s, O]."""
    rank = len(strides)
    sizes = [n * s for n, s in zip(x.shape[1:], strides, strict=False)]
    order = [axis for block in range(1, rank + 1) for axis in (block, block + rank)]
    return x.transpose(0, *order, 2 * rank + 1).reshape(x.shape[0], *sizes, x.shape[-1])


def _pad(x: Array, pads: Pads, first_axis: int = 1) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[first_axis : first_axis + len(pads)] = [(low, high, 0) for low, high in pads]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _matmul(x: Array, kernel: Array) -> Array:
    features = kernel.shape[-1]
    product = x.reshape(-1, x.shape[-1]) @ kernel.reshape(-1, features)
    return product.reshape(*x.shape[:-1], features)


def widen(x: Array) -> Array:
    """At least float32: so a CPU sums narrow types in it, in both directions."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _checked_strides(x: Array, kernel: Array, strides: int | Sequence[int], padding: str) -> tuple[int, ...]:
    """Return the strides as a tuple, or raise what `conv` and `conv_transpose` promise."""
    if x.ndim not in LAYOUTS:
        raise ValueError(f"x must be [B, *spatial, C] with 1 to 3 spatial axes, got {x.shape}")
    if kernel.ndim != x.ndim or kernel.shape[-2] != x.shape[-1]:
        raise ValueError(
            f"kernel must be [*window, C, O] with {x.ndim - 2} spatial axes and C = {x.shape[-1]} "
            f"for x {x.shape}, got {kernel.shape}"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating, got {x.dtype}; convert it first")
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel must have the type of x, {x.dtype}, got {kernel.dtype}; convert one of them")
    if padding not in ("SAME", "VALID"):
        raise ValueError(f'padding must be "SAME" or "VALID", got {padding!r}')
    each = (strides,) * (x.ndim - 2) if isinstance(strides, int) else tuple(strides)
    if len(each) != x.ndim - 2 or min(each) < 1:
        raise ValueError(f"strides must be {x.ndim - 2} positive numbers for x {x.shape}, got {strides}")
    return each


def _freeze(layer: Conv | ConvTranspose) -> None:
    layer.window = tuple(layer.window)
    if not isinstance(layer.strides, int):
        layer.strides = tuple(layer.strides)


def _promoted(layer: Conv | ConvTranspose, x: Array) -> tuple[Array, Array, Array | None]:
    """Return the input and the layer's parameters, in the type of the computation."""
    shape = (*layer.window, x.shape[-1], layer.features)
    kernel = layer.param("kernel", layer.kernel_init, shape, jnp.float32)
    bias = None
    if layer.use_bias:
        bias = layer.param("bias", nn.initializers.zeros, (layer.features,), jnp.float32)
    x, kernel, bias = promote_dtype(x, kernel, bias, dtype=layer.dtype)
    return x, kernel, bias


def _add_bias(y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape((1,) * (y.ndim - 1) + bias.shape)
