"""Sets by name, their cache, the errors for what is not there, and the feeds."""

import errno
import hashlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tfds_sets import random_images, write_set

from jaxvae import data
from jaxvae.data import _prepared, digits

TFDS_DATA_DIR = os.environ.get("TFDS_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not (TFDS_DATA_DIR and Path(TFDS_DATA_DIR, "mnist").is_dir()), reason="no mnist in TFDS_DATA_DIR"
)


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXVAE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("shared_cache")


def numbered(count, image=None, label=True):
    """A set whose pixels, label and index all say which example it is."""
    image = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) if image is None else image
    arrays = {"x": image} | ({} if label is False else {"label": np.arange(count) if label is True else label})
    return data.Dataset("numbered", arrays, data.make_prepare(256), data.Domain("levels", 256))


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def python(code, **environment):
    """Run code in a fresh interpreter with warnings as errors."""
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def output(process):
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return text


# Sets by name


def test_digits_are_scikit_learns_in_a_fixed_split():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert train.x.shape == (1437, 8, 8, 1)
    assert test.x.shape == (360, 8, 8, 1)
    assert train.x.dtype == np.uint8
    assert train.label.dtype == np.int32
    assert train.levels == 17
    assert (train.x.min(), train.x.max()) == (0, 16)
    assert train.x[0].sum() == 288
    assert test.x[0].sum() == 331

    from sklearn.datasets import load_digits

    def counted(images, labels):  # some digits appear twice
        return Counter(
            (image.astype(np.uint8).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
        )

    everything = load_digits()
    np.testing.assert_array_equal(digits._read()[0], everything.images)  # in its order, without importing it
    both = counted(train.x, train.label) + counted(test.x, test.label)
    assert both == counted(everything.images, everything.target)


@needs_mnist
def test_the_test_images_of_mnist_are_the_originals(shared_cache):
    test = data.load("mnist", "test", cache_dir=shared_cache)
    assert test.x.shape == (10000, 28, 28, 1)
    assert test.levels == 256
    assert np.bincount(test.label).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert sha256(test.x) == "a85d8dffc6063fb89dcbc2122651701e7bbc18837f940fc9d76df48c224558ca"


@pytest.mark.slow  # six times as many as there are test images
@needs_mnist
def test_the_training_images_of_mnist_are_the_originals(shared_cache):
    train = data.load("mnist", "train", cache_dir=shared_cache)
    assert train.x.shape == (60000, 28, 28, 1)
    assert train.levels == 256
    assert train.x.mean() == pytest.approx(33.318421449829934)
    assert train.x.mean() / 255 == pytest.approx(0.1306604762738429)
    assert np.bincount(train.label).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert sha256(train.x) == "59edd5ea35c0062957306cacba8ae47e71e2c56261f4ca10230aacc14943dd3b"


def test_a_prepared_set_is_read_exactly(tmp_path, cache_dir):
    images, labels = random_images(2345), np.arange(2345) % 10
    write_set(tmp_path, "tiny", images, labels)
    seen = []
    tiny = data.load("tiny", "train", data_dir=tmp_path, progress=lambda *counts: seen.append(counts))
    np.testing.assert_array_equal(tiny.x, images)
    np.testing.assert_array_equal(tiny.label, labels)
    assert (tiny.name, tiny.levels, tiny.label.dtype) == ("tiny", 256, np.int32)
    assert isinstance(tiny.x, np.memmap)
    assert seen == [(1000, 2345), (2000, 2345), (2345, 2345)]
    assert not list(cache_dir.rglob(".*"))  # nothing is left over


def test_grey_images_without_labels_and_with_a_configuration(tmp_path):
    images = random_images(7, (6, 6, 1))
    write_set(tmp_path, "grey/plain", images)
    grey = data.load("grey/plain", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(grey.x, images)
    assert grey.label is None


def test_images_of_zeros_and_ones_have_two_levels(tmp_path):
    images = random_images(9, (6, 6, 1), levels=2)
    write_set(tmp_path, "binary", images)
    binary = data.load("binary", "train", data_dir=tmp_path)
    assert binary.levels == 2
    prepared = data.make_prepare(binary.levels)({"x": jnp.asarray(binary.x)}, key=jax.random.key(0))
    np.testing.assert_array_equal(prepared["x"], images)


def test_the_newest_version_wins(tmp_path):
    for version, seed in [("1.9.0", 0), ("1.10.0", 1), ("1.10.1.incomplete7", 2)]:
        write_set(tmp_path, "tiny", random_images(3, seed=seed), version=version)
    tiny = data.load("tiny", "train", data_dir=tmp_path)
    np.testing.assert_array_equal(tiny.x, random_images(3, seed=1))


# The cache


@pytest.mark.slow
def test_the_second_load_needs_no_tensorflow_datasets(tmp_path):
    write_set(tmp_path, "tiny", random_images(5))
    code = (
        "import sys; from jaxvae import data\n"
        "image = data.load('tiny', 'train').x\n"
        "print(image.sum(), 'tensorflow_datasets' in sys.modules, 'tensorflow' in sys.modules)"
    )
    total = random_images(5).sum()
    assert output(python(code, TFDS_DATA_DIR=str(tmp_path))).split() == [str(total), "True", "False"]
    assert output(python(code, TFDS_DATA_DIR=str(tmp_path))).split() == [str(total), "False", "False"]


def test_two_processes_at_once_make_one_sound_cache(tmp_path, cache_dir):
    images = random_images(50)
    write_set(tmp_path, "tiny", images)
    code = """
import pathlib, time
from jaxvae import data
from jaxvae.data import digits
here = pathlib.Path({folder!r})
def wait(done, total):  # until both are decoding
    (here / "decoding-{me}").touch()
    while len(list(here.glob("decoding-*"))) < 2:
        time.sleep(0.01)
print(data.load("tiny", "train", progress=wait).x.sum())
"""
    both = [python(code.format(folder=str(tmp_path), me=me), TFDS_DATA_DIR=str(tmp_path)) for me in (1, 2)]
    assert [int(output(process)) for process in both] == [images.sum()] * 2
    assert len(list(tmp_path.glob("decoding-*"))) == 2
    files = sorted(path.name for path in cache_dir.rglob("*") if path.is_file())
    assert files == ["image.npy", "meta.json"]
    np.testing.assert_array_equal(data.load("tiny", "train", data_dir=tmp_path).x, images)


@pytest.mark.parametrize("damage", ["truncate", "empty", "shape", "meta", "entries", "label", "labels"])
def test_a_damaged_cache_is_made_again(tmp_path, cache_dir, damage):
    images, labels = random_images(50), np.arange(50) % 10
    write_set(tmp_path, "tiny", images, labels)
    data.load("tiny", "train", data_dir=tmp_path)
    (folder,) = (path.parent for path in cache_dir.rglob("meta.json"))
    if damage == "truncate":
        os.truncate(folder / "image.npy", 1000)
    elif damage == "empty":
        os.truncate(folder / "image.npy", 0)
    elif damage == "shape":
        np.save(folder / "image.npy", images[:40])
    elif damage == "meta":
        (folder / "meta.json").write_text("{")
    elif damage == "entries":
        (folder / "meta.json").write_text("{}")
    elif damage == "labels":
        np.save(folder / "label.npy", labels[:40])
    else:
        (folder / "label.npy").unlink()
    calls = []
    tiny = data.load("tiny", "train", data_dir=tmp_path, progress=lambda *counts: calls.append(counts))
    np.testing.assert_array_equal(tiny.x, images)
    np.testing.assert_array_equal(tiny.label, labels)
    assert calls == [(50, 50)]


def test_copies_of_one_version_do_not_mix(tmp_path):
    for place, seed, count in [("a", 0, 5), ("b", 1, 6)]:
        write_set(tmp_path / place, "tiny", random_images(count, seed=seed))
    for place, seed, count in [("a", 0, 5), ("b", 1, 6), ("a", 0, 5)]:
        tiny = data.load("tiny", "train", data_dir=tmp_path / place)
        np.testing.assert_array_equal(tiny.x, random_images(count, seed=seed))
    with pytest.raises(FileNotFoundError, match="several copies of it; remove all but one"):
        data.load("tiny", "train", data_dir=tmp_path / "nowhere")


def test_the_cache_alone_is_enough(tmp_path):
    write_set(tmp_path, "tiny", random_images(5), np.arange(5))
    data.load("tiny", "train", data_dir=tmp_path)
    alone = data.load("tiny", "train", data_dir=tmp_path / "nowhere")
    np.testing.assert_array_equal(alone.x, random_images(5))
    np.testing.assert_array_equal(alone.label, np.arange(5))
    with pytest.raises(FileNotFoundError, match="'tiny' is not prepared in"):
        data.load("tiny", "test", data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("cache", ["a file", "no rights", "no home"])
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, cache):
    images, labels = random_images(5), np.arange(5)
    write_set(tmp_path, "tiny", images, labels, factors={"hue": [2, 0, 1, 1, 0]})
    if cache == "a file":
        (tmp_path / "file").touch()
        monkeypatch.setenv("JAXVAE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    elif cache == "no rights":
        (tmp_path / "cache").mkdir()

        def refuse(*arguments, **options):
            raise PermissionError("Permission denied")

        monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    else:
        for variable in ("JAXVAE_CACHE_DIR", "XDG_CACHE_HOME"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setattr(Path, "expanduser", no_home)
        monkeypatch.chdir(tmp_path)
    seen = []
    for _ in range(2):
        with pytest.warns(UserWarning, match="decoded into memory, .* set JAXVAE_CACHE_DIR to a folder") as warned:
            tiny = data.load("tiny", "train", data_dir=tmp_path, progress=lambda *counts: seen.append(counts))
        assert warned[0].filename == __file__
        np.testing.assert_array_equal(tiny.x, images)
        np.testing.assert_array_equal(tiny.label, labels)
        np.testing.assert_array_equal(tiny.factors.ravel(), [2, 0, 1, 1, 0])
    assert seen == [(5, 5)] * 2
    assert not list(tmp_path.rglob("*.npy"))


def no_home(path):
    """`Path.expanduser` for a user whose home is not known."""
    if path.parts[0].startswith("~"):
        raise RuntimeError("Could not determine home directory.")
    return path


def test_without_a_home_a_set_is_not_prepared_rather_than_an_obscure_error(monkeypatch):
    for variable in ("TFDS_DATA_DIR", "JAXVAE_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "expanduser", no_home)
    with pytest.raises(FileNotFoundError, match=r"'mnist' is not prepared in ~/tensorflow_datasets\n"):
        data.load("mnist", "train")
    assert len(data.load("digits", "test")) == 360


@pytest.mark.parametrize("way", ["arguments", "variables", "xdg"])
def test_a_tilde_in_a_path_is_the_home_directory(tmp_path, monkeypatch, way):
    write_set(tmp_path / "sets", "tiny", random_images(5))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    options = {}
    if way == "arguments":
        options = {"data_dir": "~/sets", "cache_dir": Path("~/decoded/jaxvae")}
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
        monkeypatch.delenv("JAXVAE_CACHE_DIR")
        monkeypatch.setenv(
            *(("JAXVAE_CACHE_DIR", "~/decoded/jaxvae") if way == "variables" else ("XDG_CACHE_HOME", "~/decoded"))
        )
    np.testing.assert_array_equal(data.load("tiny", "train", **options).x, random_images(5))
    assert len(list((tmp_path / "decoded" / "jaxvae" / "tiny").rglob("image.npy"))) == 1


# What is not there


def test_an_unprepared_set_fails_at_once_with_the_way_out(tmp_path):
    (tmp_path / "kept" / "2.0.0").mkdir(parents=True)
    (tmp_path / "kept" / "2.0.0" / "dataset_info.json").write_text("{}")
    code = (
        "import sys, time; from jaxvae import data; start = time.perf_counter()\n"
        "try: data.load('cifar10', 'train')\n"
        "except FileNotFoundError as error: print(time.perf_counter() - start, error)\n"
        "assert 'tensorflow_datasets' not in sys.modules"
    )
    seconds, text = output(python(code, TFDS_DATA_DIR=str(tmp_path))).split(maxsplit=1)
    assert float(seconds) < 1
    assert f"the set 'cifar10' is not prepared in {tmp_path}\n" in text
    assert "Prepared there: kept. No files are needed for 'digits', 'moving_sprites', 'speech', 'sprites'." in text
    assert "builder('cifar10').download_and_prepare(file_format='array_record')" in text
    assert "TFDS_DATA_DIR" in text


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mnsit", "mnist"),
        ("digit", "digits"),
        ("sprite", "sprites"),
        ("dsprite", "dsprites"),
        ("MNIST", "mnist"),
        ("own_sett", "own_set"),
    ],
)
def test_a_misspelt_name(tmp_path, name, meant):
    (tmp_path / "own_set" / "1.0.0").mkdir(parents=True)
    (tmp_path / "own_set" / "1.0.0" / "dataset_info.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=f"did you mean '{meant}'?"):
        data.load(name, "train", data_dir=tmp_path)


def test_splits_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match="'digits' has no split 'validation'; it has train, test"):
        data.load("digits", "validation")
    with pytest.raises(ValueError, match="'sprites' has no split 'test'; it has train"):
        data.load("sprites", "test")
    write_set(tmp_path, "tiny", random_images(3))
    with pytest.raises(ValueError, match="'tiny' has no split 'tset'; it has train, test"):
        data.load("tiny", "tset", data_dir=tmp_path)
    with pytest.raises(ValueError, match="the split 'test' of 'tiny' is empty"):
        data.load("tiny", "test", data_dir=tmp_path)


def test_sets_that_cannot_be_read(tmp_path, cache_dir):
    write_set(tmp_path, "records", random_images(3), file_format="tfrecord")
    with pytest.raises(ValueError, match="holds tfrecord files, which only TensorFlow reads"):
        data.load("records", "train", data_dir=tmp_path)
    varying = [random_images(1, (4, 5, 3))[0], random_images(1, (5, 5, 3))[0]]
    write_set(tmp_path, "varying", varying, shape=(-1, -1, 3))
    with pytest.raises(ValueError, match=r"images of several sizes, .*\(5, 5, 3\)"):
        data.load("varying", "train", data_dir=tmp_path)
    assert not list(cache_dir.rglob("*.npy"))
    sound = write_set(tmp_path, "sound", random_images(3))
    features = (sound / "features.json").read_text().replace('"image": {"python', '"sound": {"python')
    (sound / "features.json").write_text(features)
    with pytest.raises(ValueError, match="'sound' has no feature 'image' of 8-bit images; it has"):
        data.load("sound", "train", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("name", "packages"), [("digits", ["sklearn", "sklearn.datasets"]), ("tiny", ["tensorflow_datasets"])]
)
def test_a_missing_extra(tmp_path, monkeypatch, name, packages):
    write_set(tmp_path, "tiny", random_images(3))
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'jaxvae\[data\]'"):
        data.load(name, "train", data_dir=tmp_path)


# Parts of a set


def test_split_validation():
    images = numbered(100)
    train, validation = data.split_validation(images, 30, seed=0)
    assert (len(train.x), len(validation.x)) == (70, 30)
    assert sorted([*train.label, *validation.label]) == list(range(100))
    np.testing.assert_array_equal(validation.x.ravel(), validation.label)
    again, other = (data.split_validation(images, 30, seed=seed)[1].label for seed in (0, 1))
    np.testing.assert_array_equal(again, validation.label)
    assert set(other) != set(again)
    with pytest.raises(ValueError, match=r"between 0 and 1 as a share of all, or be an integer, got 2\.5"):
        data.split_validation(images, 2.5, seed=0)
    with pytest.raises(TypeError, match="count must be an integer, got '30'"):
        data.split_validation(images, "30", seed=0)
    for count in (0, 100):
        with pytest.raises(ValueError, match=rf"count must lie in 1 .. 99 for 100 examples, got {count}"):
            data.split_validation(images, count, seed=0)


# Preparing a batch


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_prepare_scales_to_the_unit_interval(levels, key):
    image = np.arange(levels).astype(np.uint8).reshape(-1, 1, 1, 1)
    prepare = jax.jit(data.make_prepare(levels))
    scaled = prepare({"x": image, "label": np.arange(levels)}, key=key)
    assert scaled["x"].dtype == jnp.float32
    np.testing.assert_allclose(scaled["x"].ravel(), np.linspace(0, 1, levels), rtol=1e-6)
    assert scaled["x"].max() == 1
    np.testing.assert_array_equal(scaled["label"], np.arange(levels))
    passed = prepare({"x": scaled["x"]}, key=key)
    np.testing.assert_array_equal(passed["x"], scaled["x"])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
def test_floating_x_passes_whatever_its_type(dtype, key):
    x = jnp.linspace(0, 1, 6, dtype=dtype).reshape(6, 1, 1, 1)
    for prepare in (data.make_prepare(), data.make_prepare(17)):
        passed = prepare({"x": x}, key=key)["x"]
        assert passed.dtype == dtype
        np.testing.assert_array_equal(passed, x)
    binary = data.make_prepare(binarize=True)({"x": x, "index": jnp.arange(6)}, key=key)["x"]
    assert binary.dtype == dtype
    assert set(np.unique(np.asarray(binary, np.float32))) == {0, 1}


def test_integers_without_levels_are_refused(key):
    with pytest.raises(
        ValueError, match=r"x is uint8, whose number of levels is not known: use make_prepare\(levels\)"
    ):
        jax.jit(data.make_prepare())({"x": jnp.zeros((2, 1), jnp.uint8)}, key=key)


def test_prepare_pickles_and_equals_its_like(key):
    batch = {"x": jnp.asarray(random_images(3)), "index": jnp.arange(3)}
    prepare = data.make_prepare(256, binarize=True)
    again = pickle.loads(pickle.dumps(prepare))
    np.testing.assert_array_equal(again(batch, key=key)["x"], prepare(batch, key=key)["x"])
    assert again == prepare == data.make_prepare(256, binarize=True)
    assert hash(again) == hash(prepare)
    assert len({prepare, data.make_prepare(256), data.make_prepare(17, binarize=True)}) == 3


def test_the_noise_is_the_documented_one(key):
    """Example i draws from fold_in(key, index[i])."""
    grey, index = random_images(3, (5, 5, 1)), np.array([7, 0, 7])
    drawn = data.make_prepare(256, binarize=True)({"x": jnp.asarray(grey), "index": index}, key=key)["x"]
    for i, image in enumerate(grey):
        uniform = jax.random.uniform(jax.random.fold_in(key, index[i]), (25,)).reshape(5, 5, 1)
        np.testing.assert_array_equal(drawn[i], uniform < image.astype(np.float32) / 255)


def test_binarisation_draws_each_pixel_with_its_grey_value():
    grey = random_images(3, (5, 5, 1), seed=3)
    grey[0, 0, 0], grey[0, 0, 1] = 0, 255
    batch = {"x": jnp.asarray(grey), "index": jnp.arange(3)}
    prepare = data.make_prepare(256, binarize=True)
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: prepare(batch, key=key)["x"]))(keys))
    assert set(np.unique(drawn)) == {0, 1}
    probability = grey / 255
    error = np.sqrt(probability * (1 - probability) / draws)
    assert (np.abs(drawn.mean(axis=0) - probability) <= 5 * error + 1e-6).all()
    pairs = (drawn[:, :, :, :-1] - probability[:, :, :-1]) * (drawn[:, :, :, 1:] - probability[:, :, 1:])
    assert np.abs(pairs.mean(axis=0)).max() < 5 * 0.25 / np.sqrt(draws)  # neighbours are independent


def test_binarisation_depends_on_the_key_and_the_index_only(key):
    grey = np.full((8, 4, 4, 1), 128, np.uint8)
    prepare = jax.jit(data.make_prepare(256, binarize=True))

    def draw(chosen, key=key):
        chosen = np.array(chosen)
        return np.asarray(prepare({"x": grey[chosen], "index": chosen}, key=key)["x"])

    everything = draw(range(8))
    for chosen in ([5], [7, 2, 5], [3, 3, 0, 1]):
        np.testing.assert_array_equal(draw(chosen), everything[chosen])
    assert len({image.tobytes() for image in everything}) == 8
    assert (draw(range(8), jax.random.key(1)) != everything).any()


# Orders and feeds


def test_an_order_of_narrow_integers_does_not_overflow():
    order = data.Order(num_examples=100, batch_size=np.int8(10), epochs=np.int8(100), seed=np.uint8(1))
    assert (order.total_steps, order) == (1000, data.Order(100, 10, 100, 1))
    np.testing.assert_array_equal(order.indices(30, 2), data.Order(100, 10, 100, 1).indices(30, 2))
    hundreds = data.from_arrays("hundreds", np.zeros((300, 2), np.float32))
    assert data.evaluation_feed(hundreds, np.int8(100))[1].shape == (3, 100)


def test_an_order_resumes_at_any_step():
    order = data.Order(num_examples=23, batch_size=4, epochs=5, seed=7)
    assert (order.steps_per_epoch, order.total_steps) == (5, 25)
    whole = order.indices(0, 25)
    assert whole.dtype == np.int32
    for cuts in ([0, 1, 7, 25], [0, 5, 10, 13, 25], list(range(26))):
        parts = [order.indices(a, b - a) for a, b in pairwise(cuts)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_epoch_is_another_permutation():
    order = data.Order(num_examples=23, batch_size=4, epochs=5, seed=7)
    epochs = order.indices(0, 25).reshape(5, 20)
    for epoch in epochs:
        assert len(set(epoch)) == 20
        assert set(epoch) <= set(range(23))
    assert len({epoch.tobytes() for epoch in epochs}) == 5
    other = data.Order(num_examples=23, batch_size=4, epochs=5, seed=8)
    assert (other.indices(0, 5) != order.indices(0, 5)).any()


def test_the_permutation_depends_on_the_pair_of_seed_and_epoch():
    """Not on their sum: epoch 1 of a seed would be epoch 0 of the next."""

    def epochs(seed):
        return data.Order(num_examples=50, batch_size=50, epochs=4, seed=seed).indices(0, 4)

    every = np.concatenate([epochs(seed) for seed in range(4)])
    assert len({permutation.tobytes() for permutation in every}) == 16
    np.testing.assert_array_equal(np.sort(every, axis=1), np.tile(np.arange(50), (16, 1)))


def test_the_permutations_stay_what_they_are():
    """Runs that were begun with them resume."""
    order = data.Order(num_examples=10, batch_size=10, epochs=2, seed=1)
    expected = [np.random.default_rng(np.random.SeedSequence((1, epoch))).permutation(10) for epoch in (0, 1)]
    np.testing.assert_array_equal(order.indices(0, 2), expected)
    assert order.indices(1, 1).tolist() == [[7, 2, 4, 6, 1, 0, 3, 5, 9, 8]]


def test_a_batch_of_one_and_a_set_of_one():
    order = data.Order(num_examples=1, batch_size=1, epochs=3, seed=0)
    assert order.indices(0, 3).tolist() == [[0]] * 3
    one = numbered(1)
    for feed in (data.Resident(one, order), data.Streamed(one, order)):
        source, indices = feed(1, 2)
        assert indices.shape == (3, 1)
        assert indices[2] == -1
        np.testing.assert_array_equal(source["x"][indices[:2].ravel()].ravel(), [0, 0])
    source, indices = data.evaluation_feed(one, 1)
    assert indices.tolist() == [[0]]
    assert data.Order(3, 1, 2, 0).indices(2, 2).shape == (2, 1)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"num_examples": 0}, "num_examples must be at least 1, got 0"),
        ({"batch_size": 24}, "a batch of 24 is larger than the split of 23 examples"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, r"seed must lie in 0 .. 2\*\*32 - 1, got -1"),
        ({"seed": 2**32}, r"seed must lie in 0 .. 2\*\*32 - 1, got 4294967296"),
    ],
)
def test_orders_that_cannot_be(change, text):
    with pytest.raises(ValueError, match=text):
        data.Order(**{"num_examples": 23, "batch_size": 4, "epochs": 5, "seed": 7} | change)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("mapped", [True, False])
def test_resident_and_streamed_give_the_same_examples(tmp_path, label, mapped):
    image = np.arange(23, dtype=np.uint8).reshape(-1, 1, 1, 1)
    if mapped:
        np.save(tmp_path / "image.npy", image)
        image = np.load(tmp_path / "image.npy", mmap_mode="r")
    images = numbered(23, image, label)
    order = data.Order(num_examples=23, batch_size=4, epochs=3, seed=0)
    feeds = data.Resident(images, order, chunk=7), data.Streamed(images, order, chunk=7)
    for start, count in [(0, 7), (7, 7), (14, 1)]:
        for feed in feeds:
            assert (feed.steps_per_epoch, feed.total_steps, feed.batch_size) == (5, 15, 4)
            source, indices = feed(start, count)
            assert indices.shape == (7, 4)
            assert indices.dtype == jnp.int32
            assert (indices[count:] == -1).all()
            assert set(source) == {"x", "index"} | ({"label"} if label else set())
            assert source["x"].dtype == jnp.uint8
            taken = jax.tree.map(lambda leaf: leaf[indices[:count]], source)  # noqa: B023
            expected = order.indices(start, count)
            for leaf in taken.values():
                np.testing.assert_array_equal(leaf.reshape(count, 4), expected)
        assert len(source["x"]) == 28  # a stream sends a chunk, always of one shape


def test_feeds_bring_all_that_belongs_to_an_example_but_its_factors():
    count = np.arange(23)
    arrays = {
        "x": count[:, None] + np.zeros(3),
        "condition": np.tile(count, (2, 1)).T.astype(np.uint8),
        "observed": np.arange(69).reshape(23, 3) % 2 == 0,
        "factors": count[:, None],
    }
    table = data.Dataset("table", arrays, data.make_prepare(), data.Domain("real"))
    order = data.Order(num_examples=23, batch_size=4, epochs=3, seed=0)
    for feed in (data.Resident(table, order, chunk=2), data.Streamed(table, order, chunk=2)):
        source, indices = feed(5, 2)
        taken = {name: np.asarray(values[indices.ravel()]) for name, values in source.items()}
        expected = order.indices(5, 2).ravel()
        assert set(taken) == {"x", "condition", "observed", "index"}
        np.testing.assert_array_equal(taken["index"], expected)
        for name in ("x", "condition", "observed"):
            np.testing.assert_array_equal(taken[name], arrays[name][expected])
        assert (taken["condition"].dtype, taken["observed"].dtype) == (np.uint8, bool)


def test_streams_take_arrays_of_jax_and_lists():
    order = data.Order(num_examples=8, batch_size=4, epochs=1, seed=0)
    for image, label in (
        (jnp.arange(8, dtype=jnp.uint8).reshape(8, 1, 1, 1), jnp.arange(8)),
        ([[[[i]]] for i in range(8)], list(range(8))),
    ):
        for source, indices in (
            data.Streamed(numbered(8, image, label), order)(0, 2),
            data.Streamed(data.from_arrays("own", image, label, levels=8), order)(0, 2),
            data.evaluation_feed(numbered(8, image, label), 4),
        ):
            taken = {name: np.asarray(values[indices.ravel()]).ravel() for name, values in source.items()}
            np.testing.assert_array_equal(taken["x"], taken["index"])
            np.testing.assert_array_equal(taken["label"], taken["index"])
            assert sorted(taken["index"]) == list(range(8))


def test_resident_sends_the_images_once_and_feeds_go_where_they_are_told():
    images, order = numbered(23), data.Order(num_examples=23, batch_size=4, epochs=3, seed=0)
    device = jax.devices()[-1]
    resident = data.Resident(images, order, chunk=2, device=device)
    assert resident(0, 2)[0]["x"] is resident(2, 2)[0]["x"]
    for feed in (resident, data.Streamed(images, order, chunk=2, device=device)):
        assert all(leaf.devices() == {device} for leaf in jax.tree.leaves(feed(0, 2)))


def test_a_feed_needs_an_order_for_its_set():
    order = data.Order(num_examples=24, batch_size=4, epochs=3, seed=0)
    for feed in (data.Resident, data.Streamed):
        with pytest.raises(ValueError, match="the order is for 24 examples, 'numbered' has 23"):
            feed(numbered(23), order, chunk=2)


@pytest.mark.parametrize(("count", "batch_size", "batches"), [(23, 4, 6), (24, 4, 6), (3, 8, 1)])
def test_the_evaluation_feed_covers_each_example_once(count, batch_size, batches):
    source, indices = data.evaluation_feed(numbered(count), batch_size)
    assert indices.shape == (batches, batch_size)
    flat = np.asarray(indices).ravel()
    np.testing.assert_array_equal(flat[:count], np.arange(count))
    assert (flat[count:] == -1).all()
    np.testing.assert_array_equal(source["index"], np.arange(count))
    np.testing.assert_array_equal(source["x"].ravel(), np.arange(count))


@needs_mnist
def test_streaming_mnist_from_its_memory_map(shared_cache):
    images = data.load("mnist", "test", cache_dir=shared_cache)
    order = data.Order(len(images), 128, epochs=1, seed=0)
    source, indices = data.Streamed(images, order, chunk=10)(30, 10)
    chosen = order.indices(30, 10).ravel()
    np.testing.assert_array_equal(source["x"][indices.ravel()], images.x[chosen])
    np.testing.assert_array_equal(source["label"][indices.ravel()], images.label[chosen])


def test_a_chunk_is_1000_steps_of_rows_or_64_mib_of_images():
    images = data.from_arrays("noise", random_images(4096, (32, 32, 3)))
    order = data.Order(len(images), 256, 100, 0)
    assert data.Resident(images, order).chunk == 1000
    assert data.Streamed(images, order).chunk == 64 * 2**20 // (256 * (32 * 32 * 3 + 4))  # each with its index
    short = data.Order(len(images), 256, 1, 0)
    assert data.Resident(images, short).chunk == data.Streamed(images, short).chunk == 16


def test_a_disk_without_room_for_a_map_is_found_before_it_kills(tmp_path, monkeypatch):
    asked = []

    def full(file, start, size):
        asked.append((start, size))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_prepared.os, "posix_fallocate", full, raising=False)
    image = np.arange(24, dtype=np.uint8).reshape(3, 2, 4, 1)

    def decode(out, progress):
        out[:] = image
        return _prepared.Decoded(out, None, 256, None, ())

    source = SimpleNamespace(name="mine", shape=image.shape, decode=decode)
    with pytest.warns(UserWarning, match="decoded into memory, .*No space left on device"):
        decoded = _prepared._decode(source, tmp_path / "cache" / "train", lambda done, total: None)
    np.testing.assert_array_equal(decoded.image, image)
    assert asked == [(0, 24 + 128)]  # with NumPy's header
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_description_of_a_set_is_named(tmp_path):
    folder = tmp_path / "mine" / "1.0.0"
    folder.mkdir(parents=True)
    for text, said in (("{", "is damaged: Expecting"), ("{}", "it lists no splits"), ('{"splits": [1]}', "no splits")):
        (folder / "dataset_info.json").write_text(text)
        with pytest.raises(ValueError, match=f"dataset_info.json is damaged: .*{said.removeprefix('is damaged: ')}"):
            data.load("mine", "train", data_dir=tmp_path, cache_dir=tmp_path)
