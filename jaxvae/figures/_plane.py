"""Two-dimensional latent spaces: the images they decode to, the codes, and models beside each other."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import check_unmasked, host_reals
from jaxvae.figures._page import (
    COLORS,
    DPI,
    FAINT,
    INK,
    LINE,
    MARGIN,
    WIDTH,
    axes_over,
    check_means,
    latent_name,
    new_figure,
    new_page,
    save,
    tidy,
    tile,
    tile_pairs,
    wrap,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
    at_least(1, size=size)
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
    at_least(2, size=size)
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
    images = check_means(decode(latents), "decode(latents)", "N, H, W, C")
    if len(images) != len(latents):
        raise ValueError(f"decode must return one image per latent, {len(latents)}, got {len(images)}")
    canvas, _, _ = tile(wrap(images, size))
    figure, (left, top) = new_page(canvas, title=title, left=48, below=36)
    height, width = canvas.shape[:2]
    _label_manifold(axes_over(figure, left, top, width, height), latents, ticks=8)
    return save(figure, path)


def latent_scatter(
    path: str | Path,
    codes: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    circles: bool = True,
    latents: tuple[int, int] = (0, 1),
    title: str | None = None,
) -> Path:
    """Codes [N, 2], such as posterior means, coloured by label [N], with N(0, I)'s 1σ and 2σ `circles`.

    `latents` says which two of more the codes are, counted from 0; the axes are named from z₁ on.
    """
    points = _check_codes(codes)
    kinds = _check_labels(np.zeros(len(points), np.int32) if labels is None else labels, points)
    classes, kind = np.unique(kinds, return_inverse=True)
    legend_columns = 0 if labels is None else math.ceil(len(classes) / 20)
    figure = new_figure(5.2 + 0.7 * legend_columns, 5.2, layout="constrained")
    axes = figure.add_subplot()
    colors = _class_colors(len(classes))
    _scatter(axes, points, colors[kind], prior=circles)
    axes.set(xlabel=latent_name(latents[0]), ylabel=latent_name(latents[1]))
    if title:
        axes.set_title(title, fontsize=11, color=INK)
    if labels is not None:
        dots = [axes.scatter([], [], s=36, color=color) for color in colors]
        options: dict[str, Any] = {
            "loc": "outside right center",
            "frameon": False,
            "handletextpad": 0.1,
            "ncols": legend_columns,
        }
        figure.legend(dots, _class_names(classes), **options)
    tidy(axes)
    return save(figure, path)


def side_by_side(path: str | Path, models: Mapping[str, Panel], *, title: str | None = None) -> Path:
    """Models with two latents, a column each under its name: reconstructions, codes by label, and the manifold.

    A label has one colour in all columns. The codes of each model are drawn on a scale of their own.
    """
    if not models:
        raise ValueError("models must hold one or more, by name")
    columns = [_check_panel(panel, WIDTH // len(models)) for panel in models.values()]
    classes, kinds = np.unique(np.concatenate([column.labels for column in columns]), return_inverse=True)
    colors = _class_colors(len(classes))
    point_colors = np.split(colors[kinds], np.cumsum([len(column.codes) for column in columns])[:-1])

    # Columns are as wide as their widest content, which is centred; rows as high as their highest.
    width = max(canvas.shape[1] for column in columns for canvas in (column.strip, column.manifold))
    beside, between = 64, 72
    strip_top = MARGIN + (LINE + 20 if title else 0) + LINE + 10
    legend_top = strip_top + max(len(column.strip) for column in columns) + 20
    cloud_top = legend_top + (LINE + 4) * math.ceil(len(classes) / 20) + 8
    manifold_top = cloud_top + width + 56
    page_width = MARGIN + beside + len(models) * (width + between) - between + MARGIN
    page_height = manifold_top + max(len(column.manifold) for column in columns) + 36 + MARGIN
    figure = new_figure(page_width / DPI, page_height / DPI)
    if title:
        write(figure, page_width / 2, MARGIN, title, size=11, ha="center", va="top")
    for i, (name, column) in enumerate(zip(models, columns, strict=True)):
        left = MARGIN + beside + i * (width + between)
        write(figure, left + width / 2, strip_top - 8, name, size=10, ha="center", va="bottom")
        start = _put(figure, column.strip, left, strip_top, width)
        for row, top in enumerate(column.strip_tops):
            middle = strip_top + top + (column.strip_tops[1] - column.strip_tops[0]) / 2
            write(figure, start - 6, middle, "output" if row % 2 else "input", ha="right", va="center")

        height, across = column.manifold.shape[:2]
        start = _put(figure, column.manifold, left, manifold_top, width)
        axes = axes_over(figure, start, manifold_top, across, height)
        _label_manifold(axes, column.latents, ticks=height // 80)

        axes = axes_over(figure, left, cloud_top, width, width)
        _scatter(axes, column.codes, point_colors[i], column.prior)
        tidy(axes)
        axes.xaxis.labelpad = axes.yaxis.labelpad = 1
    dots = [axes.scatter([], [], s=36, color=color) for color in colors]
    anchor = (0.5, 1 - legend_top / page_height)
    spacing = {"borderaxespad": 0, "borderpad": 0, "handletextpad": 0.1, "columnspacing": 1.2}
    legend_columns = min(len(classes), 20)
    options: dict[str, Any] = {
        "loc": "upper center",
        "bbox_to_anchor": anchor,
        "frameon": False,
        "fontsize": 9,
        **spacing,
    }
    figure.legend(dots, _class_names(classes), ncols=legend_columns, **options)
    return save(figure, path)


class _Column(NamedTuple):
    """What `side_by_side` draws of a `Panel`: bytes [height, width, 3], and points."""

    strip: np.ndarray
    strip_tops: np.ndarray
    manifold: np.ndarray
    codes: np.ndarray
    labels: np.ndarray
    latents: np.ndarray
    prior: bool


def _check_panel(panel: Panel, width: int) -> _Column:
    """Tile its images, at most `width` pixels beside each other, or raise `ValueError` where they do not fit."""
    strip, tops = tile_pairs(panel.images, panel.reconstructed, width)
    codes = _check_codes(panel.codes)
    labels = _check_labels(panel.labels, codes)
    latents = _check_codes(panel.latents, "latents")
    decoded = check_means(panel.manifold, "manifold", "N, H, W, C")
    size = math.isqrt(len(decoded))
    if not len(latents) == len(decoded) == size**2:
        raise ValueError(f"manifold must hold size² images, one per latent, got {len(decoded)} for {len(latents)}")
    return _Column(strip, tops, tile(wrap(decoded, size), width=width)[0], codes, labels, latents, panel.prior)


def _put(figure: "Figure", canvas: np.ndarray, left: int, top: int, width: int) -> int:
    """Put the canvas in the middle of a column; return where it starts, in pixels from the left."""
    start = left + (width - canvas.shape[1]) // 2
    page_height = round(figure.get_size_inches()[1] * DPI)
    figure.figimage(canvas, start, page_height - top - len(canvas), origin="upper")
    return start


def _check_codes(codes: ArrayLike, name: str = "codes") -> np.ndarray:
    """Raise `ValueError` unless the codes are [N, 2] and finite; return them as float32."""
    points = host_reals(codes, name, np.float32)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{name} must be [N, 2], got {points.shape}")
    if not np.isfinite(points).all():
        row = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise ValueError(f"{name} must be finite: {name.removesuffix('s')} {row} is {points[row].tolist()}")
    return points


def _check_labels(labels: ArrayLike, points: np.ndarray) -> np.ndarray:
    check_unmasked(labels, "labels")
    kinds = np.asarray(labels)
    if kinds.shape != points.shape[:1]:
        raise ValueError(f"labels must be {points.shape[:1]}, one per code, got {kinds.shape}")
    return kinds


def _grid(right: np.ndarray, up: np.ndarray) -> np.ndarray:
    """All pairs, [size * size, 2] float32, as a picture is read: the second coordinate falls."""
    return np.array([(z1, z2) for z2 in up[::-1] for z1 in right], np.float32)


def _label_manifold(axes: "Axes", latents: np.ndarray, *, ticks: int) -> None:
    """Name at most so many columns and rows of images over latents [size * size, 2] by their coordinates."""
    size = math.isqrt(len(latents))
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    places = np.linspace(0, size - 1, min(size, ticks)).round().astype(int)
    right, up = latents[:size, 0], latents[::-size, 1]
    axes.set(xlim=(0, size), ylim=(0, size), xlabel=latent_name(0), ylabel=latent_name(1))
    axes.set_xticks(places + 0.5, [f"${z:.2f}$" for z in right[places]])
    axes.set_yticks(places + 0.5, [f"${z:.2f}$" for z in up[places]], rotation=90, va="center")
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
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xlabel=latent_name(0), ylabel=latent_name(1))


def _class_names(labels: np.ndarray) -> list[str]:
    """Classes as a reader writes them: 3, also where labels are floating."""
    floating = np.issubdtype(labels.dtype, np.floating)
    return [f"{float(str(label)):.15g}" if floating else str(label) for label in labels]


def _class_colors(count: int) -> np.ndarray:
    """[count, 4]: the ten named colours, or as many steps from dark to light, which every eye tells apart."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgba_array

    return to_rgba_array(COLORS[:count]) if count <= 10 else colormaps["viridis"](np.linspace(0, 1, count))
