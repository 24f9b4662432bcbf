"""The codebook's figures are read back: bars by rank, a colour per code, a panel per quantity."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from scipy.spatial.distance import pdist
from test_figures import boxes, contains, flat, read

from jaxvae import figures
from jaxvae.figures._codebooks import _code_colors
from jaxvae.figures._page import COLORS
from jaxvae.figures._records import SPLITS

BLUE, GREEN, RED = COLORS[0], SPLITS["validation"]["color"], SPLITS["test"]["color"]
SHADE = "#ececec"


def columns(picture, color):
    """How many pixels of each column have exactly this `#rrggbb` colour."""
    return (picture == list(bytes.fromhex(color[1:]))).all(axis=-1).sum(axis=0)


def bars(picture):
    """Heights in pixels of separate bars, from left to right."""
    heights = columns(picture, BLUE)
    starts = np.flatnonzero((heights[1:] > 0) & (heights[:-1] == 0)) + 1
    return heights[starts + 3]


def heading(path, usage):
    """The summary above the chart, as ink: two that say the same are equal."""
    picture = read(figures.code_usage(path, usage))
    return picture[:24, picture.shape[1] // 3 :]


def with_perplexity(wanted):
    """Shares [5], one of them larger than the four others, of this perplexity in (1, 5)."""

    def shares(first):
        return np.array([first, *[(1 - first) / 4] * 4])

    first = scipy.optimize.brentq(lambda first: scipy.stats.entropy(shares(first)) - np.log(wanted), 0.2, 1 - 1e-9)
    return shares(first)


def test_code_usage_stands_from_the_most_used_down(tmp_path):
    shares = [0.1, 0.4, 0.0, 0.3, 0.2]
    picture = read(figures.code_usage(tmp_path / "usage.png", shares, title="digits"))
    heights = bars(picture)
    np.testing.assert_allclose(heights / heights[0], [1, 0.75, 0.5, 0.25], atol=0.02)
    ordered = jnp.float32([0.4, 0.3, 0.2, 0.1, 0.0])
    np.testing.assert_array_equal(read(figures.code_usage(tmp_path / "b.png", ordered, title="digits")), picture)
    # The uniform share, 1/5, is half as high as the first bar; between the bars its dashes are seen.
    rows, _ = np.nonzero((picture == list(bytes.fromhex(BLUE[1:]))).all(axis=-1))
    first_top, third_top, bottom = rows.min(), rows.max() + 1 - heights[2], rows.max() + 1
    assert third_top - first_top == pytest.approx((bottom - first_top) / 2, abs=3)
    dark = (picture[first_top : bottom - 4] < 120).all(axis=-1)
    assert dark[:, len(picture[0]) // 4 :].sum(axis=1).argmax() == pytest.approx(third_top - first_top, abs=2)


@pytest.mark.parametrize("count", [5, 64, 65, 1024])
def test_codes_without_use_are_shaded_apart(tmp_path, count):
    full = columns(read(figures.code_usage(tmp_path / "full.png", np.full(count, 1 / count))), SHADE)
    assert full.max() < 10  # the edges of letters
    used = count - count // 4
    shares = np.random.default_rng(0).permutation(np.repeat([1 / used, 0.0], [used, count - used]))
    picture = read(figures.code_usage(tmp_path / "part.png", shares))
    blue, shaded = (np.flatnonzero(columns(picture, color) >= 10) for color in (BLUE, SHADE))
    assert blue.max() < shaded.min()  # and beside the bars nothing is shaded
    left, right = blue.min(), shaded.max()
    assert (shaded.min() - left) / (right - left) == pytest.approx(used / count, abs=0.03)


def test_many_codes_are_one_falling_step_line(tmp_path):
    shares = np.arange(1, 513) / np.arange(1, 513).sum()
    picture = read(figures.code_usage(tmp_path / "usage.png", shares))
    blue = (picture == list(bytes.fromhex(BLUE[1:]))).all(axis=-1)
    area = np.flatnonzero(blue.any(axis=0))
    assert (np.diff(area) == 1).all()  # no gaps
    bottom = np.flatnonzero(blue.any(axis=1)).max() + 1
    tops = bottom - blue[:, area].argmax(axis=0).astype(float)
    np.testing.assert_allclose(tops[5:-5] / tops[5], np.linspace(512, 1, len(area))[5:-5] / 509, atol=0.02)


def test_code_usage_says_how_many_and_the_perplexity(tmp_path):
    path = tmp_path / "usage.png"
    of_four = [0.25, 0.25, 0.25, 0.25 - 1e-9, 1e-9]  # 5 of 5 used, perplexity 4.0
    said = heading(path, of_four)
    assert (said < 128).any()
    np.testing.assert_array_equal(heading(path, with_perplexity(4.0)), said)
    assert (heading(path, with_perplexity(4.1)) != said).any()
    assert (heading(path, [0.25, 0.25, 0.25, 0.25, 0.0]) != said).any()  # 4 of 5 used
    groups = np.stack([with_perplexity(2.0), of_four])
    said = heading(path, groups)
    np.testing.assert_array_equal(heading(path, np.stack([with_perplexity(3.0)] * 2)), said)  # the mean of 2 and 4
    assert (heading(path, np.stack([with_perplexity(3.2)] * 2)) != said).any()


def test_code_usage_puts_the_codes_of_all_groups_in_one_order(tmp_path):
    picture = read(figures.code_usage(tmp_path / "groups.png", [[0.1, 0.5, 0.4], [0.8, 0.0, 0.2]]))
    heights = bars(picture)
    np.testing.assert_allclose(heights / heights[0], np.array([8, 5, 4, 2, 1]) / 8, atol=0.02)
    assert contains(picture, SHADE)


def test_a_background_does_not_squash_the_other_codes(tmp_path):
    shares = np.array([0.4, *np.full(30, 0.6 / 30)])
    picture = read(figures.code_usage(tmp_path / "usage.png", shares))
    heights = bars(picture)
    assert heights[0] / heights[1] == pytest.approx(6 / 31 / 0.02, rel=0.06)  # cut at six times the uniform share
    assert (heading(tmp_path / "a.png", shares) != heading(tmp_path / "b.png", [0.39, 0.03, *shares[2:]])).any()


def test_code_usage_needs_shares(tmp_path):
    path = tmp_path / "bad.png"
    for wrong in (1.0, [], np.zeros((1, 2, 3))):
        with pytest.raises(ValueError, match=r"usage must be \[K\] or \[G, K\], got \("):
            figures.code_usage(path, wrong)
    for wrong in ([5, 3, 0], [0.5, 0.4], [1.2, -0.2], [0.5, np.nan], [[0.5, 0.5], [0.6, 0.6]]):
        with pytest.raises(ValueError, match="usage must be shares, not negative and of sum 1, got"):
            figures.code_usage(path, wrong)
    assert not path.exists()


def test_every_code_has_a_colour_of_its_own():
    drawn = np.rint(255 * _code_colors(1024))
    for count, distance in ((16, 40), (128, 20), (1024, 8)):
        assert pdist(drawn[:count]).min() > distance
    np.testing.assert_array_equal(_code_colors(16), _code_colors(1024)[:16])


@pytest.mark.parametrize("channels", [1, 3])
def test_index_maps_lie_between_image_and_reconstruction(tmp_path, channels):
    rng = np.random.default_rng(0)
    images, reconstructed = rng.random((2, 3, 8, 8, channels), np.float32)
    indices = rng.integers(0, 6, (3, 4, 2))
    picture = read(figures.index_maps(tmp_path / "maps.png", images, indices, reconstructed, num_codes=6))
    assert picture.shape == (24 + 3 * 100 + 4, 24 + 112 + 2 * 110 + 104, 3)  # the columns stand apart
    colors = np.rint(255 * _code_colors(6)).astype(np.uint8)
    for i in range(3):
        maps = colors[indices[i]].repeat(2 * 12, axis=0).repeat(4 * 12, axis=1)
        pixels = [
            np.rint(255 * each[i]).astype(np.uint8).repeat(12, 0).repeat(12, 1) for each in (images, reconstructed)
        ]
        for row, expected in enumerate((pixels[0], maps, pixels[1])):
            top, left = 16 + 100 * row, 16 + 112 + 110 * i
            drawn = picture[top : top + 96, left : left + 96]
            np.testing.assert_array_equal(drawn, np.broadcast_to(expected, drawn.shape))
    labels = picture[:, :120]
    for row in range(3):
        assert (labels[16 + 100 * row : 112 + 100 * row] < 128).any()
    widths = [np.ptp(np.nonzero(labels[16 + 100 * r : 112 + 100 * r] < 128)[1]) for r in range(3)]
    assert widths[0] < widths[2] > widths[1]  # "reconstruction" is the longest


def test_index_maps_repeat_a_colour_where_an_index_repeats(tmp_path):
    grey = np.full((2, 8, 8, 1), 0.5, np.float32)
    indices = np.array([[[7, 300], [300, 7]], [[7, 7], [511, 300]]])
    many = read(figures.index_maps(tmp_path / "many.png", grey, indices, grey, num_codes=512))[116:212, 128:]
    cells = many[24:96:48][:, [24, 72, 134, 182]].reshape(2, 2, 2, 3).transpose(1, 0, 2, 3)  # [N, h, w, 3]
    same = (cells.reshape(-1, 1, 3) == cells.reshape(1, -1, 3)).all(axis=-1)
    np.testing.assert_array_equal(same, indices.reshape(-1, 1) == indices.reshape(1, -1))


def test_index_maps_show_the_first_group_and_break_after_ten(tmp_path):
    images, reconstructed = flat(2, 12)
    indices = np.random.default_rng(0).integers(0, 9, (12, 3, 3, 2))
    path = tmp_path / "maps.png"
    picture = read(figures.index_maps(path, images, indices, reconstructed, num_codes=9, title="codes"))
    first = read(figures.index_maps(path, images, indices[..., 0], reconstructed, num_codes=9, title="codes"))
    second = read(figures.index_maps(path, images, indices[..., 1], reconstructed, num_codes=9, title="codes"))
    np.testing.assert_array_equal(picture, first)
    assert (picture != second).any()
    above, below = boxes(picture, np.stack([images, reconstructed]))
    np.testing.assert_array_equal(below[:, [1, 3]], above[:, [1, 3]])
    np.testing.assert_array_equal(below[:, 0], above[:, 0] + 200)
    np.testing.assert_array_equal(above[6:, 0], above[:6, 0] + 310)  # the next three rows stand apart
    # 8 pixels are not three equal parts: a pixel takes the colour of the position that holds its corner.
    colors = np.rint(255 * _code_colors(9)).astype(np.uint8)
    nearest = np.array([0, 0, 0, 1, 1, 1, 2, 2]).repeat(12)
    for i in (0, 11):
        top, left = above[i, 0] + 100, above[i, 1]
        expected = colors[indices[i, nearest[:, None], nearest, 0]]
        np.testing.assert_array_equal(picture[top : top + 96, left : left + 96], expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int64])
def test_indices_of_any_integer_type_are_drawn_alike(tmp_path, dtype):
    grey = np.full((1, 8, 8, 1), 0.5, np.float32)
    indices = np.array([[[127, 0], [3, 100]]])
    wide = read(figures.index_maps(tmp_path / "wide.png", grey, indices, grey, num_codes=300))
    narrow = read(figures.index_maps(tmp_path / "narrow.png", grey, indices.astype(dtype), grey, num_codes=300))
    np.testing.assert_array_equal(narrow, wide)
    with pytest.raises(ValueError, match=r"indices must lie in \[0, 127\), got 0 to 127"):
        figures.index_maps(tmp_path / "bad.png", grey, indices.astype(dtype), grey, num_codes=127)


def test_index_maps_name_what_does_not_fit(tmp_path):
    path = tmp_path / "bad.png"
    images = np.full((2, 8, 8, 1), 0.5, np.float32)
    codes = np.zeros((2, 4, 4), np.int32)
    for wrong in (codes[0], codes[:1], codes[:, :0], np.zeros((2, 4, 4, 1, 1), np.int32)):
        with pytest.raises(ValueError, match=r"indices must be \[2, h, w\] or \[2, h, w, G\], .* got \("):
            figures.index_maps(path, images, wrong, images, num_codes=4)
    with pytest.raises(TypeError, match="indices must be integers, got float64"):
        figures.index_maps(path, images, codes * 1.0, images, num_codes=4)
    for value in (-1, 4):
        with pytest.raises(ValueError, match=rf"indices must lie in \[0, 4\), got {value} to {value}"):
            figures.index_maps(path, images, codes + value, images, num_codes=4)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 8, 8, 1\) and \(1, 8, 8, 1\)"):
        figures.index_maps(path, images, codes, images[:1], num_codes=4)
    with pytest.raises(ValueError, match=r"reconstructed must lie in \[0, 1\]"):
        figures.index_maps(path, images, codes, 70 * images, num_codes=4)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        figures.index_maps(path, 7 * images, codes, images, num_codes=4)
    with pytest.raises(TypeError, match="indices is a masked array"):
        figures.index_maps(path, images, np.ma.masked_equal(codes, 1), images, num_codes=4)
    with pytest.raises(ValueError, match="num_codes must be at least 1, got 0"):
        figures.index_maps(path, images, codes, images, num_codes=0)
    assert not path.exists()


def record(step, batch=None, restarts=None, **measured):
    """A line of metrics.jsonl; `measured` has (perplexity, codes_used) by split."""
    train = {"loss": 1.0, "batch_perplexity": batch, "restarts": restarts}
    splits = {split: {"perplexity": values[0], "codes_used": values[1]} for split, values in measured.items()}
    return {
        "step": step,
        "epoch": step / 100,
        "train": {name: value for name, value in train.items() if value is not None},
        **splits,
    }


def heights(picture, color, panel):
    """The mean row of a line's pixels at the left and the right end of it, in one third of the picture."""
    third = picture.shape[1] // 3
    part = picture[: 4 * len(picture) // 5, panel * third : (panel + 1) * third]
    rows, places = np.nonzero((part == list(bytes.fromhex(color[1:]))).all(axis=-1))
    return [rows[abs(places - end) < 3].mean() for end in (places.min() + 2, places.max() - 2)]


def test_codebook_health_has_a_panel_for_each_quantity(tmp_path):
    records = [record(s, 20 + 2 * s, 90 - 9 * s, test=(30 + 3 * s, 100 + s)) for s in range(11)]
    picture = read(figures.codebook_health(tmp_path / "health.png", records, title="cifar10"))
    third = picture.shape[1] // 3
    panels = [picture[:, i * third : (i + 1) * third] for i in range(3)]
    assert [contains(panel, BLUE) for panel in panels] == [True, False, True]
    assert [contains(panel, RED) for panel in panels] == [True, True, False]
    assert not contains(picture, GREEN)
    for color in (BLUE, RED):  # perplexities rise, the whole set's above the batch's
        start, end = heights(picture, color, 0)
        assert end < start
    assert heights(picture, RED, 0)[0] < heights(picture, BLUE, 0)[0]
    start, end = heights(picture, BLUE, 2)
    assert end > start + 100  # restarts fall, to the axis
    start, end = heights(picture, RED, 1)
    assert 5 < start - end < 25  # from 100 to 110 on a scale that begins at 0


def test_codebook_health_leaves_out_what_is_missing(tmp_path):
    records = [
        record(100, 20.0, 5.0, validation=(30.0, 50.0)),
        record(200, 25.0, 1.0),
        record(300, 28.0, 0.0, validation=(40.0, 60.0)),
    ]
    whole = read(figures.codebook_health(tmp_path / "whole.png", records))
    assert contains(whole, GREEN)
    assert not contains(whole, RED)
    broken = [*records, record(400, float("nan"), float("inf"), validation=(float("nan"), float("nan")))]
    np.testing.assert_array_equal(read(figures.codebook_health(tmp_path / "broken.png", broken)), whole)
    by_gradient = [record(s, 20.0 + s, validation=(30.0 + s, 50.0)) for s in range(3)]
    narrow = read(figures.codebook_health(tmp_path / "narrow.png", by_gradient))  # no restarts
    assert narrow.shape[1] == pytest.approx(2 * whole.shape[1] / 3, abs=1)
    one = read(figures.codebook_health(tmp_path / "one.png", records[:1]))
    assert contains(one, BLUE)
    assert contains(one, GREEN)
    for nothing in ([], [{"step": 1, "epoch": 1, "train": {"loss": 1.0}, "test": {"loss": 2.0}}]):
        with pytest.raises(ValueError, match="records hold none of batch_perplexity and restarts under train, "):
            figures.codebook_health(tmp_path / "none.png", nothing)
