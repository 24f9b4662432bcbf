"""Pictures are read back and their pixels compared: what was asked for is where it should be."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxvae import figures

MATPLOTLIB_IMAGE = pytest.importorskip("matplotlib.image")


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
    assert all(contains(picture, color) for color in figures.COLORS)
    assert len(set(figures.COLORS)) == 10
    picture = read(figures.latent_scatter(tmp_path / "three.png", codes, np.array(["a", "b", "c"] * 20)))
    assert [contains(picture, color) for color in figures.COLORS] == [True] * 3 + [False] * 7
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
    assert [contains(picture, color) for color in figures.COLORS[:4]] == [True, True, True, False]
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
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        figures.code_grid(np.zeros((5, 2)), 1)
    assert not path.exists()


def bars(picture):
    """Heights in pixels of the bars of `kl_bars`, from left to right, the active and the inactive."""
    runs = []
    for color in (figures.COLORS[0], "#b4c4d2"):
        heights = (picture == list(bytes.fromhex(color[1:]))).all(axis=-1).sum(axis=0)
        starts = np.flatnonzero((heights[1:] > 0) & (heights[:-1] == 0)) + 1
        runs.append(heights[starts + 3])
    return runs


def test_kl_bars_stand_from_the_largest_down(tmp_path):
    picture = read(figures.kl_bars(tmp_path / "kl.png", [0.5, 2.0, 0.05, 1.0, 0.2], threshold=0.3, title="rate"))
    active, inactive = bars(picture)
    np.testing.assert_allclose(active / active[0], [1, 0.5, 0.25], atol=0.02)
    np.testing.assert_allclose(inactive / active[0], [0.1, 0.025], atol=0.02)
    ordered = jnp.float32([2.0, 1.0, 0.5, 0.2, 0.05])
    again = read(figures.kl_bars(tmp_path / "again.png", ordered, threshold=0.3, title="rate"))
    np.testing.assert_array_equal(again, picture)
    for kl, counts in (([1.0, 2.0], [2, 0]), ([0.009, 0.008], [0, 2]), ([0.0], [0, 0])):
        assert [len(run) for run in bars(read(figures.kl_bars(tmp_path / "few.png", kl)))] == counts


def test_kl_bars_need_one_finite_number_per_latent(tmp_path):
    for wrong in (np.zeros((2, 3)), [], 1.0, [0.1, np.nan]):
        with pytest.raises(ValueError, match=r"kl must be \[D\] and finite, got \("):
            figures.kl_bars(tmp_path / "bad.png", wrong)


def record(epoch, **splits):
    return {
        "step": 100 * epoch,
        "epoch": epoch,
        **{
            split: {"rate": value / 4, "distortion": value * 3 / 4, "negative_elbo": value}
            for split, value in splits.items()
        },
    }


def test_learning_curves_draw_each_split(tmp_path):
    records = [record(e, train=100 + 50 / e, test=101 + 50 / e) for e in range(1, 6)]
    picture = read(figures.learning_curves(tmp_path / "curves.png", records, title="mnist"))
    third = picture.shape[1] // 3
    drawn = {split: style["color"] for split, style in figures.SPLITS.items()}
    for panel in range(3):
        part = picture[:, panel * third : (panel + 1) * third]
        assert contains(part, drawn["train"])
        assert contains(part, drawn["test"])
        assert not contains(part, drawn["validation"])
    one = read(figures.learning_curves(tmp_path / "one.png", records[:1]))
    assert contains(one, drawn["train"])
    assert contains(one, drawn["test"])


def test_learning_curves_leave_out_what_is_missing(tmp_path):
    records = [record(1, train=120.0, test=110.0), record(2, train=105.0), record(3, train=103.0, test=104.0)]
    broken = json.loads(json.dumps([*records, record(4, train=float("nan"), test=float("inf"))]))
    whole = read(figures.learning_curves(tmp_path / "whole.png", records))
    np.testing.assert_array_equal(read(figures.learning_curves(tmp_path / "broken.png", broken)), whole)
    rate_only = [{"epoch": e, "train": {"rate": 1.0 * e}} for e in range(3)]
    narrow = read(figures.learning_curves(tmp_path / "rate.png", rate_only))
    assert narrow.shape[1] == pytest.approx(whole.shape[1] / 3, abs=1)
    with pytest.raises(ValueError, match="records hold none of rate, distortion, negative_elbo"):
        figures.learning_curves(tmp_path / "none.png", [{"epoch": 1, "train": {"loss": 1.0}}])
    with pytest.raises(ValueError, match="records hold none"):
        figures.learning_curves(tmp_path / "none.png", [])


def test_the_first_epoch_does_not_squash_the_rest():
    low, high = figures._robust_limits(np.array([5000.0, *np.linspace(110, 100, 19)]))
    assert 99 < low < 100
    assert 110 < high < 111
    low, high = figures._robust_limits(np.array([180.0, 120.0]))  # too few to call one of them far out
    assert low < 120
    assert high > 180
    assert figures._robust_limits(np.array([3.0])) is None


@pytest.mark.parametrize(
    ("value", "shown"), [(7.25, "7.25"), (-0.5, "-0.5"), (255.0, "255"), (np.nan, "nan"), (-np.inf, "-inf")]
)
def test_values_that_no_picture_can_show(tmp_path, value, shown):
    images = np.full((6, 8, 8, 1), 0.5, np.float32)
    wrong = images.copy()
    wrong[3, 2, 1] = value
    path = tmp_path / "bad.png"
    message = rf"must lie in \[0, 1\]: image 3 has {shown}; draw the likelihood's mean, not logits"
    with pytest.raises(ValueError, match="^images " + message):
        figures.image_grid(path, wrong)
    with pytest.raises(ValueError, match="^reconstructed " + message):
        figures.reconstructions(path, images, wrong)
    with pytest.raises(ValueError, match=r"^decode\(latents\) " + message.replace("3", "0")):
        figures.manifold(path, lambda z: np.broadcast_to(wrong[3], (len(z), 8, 8, 1)), size=2)
    with pytest.raises(ValueError, match=rf"image \(1, 0\) has {shown}"):
        figures.interpolation(path, wrong.reshape(2, 3, 8, 8, 1))
    assert not path.exists()


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
    with pytest.raises(ValueError, match=r"path must end in \.png, got .*grid\.pdf"):
        figures.image_grid(tmp_path / "grid.pdf", images)
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
    with pytest.raises(ImportError, match=r"pip install 'jaxvae\[experiments\]'"):
        figures.image_grid(tmp_path / "grid.png", flat(1))
