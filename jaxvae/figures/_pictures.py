"""Images in rows and columns, still and moving."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_reals
from jaxvae.figures._page import (
    LINE,
    WIDTH,
    check_images,
    check_means,
    new_page,
    replace_file,
    save,
    tile,
    tile_pairs,
    wrap,
    write,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

CAPTIONED = 190  # the width in pixels of an image under a caption, about
LETTER = 7  # the width of a letter of small text


def image_grid(
    path: str | Path,
    images: ArrayLike,
    *,
    columns: int | None = None,
    row_names: Sequence[str] | None = None,
    column_names: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Images [N, H, W, C] in reading order, in a square unless `columns` says otherwise.

    `row_names` stand to the left, one for each row, such as the classes; `column_names` above.
    """
    pixels = check_means(images, "images", "N, H, W, C")
    if columns is not None:
        at_least(1, columns=columns)
    columns = min(columns or math.ceil(math.sqrt(len(pixels))), len(pixels))
    canvas, tops, lefts = tile(wrap(pixels, columns))
    names = {"row_names": (row_names or (), len(tops)), "column_names": (column_names or (), columns)}
    for argument, (given, count) in names.items():
        if given and len(given) != count:
            raise ValueError(f"{argument} must be {count}, got {len(given)}")
    beside = 8 + _breadth(row_names) if row_names else 0
    figure, (left, top) = new_page(canvas, title=title, left=beside, above=LINE + 4 if column_names else 0)
    across, down = (canvas.shape[1] - lefts[-1]) / 2, (canvas.shape[0] - tops[-1]) / 2
    for y, name in zip(tops, row_names or (), strict=False):
        write(figure, left - 8, top + y + down, name, ha="right", va="center")
    for x, name in zip(lefts, column_names or (), strict=False):
        write(figure, left + x + across, top - 5, name, ha="center", va="bottom")
    return save(figure, path)


def _breadth(names: Iterable[str]) -> int:
    """Pixels that the longest of some names takes, about; of a formula only what is seen counts."""
    return (LETTER + 1) * max(len(re.sub(r"[$_{}]", "", name)) for name in names)


def captioned(
    path: str | Path,
    images: ArrayLike,
    captions: Sequence[str],
    *,
    columns: int = 4,
    title: str | None = None,
) -> Path:
    """Images [N, H, W, C] in reading order, each under its caption, which is broken into lines of the image's width."""
    pixels = check_means(images, "images", "N, H, W, C")
    at_least(1, columns=columns)
    if len(captions) != len(pixels):
        raise ValueError(f"captions must be {len(pixels)}, one for each image, got {len(captions)}")
    columns = min(columns, len(pixels))
    enlarged = max(1, round(CAPTIONED / pixels.shape[2]))
    pixels = pixels.repeat(enlarged, axis=1).repeat(enlarged, axis=2)
    texts = [textwrap.fill(caption, max(8, pixels.shape[2] // LETTER)) for caption in captions]
    above = LINE * (1 + max(text.count("\n") for text in texts))
    cells = wrap(pixels, columns)
    rows = len(cells)
    canvas, tops, lefts = tile(cells, spaces_above=range(1, rows), spaces_before=range(1, columns), space=above + 14)
    figure, (left, top) = new_page(canvas, title=title, above=above)
    middle = (canvas.shape[1] - lefts[-1]) / 2
    for i, text in enumerate(texts):
        x, y = lefts[i % columns], tops[i // columns]
        write(figure, left + x + middle, top + y - 5, text, ha="center", va="bottom")
    return save(figure, path)


def labelled_rows(path: str | Path, rows: Mapping[str, ArrayLike], *, title: str | None = None) -> Path:
    """A row of images [S, H, W, C] for each name, which stands to its left; all of one size, rows may end early."""
    cells = {name: check_means(images, name, "S, H, W, C") for name, images in rows.items()}
    if not cells:
        raise ValueError("rows must hold images under their names, got none")
    sizes = {images.shape[1:] for images in cells.values()}
    if len(sizes) > 1:
        raise ValueError(f"rows must hold images of one size, got {sorted(sizes)}")
    columns = max(map(len, cells.values()))
    canvas, tops, _ = tile(np.concatenate([wrap(images, columns) for images in cells.values()]))
    figure, (left, top) = new_page(canvas, title=title, left=8 + _breadth(cells))
    middle = (canvas.shape[0] - tops[-1]) / 2
    for y, name in zip(tops, cells, strict=True):
        write(figure, left - 8, top + y + middle, name, ha="right", va="center")
    return save(figure, path)


def reconstructions(path: str | Path, images: ArrayLike, reconstructed: ArrayLike, *, title: str | None = None) -> Path:
    """Images [N, H, W, C] over their reconstructions, in double rows of at most ten pairs."""
    canvas, tops = tile_pairs(images, reconstructed, WIDTH)
    figure, (left, top) = new_page(canvas, title=title, left=112)
    middle = (tops[1] - tops[0]) / 2
    for row, y in enumerate(tops):
        label = "reconstruction" if row % 2 else "input"
        write(figure, left - 8, top + y + middle, label, ha="right", va="center")
    return save(figure, path)


def interpolation(path: str | Path, rows: ArrayLike, *, title: str | None = None) -> Path:
    """Rows [R, S, H, W, C] that each lead from one image to another; the two ends stand apart."""
    cells = check_means(rows, "rows", "R, S, H, W, C")
    steps = cells.shape[1]
    if steps < 2:
        raise ValueError(f"rows must hold both ends, [R, S >= 2, H, W, C], got {cells.shape}")
    canvas, _, lefts = tile(cells, spaces_before=(1, steps - 1))
    figure, (left, top) = new_page(canvas, title=title, above=LINE + 4)
    middle = (canvas.shape[1] - lefts[-1]) / 2
    for x, label in ((lefts[0], "start"), (lefts[-1], "end")):
        write(figure, left + x + middle, top - 5, label, ha="center", va="bottom")
    return save(figure, path)


def completions(
    path: str | Path,
    visible: ArrayLike,
    samples: ArrayLike | Mapping[str, ArrayLike],
    others: Mapping[str, ArrayLike],
    *,
    title: str | None = None,
) -> Path:
    """One row per image: what is visible of it, samples of the whole, and others, such as their mean and the truth.

    `visible` and each of the others, drawn under their names, are images [N, H, W, C]; the samples are
    [N, S, H, W, C], or groups of such under their names. Which grey stands for what is not visible is the caller's
    choice.
    """
    drawn = samples if isinstance(samples, Mapping) else {"samples": samples}
    groups = {name: check_means(images, name, "N, S, H, W, C") for name, images in drawn.items()}
    first = next(iter(groups.values()))
    expected = (len(first), *first.shape[2:])
    shapes = {name: (len(images), *images.shape[2:]) for name, images in groups.items()}
    whole = {"visible": check_images(visible, "visible", "N, H, W, C")}
    whole |= {name: check_means(images, name, "N, H, W, C") for name, images in others.items()}
    for name, shape in (shapes | {name: images.shape for name, images in whole.items()}).items():
        if shape != expected:
            raise ValueError(f"{name} must be {expected}, as the samples are, got {shape}")
    columns = {"visible": whole["visible"][:, None]} | groups
    columns |= {name: images[:, None] for name, images in whole.items() if name != "visible"}
    starts = np.cumsum([0, *(images.shape[1] for images in columns.values())])
    cells = np.concatenate(list(columns.values()), axis=1)
    canvas, _, lefts = tile(cells, spaces_before=starts[1:-1].tolist())
    figure, (left, top) = new_page(canvas, title=title, above=LINE + 4)
    cell = canvas.shape[1] - lefts[-1]
    for name, start, end in zip(columns, starts[:-1], starts[1:], strict=True):
        middle = (lefts[start] + lefts[end - 1] + cell) / 2
        write(figure, left + middle, top - 5, name, ha="center", va="bottom")
    return save(figure, path)


def traversals(
    path: str | Path,
    images: ArrayLike,
    values: ArrayLike,
    *,
    labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Images [D, S, H, W, C]: row d decodes a fixed code whose latent d takes the values [S], written below.

    The rows come in order, say from the largest KL down; `labels`, one for each, stand to the left.
    """
    cells = check_means(images, "images", "D, S, H, W, C")
    moved = host_reals(values, "values")
    if moved.shape != cells.shape[1:2] or not np.isfinite(moved).all():
        raise ValueError(f"values must be [{cells.shape[1]}], one per column of images, and finite, got {moved}")
    names = _check_row_labels(labels, len(cells))
    canvas, tops, lefts = tile(cells)
    beside = 8 + _breadth(names) if labels is not None else 0
    figure, (left, top) = new_page(canvas, title=title, left=beside, below=LINE + 4)
    middle = (canvas.shape[0] - tops[-1]) / 2
    for y, name in zip(tops, names, strict=True):
        write(figure, left - 8, top + y + middle, name, ha="right", va="center")
    cell = canvas.shape[1] - lefts[-1]
    step = math.ceil(52 / cell)  # narrow columns have no room for all values
    for x, value in zip(lefts[::step], moved[::step].tolist(), strict=True):
        number = f"${round(value, 2) + 0.0:g}$"  # + 0.0: no negative zero
        write(figure, left + x + cell / 2, top + canvas.shape[0] + 5, number, ha="center", va="top")
    return save(figure, path)


def traversal_gif(path: str | Path, images: ArrayLike, *, labels: Sequence[str] | None = None, fps: int = 12) -> Path:
    """An animated GIF of images [D, S, H, W, C]: one cell per latent, at most five beside each other.

    Frame s shows value s; the values go forth and back, each end once, for ever. `labels` stand above the cells.
    A GIF counts hundredths of a second: `fps` is rounded to what they can say. Greys are exact; of colours the
    file has 256.
    """
    cells = check_means(images, "images", "D, S, H, W, C")
    steps = cells.shape[1]
    if steps < 2:
        raise ValueError(f"images must hold at least two values, [D, S >= 2, H, W, C], got {cells.shape}")
    names = _check_row_labels(labels, len(cells))
    pages = [_traversal_page(cells[:, step], names) for step in range(steps)]
    return save_gif(path, pages, grey=cells.shape[-1] == 1, fps=fps, and_back=True)


def save_gif(path: str | Path, pages: Sequence["Figure"], *, grey: bool, fps: int, and_back: bool = False) -> Path:
    """Figures of one size as an animated GIF that repeats for ever, forth alone or back too, each end once."""
    if not 1 <= fps <= 50:
        raise ValueError(f"fps must lie in [1, 50], got {fps}")
    frames = _palette_frames(np.stack([_pixels(figure) for figure in pages]), grey=grey)
    rest = [*frames[1:], *(frames[-2:0:-1] if and_back else [])]
    milliseconds = 10 * round(100 / fps)
    return replace_file(
        path,
        (".gif",),
        lambda unfinished: frames[0].save(
            unfinished, format="GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0
        ),
    )


def _check_row_labels(labels: Sequence[str] | None, rows: int) -> Sequence[str]:
    """Raise `ValueError` unless there is a label for each row; without labels they are empty."""
    if labels is not None and len(labels) != rows:
        raise ValueError(f"labels must be {rows}, one per latent, got {len(labels)}")
    return [""] * rows if labels is None else labels


def _traversal_page(images: np.ndarray, names: Sequence[str]) -> "Figure":
    """Images [D, H, W, C] in reading order, each under its name."""
    columns = min(5, len(images))
    cells = wrap(images, columns)
    rows = len(cells)
    canvas, tops, lefts = tile(cells, spaces_above=range(1, rows), spaces_before=range(1, columns), space=LINE + 14)
    figure, (left, top) = new_page(canvas, title=None, above=LINE)
    middle = (canvas.shape[1] - lefts[-1]) / 2
    for i, name in enumerate(names):
        x, y = lefts[i % columns], tops[i // columns]
        write(figure, left + x + middle, top + y - 5, name, ha="center", va="bottom")
    return figure


def _pixels(figure: "Figure") -> np.ndarray:
    """Draw the figure: bytes [height, width, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _palette_frames(frames: np.ndarray, *, grey: bool) -> list["Image"]:
    """Frames [S, height, width, 3] as images with one palette: the greys, or the 256 colours that serve all best."""
    from PIL import Image

    if grey:
        return [Image.fromarray(np.ascontiguousarray(frame[..., 0])) for frame in frames]
    together = Image.fromarray(np.concatenate(frames)).quantize(256, dither=Image.Dither.NONE)
    height, width = frames.shape[1:3]
    return [together.crop((0, s * height, width, (s + 1) * height)) for s in range(len(frames))]
