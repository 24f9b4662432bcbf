"""experiments.semi_supervised, from the command line, on scikit-learn's digits."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from commands import result_of, run

from experiments import semi_supervised
from experiments.semi_supervised import PRESETS, choose_labelled, main, make_features, make_model, with_labelled
from experiments.splits import load_splits
from jaxvae import checkpoint, data

SMALL = (
    *("--hidden", 16, "--latent-dim", 2, "--feature-dim", 4, "--feature-epochs", 10),
    *("--labels-per-class", 3, "--batch-size", 128, "--evaluate-every", 5),
)


def records(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def no_pictures(monkeypatch):
    """They are half of so small a run; `trained` draws them."""
    monkeypatch.setattr(semi_supervised, "save_pictures", lambda *_: [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("semi-supervised") / "run"
    result, said = result_of(main, out, "digits", *SMALL, "--epochs", 10)
    return out, result, said


@pytest.mark.slow
def test_a_run_reports_the_accuracy_of_its_classifier_and_a_bound_on_images(trained):
    out, result, said = trained
    measured = result["test"]
    model, params, _, config = checkpoint.load(out, make_model)
    features, feature_params, _, _ = checkpoint.load(out / "features", make_features)
    test = data.load("digits", "test")
    posterior = features.apply(feature_params, test.x / np.float32(16), method="encode")
    logits = model.apply(params, posterior.mean, method="classify")
    assert measured["accuracy"] == pytest.approx((logits.argmax(axis=1) == test.label).mean())
    assert f"30 labels: {measured['accuracy']:.2%} of the test images are read right" in said
    assert measured["accuracy_labels_only"] > 0.2  # twice what guessing gives

    assert measured["negative_elbo"] == pytest.approx(measured["rate"] + measured["distortion"], rel=1e-5)
    entropy = 0.5 * (1 + np.log(2 * np.pi) + np.asarray(posterior.log_var)).sum(axis=1).mean()
    distortion = records(out / "features")[-1]["test"]["distortion"]
    exact = measured["negative_elbo"] + distortion - entropy
    assert measured["negative_elbo_of_images"] == pytest.approx(exact, abs=0.5)  # either side draws for itself
    assert config.num_classes == 10
    for name in ("samples", "analogies", "learning_curves"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_a_resumed_run_equals_a_whole_one(trained, tmp_path):
    whole, result, _ = trained
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "110")  # as if it had been killed before the last of its 110 steps
    again, said = result_of(main, out, "digits", *SMALL, "--epochs", 10, "--resume")
    assert "resumed at step 55" in said
    assert again["test"] == result["test"]
    chex.assert_trees_all_equal(*(checkpoint.load(each, make_model)[1] for each in (whole, out)))
    assert [record["test"] for record in records(out)] == [record["test"] for record in records(whole)]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_images_themselves_are_modelled_too_and_those_for_validation_are_read_right_or_wrong(tmp_path):
    out = tmp_path / "run"
    options = ("--feature-dim", 0, "--hidden", 16, "--batch-size", 64, "--validation", 100)
    result, _ = result_of(main, out, "digits", *options, "--smoke")
    assert "negative_elbo_of_images" not in result["test"]
    guessing = 64 * np.log(17)  # nats of 64 pixels with 17 values; four steps learn little
    assert result["test"]["negative_elbo"] == pytest.approx(guessing, rel=0.1)

    model, params, _, _ = checkpoint.load(out, make_model)
    validation = data.split_validation(data.load("digits", "train").take(slice(256)), 100, seed=0)[1]
    logits = model.apply(params, validation.x / np.float32(16), method="classify")
    record = records(out)[-1]
    assert record["validation"]["accuracy"] == pytest.approx((logits.argmax(axis=1) == validation.label).mean())
    assert "test" not in record


def test_images_for_validation_teach_nothing():
    whole = data.load("digits", "train")
    config = PRESETS["digits"][1]
    train, validation, test, *_ = load_splits(config, validation=200, labelled=True)
    indices = choose_labelled(train.label, config.labels_per_class, seed=0)

    def pixels(x):
        return {each.tobytes() for each in np.asarray(x)}

    assert (len(train), len(validation), len(test)) == (1237, 200, 360)
    assert pixels(train.x) | pixels(validation.x) == pixels(whole.x)
    assert not pixels(train.x) & pixels(validation.x)  # the unlabelled ones
    prepare = with_labelled(train.with_prepare(lambda batch, *, key: batch), indices, 50).prepare
    labelled = prepare({"x": train.x[:1], "index": np.arange(1)}, key=jax.random.key(0))["labelled"]
    assert len(pixels(labelled["x"])) == 50
    assert not pixels(labelled["x"]) & pixels(validation.x)


def test_the_labels_are_drawn_by_their_seed_the_same_number_for_each_class():
    label = data.load("digits", "train").label
    indices = choose_labelled(label, 4, seed=0)
    np.testing.assert_array_equal(np.bincount(label[indices]), np.full(10, 4))
    assert len(np.unique(indices)) == 40
    np.testing.assert_array_equal(indices, choose_labelled(label, 4, seed=0))
    assert not np.array_equal(indices, choose_labelled(label, 4, seed=1))


def test_labelled_images_keep_their_place_and_their_pixels():
    train = data.load("digits", "train")
    indices = choose_labelled(train.label, 2, seed=0)
    beside = with_labelled(train, indices, 8)
    assert beside.label is None
    batch = beside.prepare({"x": train.x[:4], "index": np.arange(4)}, key=jax.random.key(0))
    labelled = batch["labelled"]
    chosen = np.asarray(labelled["index"])
    assert set(chosen) <= set(indices)
    assert len(set(chosen)) == 8
    np.testing.assert_array_equal(labelled["label"], train.label[chosen])
    np.testing.assert_array_equal(labelled["x"], train.x[chosen] / np.float32(16))
    other = beside.prepare({"x": train.x[:4], "index": np.arange(4)}, key=jax.random.key(1))["labelled"]
    assert not np.array_equal(chosen, other["index"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--labels-per-class", 0), "labels_per_class must be at least 1, got 0"),
        (("--labels-per-class", 500), "labels_per_class is 500, but class 2 has only 130 images"),
        (("--classification-weight", -1), "classification_weight must be a finite number, zero or more, got -1.0"),
        (("--validation", -1), "validation must be zero or more, got -1"),
        (("--validation", 1437), "count must lie in 1 .. 1436 for 1437 examples, got 1437"),
        (("--label-seed", -1), "seed must lie in 0 .. 2**32 - 1, got -1"),
        (("--batch-size", 5000), "a batch of 5000 is larger than the split of 1437 examples"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, tmp_path):
    done = run(main, "digits", *arguments, "--out", tmp_path)
    assert done.code == 2
    assert said in done.said
