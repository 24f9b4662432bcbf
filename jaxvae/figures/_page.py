"""Internal to `jaxvae.figures`: images as tiles, tiles and text on a page, a page as a file."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._host import host_array, host_reals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg", ".pdf")  # what a picture may be, by the ending of its path
DPI = 128  # a power of two, so that a width in pixels is an exact width in inches
MARGIN = 12  # pixels, as are all lengths below
CELL = 96  # the side of one image, about
WIDTH = 1200  # of all images side by side, at most
SPACE = 10  # between groups of rows or columns
LINE = 16  # the height of a line of text
SEPARATOR = 176  # grey level of the lines between images: visible beside black and beside white
ROUNDING = 1e-3  # of images in [0, 1]
FARTHEST = 10.0  # of a mean of such images from [0, 1]
INK = "#333333"
FAINT = "#999999"
# Ten colours that colour-blind readers can tell apart (Petroff, Accessible Color Sequences, 2021).
COLORS = [
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
]


def check_images(images: ArrayLike, name: str, axes: str) -> np.ndarray:
    """Raise `ValueError` unless the images have these axes and lie in [0, 1]; return them as float32."""
    return _in_unit_interval(images, name, axes, ROUNDING)


def check_means(images: ArrayLike, name: str, axes: str) -> np.ndarray:
    """`check_images` of a model's means: one outside [0, 1], which a Gaussian may have, is drawn as the nearest end.

    Integers are refused, and so are values beyond `FARTHEST`, which no model of images in [0, 1] returns.
    """
    floating = jnp.issubdtype(host_array(images, name).dtype, jnp.floating)
    return _in_unit_interval(images, name, axes, FARTHEST if floating else ROUNDING)


def _in_unit_interval(images: ArrayLike, name: str, axes: str, beyond: float) -> np.ndarray:
    pixels = host_reals(images, name, np.float32)
    if pixels.ndim != len(axes.split(",")) or not pixels.size or pixels.shape[-1] not in (1, 3):
        raise ValueError(f"{name} must be [{axes}] with C = 1 or 3, got {pixels.shape}")
    wrong = ~((pixels >= -beyond) & (pixels <= 1 + beyond))
    if wrong.any():
        first = tuple(map(int, np.argwhere(wrong)[0]))
        image = first[0] if len(first) == 4 else first[:-3]
        raise ValueError(
            f"{name} must lie in [0, 1]: image {image} has {pixels[first]:g}; "
            "draw the likelihood's mean, not logits or 0..255 values"
        )
    return pixels.clip(0, 1)


def wrap(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, C] -> [rows, columns, H, W, C] in reading order; the cells left over are NaN."""
    rows = math.ceil(len(images) / columns)
    cells = np.full((rows * columns, *images.shape[1:]), np.nan, np.float32)
    cells[: len(images)] = images
    return cells.reshape(rows, columns, *images.shape[1:])


def tile(
    cells: np.ndarray,
    *,
    width: int = WIDTH,
    spaces_above: Sequence[int] = (),
    spaces_before: Sequence[int] = (),
    space: int = SPACE,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enlarge and frame images [R, S, H, W, C] on white: bytes [height, width, 3], row tops, column lefts.

    NaN cells stay white. `width` bounds all images side by side. `spaces_above` and `spaces_before` name the rows and
    columns that start a group, `space` pixels from the one before.
    """
    rows, columns, height, across, _ = cells.shape
    scale = max(1, min(round(CELL / max(height, across)), width // (columns * across)))
    line = max(1, scale // 3)  # a frame that neighbours share, wider where strokes are
    height, width = height * scale + 2 * line, across * scale + 2 * line
    tops = (height - line) * np.arange(rows) + space * np.isin(np.arange(rows), spaces_above).cumsum()
    lefts = (width - line) * np.arange(columns) + space * np.isin(np.arange(columns), spaces_before).cumsum()
    canvas = np.full((tops[-1] + height, lefts[-1] + width, 3), 255, np.uint8)
    for row, top in zip(cells, tops, strict=True):
        for cell, left in zip(row, lefts, strict=True):
            if not np.isnan(cell).any():
                canvas[top : top + height, left : left + width] = SEPARATOR
                pixels = np.rint(255 * cell).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
                canvas[top + line : top + height - line, left + line : left + width - line] = pixels
    return canvas, tops, lefts


def tile_pairs(images: ArrayLike, reconstructed: ArrayLike, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Tile images over their reconstructions, in double rows of at most ten pairs; also return the row tops."""
    above = check_images(images, "images", "N, H, W, C")
    below = check_means(reconstructed, "reconstructed", "N, H, W, C")
    if above.shape != below.shape:
        raise ValueError(f"images and reconstructed must have one shape, got {above.shape} and {below.shape}")
    double_rows = math.ceil(len(above) / 10)
    columns = math.ceil(len(above) / double_rows)
    pairs = np.stack([wrap(above, columns), wrap(below, columns)], axis=1)
    cells = pairs.reshape(-1, *pairs.shape[2:])
    canvas, tops, _ = tile(cells, width=width, spaces_above=range(2, 2 * double_rows, 2))
    return canvas, tops


def new_page(
    canvas: np.ndarray, *, title: str | None, left: int = 0, above: int = 0, below: int = 0
) -> tuple["Figure", tuple[int, int]]:
    """Put the canvas on a figure, pixel for pixel; return its distance from the left and from the top too."""
    height, width = canvas.shape[:2]
    top = MARGIN + above + (LINE + 8 if title else 0)
    needed = MARGIN + left + width + MARGIN
    page_width = max(needed, 10 * len(title or "") + 2 * MARGIN)
    left += MARGIN + (page_width - needed) // 2
    page_height = top + height + MARGIN + below
    figure = new_figure(page_width / DPI, page_height / DPI)
    figure.figimage(canvas, left, MARGIN + below, origin="upper")
    if title:
        write(figure, page_width / 2, MARGIN, title, size=9.5, ha="center", va="top")
    return figure, (left, top)


def write(figure: "Figure", x: float, y: float, text: str, *, size: float = 8, **alignment: Any) -> None:
    """Text at pixel x from the left, y from the top."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x / width, 1 - y / height, text, fontsize=size, color=INK, **alignment)


def axes_over(figure: "Figure", left: int, top: int, width: int, height: int) -> "Axes":
    """Axes over a rectangle of the page, in pixels from the left and from the top."""
    across, down = figure.get_size_inches() * DPI
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def tidy(axes: "Axes") -> None:
    """Draw only the left and bottom spines, and labels and ticks small."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(length=3, labelsize=8, color=FAINT, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=9, color=INK)


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """Make a figure, in inches, that is not part of pyplot's global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'jaxvae[figures]'") from error
    return Figure(figsize=(width, height), dpi=DPI, facecolor="white", **options)


def latent_name(latent: int) -> str:
    """What latent 0, 1, ... is called in every picture: z₁, z₂, ..., as matplotlib writes it.

    >>> latent_name(0)
    '$z_{1}$'
    """
    return f"$z_{{{latent + 1}}}$"


def save(figure: "Figure", path: str | Path) -> Path:
    """Write the figure to `path`, a .png or, for print, an .svg or a .pdf."""
    kind = Path(path).suffix
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # where a legend narrows axes of equal scales, labels settle at the second draw
    if kind not in FORMATS[1:]:
        return replace_file(path, FORMATS, lambda unfinished: figure.savefig(unfinished, format="png"))
    from matplotlib import rc_context

    _place_images(figure)
    date = {".svg": "Date", ".pdf": "CreationDate"}[kind]

    def write_to(unfinished: Path) -> None:
        with rc_context({"svg.hashsalt": "jaxvae"}):  # the same figure is the same file
            figure.savefig(unfinished, format=kind[1:], metadata={date: None})

    return replace_file(path, FORMATS, write_to)


def _place_images(figure: "Figure") -> None:
    """Images that lie on pixels of the page, as images that grow with it: a page of vectors has no pixels."""
    across, down = figure.get_size_inches() * DPI
    images: list[Any] = list(figure.images)
    for image in images:
        canvas = np.asarray(image.get_array())
        height, width = canvas.shape[:2]
        axes = figure.add_axes((image.ox / across, image.oy / down, width / across, height / down), zorder=-1)
        axes.imshow(canvas, aspect="auto", interpolation="none")
        axes.set_axis_off()
        image.remove()


def replace_file(path: str | Path, suffixes: Sequence[str], write_to: Callable[[Path], object]) -> Path:
    """Write a file beside `path` and move it there once it is whole; of several processes the first does it."""
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise ValueError(f"path must end in {' or '.join(suffixes)}, got {path}")
    if jax.process_index() > 0:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_to(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)  # what is left of one that failed
    return path
