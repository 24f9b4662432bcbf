"""Pictures of a run: arrays in, PNG files out (matplotlib).

Images are the likelihood's mean in [0, 1], [..., H, W, C] with C = 1 or 3, drawn on that fixed scale, each
pixel a whole number of the file's pixels. Every function makes the folders on the way to `path`, replaces the
file there in one step and returns its `Path`. It raises `ValueError` for a wrong shape and for values that no
picture can show (not finite, or outside [0, 1]), and `ImportError` where matplotlib is missing.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 128  # a power of two, so that a width in pixels is an exact width in inches
MARGIN = 12  # pixels, as are all lengths below
CELL = 96  # the side of one image, about
WIDTH = 1200  # of all images side by side, at most
SPACE = 10  # between groups of rows or columns
LINE = 16  # the height of a line of text
SEPARATOR = 176  # grey level of the lines between images: visible beside black and beside white
INK = "#333333"
FAINT = "#999999"
# Ten colours that colour-blind readers can tell apart (Petroff, Accessible Color Sequences, 2021).
COLORS = [
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
]
QUANTITIES = {
    "rate": r"rate  $\mathrm{KL}(q(z|x)\,\|\,p(z))$",
    "distortion": r"distortion  $-\log\,p(x|z)$",
    "negative_elbo": "$-$ELBO = rate + distortion",
}
SPLITS = {
    "train": {"color": COLORS[0], "linestyle": "-", "marker": "o"},
    "validation": {"color": COLORS[4], "linestyle": "-.", "marker": "^"},
    "test": {"color": COLORS[6], "linestyle": "--", "marker": "s"},
}


class Panel(NamedTuple):
    """One model in `side_by_side`.

    Attributes:
      images: [n, H, W, C].
      reconstructed: [n, H, W, C].
      codes: [N, 2].
      labels: [N], one for each code.
      latents: [size², 2], in the order of `prior_grid`: for an autoencoder `code_grid`.
      manifold: [size², H, W, C], decoded from `latents`.
      prior: whether the model has one; its 1σ and 2σ circles are then drawn around the codes.
    """

    images: ArrayLike
    reconstructed: ArrayLike
    codes: ArrayLike
    labels: ArrayLike
    latents: ArrayLike
    manifold: ArrayLike
    prior: bool = True


def image_grid(path: str | Path, images: ArrayLike, *, columns: int | None = None, title: str | None = None) -> Path:
    """Images [N, H, W, C] in reading order, in a square unless `columns` says otherwise."""
    pixels = _check_images(images, "images", "N, H, W, C")
    if columns is not None and columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    canvas, _, _ = _tile(_wrap(pixels, columns))
    figure, _ = _page(canvas, title=title)
    return _save(figure, path)


def reconstructions(path: str | Path, images: ArrayLike, reconstructed: ArrayLike, *, title: str | None = None) -> Path:
    """Images [N, H, W, C] over their reconstructions, in double rows of at most ten pairs."""
    canvas, tops = _tile_pairs(images, reconstructed, WIDTH)
    figure, (left, top) = _page(canvas, title=title, left=112)
    middle = (tops[1] - tops[0]) / 2
    for row, y in enumerate(tops):
        label = "reconstruction" if row % 2 else "input"
        _write(figure, left - 8, top + y + middle, label, ha="right", va="center")
    return _save(figure, path)


def interpolation(path: str | Path, rows: ArrayLike, *, title: str | None = None) -> Path:
    """Rows [R, S, H, W, C] that each lead from one image to another; the two ends stand apart."""
    cells = _check_images(rows, "rows", "R, S, H, W, C")
    steps = cells.shape[1]
    if steps < 2:
        raise ValueError(f"rows must hold both ends, [R, S >= 2, H, W, C], got {cells.shape}")
    canvas, _, lefts = _tile(cells, spaces_before=(1, steps - 1))
    figure, (left, top) = _page(canvas, title=title, above=LINE + 4)
    middle = (canvas.shape[1] - lefts[-1]) / 2
    for x, label in ((lefts[0], "start"), (lefts[-1], "end")):
        _write(figure, left + x + middle, top - 5, label, ha="center", va="bottom")
    return _save(figure, path)


def prior_grid(size: int) -> np.ndarray:
    """Latents on a square grid whose cells carry equal mass under N(0, I), [size * size, 2] float32.

    Coordinates are the inverse Gaussian CDF at (i + ½) / size, in the reading order of a picture: the first
    coordinate grows to the right, the second upwards, so the first latent is the top left one.

    >>> prior_grid(2).round(2)
    array([[-0.67,  0.67],
           [ 0.67,  0.67],
           [-0.67, -0.67],
           [ 0.67, -0.67]], dtype=float32)
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    centres = np.array([NormalDist().inv_cdf((i + 0.5) / size) for i in range(size)])
    return _grid(centres, centres)


def code_grid(codes: ArrayLike, size: int) -> np.ndarray:
    """Latents on an even grid over the range of the codes [N, 2], [size * size, 2] float32, ordered as `prior_grid`.

    For an autoencoder, which has no prior.

    >>> code_grid([[0.0, -5.0], [2.0, 5.0], [1.0, 0.0]], 2)
    array([[ 0.,  5.],
           [ 2.,  5.],
           [ 0., -5.],
           [ 2., -5.]], dtype=float32)
    """
    points = _check_codes(codes)
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    return _grid(*np.linspace(points.min(axis=0), points.max(axis=0), size).T)


def manifold(
    path: str | Path,
    decode: Callable[[np.ndarray], ArrayLike],
    *,
    size: int = 20,
    title: str | None = None,
) -> Path:
    """Images decoded from a two-dimensional latent space, over `prior_grid(size)`.

    `decode` maps latents [n, 2] to images [n, H, W, C] and is called once, with n = size².
    """
    latents = prior_grid(size)
    images = _check_images(decode(latents), "decode(latents)", "N, H, W, C")
    if len(images) != len(latents):
        raise ValueError(f"decode must return one image per latent, {len(latents)}, got {len(images)}")
    canvas, _, _ = _tile(_wrap(images, size))
    figure, (left, top) = _page(canvas, title=title, left=48, below=36)
    height, width = canvas.shape[:2]
    _label_manifold(_axes(figure, left, top, width, height), latents, ticks=8)
    return _save(figure, path)


def latent_scatter(
    path: str | Path, codes: ArrayLike, labels: ArrayLike | None = None, *, title: str | None = None
) -> Path:
    """Codes [N, 2], such as posterior means, coloured by label [N], with the prior's 1σ and 2σ circles."""
    points = _check_codes(codes)
    kinds = _check_labels(np.zeros(len(points), np.int32) if labels is None else labels, points)
    classes, kind = np.unique(kinds, return_inverse=True)
    legend_columns = 0 if labels is None else math.ceil(len(classes) / 20)
    figure = _new_figure(5.2 + 0.7 * legend_columns, 5.2, layout="constrained")
    axes = figure.add_subplot()
    colors = _class_colors(len(classes))
    _scatter(axes, points, colors[kind], prior=True)
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    if labels is not None:
        for name, color in zip(classes, colors, strict=True):
            axes.scatter([], [], s=36, color=color, label=str(name))
        figure.legend(loc="outside right center", frameon=False, handletextpad=0.1, ncols=legend_columns)
    _tidy(axes)
    return _save(figure, path)


def side_by_side(path: str | Path, models: Mapping[str, Panel], *, title: str | None = None) -> Path:
    """Models with two latents, a column each under its name: reconstructions, codes by label, and the manifold.

    A label has one colour in all columns. The codes of each model are drawn on a scale of their own.
    """
    width = WIDTH // len(models)
    strips = [_tile_pairs(panel.images, panel.reconstructed, width) for panel in models.values()]
    points = [_check_codes(panel.codes) for panel in models.values()]
    labels = [_check_labels(panel.labels, codes) for panel, codes in zip(models.values(), points, strict=True)]
    latents = [_check_codes(panel.latents, "latents") for panel in models.values()]
    manifolds = []
    for panel, shown in zip(models.values(), latents, strict=True):
        decoded = _check_images(panel.manifold, "manifold", "N, H, W, C")
        size = math.isqrt(len(decoded))
        if not len(shown) == len(decoded) == size**2:
            raise ValueError(f"manifold must hold size² images, one per latent, got {len(decoded)} for {len(shown)}")
        manifolds.append(_tile(_wrap(decoded, size), width=width)[0])
    classes, kinds = np.unique(np.concatenate(labels), return_inverse=True)
    colors = _class_colors(len(classes))
    point_colors = np.split(colors[kinds], np.cumsum([len(codes) for codes in points])[:-1])

    # Columns are as wide as their widest content, which is centred; rows as high as their highest.
    column = max(canvas.shape[1] for canvas in [*(canvas for canvas, _ in strips), *manifolds])
    beside, between = 64, 72
    strip_top = MARGIN + (LINE + 20 if title else 0) + LINE + 10
    legend_top = strip_top + max(len(canvas) for canvas, _ in strips) + 20
    cloud_top = legend_top + (LINE + 4) * math.ceil(len(classes) / 20) + 8
    manifold_top = cloud_top + column + 56
    page_width = MARGIN + beside + len(models) * (column + between) - between + MARGIN
    page_height = manifold_top + max(len(canvas) for canvas in manifolds) + 36 + MARGIN
    figure = _new_figure(page_width / DPI, page_height / DPI)
    if title:
        _write(figure, page_width / 2, MARGIN, title, size=11, ha="center", va="top")
    for i, (name, panel) in enumerate(models.items()):
        left = MARGIN + beside + i * (column + between)
        _write(figure, left + column / 2, strip_top - 8, name, size=10, ha="center", va="bottom")
        canvas, tops = strips[i]
        start = left + (column - canvas.shape[1]) // 2
        figure.figimage(canvas, start, page_height - strip_top - len(canvas), origin="upper")
        for row, top in enumerate(tops):
            middle = strip_top + top + (tops[1] - tops[0]) / 2
            _write(figure, start - 6, middle, "output" if row % 2 else "input", ha="right", va="center")

        canvas = manifolds[i]
        start = left + (column - canvas.shape[1]) // 2
        figure.figimage(canvas, start, page_height - manifold_top - len(canvas), origin="upper")
        axes = _axes(figure, start, manifold_top, canvas.shape[1], len(canvas))
        _label_manifold(axes, latents[i], ticks=len(canvas) // 80)

        axes = _axes(figure, left, cloud_top, column, column)
        _scatter(axes, points[i], point_colors[i], panel.prior)
        _tidy(axes)
        axes.xaxis.labelpad = axes.yaxis.labelpad = 1
    for label, color in zip(classes, colors, strict=True):
        axes.scatter([], [], s=36, color=color, label=str(label))
    anchor = (0.5, 1 - legend_top / page_height)
    spacing = {"borderaxespad": 0, "borderpad": 0, "handletextpad": 0.1, "columnspacing": 1.2}
    columns = min(len(classes), 20)
    figure.legend(loc="upper center", bbox_to_anchor=anchor, frameon=False, fontsize=9, ncols=columns, **spacing)
    return _save(figure, path)


def learning_curves(path: str | Path, records: Sequence[Mapping[str, Any]], *, title: str | None = None) -> Path:
    """Rate, distortion and -ELBO in nats against the epoch, training and held-out, one panel each.

    `records` are the lines of `metrics.jsonl`: {"epoch", "train": {"rate", "distortion", "negative_elbo"}},
    and the same under "validation" or "test". Values that are missing or not finite are left out, and so is a
    panel without values. The vertical axis follows the bulk: the first epochs may leave the panel.
    """
    curves = {name: _curves(records, name) for name in QUANTITIES}
    curves = {name: found for name, found in curves.items() if found}
    if not curves:
        raise ValueError(f"records hold none of {', '.join(QUANTITIES)} under {', '.join(SPLITS)}")

    figure = _new_figure(3.3 * len(curves), 3.1, layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, found) in zip(panels, curves.items(), strict=True):
        for split, (epochs, values) in found.items():
            size = 4 if len(epochs) <= 20 else 0
            axes.plot(epochs, values, **SPLITS[split], linewidth=1.5, markersize=size, label=split)
        axes.set_title(QUANTITIES[name], fontsize=10, color=INK)
        axes.set(xlabel="epoch")
        axes.locator_params(axis="x", integer=True, nbins=6, min_n_ticks=1)
        axes.grid(color="#e4e4e4", linewidth=0.7)
        limits = _robust_limits(np.concatenate([values for _, values in found.values()]))
        if limits:
            axes.set_ylim(*limits)
        _tidy(axes)
    panels[0].set_ylabel("nats per example")
    panels[-1].legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11, color=INK)
    return _save(figure, path)


def kl_bars(path: str | Path, kl: ArrayLike, *, threshold: float = 0.01, title: str | None = None) -> Path:
    """The KL of every latent [D] in nats, from the largest down; those up to `threshold`, inactive, are faint."""
    nats = np.asarray(kl, np.float64)
    if nats.ndim != 1 or not nats.size or not np.isfinite(nats).all():
        raise ValueError(f"kl must be [D] and finite, got {nats.shape}: {nats}")
    nats = np.sort(nats)[::-1]
    rank = np.arange(1, len(nats) + 1)
    active = int((nats > threshold).sum())
    figure = _new_figure(6.4, 3.2, layout="constrained")
    axes = figure.add_subplot()
    for part, color in ((slice(active), COLORS[0]), (slice(active, None), "#b4c4d2")):
        axes.bar(rank[part], nats[part], width=0.75, color=color, edgecolor=color, linewidth=0.8)
    if active < len(nats):
        axes.axvspan(active + 0.5, len(nats) + 0.5, color="#f4f4f4", linewidth=0, zorder=0)
    axes.axhline(threshold, linestyle="--", linewidth=0.8, color=FAINT, zorder=0.5)
    top = 1.05 * max(nats[0], threshold)
    axes.set(xlim=(0.5, len(nats) + 0.5), ylim=(0, top), xlabel="latent, by rank", ylabel="KL (nats)")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    summary = f"{active} of {len(nats)} active, above {threshold:g} nats; rate {nats.sum():.2f} nats"
    axes.set_title(summary, loc="right", fontsize=8, color=INK)
    if title:
        axes.set_title(title, loc="left", fontsize=11, color=INK)
    _tidy(axes)
    return _save(figure, path)


def _check_images(images: ArrayLike, name: str, axes: str) -> np.ndarray:
    """Raise `ValueError` unless the images have these axes and lie in [0, 1]; return them as float32."""
    pixels = np.asarray(images, np.float32)
    if pixels.ndim != len(axes.split(",")) or not pixels.size or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{name} must be [{axes}] with C = 1 or 3, got {pixels.shape}")
    wrong = ~((pixels >= -1e-3) & (pixels <= 1 + 1e-3))
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        image = first[0] if len(first) == 4 else first[:-3]
        raise ValueError(
            f"{name} must lie in [0, 1]: image {image} has {pixels[first]:g}; "
            "draw the likelihood's mean, not logits or 0..255 values"
        )
    return pixels.clip(0, 1)


def _check_codes(codes: ArrayLike, name: str = "codes") -> np.ndarray:
    """Raise `ValueError` unless the codes are [N, 2] and finite; return them as float32."""
    points = np.asarray(codes, np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{name} must be [N, 2], got {points.shape}")
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise ValueError(f"{name} must be finite: {name.removesuffix('s')} {row} is {points[row].tolist()}")
    return points


def _check_labels(labels: ArrayLike, points: np.ndarray) -> np.ndarray:
    kinds = np.asarray(labels)
    if kinds.shape != points.shape[:1]:
        raise ValueError(f"labels must be {points.shape[:1]}, one per code, got {kinds.shape}")
    return kinds


def _grid(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """All pairs, [size * size, 2] float32, as a picture is read: the second coordinate falls."""
    return np.array([(z1, z2) for z2 in up[::-1] for z1 in right], np.float32)


def _wrap(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, C] -> [rows, columns, H, W, C] in reading order; the cells left over are NaN."""
    rows = math.ceil(len(images) / columns)
    cells = np.full((rows * columns, *images.shape[1:]), np.nan, np.float32)
    cells[: len(images)] = images
    return cells.reshape(rows, columns, *images.shape[1:])


def _tile_pairs(images: ArrayLike, reconstructed: ArrayLike, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tile images over their reconstructions, in double rows of at most ten pairs; also return the row tops."""
    above = _check_images(images, "images", "N, H, W, C")
    below = _check_images(reconstructed, "reconstructed", "N, H, W, C")
    if above.shape != below.shape:
        raise ValueError(f"images and reconstructed must have one shape, got {above.shape} and {below.shape}")
    double_rows = math.ceil(len(above) / 10)
    columns = math.ceil(len(above) / double_rows)
    pairs = np.stack([_wrap(above, columns), _wrap(below, columns)], axis=1)
    cells = pairs.reshape(-1, *pairs.shape[2:])
    canvas, tops, _ = _tile(cells, width=width, spaces_above=range(2, 2 * double_rows, 2))
    return canvas, tops


def _tile(
    cells: np.ndarray, *, width: int = WIDTH, spaces_above: Sequence[int] = (), spaces_before: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enlarge and frame images [R, S, H, W, C] on white: bytes [height, width, 3], row tops, column lefts.

    NaN cells stay white. `width` bounds all images side by side. `spaces_above` and `spaces_before` name the rows and
    columns that start a group.
    """
    rows, columns, height, across, _ = cells.shape
    scale = max(1, min(round(CELL / max(height, across)), width // (columns * across)))
    line = max(1, scale // 3)  # a frame that neighbours share, wider where strokes are
    height, width = height * scale + 2 * line, across * scale + 2 * line
    tops = (height - line) * np.arange(rows) + SPACE * np.isin(np.arange(rows), spaces_above).cumsum()
    lefts = (width - line) * np.arange(columns) + SPACE * np.isin(np.arange(columns), spaces_before).cumsum()
    canvas = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
    for row, top in zip(cells, tops, strict=True):
        for cell, left in zip(row, lefts, strict=True):
            if not np.isnan(cell).any():
                canvas[top : top + height, left : left + width] = SEPARATOR
                pixels = np.rint(255 * cell).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
                canvas[top + line : top + height - line, left + line : left + width - line] = pixels
    return canvas, tops, lefts


def _page(
    canvas: np.ndarray, *, title: str | None, left: int = 0, above: int = 0, below: int = 0
) -> tuple["Figure", tuple[int, int]]:
    """Put the canvas on a figure, pixel for pixel; return its distance from the left and from the top too."""
    height, width = canvas.shape[:2]
    top = MARGIN + above + (LINE + 8 if title else 0)
    needed = MARGIN + left + width + MARGIN
    page_width = max(needed, 10 * len(title or "") + 2 * MARGIN)
    left += MARGIN + (page_width - needed) // 2
    page_height = top + height + MARGIN + below
    figure = _new_figure(page_width / DPI, page_height / DPI)
    figure.figimage(canvas, left, MARGIN + below, origin="upper")
    if title:
        _write(figure, page_width / 2, MARGIN, title, size=9.5, ha="center", va="top")
    return figure, (left, top)


def _write(figure: "Figure", x: float, y: float, text: str, *, size: float = 8, **alignment: Any) -> None:
    """Text at pixel x from the left, y from the top."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=INK, **alignment)


def _axes(figure: "Figure", left: int, top: int, width: int, height: int) -> "Axes":
    """Axes over a rectangle of the page, in pixels from the left and from the top."""
    across, down = figure.get_size_inches() * DPI
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _label_manifold(axes: "Axes", latents: np.ndarray, *, ticks: int) -> None:
    """Name at most so many columns and rows of images over latents [size * size, 2] by their coordinates."""
    size = math.isqrt(len(latents))
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    shown = np.linspace(0, size - 1, min(size, ticks)).round().astype(int)
    right, up = latents[:size, 0], latents[::-size, 1]
    axes.set(xlim=(0, size), ylim=(0, size), xlabel="$z_1$", ylabel="$z_2$")
    axes.set_xticks(shown + 0.5, [f"${z:.2f}$" for z in right[shown]])
    axes.set_yticks(shown + 0.5, [f"${z:.2f}$" for z in up[shown]], rotation=90, va="center")
    axes.tick_params(length=3, pad=2, labelsize=7, color=FAINT, labelcolor=INK)
    axes.xaxis.labelpad = axes.yaxis.labelpad = 1


def _scatter(axes: "Axes", points: np.ndarray, colors: np.ndarray, prior: bool) -> None:
    """Points [N, 2], on one scale for both coordinates; around the prior's circles, or centred."""
    area = np.clip(30_000 / len(points), 3, 22)
    axes.scatter(points[:, 0], points[:, 1], s=area, c=colors, alpha=0.75, linewidths=0)
    centre, reach = np.zeros(2), max(2.2, float(np.abs(points).max()))
    if not prior:
        centre, reach = (points.max(axis=0) + points.min(axis=0)) / 2, float(np.ptp(points, axis=0).max()) / 2
    for radius in (1, 2) if prior else ():
        angle = np.linspace(0, 2 * np.pi, 200)
        axes.plot(radius * np.cos(angle), radius * np.sin(angle), "--", color=INK, linewidth=0.8, alpha=0.6)
        mark = axes.text(0, -radius, rf"${radius}\sigma$", color=INK, fontsize=8, ha="center", va="center")
        mark.set_bbox({"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1})
    (left, bottom), (right, top) = centre - 1.06 * reach, centre + 1.06 * reach
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel="$z_1$", ylabel="$z_2$")


def _class_colors(count: int) -> np.ndarray:
    """[count, 4]: the ten named colours, or as many steps of a rainbow."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba_array

    return to_rgba_array(COLORS[:count]) if count <= 10 else colormaps["turbo"](np.linspace(0, 1, count))


def _curves(records: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Epochs and values of one quantity for every split that has it."""
    curves = {}
    for split in SPLITS:
        points = [(record["epoch"], record.get(split, {}).get(name, math.nan)) for record in records]
        epochs, values = np.array(points, np.float64).reshape(-1, 2).T
        kept = np.isfinite(values)
        if kept.any():
            curves[split] = (epochs[kept], values[kept])
    return curves


def _robust_limits(values: np.ndarray) -> tuple[float, float] | None:
    """Limits that hold all values but those far outside the quartiles; None where there is no spread."""
    first, third = np.quantile(values, (0.25, 0.75))
    reach = 5 * (third - first)
    bulk = values[(values >= first - reach) & (values <= third + reach)]
    low, high = bulk.min(), bulk.max()
    pad = 0.06 * (high - low)
    return (float(low - pad), float(high + pad)) if pad else None


def _tidy(axes: "Axes") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=3, labelsize=8, color=FAINT, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9, color=INK)


def _new_figure(width: float, height: float, **options: Any) -> "Figure":
    """Make a figure, in inches, that is not part of pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'jaxvae[experiments]'") from error
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)


def _save(figure: "Figure", path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".png":
        raise ValueError(f"path must end in .png, got {path}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    figure.savefig(unfinished, format="png")
    unfinished.replace(path)
    return path
