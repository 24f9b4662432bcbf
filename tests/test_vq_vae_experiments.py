"""experiments.vq_vae, experiments.pixelcnn and experiments.prior, from the command line, on scikit-learn's digits."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import result_of, run

from experiments import maps, pixelcnn, prior, vq_vae
from experiments.other_run import checksum
from experiments.splits import load_splits
from jaxvae import checkpoint, data

SMALL = (
    "--channels",
    8,
    "--num-codes",
    8,
    "--code-dim",
    4,
    "--residual",
    4,
    "--batch-size",
    64,
    "--evaluate-every",
    22,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("vq") / "run"
    result, said = result_of(vq_vae.main, out, "digits", *SMALL, "--epochs", 4)
    return out, result, said


@pytest.mark.slow
def test_a_run_reports_its_codebook_over_the_whole_test_set(trained):
    out, result, _ = trained
    model, params, model_state, config = checkpoint.load(out, vq_vae.make_model)
    test = data.load("digits", "test")
    indices = model.encode_indices(params, model_state, test.x / np.float32(16))
    share = np.bincount(np.ravel(indices), minlength=8) / indices.size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    assert result["test"]["perplexity"] == pytest.approx(np.exp(entropy), rel=1e-3)
    assert result["test"]["codes_used"] == (share > 0).sum()
    nats = result["test"]["distortion"] + 16 * np.log(8)
    assert result["test"]["bits_per_dim_uniform_prior"] == pytest.approx(nats / 64 / np.log(2), rel=1e-6)
    assert config.num_codes == 8
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all({"perplexity", "codes_used"} <= record["test"].keys() for record in records)
    assert all({"batch_perplexity", "restarts"} <= record["train"].keys() for record in records)
    for name in ("reconstructions", "index_maps", "code_usage", "codebook_health"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_prior_over_the_codes_generates(trained, tmp_path, monkeypatch):
    out, vq, _ = trained
    small = ("--channels", 8, "--layers", 1, "--epochs", 6, "--learning-rate", 0.01)
    result, said = result_of(pixelcnn.main, tmp_path / "prior", out, *small)
    assert 0 < result["test"]["nats_per_value"] < np.log(8)
    assert result["test"]["nll"] == pytest.approx(16 * result["test"]["nats_per_value"], rel=1e-5)
    assert "100 samples in" in said
    nats = vq["test"]["distortion"] + result["test"]["nll"]
    assert result["test"]["bits_per_dim"] == pytest.approx(nats / 64 / np.log(2), rel=1e-5)
    assert result["test"]["bits_per_dim"] < vq["test"]["bits_per_dim_uniform_prior"]
    assert (tmp_path / "prior" / "samples.png").stat().st_size > 1000
    model, params, _, config = checkpoint.load(tmp_path / "prior", pixelcnn.make_model)
    maps = model.sample(params, 3, key=jax.random.key(0))
    assert maps.shape == (3, 4, 4)
    assert config.num_classes is None

    monkeypatch.setattr(pixelcnn, "save_pictures", lambda *_, **__: [])  # as above
    result, _ = result_of(pixelcnn.main, tmp_path / "classes", out, *small, "--class-conditional")
    assert 0 < result["test"]["nats_per_value"] < np.log(8)


@pytest.mark.slow
def test_a_transformer_over_the_codes_generates(trained, tmp_path):
    out, _, _ = trained
    small = ("--width", 16, "--layers", 1, "--heads", 2, "--learning-rate", 0.01, "--smoke")
    options = ("--class-conditional", "--guidance", 2, "--top-k", 6, "--top-p", 0.9, "--dropout", 0.1)
    result, said = result_of(prior.main, tmp_path / "prior", out, *small, *options)
    assert 0 < result["test"]["nats_per_value"] < np.log(8)
    assert result["test"]["nll"] == pytest.approx(16 * result["test"]["nats_per_value"], rel=1e-5)
    assert result["test"]["samples_per_second"] > 0
    assert "compiling not counted" in said
    assert 0 <= result["test"]["read_of_worst_class"] <= result["test"]["read_as_condition"] <= 1
    for name in ("samples", "learning_curves"):
        assert (tmp_path / "prior" / f"{name}.png").stat().st_size > 1000
    model, params, _, config = checkpoint.load(tmp_path / "prior", prior.make_model)
    drawn = model.sample(params, 3, key=jax.random.key(0), label=np.arange(3), guidance=0.5)
    assert drawn.shape == (3, 4, 4)
    assert config.num_classes == 10
    assert prior.draw(tmp_path / "prior", 3, key=jax.random.key(0)).shape == (3, 8, 8, 1)

    _, params, model_state, _ = checkpoint.load(out, vq_vae.make_model)  # as if the VQ-VAE were trained further
    file, known = tmp_path / "prior" / "config.json", checksum(params, model_state)
    file.write_text(file.read_text().replace(known, "0123456789abcdef"))
    with pytest.raises(ValueError, match=f"trained further since.* {known}, this run stands on 0123456789abcdef"):
        prior.draw(tmp_path / "prior", 3, key=jax.random.key(0))
    done = run(prior.main, out, *small, *options, "--out", tmp_path / "prior", "--resume")
    assert done.code == 2
    assert f"run_checksum: 0123456789abcdef -> {known}" in done.said


def test_a_checksum_sees_every_number_its_place_and_its_type():
    one = {"params": {"a": np.arange(3.0), "b": np.zeros((2, 1), np.float32)}}
    same = {"params": {"b": np.zeros((2, 1), np.float32), "a": np.arange(3.0)}}
    others = [
        {"params": one["params"] | {"a": np.array([0.0, 1.0, np.nextafter(2, 3)])}},
        {"params": one["params"] | {"b": np.zeros((1, 2), np.float32)}},
        {"params": one["params"] | {"b": np.zeros((2, 1), np.int32)}},
        {"params": {"c": one["params"]["a"], "b": one["params"]["b"]}},
    ]
    assert checksum(one, ()) == checksum(same, ())
    assert len({checksum(each) for each in (one, *others)}) == 5
    assert checksum(one) != checksum((), one)


@pytest.mark.slow
def test_samples_that_show_their_class_are_read_as_it(monkeypatch):
    """A model that draws the label itself, of which the first test image of its class is made."""
    monkeypatch.setattr(prior, "CLASSIFIER_STEPS", 200)
    monkeypatch.setattr(prior, "SAMPLES_PER_CLASS", 40)
    config = SimpleNamespace(data="digits", smoke=False, seed=0, sampling={})
    splits = load_splits(config, labelled=True)
    first = [np.flatnonzero(splits.train.label == label)[0] for label in range(10)]
    images = splits.train.x[first] / np.float32(16)
    shown = maps.Maps(None, None, 8, 64, 10, lambda label: images[np.asarray(label)], None, splits)
    for draw, share in ((lambda label: label, 1.0), (lambda label: (label + 1) % 10, 0.0)):
        model = SimpleNamespace(sample=lambda params, num, *, key, label, draw=draw: draw(label))
        measured = prior.read_samples(config, model, {}, shown)
        assert measured["read_as_condition"] == pytest.approx(share, abs=0.11)  # one class may be misread
        assert measured["classifier_accuracy"] > 0.8


@pytest.mark.slow
def test_both_programs_train_the_same_pixel_cnn(trained, tmp_path, monkeypatch):
    out, _, _ = trained
    monkeypatch.setattr(pixelcnn, "save_pictures", lambda *_, **__: [])
    monkeypatch.setattr(prior, "save_pictures", lambda *_, **__: [])
    one, _ = result_of(pixelcnn.main, tmp_path / "one", out, "--channels", 8, "--layers", 1, "--epochs", 1)
    small = ("--network", "pixelcnn", "--width", 8, "--layers", 1, "--epochs", 1)
    other, _ = result_of(prior.main, tmp_path / "other", out, *small)
    assert one["test"].items() <= other["test"].items()


@pytest.mark.slow
def test_several_codes_a_position_need_a_transformer(tmp_path, monkeypatch):
    monkeypatch.setattr(vq_vae, "save_pictures", lambda *_: [])
    result_of(vq_vae.main, tmp_path / "vq", "digits", *SMALL, "--smoke", "--groups", 2)
    small = ("--width", 16, "--layers", 1, "--heads", 2, "--smoke")
    for books in ("flat", "delay"):
        result, _ = result_of(prior.main, tmp_path / books, tmp_path / "vq", *small, "--books", books)
        assert result["test"]["nll"] == pytest.approx(32 * result["test"]["nats_per_value"], rel=1e-5)
        assert (tmp_path / books / "samples.png").stat().st_size > 1000
    for main, options, said in (
        (pixelcnn.main, (), "take a transformer, python -m experiments.prior"),
        (prior.main, ("--network", "pixelcnn"), "take --network transformer"),
    ):
        done = run(main, tmp_path / "vq", *options, "--smoke", "--out", tmp_path / "refused")
        assert done.code == 2
        assert "a PixelCNN needs one codebook per position" in done.said
        assert said in done.said


def test_a_run_directory_in_the_first_place_names_the_preset_of_its_network(tmp_path):
    arguments = maps.run_first([str(tmp_path), "--epochs", "2"], ["codes"], "codes")
    assert arguments == ["codes", "--run", str(tmp_path), "--epochs", "2"]
    assert prior.of_network(arguments) == arguments
    for chosen in (["--network", "pixelcnn"], ["--network=pixelcnn"]):
        assert prior.of_network([*arguments, *chosen])[0] == prior.PIXELCNN
    one, other = prior.PRESETS[prior.PIXELCNN][1], pixelcnn.PRESETS["codes"][1]
    same = ("epochs", "batch_size", "layers", "learning_rate", "weight_decay", "temperature")
    assert all(getattr(one, name) == getattr(other, name) for name in same)
    assert one.width == other.channels


@pytest.mark.parametrize("network", ["pixelcnn", "pixelrnn", "pixelcnn++"])
@pytest.mark.slow
def test_pixels_have_a_prior_too(network, tmp_path):
    small = ("--channels", 4, "--layers", 1, "--smoke", "--network", network)
    result, _ = result_of(pixelcnn.main, tmp_path, "digits", *small)
    assert result["test"]["bits_per_dim"] == pytest.approx(result["test"]["nll"] / 64 / np.log(2))
    assert (tmp_path / "samples.png").stat().st_size > 1000
    model, params, _, _ = checkpoint.load(tmp_path, pixelcnn.make_model)
    x = data.load("digits", "test").take(slice(256)).x
    nll = -jax.jit(lambda params, x: model.apply(params, x, method="log_prob"))(params, x.astype(np.int32))
    assert result["test"]["nll"] == pytest.approx(float(nll.mean()), rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        ("--groups", 2, "--seeding", "random", "--entropy-weight", 0.1),
        ("--codes", "gradient", "--schedule", "cosine"),
    ],
)
@pytest.mark.slow
def test_other_codebooks_train(options, tmp_path, monkeypatch):
    if "--groups" not in options:  # pictures are as those of the first run
        monkeypatch.setattr(vq_vae, "save_pictures", lambda *_: [])
    result, _ = result_of(vq_vae.main, tmp_path, "digits", *SMALL, "--smoke", *options)
    assert 1 <= result["test"]["perplexity"] <= 8


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (vq_vae.main, ("digits", "--num-codes", 1), "num_codes must be at least 2, got 1"),
        (vq_vae.main, ("digits", "--decay", 1), "decay must lie in (0, 1), got 1.0"),
        (vq_vae.main, ("digits", "--codes", "gradient", "--entropy-weight", 1), "needs the frequencies of --codes ema"),
        (pixelcnn.main, ("digits", "--weight-decay", -1), "weight_decay must be a finite number, zero or more, got -1"),
        (vq_vae.main, ("digits", "--groups", 3), "code_dim 16 does not divide into 3 groups"),
        (vq_vae.main, ("digits", "--likelihood", "discretized-logistic"), "'digits' has 17 values"),
        (pixelcnn.main, ("codes",), "codes needs the run directory of a VQ-VAE: --run RUN"),
        (pixelcnn.main, ("codes", "--run", "/nowhere/at/all"), "/nowhere/at/all"),
        (prior.main, ("codes",), "codes needs the run directory of a VQ-VAE: --run RUN"),
        (prior.main, ("codes", "--top-p", 1.5), "top_p must lie in (0, 1], got 1.5"),
        (prior.main, ("codes", "--guidance", 2), "guidance 2.0 needs a transformer and --class-conditional"),
        (
            *(prior.main, ("codes", "--class-conditional", "--guidance", 2, "--condition-dropout", 0)),
            "guidance 2.0 needs what the model says without its condition",
        ),
        (prior.main, ("codes-pixelcnn", "--top-k", 2), "top_k and top_p need --network transformer"),
        (pixelcnn.main, ("digits", "--layers", 0), "layers must be at least 1, got 0"),
        (pixelcnn.main, ("digits", "--dropout", 0.1), "dropout needs --network pixelcnn++, got pixelcnn"),
        (pixelcnn.main, ("codes", "--run", "x", "--network", "pixelcnn++"), "codes are categories in no order"),
    ],
)
def test_wrong_options_are_one_line(main, arguments, said):
    done = run(main, *arguments)
    assert done.code == 2
    assert said in done.said


@pytest.mark.parametrize(("num_values", "most"), [(8, 8), ((4, 6), 6)])
def test_more_codes_than_there_are_are_refused_before_training(num_values, most, tmp_path, monkeypatch):
    monkeypatch.setattr(prior, "load_codes", lambda config: SimpleNamespace(num_values=num_values))
    done = run(prior.main, "codes", "--run", tmp_path, "--out", tmp_path / "prior", "--top-k", 9)
    assert done.code == 2
    assert f"top_k must be at most {most}, the codes, got 9" in done.said
    assert not (tmp_path / "prior").exists()
