"""Pictures are read back and their pixels compared: what was asked for is where it should be."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import figures
from jaxvae.figures._page import COLORS

MATPLOTLIB_IMAGE = pytest.importorskip("matplotlib.image")
Image = pytest.importorskip("PIL.Image")


def read(path):
    """The file's pixels, bytes [height, width, 3]."""
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return np.rint(255 * MATPLOTLIB_IMAGE.imread(path)[..., :3]).astype(np.uint8)


def flat(*shape):
    """Images [*shape, 8, 8, 3] of one colour each, none of them a grey that text or frames could have."""
    count = int(np.prod(shape))
    colors = np.stack([np.ones(count), np.arange(count) / 255, np.zeros(count)], axis=-1).astype(np.float32)
    return np.broadcast_to(colors.reshape(*shape, 1, 1, 3), (*shape, 8, 8, 3))


def boxes(picture, images):
    """Where each image of one colour lies: {top, left, bottom, right} as an array [..., 4]."""
    colors = np.rint(255 * images[..., 0, 0, :]).astype(np.uint8)
    found = []
    for color in colors.reshape(-1, 3):
        rows, columns = np.nonzero((picture == color).all(axis=-1))
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)  # a full rectangle
        found.append((rows.min(), columns.min(), rows.max(), columns.max()))
    return np.array(found).reshape(*colors.shape[:-1], 4)


def contains(picture, color):
    """Whether any pixel has exactly this `#rrggbb` colour."""
    return bool((picture == list(bytes.fromhex(color[1:]))).all(axis=-1).any())


@pytest.mark.parametrize(("side", "channels", "scale"), [(8, 1, 12), (8, 3, 12), (28, 1, 3), (64, 3, 2), (128, 1, 1)])
def test_image_grid_is_exact_to_the_pixel(tmp_path, side, channels, scale):
    images = np.random.default_rng(0).random((5, side, side, channels), np.float32)
    picture = read(figures.image_grid(tmp_path / "grid.png", images, columns=3))
    line = {12: 4}.get(scale, 1)
    stride, edge = scale * side + line, 12 + line
    assert picture.shape == (2 * stride + line + 24, 3 * stride + line + 24, 3)  # 12 pixels around
    for i, image in enumerate(images):
        top, left = edge + i // 3 * stride, edge + i % 3 * stride
        drawn = picture[top : top + scale * side, left : left + scale * side]
        expected = np.rint(255 * image).astype(np.uint8).repeat(scale, axis=0).repeat(scale, axis=1)
        np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))
    assert (picture[edge + stride : -12, edge + line + 2 * stride : -12] == 255).all()  # the sixth cell stays white


def test_image_grid_never_stretches_the_grey_scale(tmp_path):
    images = np.stack([np.full((8, 8, 1), grey, np.float32) for grey in (0.4, 0.5)])
    picture = read(figures.image_grid(tmp_path / "grid.png", images))
    assert picture[60, 60].tolist() == [102] * 3
    assert picture[60, 160].tolist() == [128] * 3


def test_a_title_stands_above_and_moves_nothing(tmp_path):
    images = flat(4)
    plain = read(figures.image_grid(tmp_path / "plain.png", images))
    titled = read(figures.image_grid(tmp_path / "titled.png", images, title="prior samples"))
    extra = len(titled) - len(plain)
    assert extra > 0
    np.testing.assert_array_equal(titled[12 + extra :], plain[12:])
    assert (titled[:extra] < 128).any()
    wide = read(figures.image_grid(tmp_path / "wide.png", images[:1], title="wider than the only image"))
    left, right = boxes(wide, images[:1])[0, [1, 3]]
    assert left + right == pytest.approx(wide.shape[1] - 1, abs=1)
    assert (wide[:, :5] == 255).all()  # the title is not cut off
    assert (wide[:, -5:] == 255).all()


@pytest.mark.parametrize("count", [1, 10, 12])
def test_reconstructions_lie_under_their_inputs(tmp_path, count):
    both = flat(2, count)
    picture = read(figures.reconstructions(tmp_path / "pairs.png", both[0], both[1], title="test"))
    above, below = boxes(picture, both)
    np.testing.assert_array_equal(below[:, [1, 3]], above[:, [1, 3]])
    np.testing.assert_array_equal(below[:, 0], above[:, 2] + 5)
    columns = {1: 1, 10: 10, 12: 6}[count]
    assert (np.diff(above[:columns, 1]) == 100).all()
    if count == 12:  # two double rows, further apart than the rows of one
        assert (above[6:, 0] > below[:6, 2] + 5).all()
    labels = picture[:, : above[0, 1] - 5]
    assert (labels[above[0, 0] : above[0, 2]] < 128).any()
    assert (labels[below[0, 0] : below[0, 2]] < 128).any()


def test_interpolation_sets_the_ends_apart(tmp_path):
    rows = flat(2, 5)
    picture = read(figures.interpolation(tmp_path / "rows.png", rows))
    places = boxes(picture, rows)
    gaps = places[:, 1:, 1] - places[:, :-1, 3]
    assert (gaps[:, [0, 3]] > gaps[:, [1, 2]]).all()
    assert (places[1, :, 0] == places[0, :, 2] + 5).all()
    above = picture[: places[0, 0, 0] - 4]
    for column, marked in enumerate([True, False, False, False, True]):
        assert (above[:, places[0, column, 1] : places[0, column, 3]] < 128).any() == marked


def test_traversals_keep_rows_and_columns_in_order(tmp_path):
    images = flat(3, 5)
    values = np.linspace(-2, 2, 5)
    labels = ["z4  2.41 nats", "z1  1.07 nats", "z2  0.00 nats"]
    picture = read(figures.traversals(tmp_path / "rows.png", images, values, labels=labels, title="beta 4"))
    places = boxes(picture, images)
    assert (np.diff(places[..., 1], axis=1) == 100).all()
    assert (np.diff(places[..., 0], axis=0) == 100).all()
    left, bottom = places[0, 0, 1] - 4, places[2, 0, 2] + 5
    for row in range(3):  # a label beside each row, a value under each column
        assert (picture[places[row, 0, 0] : places[row, 0, 2], : left - 4] < 128).any()
    for column in range(5):
        assert (picture[bottom:, places[0, column, 1] : places[0, column, 3]] < 128).any()
    plain = read(figures.traversals(tmp_path / "plain.png", images, values))
    np.testing.assert_array_equal(boxes(plain, images)[0, 0, :2], [16, 16])  # no label, no room for one
    other = read(figures.traversals(tmp_path / "other.png", images, values, labels=[*labels[:2], "z2"], title="beta 4"))
    moved = boxes(other, images) - places  # the longest label decides the page: nothing moves
    assert not moved.any()
    changed = np.flatnonzero((other != picture).any(axis=(1, 2)))
    assert places[2, 0, 0] < changed.min()
    assert changed.max() < places[2, 0, 2]


def test_traversal_pixels_are_exact(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 28, 28, 1), np.float32)
    picture = read(figures.traversals(tmp_path / "rows.png", images, [-1.0, 0.0, 1.0]))
    for row in range(2):
        for column in range(3):
            top, left = 13 + 85 * row, 13 + 85 * column
            drawn = picture[top : top + 84, left : left + 84]
            expected = np.rint(255 * images[row, column]).astype(np.uint8).repeat(3, axis=0).repeat(3, axis=1)
            np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))


def test_narrow_columns_name_every_other_value(tmp_path):
    images = np.full((1, 30, 28, 28, 1), 0.5, np.float32)
    picture = read(figures.traversals(tmp_path / "rows.png", images, np.linspace(-3, 3, 30)))
    below = picture[13 + 28 + 2 :]  # one pixel each: 30 columns of 29 pixels
    named = [(below[:, 12 + 29 * i + 10 : 12 + 29 * i + 19] < 128).any() for i in range(0, 30, 2)]
    assert all(named)
    columns = np.flatnonzero((below < 128).any(axis=(0, 2)))
    assert (np.diff(columns) > 8).sum() == 14  # 15 numbers that stand apart


def gif_frames(path):
    """Bytes [frames, height, width, 3] and what the file says of itself."""
    frames = []
    with Image.open(path) as image:
        for step in range(image.n_frames):
            image.seek(step)
            frames.append(np.asarray(image.convert("RGB")))
        return np.stack(frames), image.info


def test_traversal_gif_goes_forth_and_back_for_ever(tmp_path):
    images = np.broadcast_to((np.arange(28).reshape(7, 4, 1, 1, 1) / 28).astype(np.float32), (7, 4, 8, 8, 1))
    path = figures.traversal_gif(
        tmp_path / "new" / "moving.gif", images, labels=[f"z{d + 1}" for d in range(7)], fps=10
    )
    frames, info = gif_frames(path)
    assert info["loop"] == 0
    assert info["duration"] == 100
    assert len(frames) == 6
    stride = 12 * 8 + 4 + 30
    for frame, step in zip(frames, [0, 1, 2, 3, 2, 1], strict=True):
        for latent in range(7):
            top, left = 12 + 16 + stride * (latent // 5) + 4, 12 + stride * (latent % 5) + 4
            grey = round(255 * float(images[latent, step, 0, 0, 0]))
            assert (frame[top : top + 96, left : left + 96] == grey).all()
            assert (frame[top - 22 : top - 6, left : left + 96] < 128).any()  # its label
        assert (frame[12 + 16 + stride - 30 + 4 :, 12 + 2 * stride - 20 :] == 255).all()  # three cells stay empty
    assert list(path.parent.iterdir()) == [path]


def test_traversal_gif_keeps_fine_greys_and_close_colours(tmp_path):
    grey = np.random.default_rng(0).random((1, 2, 64, 64, 1), np.float32)
    frames, info = gif_frames(figures.traversal_gif(tmp_path / "grey.gif", grey))
    assert info["duration"] == 80  # 12 per second, in hundredths
    assert len(frames) == 2
    for step in (0, 1):
        expected = np.rint(255 * grey[0, step]).astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        drawn = frames[step, 29:157, 13:141]
        np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    shades = np.stack(np.broadcast_arrays(ramp[:, None], 0.5, ramp[None, ::-1]), axis=-1)
    frames, _ = gif_frames(figures.traversal_gif(tmp_path / "colour.gif", np.stack([shades, shades[::-1]])[None]))
    for frame, image in zip(frames, (shades, shades[::-1]), strict=True):
        difference = frame[29:157:2, 13:141:2].astype(int) - np.rint(255 * image).astype(int)
        assert np.abs(difference).max() < 32
        assert np.abs(difference).mean() < 8


def test_a_moderate_gif(tmp_path):
    """Ten latents of 64 × 64 pixels with twenty values."""
    x = np.linspace(-1, 1, 64)
    centres = np.linspace(-0.6, 0.6, 20)[:, None] * np.linspace(1, 0.1, 10)
    blobs = np.exp(-20 * ((x - centres.T[..., None])[:, :, None, :] ** 2 + x[:, None] ** 2))[..., None]
    assert figures.traversal_gif(tmp_path / "blobs.gif", blobs).stat().st_size < 1_500_000


def test_traversals_name_what_is_wrong(tmp_path):
    path, gif = tmp_path / "bad.png", tmp_path / "bad.gif"
    images = np.full((2, 3, 8, 8, 1), 0.5, np.float32)
    for wrong in ([0.0, 1.0], [[0.0, 1.0, 2.0]], [0.0, 1.0, np.nan]):
        with pytest.raises(ValueError, match=r"values must be \[3\], one per column of images, and finite, got \["):
            figures.traversals(path, images, wrong)
    with pytest.raises(ValueError, match=r"images must be \[D, S, H, W, C\] with C = 1 or 3, got \(3, 8, 8, 1\)"):
        figures.traversals(path, images[0], [0.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="labels must be 2, one per latent, got 1"):
        figures.traversals(path, images, [0.0, 1.0, 2.0], labels=["z1"])
    with pytest.raises(ValueError, match="labels must be 2, one per latent, got 3"):
        figures.traversal_gif(gif, images, labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="images must hold at least two values"):
        figures.traversal_gif(gif, images[:, :1])
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]: image \(0, 0\) has 50"):
        figures.traversal_gif(gif, 100 * images)
    for fps in (0, 51):
        with pytest.raises(ValueError, match=rf"fps must lie in \[1, 50\], got {fps}"):
            figures.traversal_gif(gif, images, fps=fps)
    with pytest.raises(ValueError, match=r"path must end in \.gif, got .*bad\.png"):
        figures.traversal_gif(path, images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [1, 4, 5, 20])
def test_prior_grid_is_the_inverse_cdf(size):
    z = scipy.stats.norm.ppf((np.arange(size) + 0.5) / size)
    right, up = np.meshgrid(z, z[::-1])
    grid = figures.prior_grid(size)
    assert grid.dtype == np.float32
    np.testing.assert_allclose(grid, np.stack([right.ravel(), up.ravel()], axis=-1), rtol=1e-6, atol=1e-7)


def test_manifold_puts_each_latent_in_its_place(tmp_path):
    asked = []
    images = flat(9)

    def decode(latents):
        asked.append(latents)
        return images

    picture = read(figures.manifold(tmp_path / "new" / "manifold.png", decode, size=3))
    np.testing.assert_array_equal(asked, [figures.prior_grid(3)])
    places = boxes(picture, images).reshape(3, 3, 4)
    assert (np.diff(places[..., 1], axis=1) == 100).all()
    assert (np.diff(places[..., 0], axis=0) == 100).all()
    bottom, left = places[2, 0, 2] + 5, places[0, 0, 1] - 4
    for column in range(3):  # a label under each column, another beside each row
        assert (picture[bottom + 6 : bottom + 24, places[0, column, 1] : places[0, column, 3]] < 128).any()
        assert (picture[places[column, 0, 0] : places[column, 0, 2], left - 24 : left - 6] < 128).any()


def test_latent_scatter_places_the_codes(tmp_path):
    for sign in (-1, 1):
        picture = read(figures.latent_scatter(tmp_path / "codes.png", [[sign * 2.0, sign * 2.0]])).astype(int)
        rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 80)  # blue
        assert sign * (columns.mean() - picture.shape[1] / 2) > 100
        assert sign * (rows.mean() - picture.shape[0] / 2) < -100


def test_latent_scatter_names_each_label_in_its_colour(tmp_path):
    codes = np.random.default_rng(0).normal(size=(60, 2))
    picture = read(figures.latent_scatter(tmp_path / "digits.png", codes, np.arange(60) % 10, title="codes"))
    assert all(contains(picture, color) for color in COLORS)
    assert len(set(COLORS)) == 10
    picture = read(figures.latent_scatter(tmp_path / "three.png", codes, np.array(["a", "b", "c"] * 20)))
    assert [contains(picture, color) for color in COLORS] == [True] * 3 + [False] * 7
    wider = read(figures.latent_scatter(tmp_path / "many.png", codes, np.arange(60) % 30))
    assert wider.shape[1] > picture.shape[1]  # two columns of legend


def test_code_grid_covers_the_range_of_the_codes():
    codes = np.random.default_rng(0).normal(size=(50, 2)) * [3.0, 40.0] + [7.0, -100.0]
    grid = figures.code_grid(codes, 5)
    assert grid.dtype == np.float32
    right, up = (np.linspace(codes[:, j].min(), codes[:, j].max(), 5) for j in (0, 1))
    np.testing.assert_allclose(grid, [(z1, z2) for z2 in up[::-1] for z1 in right], rtol=1e-6)


def panels():
    """An autoencoder and a VAE whose images have a colour of their own, in the order of the fields."""
    images = flat(2, 15)
    codes = np.array([[-90.0, 30.0], [-90.0, 31.0], [-30.0, 90.0], [-31.0, 90.0]])
    parts = [(own[:3], own[3:6], own[6:]) for own in images]
    models = {
        "autoencoder": figures.Panel(
            *parts[0][:2], codes, [0, 0, 1, 1], figures.code_grid(codes, 3), parts[0][2], prior=False
        ),
        "VAE": figures.Panel(*parts[1][:2], codes / 60, [1, 1, 2, 2], figures.prior_grid(3), parts[1][2]),
    }
    return models, images


def test_side_by_side_gives_each_model_a_column(tmp_path):
    models, images = panels()
    picture = read(figures.side_by_side(tmp_path / "both.png", models, title="AE and VAE"))
    places = boxes(picture, images)
    above, below, manifold = places[:, :3], places[:, 3:6], places[:, 6:].reshape(2, 3, 3, 4)
    middle = picture.shape[1] / 2
    assert places[0, :, 3].max() < middle < places[1, :, 1].min()
    np.testing.assert_array_equal(places[0][:, [0, 2]], places[1][:, [0, 2]])
    np.testing.assert_array_equal(below[..., [1, 3]], above[..., [1, 3]])
    np.testing.assert_array_equal(below[..., 0], above[..., 2] + 5)
    assert (np.diff(manifold[..., 1], axis=2) == 100).all()
    assert (np.diff(manifold[..., 0], axis=1) == 100).all()
    assert manifold[..., 0].min() > below[..., 2].max()
    for column in (0, 1):
        left, right = manifold[column, ..., 1].min(), manifold[column, ..., 3].max()
        assert above[column, :, [1, 3]].mean() == pytest.approx((left + right) / 2, abs=1)  # both are centred
        name = picture[above[column, 0, 0] - 30 : above[column, 0, 0] - 6, left:right]
        assert (name < 128).any()
        bottom = manifold[column, ..., 2].max() + 5
        for cell in range(3):  # a coordinate under each column of the manifold, another beside each row
            label = picture[bottom + 6 : bottom + 24, manifold[column, 0, cell, 1] : manifold[column, 0, cell, 3]]
            assert (label < 128).any()
            rows = slice(manifold[column, cell, 0, 0], manifold[column, cell, 0, 2])
            assert (picture[rows, left - 28 : left - 10] < 128).any()
    assert (picture[:, :5] == 255).all()
    assert (picture[:, -5:] == 255).all()


def test_side_by_side_colours_a_label_alike_and_each_cloud_on_its_own_scale(tmp_path):
    models, images = panels()
    picture = read(figures.side_by_side(tmp_path / "both.png", models))
    assert [contains(picture, color) for color in COLORS[:4]] == [True, True, True, False]
    places = boxes(picture, images)
    cloud = picture[places[:, 3:6, 2].max() + 60 : places[:, 6:, 0].min() - 60].astype(int)
    middle = picture.shape[1] // 2
    blue, red = cloud[..., 2] - cloud[..., 0] > 80, (cloud[..., 0] > 150) & (cloud[..., 1] < 110)
    yellow = (cloud[..., 0] > 200) & (cloud[..., 2] < 100)
    assert [blue[:, :middle].any(), blue[:, middle:].any()] == [True, False]
    assert [red[:, :middle].any(), red[:, middle:].any()] == [False, True]
    assert [yellow[:, :middle].any(), yellow[:, middle:].any()] == [True, True]
    # The autoencoder's codes fill their panel: the first label far to the left and low, the second right and high.
    (blue_rows, blue_columns), (rows, columns) = np.nonzero(blue), np.nonzero(yellow[:, :middle])
    assert columns.mean() - blue_columns.mean() > 0.7 * (places[0, :, 3].max() - places[0, :, 1].min())
    assert blue_rows.mean() - rows.mean() > 0.7 * (places[0, :, 3].max() - places[0, :, 1].min())
    with_circles = models | {"autoencoder": models["autoencoder"]._replace(prior=True)}
    assert (read(figures.side_by_side(tmp_path / "circles.png", with_circles)) != picture).any()


def test_side_by_side_names_what_does_not_fit(tmp_path):
    path = tmp_path / "bad.png"
    models, _ = panels()
    panel = models["VAE"]
    for wrong, message in (
        ({"latents": figures.prior_grid(2)}, "manifold must hold size² images, one per latent, got 9 for 4"),
        ({"latents": np.zeros((8, 2)), "manifold": flat(8)}, "manifold must hold size² images"),
        ({"latents": np.zeros((9, 3))}, r"latents must be \[N, 2\], got \(9, 3\)"),
        ({"codes": [[np.inf, 0.0]] * 4}, r"codes must be finite: code 0 is \[inf, 0.0\]"),
        ({"labels": [1, 2]}, r"labels must be \(4,\), one per code, got \(2,\)"),
        ({"reconstructed": flat(2)}, r"one shape, got \(3, 8, 8, 3\) and \(2, 8, 8, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            figures.side_by_side(path, models | {"VAE": panel._replace(**wrong)})
    with pytest.raises(ValueError, match="models must hold one or more, by name"):
        figures.side_by_side(path, {})
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        figures.code_grid(np.zeros((5, 2)), 1)
    assert not path.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [(11.5, "11.5"), (-10.5, "-10.5"), (255.0, "255"), (np.nan, "nan"), (-np.inf, "-inf"), (1e39, "inf")],
)
def test_values_that_no_picture_can_show(tmp_path, value, said):
    images = np.full((6, 8, 8, 1), 0.5)
    wrong = images.copy()
    wrong[3, 2, 1] = value
    path = tmp_path / "bad.png"
    message = rf"must lie in \[0, 1\]: image 3 has {said}; draw the likelihood's mean, not logits"
    with pytest.raises(ValueError, match="^images " + message):
        figures.image_grid(path, wrong)
    with pytest.raises(ValueError, match="^reconstructed " + message):
        figures.reconstructions(path, images, wrong)
    with pytest.raises(ValueError, match=r"^decode\(latents\) " + message.replace("3", "0")):
        figures.manifold(path, lambda z: np.broadcast_to(wrong[3], (len(z), 8, 8, 1)), size=2)
    with pytest.raises(ValueError, match=rf"image \(1, 0\) has {said}"):
        figures.interpolation(path, wrong.reshape(2, 3, 8, 8, 1))
    assert not path.exists()


def gaussian_means():
    """Images [6, 8, 8, 1] as a Gaussian's mean may be: beyond [0, 1] here and there."""
    means = np.random.default_rng(0).normal(0.5, 0.7, (6, 8, 8, 1)).astype(np.float32)
    assert means.min() < -0.5
    assert means.max() > 1.5
    return means


@pytest.mark.parametrize(
    "draw",
    [
        lambda path, images: figures.image_grid(path, images),
        lambda path, images: figures.reconstructions(path, images.clip(0, 1), images),
        lambda path, images: figures.interpolation(path, images.reshape(2, 3, 8, 8, 1)),
        lambda path, images: figures.traversals(path, images.reshape(2, 3, 8, 8, 1), [-1.0, 0.0, 1.0]),
        lambda path, images: figures.manifold(path, lambda z: jnp.asarray(images[: len(z)]), size=2),
        lambda path, images: figures.completions(
            path, images[:2].clip(0, 1), images.reshape(2, 3, 8, 8, 1), {"mean": images[2:4]}
        ),
        lambda path, images: figures.index_maps(path, images.clip(0, 1), np.zeros((6, 2, 2), int), images, num_codes=3),
    ],
)
def test_a_mean_beyond_the_unit_interval_is_drawn_as_its_end(tmp_path, draw):
    """No picture at the end of a training is lost because a Gaussian's mean lies beyond the pixels."""
    means = gaussian_means()
    np.testing.assert_array_equal(
        read(draw(tmp_path / "a.png", means)), read(draw(tmp_path / "b.png", means.clip(0, 1)))
    )


def test_data_beyond_the_unit_interval_are_refused(tmp_path):
    """Pictures of data on another scale would be wrong, and so would integers that count levels."""
    means, path = gaussian_means(), tmp_path / "bad.png"
    levels = np.arange(6 * 64).reshape(6, 8, 8, 1) % 5
    with pytest.raises(ValueError, match=r"^images must lie in \[0, 1\]: image 0 has "):
        figures.reconstructions(path, means, means)
    for draw, name in (
        (lambda images: figures.image_grid(path, images), "images"),
        (lambda images: figures.reconstructions(path, means.clip(0, 1), images), "reconstructed"),
    ):
        for dtype in (np.uint8, np.int8, np.int64):
            with pytest.raises(ValueError, match=rf"^{name} must lie in \[0, 1\]: image 0 has 2"):
                draw(levels.astype(dtype))
        with pytest.raises(TypeError, match=f"{name} is a masked array, and its mask would be ignored"):
            draw(np.ma.masked_greater(means, 1))
        with pytest.raises(TypeError, match=f"{name} must hold real numbers, got complex64"):
            draw(means + np.complex64(1j))
    assert not path.exists()
    binary = read(figures.image_grid(path, (levels > 2).astype(np.uint8)))
    np.testing.assert_array_equal(read(figures.image_grid(path, (levels > 2).astype(np.float32))), binary)


def test_what_is_exported_draws_or_is_drawn():
    assert all(callable(getattr(figures, name)) for name in figures.__all__)
    public = {name for name in vars(figures) if not name.startswith("_")}
    assert public == set(figures.__all__)


def test_rounding_beside_the_unit_interval_is_forgiven(tmp_path):
    images = np.stack([np.full((8, 8, 1), grey, np.float32) for grey in (-5e-4, 1 + 5e-4)])
    picture = read(figures.image_grid(tmp_path / "grid.png", images))
    assert picture[60, 60].tolist() == [0] * 3
    assert picture[60, 160].tolist() == [255] * 3


def test_wrong_shapes_are_named(tmp_path):
    path = tmp_path / "bad.png"
    images = np.zeros((4, 8, 8, 1), np.float32)
    for wrong in (images[0], images[..., 0], images[:0], np.zeros((4, 8, 8, 2))):
        with pytest.raises(ValueError, match=r"images must be \[N, H, W, C\] with C = 1 or 3, got \("):
            figures.image_grid(path, wrong)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        figures.image_grid(path, images, columns=0)
    with pytest.raises(ValueError, match=r"one shape, got \(4, 8, 8, 1\) and \(3, 8, 8, 1\)"):
        figures.reconstructions(path, images, images[:3])
    with pytest.raises(ValueError, match=r"rows must be \[R, S, H, W, C\] with C = 1 or 3, got \(4, 8, 8, 1\)"):
        figures.interpolation(path, images)
    with pytest.raises(ValueError, match="both ends"):
        figures.interpolation(path, images[:, None])
    with pytest.raises(ValueError, match="one image per latent, 9, got 4"):
        figures.manifold(path, lambda _: images, size=3)
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        figures.prior_grid(0)
    with pytest.raises(ValueError, match=r"codes must be \[N, 2\], got \(5, 3\)"):
        figures.latent_scatter(path, np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"labels must be \(5,\), one per code, got \(5, 1\)"):
        figures.latent_scatter(path, np.zeros((5, 2)), np.zeros((5, 1)))
    with pytest.raises(ValueError, match=r"codes must be finite: code 1 is \[0.0, nan\]"):
        figures.latent_scatter(path, [[0.0, 0.0], [0.0, np.nan]])
    with pytest.raises(ValueError, match=r"path must end in \.png or \.svg or \.pdf, got .*grid\.jpg"):
        figures.image_grid(tmp_path / "grid.jpg", images)
    assert not list(tmp_path.iterdir())


def test_the_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "folder" / "grid.png"
    assert figures.image_grid(str(path), flat(1)) == path
    first = path.read_bytes()
    figures.image_grid(path, jnp.asarray(flat(2), jnp.bfloat16))
    assert path.read_bytes() != first
    assert list(path.parent.iterdir()) == [path]


def test_matplotlib_is_loaded_late_and_without_pyplot(tmp_path):
    program = (
        "import sys, numpy as np; from jaxvae import figures; assert 'matplotlib' not in sys.modules; "
        f"figures.latent_scatter({str(tmp_path / 'codes.png')!r}, np.zeros((3, 2)), np.arange(3)); "
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_missing_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxvae\[figures\]'"):
        figures.image_grid(tmp_path / "grid.png", flat(1))


def test_labelled_rows_stand_beside_their_names_and_may_end_early(tmp_path):
    images = flat(2, 3)
    picture = read(figures.labelled_rows(tmp_path / "rows.png", {"VAE": images[0], "a GAN": images[1, :2]}, title="x"))
    places = boxes(picture, images[0])
    assert (np.diff(places[:, 1]) == 100).all()
    second = boxes(picture, images[1, :2])
    np.testing.assert_array_equal(second[:, 1], places[:2, 1])
    assert second[0, 0] == places[0, 0] + 100
    left = places[0, 1] - 4
    for top, bottom in ((places[0, 0], places[0, 2]), (second[0, 0], second[0, 2])):
        assert (picture[top:bottom, : left - 4] < 128).any()
    assert (picture[second[0, 0] : second[0, 2], places[2, 1] + 8 : -20] == 255).all()
    for rows, said in (({}, "got none"), ({"a": images[0], "b": images[1, :, :4]}, "of one size")):
        with pytest.raises(ValueError, match=said):
            figures.labelled_rows(tmp_path / "rows.png", rows)
