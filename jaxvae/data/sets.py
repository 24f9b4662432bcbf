"""Sets by their names."""

from collections.abc import Callable
from pathlib import Path

from jaxvae.data._prepared import load_prepared
from jaxvae.data.dataset import Dataset, make_prepare
from jaxvae.data.digits import load_digits
from jaxvae.data.domain import Domain
from jaxvae.data.moving_sprites import load_moving_sprites
from jaxvae.data.speech import load_speech
from jaxvae.data.sprites import load_sprites

DRAWN = {
    "digits": load_digits,
    "moving_sprites": load_moving_sprites,
    "speech": load_speech,
    "sprites": load_sprites,
}


def load(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """One split of a set by its name: one of four that need no files, or an image set of tensorflow-datasets.

    "digits" is scikit-learn's 1,797 images of 8x8 pixels with values 0 .. 16, in a fixed split: 1,437 "train" and 360
    "test". "sprites" is the 737,280 images of `jaxvae.data.sprites`, all "train", which its `prepare` draws.
    "speech" is sound and "moving_sprites" video, made as `jaxvae.data.speech` and `jaxvae.data.moving_sprites` say.

    Any other set is read from the newest `data_dir/name/VERSION`, decoded once and cached, without TensorFlow. Its
    8-bit images have 256 levels, images of zeros and ones (binarized_mnist, dsprites) two. Integer features called
    "label_NAME" (dsprites, shapes3d) become the factors, sorted by name. Where `data_dir` lacks the set but the cache
    has one decoded copy, that copy is used, without tensorflow-datasets. Where nothing can be written to the cache, the
    set is decoded into memory, with a warning. `~` in a path is the home directory.

    Args:
      name: "digits", "sprites", "speech", "moving_sprites", "mnist", or with a configuration, "emnist/letters".
      split: a split's plain name.
      data_dir: where the prepared sets are; `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
      cache_dir: for decoded arrays; `$JAXVAE_CACHE_DIR`, `$XDG_CACHE_HOME/jaxvae`, then `~/.cache/jaxvae`.
      progress: called with (images decoded, images in all) while a set is decoded for the first time.

    Raises:
      FileNotFoundError: the set is not prepared in `data_dir`, or has several cached copies and no original.
      ValueError: no such split, an empty one, another file format than array_record, images of several sizes.
      ImportError: scikit-learn or tensorflow-datasets is missing.
    """
    if name in DRAWN:
        return DRAWN[name](split)
    decoded = load_prepared(name, split, data_dir=data_dir, cache_dir=cache_dir, progress=progress)
    arrays = {"x": decoded.image, "label": decoded.label, "factors": decoded.factors}
    present = {field: values for field, values in arrays.items() if values is not None}
    levels = decoded.levels
    return Dataset(name, present, make_prepare(levels), Domain("levels", levels), decoded.factor_names)
