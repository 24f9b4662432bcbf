"""Pictures, read and brought to one size by Pillow."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

try:
    from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("folders of pictures need Pillow: pip install 'jaxvae[data]'") from error

# What Pillow raises for a broken file, or for one so large that it could be an attack.
UNREADABLE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
ON_THEIR_SIDE = (5, 6, 7, 8)  # orientations that a camera notes


class Header(NamedTuple):
    """What a picture's file says before its pixels are read.

    Attributes:
      size: (width, height) of the upright picture.
      grey: whether it has no colours.
    """

    size: tuple[int, int]
    grey: bool


def header(path: Path) -> Header:
    """Of the picture in a file."""
    with Image.open(path) as opened:
        lies = opened.getexif().get(ExifTags.Base.Orientation) in ON_THEIR_SIDE
        return Header(opened.size[::-1] if lies else opened.size, opened.mode in GREY)


def read(path: Path, *, size: tuple[int, int], fit: str, grey: bool) -> np.ndarray:
    """A picture at (width, height), uint8, upright, on black where it is transparent.

    `fit` is as `jaxvae.data.folder` takes it.
    """
    with Image.open(path) as opened:
        return fitted(upright(opened), size=size, fit=fit, grey=grey)


def upright(picture: Image.Image) -> Image.Image:
    """Turned as its camera says."""
    return ImageOps.exif_transpose(picture)


def fitted(picture: Image.Image, *, size: tuple[int, int], fit: str, grey: bool) -> np.ndarray:
    """A picture that is open, as `read` makes it."""
    if picture.mode.startswith("I"):  # sixteen bits, which a conversion would cut off at 255
        values = np.asarray(picture, np.float64)
        grey_values = (values / 257).round().clip(0, 255).astype(np.uint8)
        if "transparency" in picture.info:  # the value that stands for nothing
            grey_values[values == picture.info["transparency"]] = 0
        picture = Image.fromarray(grey_values)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture)
    picture = picture.convert("L" if grey else "RGB")
    if picture.size != size:
        if fit == "crop":
            picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
        elif fit == "pad":
            picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS)
        else:
            picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)
