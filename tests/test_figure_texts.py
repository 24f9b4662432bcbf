"""What figures say: names, units and classes, read from their SVG, which keeps every text as a comment."""

import dataclasses
import re

import numpy as np
import pytest
from test_figures import read

from experiments.command import RunConfig
from experiments.run import Run
from jaxvae import figures
from jaxvae.evaluation import active_latents
from jaxvae.figures._page import COLORS, latent_name, replace_file

pytest.importorskip("matplotlib")
RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 8, 8, 1)).astype(np.float32)
RECORDS = [
    {
        "epoch": e,
        "step": 10 * e,
        "train": {"rate": 3.0 / e, "distortion": 9.0, "negative_elbo": 9.0 + 3.0 / e, "batch_perplexity": 4.0 * e},
        "test": {"rate": 3.0, "rate_z1": 1.0, "rate_z2": 2.0, "codes_used": 5.0 + e % 2, "perplexity": 3.0},
    }
    for e in range(1, 4)
]


def texts(path):
    """Every text of an SVG file."""
    return re.findall(r"<!-- (.*?) -->", path.read_text(), re.DOTALL)


def numbers(found):
    """Those texts that are numbers, as ticks are."""
    return [float(text.replace("\N{MINUS SIGN}", "-")) for text in found if re.fullmatch("[\N{MINUS SIGN}\\d.]+", text)]


def test_latents_are_numbered_from_one_and_alike_everywhere(tmp_path):
    assert [latent_name(latent) for latent in (0, 9)] == ["$z_{1}$", "$z_{10}$"]
    kl = texts(figures.kl_bars(tmp_path / "kl.svg", [0.5, 2.0, 1.0]))
    named = [text for text in kl if text.startswith("$z")]
    assert named == ["$z_{2}$", "$z_{3}$", "$z_{1}$"]  # from the largest down, each under its own number
    many = texts(figures.kl_bars(tmp_path / "many.svg", np.ones(25)))
    assert "latent, by rank" in many
    assert not any(text.startswith("$z") for text in many)
    shares = np.full((3, 2), 0.5)
    heat = texts(figures.factor_information(tmp_path / "heat.svg", shares, ["x", "scale"]))
    assert {"$z_{1}$", "$z_{2}$", "$z_{3}$", "x", "scale", "factor v", "latent z"} <= set(heat)
    groups = texts(figures.group_rates(tmp_path / "groups.svg", RECORDS))
    assert {"$z_{1}$", "$z_{2}$", "nats per example (test)", "epoch"} <= set(groups)
    plane = texts(figures.latent_scatter(tmp_path / "plane.svg", RNG.normal(size=(9, 2)), latents=(4, 1)))
    assert {"$z_{5}$", "$z_{2}$"} <= set(plane)
    assert "$z_{1}$" not in plane
    many = texts(figures.manifold(tmp_path / "manifold.svg", lambda latent: np.zeros((len(latent), 8, 8, 1)), size=2))
    assert {"$z_{1}$", "$z_{2}$"} <= set(many)


def test_every_name_is_in_its_legend(tmp_path):
    codes, name = RNG.normal(size=(4, 2)), "_background_noise_"  # of Speech Commands
    plane = texts(figures.latent_scatter(tmp_path / "plane.svg", codes, [name, "cat", "dog", "cat"]))
    assert {name, "cat", "dog"} <= set(plane)
    curve = texts(figures.codec_curves(tmp_path / "codec.svg", {name: [(0.5, 20.0), (1.0, 25.0)]}))
    assert name in curve
    panel = figures.Panel(IMAGES, IMAGES, codes, [name, "a", "b", "c"], figures.prior_grid(2), IMAGES[:4])
    assert {name, "a"} <= set(texts(figures.side_by_side(tmp_path / "side.svg", {"one": panel})))
    for labels, names in (
        ([1000001.0, 1000002.0, 3.0, 0.5], {"1000001", "1000002", "3", "0.5"}),
        (np.float32([0.1, 0.2, 0.1, 2]), {"0.1", "0.2", "2"}),
    ):
        assert names <= set(texts(figures.latent_scatter(tmp_path / "plane.svg", codes, np.asarray(labels))))


def test_a_path_may_begin_at_home_and_nothing_half_made_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert figures.image_grid("~/a.png", IMAGES) == tmp_path / "a.png"

    def fail(unfinished):
        unfinished.write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        replace_file("b.png", (".png",), fail)
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("labels", [None, ["p(z)", "q(z|x)"] * 20, np.arange(40) % 25])
def test_no_text_of_a_scatter_is_cut_off(labels, tmp_path):
    labels = labels if labels is None else np.array(labels)
    page = read(figures.latent_scatter(tmp_path / "plane.png", RNG.normal(size=(40, 2)), labels, title="codes"))
    page = page.reshape(*page.shape[:2], -1)
    for edge in (page[0], page[-1], page[:, 0], page[:, -1]):
        assert np.ptp(edge) == 0
    assert np.ptp(page[:, :20]) > 0  # the axis has its name


def test_a_conditional_curve_says_what_it_is_given(tmp_path):
    plain = texts(figures.learning_curves(tmp_path / "plain.svg", RECORDS))
    assert {r"rate  $\mathrm{KL}(q(z|x)\,\|\,p(z))$", r"distortion  $-\log\,p(x|z)$", "nats per example"} <= set(plain)
    given = texts(figures.learning_curves(tmp_path / "given.svg", RECORDS, condition="y"))
    assert {r"rate  $\mathrm{KL}(q(z|x,y)\,\|\,p(z|y))$", r"distortion  $-\log\,p(x|z,y)$"} <= set(given)
    assert "$-$ELBO = rate + distortion, given $y$" in given
    assert set(plain) & {"train", "test"} == {"train", "test"}  # the names of the splits, and no other word


def test_rows_and_columns_of_images_have_names(tmp_path):
    names = {"row_names": ["cat", "dog"], "column_names": ["first", "second", "third"]}
    found = texts(figures.image_grid(tmp_path / "grid.svg", IMAGES, columns=3, title="animals", **names))
    assert sorted(found) == ["animals", "cat", "dog", "first", "second", "third"]
    for wrong in ({"row_names": ["cat"]}, {"column_names": ["first"] * 4}):
        with pytest.raises(ValueError, match=rf"{next(iter(wrong))} must be [23], got [14]"):
            figures.image_grid(tmp_path / "bad.png", IMAGES, columns=3, **wrong)


def test_integers_are_integers(tmp_path):
    health = texts(figures.codebook_health(tmp_path / "health.svg", RECORDS))
    assert {"codes, effectively", "codes", "step"} <= set(health)
    beta, active = [1.0, 2.0, 4.0], [3.0, 2.0, 2.0]
    found = texts(figures.metrics_by_beta(tmp_path / "beta.svg", beta, {"active latents": active}))
    assert numbers(found)
    assert all(number % 1 == 0 for number in numbers(found))
    classes = texts(figures.latent_scatter(tmp_path / "classes.svg", RNG.normal(size=(4, 2)), np.float32([0, 1, 2, 2])))
    assert {"0", "1", "2"} <= set(classes)
    assert "2.0" not in classes


def test_there_is_one_definition_of_active(tmp_path):
    codes = np.stack([np.linspace(-1, 1, 9), np.linspace(-0.01, 0.01, 9)], axis=1)
    drawn = figures.kl_bars(tmp_path / "kl.svg", [1.0, 0.5], active=active_latents(codes))
    assert "1 of 2 latents active; rate 1.50 nats" in texts(drawn)


def test_axes_have_units(tmp_path):
    sounds = RNG.normal(size=(1, 512, 1))
    found = texts(figures.spectrograms(tmp_path / "sound.svg", sounds, sounds, rate=8000))
    assert "time (ms)" in found
    assert any("frequency (kHz)" in text for text in found)
    found = texts(figures.rate_distortion(tmp_path / "rd.svg", [1.0, 2.0], [9.0, 8.0], [1.0, 0.5]))
    assert {"rate (nats)", "distortion (nats)"} <= set(found)


def luminance(color):
    """Relative luminance (WCAG) of "#rrggbb" or of [3] in [0, 1]."""
    rgb = np.array(list(bytes.fromhex(color[1:]))) / 255 if isinstance(color, str) else np.asarray(color)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_differ_in_what_the_colour_blind_see():
    """Seen without red or green, by the matrices of Viénot, Brettel and Mollon (1999), no two of ten are alike."""
    without_red = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
    without_green = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    rgb = np.array([list(bytes.fromhex(color[1:])) for color in COLORS]) / 255
    for seen in (rgb @ without_red.T, rgb @ without_green.T):
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
        assert apart.min() > 0.05
    from jaxvae.figures._plane import _class_colors

    steps = [luminance(color[:3]) for color in _class_colors(12)]
    assert np.all(np.diff(steps) > 0)  # more than ten classes: from dark to light


@pytest.mark.parametrize("kind", ["svg", "pdf"])
def test_vectors_on_request_are_whole_and_the_same_each_time(tmp_path, kind):
    drawn = [figures.image_grid(tmp_path / f"{name}.{kind}", IMAGES, title="six images").read_bytes() for name in "ab"]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith({"svg": b"<?xml", "pdf": b"%PDF"}[kind])
    assert len(figures.learning_curves(tmp_path / f"curves.{kind}", RECORDS).read_bytes()) > 1000
    assert not list(tmp_path.glob(".*"))


def test_an_image_lies_where_it_does_on_pixels(tmp_path):
    """The images of a page keep their place and size in a format without pixels: 1/128 inch each."""
    one = {"images": np.float32([[[[1.0, 0.4, 0.0]] * 8] * 8]), "row_names": ["one"], "title": "an image"}
    picture = read(figures.image_grid(tmp_path / "grid.png", **one))
    rows, columns = np.nonzero((picture == [255, 102, 0]).all(axis=-1))
    file = figures.image_grid(tmp_path / "grid.svg", **one).read_text()
    image = re.search(r"<image[^>]*>", file, re.DOTALL)[0]
    width, height = (float(re.search(rf' {name}="([\d.]+)"', image)[1]) for name in ("width", "height"))
    across, _, _, down, left, top = map(float, re.search(r"matrix\((.*?)\)", image)[1].split())
    frame = 4  # pixels around an image of 96
    assert (across, down) == (72 / 128, 72 / 128)
    assert (width, height) == (np.ptp(columns) + 1 + 2 * frame, np.ptp(rows) + 1 + 2 * frame)
    assert (left / across, top / down) == pytest.approx((columns.min() - frame, rows.min() - frame), abs=0.01)


def test_an_experiment_draws_in_the_format_that_is_asked_for(tmp_path):
    config = RunConfig(preset="none", epochs=1, batch_size=1, out=tmp_path / "run", picture_format="pdf")
    run = Run("none", config)
    assert run.picture("curves") == tmp_path / "run" / "curves.pdf"
    run.checkpointer.close()
    again = Run("none", dataclasses.replace(config, picture_format="png", resume=True))  # nothing that a run depends on
    assert again.picture("curves").suffix == ".png"
    again.checkpointer.close()
