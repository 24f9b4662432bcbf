"""experiments.samples: runs whose samples are known beside each other, and what each experiment draws."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import result_of, run

import jaxvae
from experiments import (
    beta_vae,
    cvae,
    drawing,
    hierarchy,
    latents,
    pixelcnn,
    prior,
    reader,
    samples,
    splits,
    two_stage,
    vae,
    vq_vae,
)
from experiments.splits import load_splits, without_label
from jaxvae import data
from jaxvae.checkpoint import Checkpointer
from jaxvae.keys import seed_key
from jaxvae.training import evaluation_params, with_ema

KEY = seed_key(0)


def make_run(directory, experiment, **settings):
    """A directory that looks like a run."""
    directory.mkdir(parents=True)
    named = {} if experiment is None else {"experiment": experiment}
    (directory / "config.json").write_text(json.dumps({**named, "data": "digits", **settings}))
    return directory


# What the draws share


def test_pictures_are_drawn_in_blocks_and_the_first_are_the_same_for_every_number():
    def draw_block(key):
        return 2 * jax.random.uniform(key, (drawing.BLOCK, 1, 1, 1)) - 0.5

    many = drawing.in_blocks(draw_block, 250, key=KEY)
    assert many.shape == (250, 1, 1, 1)
    assert many.min() == 0
    assert many.max() == 1  # a Gaussian's mean may lie beyond
    np.testing.assert_array_equal(drawing.in_blocks(draw_block, 120, key=KEY), many[:120])
    assert np.abs(many[:100] - many[100:200]).max() > 0.5
    assert np.abs(drawing.in_blocks(draw_block, 100, key=seed_key(1)) - many[:100]).max() > 0.5


def test_the_average_on_disk_is_the_one_that_was_evaluated(tmp_path):
    optimizer = with_ema(optax.sgd(0.1), 0.9)
    params = {"w": jnp.arange(3.0), "part": {"b": jnp.ones(2)}}
    state = jaxvae.init_train_state(lambda *, key: (params, ()), optimizer, key=KEY)
    for step in range(3):
        updates, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), state.opt_state, state.params)
        state = state.replace(
            step=jnp.int32(step + 1), params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )
    for directory, saved in ((tmp_path / "averaged", state), (tmp_path / "plain", state.replace(opt_state=()))):
        with Checkpointer(directory / "checkpoints", meta={}) as checkpointer:
            checkpointer.save(saved)
    found = drawing.averaged_params(tmp_path / "averaged", state.params)
    expected = evaluation_params(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)
    assert np.abs(found["w"] - state.params["w"]).min() > 0.01
    assert drawing.averaged_params(tmp_path / "plain", state.params) is state.params


def test_a_run_of_codes_is_of_the_data_of_its_vq_vae(tmp_path):
    vq = make_run(tmp_path / "vq", "vq_vae", data="fashion")
    own = make_run(tmp_path / "prior", "pixelcnn", data="mnist", run=str(vq))
    assert drawing.data_of(own) == "fashion"
    assert drawing.data_of(make_run(tmp_path / "pixels", "pixelcnn", run=None)) == "digits"


# The table


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The test images themselves, one of them again and again, and noise, measured as if they were samples."""
    folder = tmp_path_factory.mktemp("samples")
    test = data.load("digits", "test").x[:256] / np.float32(16)
    drawn = {
        "copies": test,
        "one": np.broadcast_to(test[:1], test.shape),
        "noise": np.random.default_rng(0).random(test.shape),
    }

    def draw(directory, num, *, key):
        assert num == 256
        return drawn[directory.name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "experiments.known", SimpleNamespace(draw=draw))
        for name in ("copies", "noise"):
            make_run(folder / name, "known")
        (folder / "copies" / "result.json").write_text(json.dumps({"test": {"nll": 12.5}, "seconds": 3.0}))
        one = f"known:{make_run(folder / 'one', None)}"
        runs = (folder / "copies", one, folder / "noise")
        result, said = result_of(samples.main, folder / "out", *runs, "--smoke")
    return folder / "out", result["test"], said


def test_copies_of_the_test_images_are_perfect_and_one_of_them_has_quality_and_no_variety(table):
    _, rows, _ = table
    assert list(rows) == ["training images", "copies", "one", "noise"]
    perfect, one, noise = (rows[name] for name in ("copies", "one", "noise"))
    for name in ("precision", "recall", "density", "coverage", "sharpness"):
        assert perfect[name] == pytest.approx(1, abs=1e-6)
    assert perfect["frechet"] == pytest.approx(0, abs=1e-6)
    assert perfect["frechet"] < rows["training images"]["frechet"] < noise["frechet"]
    assert rows["training images"]["kernel"] < noise["kernel"]
    assert (one["precision"], one["recall"] <= 0.05, one["coverage"] <= 0.05) == (1, True, True)
    assert one["class_kl"] > 2
    assert noise["sharpness"] > 1.5
    assert noise["precision_standard_error"] >= 0


def test_the_table_says_what_the_runs_say_of_themselves(table):
    out, rows, said = table
    assert rows["copies"]["nats"] == 12.5
    assert rows["copies"]["train_seconds"] == 3
    assert "nats" not in rows["noise"]
    assert rows["noise"]["seconds_per_sample"] > 0
    assert {row["compared_with"] for row in rows.values()} == {"grey images"}
    assert "compare within these tables alone" in said
    assert said.count("in the features of one classifier") == 2
    assert "12.50" in said
    for name in ("samples", "neighbours"):
        assert (out / f"{name}.png").stat().st_size > 1000


def test_a_classifier_that_was_kept_is_not_trained_again(table, monkeypatch):
    out, _, said = table
    assert "features of the classifier in" in said
    monkeypatch.setattr(reader, "train_reader", lambda *_: pytest.fail("trained again"))
    splits = SimpleNamespace()
    model, params = samples.load_reader(out / "reader", "digits", splits, samples.Config(runs=("run",)))
    x = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    _, logits, features = samples.read(model, params, x)
    assert (logits.shape, features.shape) == ((3, 10), (3, 128))
    dense = params["params"]["Dense_1"]
    np.testing.assert_allclose(features @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), logits, atol=1e-4)
    with pytest.raises(ValueError, match="reads 'digits', and the runs are of 'mnist'"):
        samples.load_reader(out / "reader", "mnist", splits, samples.Config(runs=("run",)))


@pytest.mark.slow
def test_a_set_without_labels_is_measured_in_the_codes_of_an_autoencoder(tmp_path, monkeypatch):
    """Copies of the test images are perfect there too, and nothing is said of classes."""
    known = SimpleNamespace(draw=lambda *_, key: data.load("digits", "test").x[:256] / np.float32(16))
    monkeypatch.setitem(sys.modules, "experiments.known", known)
    load_split = splits.load_split
    for module in (samples, splits):
        monkeypatch.setattr(module, "load_split", lambda *of: without_label(load_split(*of)))
    out = tmp_path / "out"
    result, said = result_of(
        samples.main, out, make_run(tmp_path / "copies", "known"), "--smoke", "--picture-format", "svg"
    )
    assert {path.name for path in out.glob("*.svg")} == {"samples.svg", "neighbours.svg"}
    perfect, training = result["test"]["copies"], result["test"]["training images"]
    assert perfect["frechet"] == pytest.approx(0, abs=1e-6)
    assert training["frechet"] > 0.01
    assert perfect["coverage"] == 1
    assert not {"read", "class_kl"} & perfect.keys()
    assert result["features"] == "autoencoder"
    assert said.count("in the features of one autoencoder") == 2
    kept = json.loads((out / "reader" / "result.json").read_text())["test"]
    assert kept.keys() == {"distortion", "distortion_of_binarized"}
    model, params = reader.load_reader(out / "reader", "digits", None, samples.Config(runs=("run",)))
    x = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    codes = model.apply(params, x, method="encode")
    np.testing.assert_allclose(samples.read(model, params, x).features, codes, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="keeps the features of one autoencoder: choose another --reader or --out"):
        reader.load_reader(out / "reader", "digits", None, samples.Config(runs=("run",), features="classifier"))


def test_binary_samples_are_compared_with_binarised_images():
    splits = load_splits(SimpleNamespace(data="digits", smoke=True), labelled=True)
    test = samples.images_of(splits.test, 200)
    binary = samples.images_of(splits.binarized().test, 200)
    assert set(np.unique(binary)) == {0, 1}
    rng = np.random.default_rng(0)
    make = lambda images: samples.Read(images, rng.normal(size=(200, 10)), rng.normal(size=(200, 8)))  # noqa: E731
    real = {False: make(test), True: make(binary)}
    config = SimpleNamespace(groups=4)
    found = samples.measure(real, make(binary), splits, config)
    assert found["compared_with"] == "binarised images"
    assert found["sharpness"] == pytest.approx(1)
    assert samples.measure(real, make(test), splits, config)["compared_with"] == "grey images"


def test_half_of_the_images_that_the_classifier_learns_from_are_binarised():
    splits = load_splits(SimpleNamespace(data="digits", smoke=False), labelled=True)
    train = splits.train.take(slice(400)).with_prepare(reader.half_binarized(splits))
    batch = train.prepared(400, key=KEY)
    grey = np.asarray(train.x[:400] / np.float32(16))
    binary = np.isin(batch["x"], (0, 1)).all(axis=(1, 2, 3))
    assert 0.4 < binary.mean() < 0.6
    np.testing.assert_allclose(batch["x"][~binary], grey[~binary], atol=1e-6)
    other = np.isin(train.prepared(400, key=seed_key(1))["x"], (0, 1)).all(axis=(1, 2, 3))
    assert 0.3 < (binary == other).mean() < 0.7  # anew at every step


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere",), "no run in"),
        (("old",), "does not say which experiment made it: pass EXPERIMENT:"),
        (("nothing:old",), "there is no experiment 'nothing' to draw from"),
        (("classifier:old",), "experiments.classifier draws no samples: it lacks the `draw` of experiments/drawing.py"),
        (("new", "other"), "the runs are of different data: digits, mnist"),
        (("new", "new"), "a run is named twice"),
        (("new", "--num", 128), "num must be above the 128 features, with one of 10 groups left out, got 128"),
        (("new", "--groups", 1), "groups must be at least 2, got 1"),
        (("new", "--reader-epochs", 0), "reader_epochs must be at least 1, got 0"),
        (("new", "--seed", -1), "seed must lie in 0 .. 2**32 - 1, got -1"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "old", None)
    make_run(tmp_path / "new", "vae")
    make_run(tmp_path / "other", "vae", data="mnist")
    done = run(samples.main, *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "out").exists()


# What each experiment draws

SMALL_VQ = ("--channels", 8, "--num-codes", 8, "--code-dim", 4, "--residual", 4, "--batch-size", 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [vae, beta_vae, latents, hierarchy, cvae, pixelcnn, two_stage], ids=lambda m: m.__name__
)
def test_a_run_draws_pictures_of_its_data(module, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "save_pictures", lambda *_, **__: [])
    preset = ("mnist", "--data", "digits", "--channels", 8) if module is beta_vae else ("digits",)
    result_of(module.main, tmp_path / "run", *preset, "--smoke")
    assert samples.source_of(str(tmp_path / "run")).experiment == module.__name__.removeprefix("experiments.")
    check(module.draw, tmp_path / "run")
    if module is two_stage:
        plain, flow = (module.draw(tmp_path / "run" / name, 20, key=KEY) for name in (".", "flow"))
        assert np.abs(plain - flow).max() > 1e-3
    if module is vae:
        model, params, _, _ = jaxvae.checkpoint.load(tmp_path / "run", vae.make_model)
        mean = model.apply(params, drawing.BLOCK, key=jax.random.fold_in(KEY, 0), method="sample").mean
        np.testing.assert_allclose(module.draw(tmp_path / "run", 5, key=KEY), mean[:5], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--class-conditional",), ("--network", "pixelcnn")], ids=str)
def test_a_prior_draws_pictures_through_its_vq_vae(options, tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "save_pictures", lambda *_, **__: [])
    monkeypatch.setattr(vq_vae, "save_pictures", lambda *_: [])
    result_of(vq_vae.main, tmp_path / "vq", "digits", *SMALL_VQ, "--smoke")
    small = ("--width", 16, "--layers", 1, "--heads", 2, "--smoke")
    result_of(prior.main, tmp_path / "run", tmp_path / "vq", *small, *options)
    check(prior.draw, tmp_path / "run")
    assert drawing.data_of(tmp_path / "run") == "digits"


def check(draw, directory):
    drawn = draw(directory, 120, key=KEY)
    assert drawn.shape == (120, 8, 8, 1)
    assert drawn.dtype == np.float32
    assert 0 <= drawn.min() < drawn.max() <= 1
    np.testing.assert_array_equal(draw(directory, 20, key=KEY), drawn[:20])
    assert np.abs(drawn[:20] - drawn[100:]).max() > 1e-4


@pytest.mark.slow
def test_what_draws_nothing_says_so(tmp_path, monkeypatch):
    from experiments import illustration

    monkeypatch.setattr(illustration, "save_pictures", lambda *_: [])
    result_of(vae.main, tmp_path / "run", "illustration", "--data", "digits", "--smoke")
    with pytest.raises(ValueError, match="holds no one model that draws samples: its preset is illustration"):
        vae.draw(tmp_path / "run", 2, key=KEY)
