"""The codebook of a VQ-VAE: how evenly its codes are used, where, and how that went over training."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_integers, host_reals
from jaxvae.figures._page import (
    COLORS,
    INK,
    check_images,
    check_means,
    new_figure,
    new_page,
    save,
    tidy,
    tile,
    wrap,
    write,
)
from jaxvae.figures._records import SPLITS, curve

# The panels of `codebook_health`: the split and the name of every quantity, and what the legend says of it.
_HEALTH = {
    "perplexity": (
        ("train", "batch_perplexity", "train, of a batch"),
        ("validation", "perplexity", "validation, of the whole set"),
        ("test", "perplexity", "test, of the whole set"),
    ),
    "codes used": (("validation", "codes_used", ""), ("test", "codes_used", "")),
    "restarts per step": (("train", "restarts", ""),),
}
_UNITS = {"perplexity": "codes, effectively", "codes used": "codes", "restarts per step": "codes a step"}


def code_usage(path: str | Path, usage: ArrayLike, *, title: str | None = None) -> Path:
    """The share of positions that chose each code [K], from the largest down; codes that none chose are shaded apart.

    Take the usage over a whole set: a batch leaves rare codes out. Of groups [G, K] all codes are ordered together, and
    the perplexity is the mean of the groups'. The dashed line is the uniform share 1/K. The vertical axis follows the
    bulk: a code above six times that, such as an empty background's, leaves the panel and is named above it.
    """
    shares = host_reals(usage, "usage")
    if shares.ndim not in (1, 2) or not shares.size:
        raise ValueError(f"usage must be [K] or [G, K], got {shares.shape}")
    totals = shares.sum(axis=-1)
    if not ((shares >= 0).all() and (abs(totals - 1) < 1e-3).all()):
        raise ValueError(
            f"usage must be shares, not negative and of sum 1, got {shares.min():g} to {shares.max():g} of sum {totals}"
        )
    groups = np.atleast_2d(shares)
    logs = np.log(groups, where=groups > 0, out=np.zeros_like(groups))
    perplexity = np.exp(-(groups * logs).sum(axis=1)).mean()
    ordered = np.sort(groups, axis=None)[::-1]
    count, used, uniform = len(ordered), int((ordered > 0).sum()), 1 / groups.shape[1]
    summary = f"{used} of {count} codes used; perplexity {perplexity:.1f}"
    if len(groups) > 1:
        summary += f", the mean of {len(groups)} groups"
    if ordered[0] > 6 * uniform:
        summary += f"; {(ordered > 6 * uniform).sum()} above the panel, up to {ordered[0]:.2g}"

    figure = new_figure(6.4, 3.2, layout="constrained")
    axes = figure.add_subplot()
    if count <= 64:
        axes.bar(np.arange(1, used + 1), ordered[:used], width=0.75, color=COLORS[0])
    else:
        axes.stairs(ordered[:used], np.arange(used + 1) + 0.5, fill=True, color=COLORS[0])
    if used < count:
        axes.axvspan(used + 0.5, count + 0.5, color="#ececec", linewidth=0, zorder=0)
    axes.axhline(uniform, linestyle="--", linewidth=0.8, color=INK)
    axes.text(count + 0.5, 1.02 * uniform, "uniform ", fontsize=7, color=INK, ha="right", va="bottom")
    top = np.clip(1.05 * ordered[0], 1.25 * uniform, 6 * uniform)
    axes.set(xlim=(0.5, count + 0.5), ylim=(0, top), xlabel="code, by rank", ylabel="share of positions")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.set_title(summary, loc="right", fontsize=8, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    tidy(axes)
    return save(figure, path)


def index_maps(
    path: str | Path,
    images: ArrayLike,
    indices: ArrayLike,
    reconstructed: ArrayLike,
    *,
    num_codes: int,
    title: str | None = None,
) -> Path:
    """Images [N, H, W, C], the codes [N, h, w] of their positions, a colour each, and their reconstructions.

    At most ten beside each other. A code has one colour in all pictures; likeness of colours means nothing. Of groups
    [N, h, w, G] the first is shown. `TypeError` where the indices are not integers.
    """
    above = check_images(images, "images", "N, H, W, C")
    below = check_means(reconstructed, "reconstructed", "N, H, W, C")
    if above.shape != below.shape:
        raise ValueError(f"images and reconstructed must have one shape, got {above.shape} and {below.shape}")
    codes = _check_indices(indices, len(above), num_codes)
    height, width = above.shape[1:3]
    rows = np.arange(height) * codes.shape[1] // height  # the position that each pixel lies in
    columns = np.arange(width) * codes.shape[2] // width
    maps = _code_colors(num_codes)[codes[:, rows][:, :, columns]]

    triple_rows = math.ceil(len(above) / 10)
    across = math.ceil(len(above) / triple_rows)
    strips = [wrap(np.broadcast_to(pixels, maps.shape), across) for pixels in (above, maps, below)]
    cells = np.stack(strips, axis=1).reshape(-1, *strips[0].shape[1:])
    canvas, tops, _ = tile(cells, spaces_above=range(3, 3 * triple_rows, 3), spaces_before=range(1, across))
    figure, (left, top) = new_page(canvas, title=title, left=112)
    middle = (tops[1] - tops[0]) / 2
    for row, y in enumerate(tops):
        label = ("input", "codes", "reconstruction")[row % 3]
        write(figure, left - 8, top + y + middle, label, ha="right", va="center")
    return save(figure, path)


def codebook_health(path: str | Path, records: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Path:
    """Perplexity, codes used and restarts against the step, a panel each.

    `records` are the lines of `metrics.jsonl`: {"step", "train": {"batch_perplexity", "restarts"}}, and "perplexity"
    and "codes_used" of a whole set under "validation" or "test". Values that are missing or not finite are left out,
    and so is a panel without values.
    """
    panels = {}
    for quantity, lines in _HEALTH.items():
        found = [(split, label, *curve(records, split, name, along="step")) for split, name, label in lines]
        panels[quantity] = [line for line in found if line[2].size]
    panels = {quantity: found for quantity, found in panels.items() if found}
    if not panels:
        raise ValueError(
            "records hold none of batch_perplexity and restarts under train, "
            "perplexity and codes_used under validation or test"
        )

    figure = new_figure(3.3 * len(panels), 3.1, layout="constrained")
    subplots = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (quantity, found) in zip(subplots, panels.items(), strict=True):
        for split, label, steps, values in found:
            size = 4 if len(steps) <= 20 else 0
            axes.plot(steps, values, **SPLITS[split], linewidth=1.5, markersize=size, clip_on=False, label=label)
        axes.set_title(quantity, fontsize=10, color=INK)
        axes.set(
            xlabel="step", ylabel=_UNITS[quantity], ylim=(0, 1.06 * max(values.max() for *_, values in found) or 1)
        )
        axes.locator_params(axis="x", integer=True, nbins=5, min_n_ticks=1)
        if quantity == "codes used":
            axes.locator_params(axis="y", integer=True, min_n_ticks=1)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        tidy(axes)
        if quantity == "perplexity":
            axes.legend(frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return save(figure, path)


def _check_indices(indices: ArrayLike, count: int, num_codes: int) -> np.ndarray:
    """Raise `ValueError` unless indices are [count, h, w(, G)] in 0 .. num_codes - 1; return the first group's."""
    codes = host_integers(indices, "indices")
    at_least(1, num_codes=num_codes)
    if codes.ndim not in (3, 4) or not codes.size or len(codes) != count:
        raise ValueError(f"indices must be [{count}, h, w] or [{count}, h, w, G], as many as images, got {codes.shape}")
    if codes.min() < 0 or codes.max() >= num_codes:
        raise ValueError(f"indices must lie in [0, {num_codes}), got {codes.min()} to {codes.max()}")
    return codes if codes.ndim == 3 else codes[..., 0]


def _code_colors(num_codes: int) -> np.ndarray:
    """Colours [num_codes, 3] in [0, 1], well apart for every number of codes.

    Hue, lightness and saturation follow the additive recurrence that fills a cube evenly, of which the golden angle is
    the case of hues alone (Roberts, The Unreasonable Effectiveness of Quasirandom Sequences, 2018).
    """
    ratio = 1.2207440846  # of the steps: the root of x⁴ = x + 1
    places = np.arange(num_codes)[:, None] / ratio ** np.arange(1, 4) % 1
    colors = [colorsys.hls_to_rgb(hue, 0.3 + 0.5 * light, 0.4 + 0.6 * pure) for hue, light, pure in places.tolist()]
    return np.array(colors, np.float32)


def codec_curves(
    path: str | Path, curves: Mapping[str, Sequence[tuple[float, float]]], *, title: str | None = None
) -> Path:
    """Codecs of pictures: peak signal-to-noise ratio in dB over bits a pixel, a line and its points for each name."""
    if not curves:
        raise ValueError("there is no curve to draw")
    figure = new_figure(6.4, 4.6, layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, Any] = {}
    for i, (name, points) in enumerate(curves.items()):
        values = host_reals(points, name)
        if values.ndim != 2 or values.shape[1] != 2 or not np.isfinite(values).all() or (values[:, 0] <= 0).any():
            raise ValueError(f"{name} must be [M, 2], bits a pixel above zero and dB, finite, got {values}")
        values = values[values[:, 0].argsort()]
        color = COLORS[i % len(COLORS)]
        style: dict[str, Any] = {"color": color, "linewidth": 1.4, "marker": "o", "markersize": 4}
        (lines[name],) = axes.plot(values[:, 0], values[:, 1], **style)
    axes.set(xscale="log", xlabel="bits a pixel", ylabel="PSNR (dB)")
    tidy(axes)
    axes.legend(lines.values(), lines, fontsize=9, frameon=False, labelcolor=INK)
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    return save(figure, path)
