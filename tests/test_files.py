"""Folders of pictures and files of arrays: what they become, and what is refused with the way out."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxvae import data

RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 6, 9
COLOURS = RNG.integers(0, 256, (4, HEIGHT, WIDTH, 3), dtype=np.uint8)


def write(folder, names=("a.png", "b.png", "c.png", "d.png"), pictures=COLOURS, **options):
    for name, pixels in zip(names, pictures, strict=False):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / name, **options)
    return folder


# Folders


def test_pictures_of_one_size_are_kept_to_the_bit_in_the_order_of_their_paths(tmp_path):
    write(tmp_path, ["b.png", "a.png", "c.PNG"])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("nor this")
    own, seen = data.folder(tmp_path), []
    np.testing.assert_array_equal(own.x, COLOURS[[1, 0, 2]])
    assert (own.x.dtype, own.domain, own.label, own.name) == (np.uint8, data.Domain("levels", 256), None, tmp_path.name)
    prepared = own.prepare({"x": jnp.asarray(own.x)}, key=jax.random.key(0))["x"]
    np.testing.assert_allclose(prepared, COLOURS[[1, 0, 2]] / 255, rtol=1e-6)
    data.folder(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_sub_folders_label_their_pictures_however_deep(tmp_path):
    write(tmp_path, ["cats/1.png", "ants/2.png"])
    (tmp_path / "cats/more").mkdir()
    write(tmp_path, ["cats/more/3.png"], COLOURS[2:])
    own = data.folder(tmp_path)
    assert own.label.tolist() == [0, 1, 1]
    assert (own.name, own.label_names) == (tmp_path.name, ("ants", "cats"))
    np.testing.assert_array_equal(own.x, COLOURS[[1, 0, 2]])
    assert own.example_names == ("ants/2.png", "cats/1.png", "cats/more/3.png")
    assert own.take([2, 0]).example_names == ("cats/more/3.png", "ants/2.png")
    assert data.split_validation(own, 1, seed=0)[1].example_names[0] in own.example_names
    with pytest.raises(ValueError, match="example_names must be one for each of 3 examples, got 1"):
        dataclasses.replace(own, example_names=["a"])
    known = data.folder(tmp_path, label_names=["bees", "cats", "ants"])  # of a set that had more
    assert (known.label.tolist(), known.num_classes) == ([2, 1, 1], 3)
    with pytest.raises(ValueError, match="has a folder 'ants', which is none of 'bees', 'cats'"):
        data.folder(tmp_path, label_names=["bees", "cats"])
    write(tmp_path, ["beside.png"])
    with pytest.raises(ValueError, match=r"files in sub-folders, which label them, and others beside: beside\.png"):
        data.folder(tmp_path)


def test_links_are_followed_and_none_of_them_for_ever(tmp_path):
    ants, root = tmp_path / "elsewhere", tmp_path / "root"
    for folder in (ants, root):
        folder.mkdir()
    write(ants, ["1.png", "2.png"])
    write(root, ["cats/3.png"], COLOURS[2:])
    (root / "ants").symlink_to(ants)
    (ants / "back").symlink_to(root)
    (root / "cats" / "here").symlink_to(root / "cats")
    own = data.folder(root)
    assert own.example_names == ("ants/1.png", "ants/2.png", "cats/3.png")
    assert own.label.tolist() == [0, 0, 1]
    np.testing.assert_array_equal(own.x, COLOURS[:3])


def test_label_names_without_sub_folders_are_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ValueError, match=r"label_names are of sub-folders, and all files lie in .* itself"):
        data.folder(tmp_path, label_names=["ants", "cats"])


@pytest.mark.parametrize("size", [4.0, (4, 4, 3), (4,), "4"])
def test_a_size_that_is_none_is_refused_by_its_value(tmp_path, size):
    with pytest.raises((TypeError, ValueError), match="size must be"):
        data.folder(write(tmp_path), size=size)


def test_a_size_may_be_numpys(tmp_path):
    assert data.folder(write(tmp_path), size=np.int64(4)).x.shape == (4, 4, 4, 3)
    assert data.folder(tmp_path, size=np.array([4, 5])).x.shape == (4, 4, 5, 3)


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_other_formats_are_read(tmp_path, suffix):
    flat = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    write(tmp_path, [f"a.{suffix}"], [flat])
    assert np.abs(data.folder(tmp_path).x[0].astype(int) - 90).max() <= 2


def test_grey_pictures_have_one_channel_unless_one_is_coloured(tmp_path):
    grey = COLOURS[0, ..., 0]
    write(tmp_path, ["a.png"], [grey])
    np.testing.assert_array_equal(data.folder(tmp_path).x, grey[None, ..., None])
    np.testing.assert_array_equal(data.folder(tmp_path, colour="rgb").x, np.stack([grey] * 3, -1)[None])
    write(tmp_path, ["b.png"])
    mixed = data.folder(tmp_path).x
    np.testing.assert_array_equal(mixed, [np.stack([grey] * 3, -1), COLOURS[0]])
    assert data.folder(tmp_path, colour="grey").x.shape == (2, HEIGHT, WIDTH, 1)


def test_cmyk_palettes_and_transparency_become_colours_on_black(tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    Image.new("RGB", (WIDTH, HEIGHT), (10, 200, 30)).quantize(4).save(tmp_path / "b.png")
    Image.new("RGBA", (WIDTH, HEIGHT), (200, 100, 50, 0)).save(tmp_path / "c.png")
    Image.new("RGBA", (WIDTH, HEIGHT), (200, 100, 50, 255)).save(tmp_path / "d.png")
    x = data.folder(tmp_path).x.astype(int)
    assert np.abs(x[0] - [254, 0, 0]).max() <= 8
    assert (x[1] == [10, 200, 30]).all()
    assert (x[2] == 0).all()
    assert (x[3] == [200, 100, 50]).all()


def test_sixteen_bits_keep_their_scale(tmp_path):
    deep = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    np.testing.assert_array_equal(data.folder(tmp_path).x[0, ..., 0], np.rint(deep / 257))


def test_sixteen_bits_are_black_where_they_are_transparent(tmp_path):
    deep = np.uint16([[0, 257 * 9], [257 * 90, 257 * 9]])
    Image.fromarray(deep).save(tmp_path / "a.png", transparency=257 * 9)
    assert data.folder(tmp_path).x[0, ..., 0].tolist() == [[0, 0], [90, 0]]


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    picture, exif = Image.fromarray(COLOURS[0]), Image.Exif()
    exif[0x0112] = 6  # lies on its left side
    picture.save(tmp_path / "a.png", exif=exif)
    own = data.folder(tmp_path)
    np.testing.assert_array_equal(own.x[0], np.rot90(COLOURS[0], -1))


def test_pictures_of_several_sizes_are_cropped_padded_or_stretched(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255  # the middle square is white
    write(tmp_path, ["a.png", "b.png"], [wide, np.full((4, 4, 3), 255, np.uint8)])
    with pytest.raises(
        ValueError, match=r"2 sizes, a.png 4×8 and b.png 4×4: pass size=\(height, width\), and fit='crop'"
    ):
        data.folder(tmp_path)
    crop, pad, stretch = (data.folder(tmp_path, size=4, fit=fit).x for fit in ("crop", "pad", "resize"))
    assert (crop == 255).all()
    assert (pad[0, [0, 3]] == 0).all()  # bars above and below
    assert pad[0, 1:3, 1:3].min() > 150
    assert stretch[0].min() < 40  # black sides
    assert (pad[1] == 255).all()
    assert data.folder(tmp_path, size=(2, 5)).x.shape == (2, 2, 5, 3)


def test_files_that_are_no_pictures_are_named_or_left_out(tmp_path):
    write(tmp_path, ["a.png", "sub.png"])
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"2 of 4 files in .* cannot be read as pictures: broken.png, cut.png; mend"):
        data.folder(tmp_path)
    np.testing.assert_array_equal(data.folder(tmp_path, skip_unreadable=True).x, COLOURS[:2])
    for name in ("a.png", "sub.png"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="2 of 2 files"):
        data.folder(tmp_path, skip_unreadable=True)


def test_folders_and_options_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        data.folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"has no pictures and no sounds: no file ends in \.png, \.jpg"):
        data.folder(tmp_path)
    write(tmp_path)
    with pytest.raises(ValueError, match="fit must be one of 'crop', 'pad', 'resize', got 'squeeze'"):
        data.folder(tmp_path, fit="squeeze")
    with pytest.raises(ValueError, match="colour must be one of 'grey', 'rgb', got 'red'"):
        data.folder(tmp_path, colour="red")
    with pytest.raises(ValueError, match="size must be at least 1, got"):
        data.folder(tmp_path, size=0)


# Files


def test_arrays_of_a_file(tmp_path):
    x = RNG.random((5, 7)).astype(np.float32)
    np.save(tmp_path / "sound.npy", x)
    own = data.from_file(tmp_path / "sound.npy")
    np.testing.assert_array_equal(own.x, x)
    assert (own.name, own.domain) == ("sound", data.Domain("unit interval"))
    np.savez(tmp_path / "all.npz", x=x * 10 - 5, label=np.arange(5), condition=x[:, :2])
    own = data.from_file(tmp_path / "all.npz", domain="real")
    assert own.label.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(own.arrays["condition"], x[:, :2])


def test_files_that_cannot_be(tmp_path):
    (tmp_path / "table.xlsx").write_text("")
    with pytest.raises(ValueError, match=r"expected a \.npy or \.npz file, got"):
        data.from_file(tmp_path / "table.xlsx")
    with pytest.raises(FileNotFoundError):
        data.from_file(tmp_path / "none.npy")
    np.savez(tmp_path / "a.npz", images=np.zeros((3, 2)))
    with pytest.raises(ValueError, match="must have an array 'x', it has 'images'"):
        data.from_file(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    with pytest.raises(ValueError, match="may have 'x', 'label', 'condition' and 'observed', got 'y' too"):
        data.from_file(tmp_path / "b.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        data.from_file(tmp_path / "objects.npy")
    for name in ("empty.npy", "cut.npz"):
        (tmp_path / name).write_bytes(b"" if name == "empty.npy" else b"PK\x03\x04 and no more")
        with pytest.raises(ValueError, match=rf"{name} cannot be read as {name[-4:]}: "):
            data.from_file(tmp_path / name)


def test_a_folder_needs_pillow_alone_to_be_imported(tmp_path, monkeypatch):
    import sys

    write(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "jaxvae.data._pictures", raising=False)
    monkeypatch.delattr("jaxvae.data._pictures", raising=False)
    with pytest.raises(ModuleNotFoundError, match="folders of pictures need Pillow: pip install"):
        data.folder(tmp_path)
    shutil.rmtree(tmp_path)
