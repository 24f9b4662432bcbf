"""Charts are read back: what is larger, earlier or of another colour in the numbers is so in the picture."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from scipy.spatial import ConvexHull
from test_figures import contains, read

from jaxvae import figures
from jaxvae._json import to_json
from jaxvae.evaluation import active_latents, active_units
from jaxvae.figures._charts import _INACTIVE, _robust_limits
from jaxvae.figures._page import COLORS
from jaxvae.figures._records import SPLITS


def bars(picture):
    """Heights in pixels of the bars of `kl_bars`, from left to right, the active and the inactive."""
    runs = []
    for color in (COLORS[0], _INACTIVE):
        heights = (picture == list(bytes.fromhex(color[1:]))).all(axis=-1).sum(axis=0)
        starts = np.flatnonzero((heights[1:] > 0) & (heights[:-1] == 0)) + 1
        runs.append(heights[starts + 3])
    return runs


def test_kl_bars_stand_from_the_largest_down(tmp_path):
    kl, active = [0.5, 2.0, 0.05, 1.0, 0.2], [True, True, False, True, False]
    picture = read(figures.kl_bars(tmp_path / "kl.png", kl, active=active, title="rate"))
    high, low = bars(picture)
    np.testing.assert_allclose(high / high[0], [1, 0.5, 0.25], atol=0.02)
    np.testing.assert_allclose(low / high[0], [0.1, 0.025], atol=0.02)
    ordered = jnp.float32([2.0, 1.0, 0.5, 0.2, 0.05])
    active = jnp.array([True, True, True, False, False])
    again = read(figures.kl_bars(tmp_path / "again.png", ordered, active=active, title="rate"))
    above = slice(0, int(0.85 * len(picture)))  # below stand the latents' names, which are others
    np.testing.assert_array_equal(again[above], picture[above])
    for kl, active, counts in (
        ([1.0, 2.0], [True] * 2, [2, 0]),
        ([0.009, 0.008], [False] * 2, [0, 2]),
        ([0.0], [True], [0, 0]),
        ([0.009, 2.0], None, [2, 0]),
    ):
        assert [len(run) for run in bars(read(figures.kl_bars(tmp_path / "few.png", kl, active=active)))] == counts


def test_kl_bars_mark_what_the_table_counts_as_active(tmp_path):
    """A latent of a large KL whose mean stands still is faint, one of a small KL whose mean moves is not."""
    codes = np.zeros((50, 3))
    codes[:, 1], codes[:, 2] = np.linspace(-0.2, 0.2, 50), np.linspace(-2, 2, 50)
    kl = [0.5, 0.1, 1.0]
    active = active_latents(codes)
    picture = read(figures.kl_bars(tmp_path / "kl.png", kl, active=active))
    high, low = bars(picture)
    assert len(high) == active_units(codes) == 2
    np.testing.assert_allclose(high / high[0], [1, 0.1], atol=0.02)
    np.testing.assert_allclose(low / high[0], [0.5], atol=0.02)
    heading = picture[:24, picture.shape[1] // 3 :]
    plain = read(figures.kl_bars(tmp_path / "plain.png", kl))
    assert (plain[:24, plain.shape[1] // 3 :] != heading).any()  # without a mask the heading counts none


def test_kl_bars_need_one_finite_number_per_latent(tmp_path):
    for wrong in (np.zeros((2, 3)), [], 1.0, [0.1, np.nan]):
        with pytest.raises(ValueError, match=r"kl must be \[D\] and finite, got \("):
            figures.kl_bars(tmp_path / "bad.png", wrong)
    for wrong in ([True], [[True, False]], [0.5, 0.0], [1, 0]):
        with pytest.raises(ValueError, match=r"active must be \[2\] bool, one per latent, got "):
            figures.kl_bars(tmp_path / "bad.png", [1.0, 0.1], active=wrong)


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
    drawn = {split: style["color"] for split, style in SPLITS.items()}
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
    whole = read(figures.learning_curves(tmp_path / "whole.png", records))
    for to_text in (json.dumps, to_json):  # with Python's NaN, and with null as in metrics.jsonl
        broken = json.loads(to_text([*records, record(4, train=float("nan"), test=float("inf"))]))
        np.testing.assert_array_equal(read(figures.learning_curves(tmp_path / "broken.png", broken)), whole)
    rate_only = [{"epoch": e, "train": {"rate": 1.0 * e}} for e in range(3)]
    narrow = read(figures.learning_curves(tmp_path / "rate.png", rate_only))
    assert narrow.shape[1] == pytest.approx(whole.shape[1] / 3, abs=1)
    with pytest.raises(ValueError, match="records hold none of rate, distortion, negative_elbo"):
        figures.learning_curves(tmp_path / "none.png", [{"epoch": 1, "train": {"loss": 1.0}}])
    with pytest.raises(ValueError, match="records hold none"):
        figures.learning_curves(tmp_path / "none.png", [])


def test_group_rates_draw_a_line_for_each_group(tmp_path):
    def at(epoch, split="test"):
        rates = {f"rate_z{i}": float(i) for i in range(1, 13)}
        return {"epoch": epoch, split: {"rate": 78.0, **rates}}

    drawn = read(figures.group_rates(tmp_path / "rates.png", [at(1), at(2), at(3)]))
    silent = [at(1), at(2), {"epoch": 3, "test": at(3)["test"] | {"rate_z4": 0.0}}]
    assert not np.array_equal(read(figures.group_rates(tmp_path / "silent.png", silent)), drawn)
    both = [record | {"train": at(1, "train")["train"] | {"rate_z1": 50.0}} for record in (at(1), at(2), at(3))]
    np.testing.assert_array_equal(read(figures.group_rates(tmp_path / "both.png", both)), drawn)
    with pytest.raises(ValueError, match=r"records hold no rate_z1, rate_z2, ... under train, validation, test"):
        figures.group_rates(tmp_path / "none.png", [{"epoch": 1, "test": {"rate": 1.0}}])


def test_the_first_epoch_does_not_squash_the_rest():
    low, high = _robust_limits(np.array([5000.0, *np.linspace(110, 100, 19)]))
    assert 99 < low < 100
    assert 110 < high < 111
    low, high = _robust_limits(np.array([180.0, 120.0]))  # too few to call one of them far out
    assert low < 120
    assert high > 180
    assert _robust_limits(np.array([3.0])) is None


@pytest.mark.parametrize(
    ("rate", "distortion", "expected"),
    [
        ([3.0], [7.0], [0]),
        ([2.0, 0.0, 1.0], [1.0, 9.0, 3.0], [1, 2, 0]),  # in order of rate
        ([0.0, 1.0, 2.0], [4.0, 3.0, 2.0], [0, 2]),  # a straight piece has two ends
        ([0.0, 1.0, 2.0], [4.0, 3.5, 2.0], [0, 2]),  # above the chord
        ([0.0, 1.0, 2.0, 4.0], [4.0, 1.0, 2.0, 1.0], [0, 1]),  # only where it falls
        ([1.0, 1.0, 1.0], [5.0, 2.0, 3.0], [1]),
        ([1.0, 0.0, 0.0, 1.0], [2.0, 3.0, 3.0, 2.0], [1, 0]),  # copies count once, the first
        ([0.0, 1.0, 2.0, 3.0, 4.0], [16.0, 9.0, 4.0, 1.0, 0.0], [0, 1, 2, 3, 4]),
    ],
)
def test_frontier_of_a_few_points(rate, distortion, expected):
    assert figures.frontier(rate, distortion).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
def test_frontier_is_what_some_beta_prefers(seed):
    rng = np.random.default_rng(seed)
    rate, distortion = rng.gamma(2, 5, 200), rng.gamma(2, 20, 200)
    found = figures.frontier(jnp.asarray(rate), jnp.asarray(distortion))
    rate, distortion = rate.astype(np.float32).astype(float), distortion.astype(np.float32).astype(float)
    hull = ConvexHull(np.stack([rate, distortion], axis=-1))
    # Facets whose outward normal points down and to the left join the points of the frontier.
    facing = (hull.equations[:, 0] < 0) & (hull.equations[:, 1] < 0)
    assert set(found.tolist()) == set(hull.simplices[facing].ravel().tolist())
    assert (np.diff(rate[found]) > 0).all()
    assert (np.diff(distortion[found]) < 0).all()
    betas = np.geomspace(1e-3, 1e4, 2000)
    best = (distortion + betas[:, None] * rate).argmin(axis=1)
    assert set(best.tolist()) <= set(found.tolist())


def dots(picture, color):
    """Pixels [n, 2] (row, column) left of the legend that have exactly this colour [4], fractions."""
    exact = (picture == np.rint(255 * np.asarray(color[:3])).astype(np.uint8)).all(axis=-1)
    return np.argwhere(exact[:, : 5 * picture.shape[1] // 6])


def test_rate_distortion_places_and_colours_the_models(tmp_path):
    rate, distortion, beta = [20.0, 2.0, 10.0], [10.0, 60.0, 30.0], [1.0, 16.0, 4.0]
    picture = read(figures.rate_distortion(tmp_path / "rd.png", rate, distortion, beta, title="sprites"))
    places = [dots(picture, colormaps["viridis"](0.92 * share)) for share in (0, 1, 0.5)]  # beta on a log scale
    assert [len(found) > 20 for found in places] == [True] * 3
    rows, columns = np.stack([found.mean(axis=0) for found in places]).T
    assert (columns[2] - columns[1]) / (columns[0] - columns[1]) == pytest.approx(8 / 18, abs=0.01)
    assert (rows[2] - rows[1]) / (rows[0] - rows[1]) == pytest.approx(30 / 50, abs=0.01)
    # The frontier passes half way between neighbours; from the first to the last there is none.
    middle = np.rint([(rows[2] + rows[1]) / 2, (columns[2] + columns[1]) / 2]).astype(int)
    around = picture[middle[0] - 3 : middle[0] + 4, middle[1] - 3 : middle[1] + 4]
    assert (around < 100).all(axis=-1).any()
    off = np.rint([(rows[0] + rows[1]) / 2, (columns[0] + columns[1]) / 2]).astype(int)
    assert not (picture[off[0] - 3 : off[0] + 4, off[1] - 3 : off[1] + 4] < 100).all(axis=-1).any()


def test_rate_distortion_rings_the_mean_of_seeds(tmp_path):
    one = read(figures.rate_distortion(tmp_path / "one.png", [2.0, 9.0], [9.0, 2.0], [4.0, 1.0]))
    three = read(
        figures.rate_distortion(tmp_path / "three.png", [2.0, 9.0, 5.0, 7.0], [9.0, 2.0, 5.0, 4.0], [4.0, 1, 1, 1])
    )
    color = colormaps["viridis"](0.0)
    assert np.ptp(dots(one, color), axis=0).max() < 12  # a dot and no ring
    spread = dots(three, color)  # the three seeds and their mean
    low, high = spread.min(axis=0), spread.max(axis=0)
    mean = low + (high - low) * [(5 - 11 / 3) / 3, (7 - 5) / 4]  # distortions 5 to 2 downwards, rates 5 to 9
    reach = np.hypot(*(spread - mean).T)
    assert ((reach > 6) & (reach < 14)).sum() > 20  # a ring, at the mean of the three


def test_models_must_be_finite_and_beta_positive(tmp_path):
    path = tmp_path / "bad.png"
    for wrong in ([1.0], [[1.0, 2.0]], [1.0, np.nan]):
        with pytest.raises(ValueError, match=r"distortion must be \[M\], one number per model, and finite, got \("):
            figures.frontier([1.0, 2.0], wrong)
    with pytest.raises(ValueError, match=r"rate must be \[M\]"):
        figures.frontier([], [])
    with pytest.raises(ValueError, match=r"beta must be \[M\]"):
        figures.rate_distortion(path, [1.0, 2.0], [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="beta must be positive, its scale is logarithmic: got 0"):
        figures.rate_distortion(path, [1.0, 2.0], [1.0, 2.0], [1.0, 0.0])
    assert not path.exists()


def test_masked_numbers_are_refused(tmp_path):
    path, hidden = tmp_path / "bad.png", np.ma.masked_greater([1.0, 2.0], 1)
    for draw, name in (
        (lambda: figures.kl_bars(path, hidden), "kl"),
        (lambda: figures.frontier([1.0, 2.0], hidden), "distortion"),
        (lambda: figures.rate_distortion(path, [1.0, 2.0], [1.0, 2.0], hidden), "beta"),
        (lambda: figures.metrics_by_beta(path, [1.0, 2.0], {"mig": hidden}), "mig"),
        (lambda: figures.factor_information(path, hidden[None] / 4, ["x", "y"]), "information"),
        (lambda: figures.code_usage(path, hidden / 3), "usage"),
        (lambda: figures.latent_scatter(path, np.ma.masked_less(np.eye(2), 0)), "codes"),
        (lambda: figures.latent_scatter(path, np.eye(2), hidden), "labels"),
    ):
        with pytest.raises(TypeError, match=f"^{name} is a masked array, and its mask would be ignored"):
            draw()
    with pytest.raises(ValueError, match="metrics must hold one or more, by name"):
        figures.metrics_by_beta(path, [1.0, 2.0], {})
    assert not path.exists()


def test_metrics_by_beta_joins_the_means_of_each_beta(tmp_path):
    beta = [1, 1, 4, 4, 16]
    metrics = {"rate": [20.0, 22, 10, 12, 3], "flat": [1.0, 1, 1, 1, 1]}
    picture = read(figures.metrics_by_beta(tmp_path / "beta.png", beta, metrics))
    left, right = np.array_split(picture, 2, axis=1)
    falling, level = (dots(half, to_rgb(COLORS[0])) for half in (left, right))
    assert np.corrcoef(falling.T)[0, 1] > 0.9  # further right is further down
    assert np.ptp(falling[:, 0]) > 80
    assert np.ptp(level[:, 0]) < 16
    with pytest.raises(ValueError, match=r"rate must be \[M\], one number per model"):
        figures.metrics_by_beta(tmp_path / "bad.png", beta, {"rate": [1.0]})
    with pytest.raises(ValueError, match="beta must be positive"):
        figures.metrics_by_beta(tmp_path / "bad.png", [0.0], {"rate": [1.0]})


def test_factor_information_is_coloured_by_its_value(tmp_path):
    information = np.array([[0.05, 0.95, 0.5], [0.35, 0.2, 0.75]])
    picture = read(figures.factor_information(tmp_path / "mi.png", information, ["shape", "x", "y"], title="sprites"))
    colors = colormaps["viridis"](information, bytes=True)[..., :3]
    centres = np.zeros((2, 3, 2))
    for place in np.ndindex(2, 3):
        exact = np.argwhere((picture == colors[place]).all(axis=-1))
        assert len(exact) > 1000
        centres[place] = np.median(exact, axis=0)
    assert (np.diff(centres[..., 1], axis=1) > 40).all()  # factors to the right
    assert (np.diff(centres[..., 0], axis=0) > 20).all()  # latents downwards
    assert (np.ptp(centres[..., 1], axis=0) < 3).all()
    assert (np.ptp(centres[..., 0], axis=1) < 3).all()
    for place in np.ndindex(2, 3):  # the number is light on dark and dark on light
        row, column = centres[place].astype(int)
        cell = picture[row - 10 : row + 10, column - 20 : column + 20].astype(int).sum(axis=-1)
        assert (cell == 3 * 255).any() == (information[place] < 0.6)
        assert (cell == 0).any() == (information[place] > 0.6)
    order = np.argsort(information, axis=None)
    luminance = colors.reshape(-1, 3)[order] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > 0).all()


def test_factor_information_must_be_a_share(tmp_path):
    path = tmp_path / "bad.png"
    for wrong in ([0.5, 0.5], [[0.5, 1.2]], [[-0.1, 0.5]], [[np.nan, 0.5]], np.zeros((0, 2))):
        with pytest.raises(ValueError, match=r"information must be \[D, F\] in \[0, 1\]"):
            figures.factor_information(path, wrong, ["x", "y"])
    with pytest.raises(ValueError, match=r"names must be 2 texts, one per column of information, got \['x'\]"):
        figures.factor_information(path, [[0.1, 0.2]], ["x"])
    with pytest.raises(ValueError, match=r"labels must be 1 texts, one per row of information, got \['a', 'b'\]"):
        figures.factor_information(path, [[0.1, 0.2]], ["x", "y"], labels=["a", "b"])
    assert not path.exists()
