"""Every experiment runs from the command line, leaves a whole run directory, and says what is wrong in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import commands
import jax
import numpy as np
import pytest
from matplotlib import image as png

from experiments import command, vae
from experiments import run as experiment_run
from experiments.other_run import check_made_by
from experiments.vae import PRESETS, main, make_model, make_optimizer, start_at_the_mean
from jaxvae import checkpoint, data

ROOT = Path(__file__).parents[1]


def needs(name):
    return pytest.mark.skipif(
        not (Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / name).is_dir(),
        reason=f"needs {name} prepared for tensorflow-datasets in TFDS_DATA_DIR",
    )


NEEDS_MNIST, NEEDS_CIFAR10 = needs("mnist"), needs("cifar10")
SMALL = (
    *("--network", "mlp", "--hidden", 16, "--latent-dim", 2),
    *("--validation", 0, "--evaluate-every", 2, "--nll-samples", 20),
)


run = partial(commands.run, main)


@pytest.fixture
def undrawn(monkeypatch):
    """Runs that draw nothing, which would take longer than all else; `digits` and those of other models draw."""
    monkeypatch.setattr(vae, "save_pictures", lambda *_: [])


def start(*arguments):
    """Start it in a process of its own."""
    command = [sys.executable, "-m", "experiments.vae", *map(str, arguments)]
    environment = {**os.environ, **commands.QUICK}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def arrays(run_dir):
    _, params, _, _ = checkpoint.load(run_dir, make_model)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def same(a, b):
    return all(np.array_equal(one, other) for one, other in zip(a, b, strict=True))


@contextmanager
def compiled_programs():
    """The names of the programs that are compiled meanwhile."""
    names = []

    def listen(event, _, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A short run, whole, in a relative directory where there is nothing to resume."""
    out = tmp_path_factory.mktemp("digits") / "run"
    with compiled_programs() as compiled, pytest.MonkeyPatch.context() as patch:
        patch.chdir(out.parent)
        done = run("digits", "--epochs", 4, *SMALL, "--resume", "--out", out.name)
    assert done.code == 0, done.said
    assert [compiled.count(f"jit({name})") for name in ("epoch", "evaluate")] == [
        1,
        1,
    ]  # two of each
    return out, done.said


def test_a_run_directory_is_whole(digits):
    out, said = digits
    result = json.loads((out / "result.json").read_text())
    test = result["test"]
    assert set(test) == {
        *("negative_elbo", "rate", "distortion", "nll", "nll_standard_error", "active_units"),
        *("aggregate_kl", "mutual_information", "sharpness_ratio", "bits_per_dim", "bits_per_dim_elbo"),
    }
    np.testing.assert_allclose(test["aggregate_kl"] + test["mutual_information"], test["rate"], rtol=1e-4)
    np.testing.assert_allclose(sum(result["kl_per_dimension"]), test["rate"], rtol=1e-4)
    np.testing.assert_allclose(test["bits_per_dim"], test["nll"] / (64 * np.log(2)), rtol=1e-6)
    assert 0 < test["sharpness_ratio"] < 2
    np.testing.assert_allclose(test["negative_elbo"], test["rate"] + test["distortion"], rtol=1e-5)
    assert test["nll"] < test["negative_elbo"] < 64 * np.log(17)  # better than guessing every pixel
    assert 0 < test["nll_standard_error"] < 1
    assert 0 <= test["active_units"] <= 2
    assert result["seconds"] > 0
    assert result["examples_per_second"] > 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [2, 4]
    assert records[-1]["test"]["negative_elbo"] == pytest.approx(test["negative_elbo"], rel=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["latent_dim"] == 2
    assert config["image_shape"] == [8, 8, 1]
    names = ("reconstructions", "samples", "interpolation", "learning_curves", "kl_per_dimension", "manifold", "codes")
    for name in names:
        assert str(out / f"{name}.png") in said
        assert png.imread(out / f"{name}.png")[..., :3].std() > 0.01


def test_a_trained_model_loads_in_two_lines(digits):
    out, _ = digits
    model, params, model_state, config = checkpoint.load(out, make_model)
    samples = model.apply(params, 5, key=jax.random.key(0), method="sample")
    assert samples.mean.shape == (5, 8, 8, 1)
    assert 0 <= samples.mean.min() <= samples.mean.max() <= 1
    assert model_state == ()
    assert config.latent_dim == 2


def assert_equal_runs(*directories):
    one, other = map(arrays, directories)
    assert same(one, other)
    metrics = [(directory / "metrics.jsonl").read_text().splitlines() for directory in directories]
    one, other = [[{**json.loads(line), "examples_per_second": 0} for line in lines] for lines in metrics]
    assert one == other


@pytest.mark.slow
def test_a_run_in_two_parts_equals_a_whole_one(digits, tmp_path, undrawn):
    options = (*SMALL, "--out", tmp_path / "run")
    assert run("digits", "--epochs", 2, *options).code == 0
    with compiled_programs() as compiled:
        second = run("digits", "--epochs", 4, *options, "--resume")
    assert second.code == 0
    assert [compiled.count(f"jit({name})") for name in ("epoch", "evaluate")] == [1, 1]
    assert "resumed at step 44" in second.said
    assert_equal_runs(tmp_path / "run", digits[0])


@pytest.mark.slow
def test_a_run_on_streamed_images_equals_one_on_resident_images(digits, tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr("jaxvae.data.STREAM_ABOVE_BYTES", 0)
    assert run("digits", "--epochs", 4, *SMALL, "--out", tmp_path / "run").code == 0
    assert same(arrays(tmp_path / "run"), arrays(digits[0]))


def newest(out):
    return max((int(path.name) for path in out.glob("checkpoints/*") if path.name.isdecimal()), default=0)


def kill_and_resume(arguments, out, kills, seed):
    """Kill a run `kills` times, each soon after up to three checkpoints; then let it finish. Where it got each time."""
    rng = np.random.default_rng(seed)
    reached = [0]
    for _ in range(kills):
        process = start(*arguments, "--out", out, "--resume")
        for _ in range(rng.integers(4)):
            before = newest(out)
            while newest(out) == before and process.poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, 1))
        process.kill()
        process.communicate()
        reached.append(newest(out))
    said, _ = (process := start(*arguments, "--out", out, "--resume")).communicate()
    assert process.returncode == 0, said
    return reached


@pytest.mark.slow  # test_faults.py kills a real fit twenty times by default; this one kills the whole program
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    arguments = ("digits", "--epochs", 50, *SMALL)
    whole = start(*arguments, "--out", tmp_path / "whole")
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    reached = kill_and_resume(arguments, tmp_path / "killed", kills=3, seed=0)
    assert same(arrays(tmp_path / "killed"), arrays(tmp_path / "whole")), reached


@pytest.mark.slow
@NEEDS_MNIST
def test_mnist_killed_ten_times_resumes_bit_for_bit(tmp_path, capsys):
    arguments = ("mnist", "--epochs", 40, "--evaluate-every", 1, "--nll-samples", 1)
    whole = start(*arguments, "--out", tmp_path / "whole")
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    reached = kill_and_resume(arguments, tmp_path / "killed", kills=10, seed=1)
    with capsys.disabled():
        print(f"\nnewest checkpoint after each kill: {reached}")
    assert len(set(reached)) >= 6  # the kills fell into training, not only into the start
    assert same(arrays(tmp_path / "killed"), arrays(tmp_path / "whole"))


ENDLESS = ("digits", "--epochs", 100_000, *SMALL)


def assert_stopped(name, said, out, options=ENDLESS):
    assert f"stopped by {name} at step" in said
    assert f"python -m experiments.vae {' '.join(map(str, options))}" in said
    assert said.rstrip().endswith("--resume")
    stopped_at = int(said.split("at step")[1].split(";")[0])
    assert str(stopped_at) in os.listdir(out / "checkpoints")


@pytest.mark.slow
def test_a_signal_ends_the_process_with_a_checkpoint(tmp_path):
    process = start(*ENDLESS, "--out", tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert_stopped("SIGTERM", said, tmp_path / "run")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(digits, tmp_path, monkeypatch, undrawn):
    """Within an epoch too, whose steps count in its training mean whichever process took them."""
    options = ("digits", "--epochs", 4, *SMALL)
    report, reported = vae.Run._report, []

    def report_and_interrupt(self, bar, split, every, progress):
        report(self, bar, split, every, progress)
        reported.append(progress.step)
        if len(reported) == 1:  # a second one would end this process
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(vae.Run, "_report", report_and_interrupt)
        patch.setattr(sys, "argv", ["vae.py", *map(str, options)])
        done = run(*options, "--out", tmp_path / "run")
    assert done.code == 130
    assert_stopped("SIGINT", done.said, tmp_path / "run", options)
    assert reported == [8, 16]  # of 22 in an epoch; the signal is seen after the next program
    assert run(*options, "--out", tmp_path / "run", "--resume").code == 0
    assert_equal_runs(tmp_path / "run", digits[0])


@pytest.mark.slow  # digits by default: `burda` is binarised as this is, `linear` has its schedule
@NEEDS_MNIST
def test_mnist_smoke(tmp_path, undrawn):
    done = run("mnist", "--smoke", "--hidden", 4, 8, "--out", tmp_path / "run")
    assert done.code == 0, done.said
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test"]["negative_elbo"] < 600


@pytest.mark.slow
def test_other_networks_and_options_work(tmp_path, undrawn):
    done = run(
        "digits", "--smoke", "--network", "conv", "--hidden", 4, 4, "--dtype", "bfloat16", "--validation", 64,
        "--patience", 5, "--beta-warmup", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.said
    assert "best step" in done.said


def result_of(tmp_path, *arguments):
    done = run(*arguments, "--out", tmp_path / "run")
    assert done.code == 0, done.said
    return json.loads((tmp_path / "run" / "result.json").read_text()), done.said


@pytest.mark.slow
def test_two_stochastic_layers_train_by_the_doubly_reparameterised_bound(tmp_path):
    options = ("--data", "digits", "--smoke", "--hidden", 16, "--latent-dim", 3, "--stochastic-layers", 2)
    objective = ("--objective", "iwae", "--num-samples", 5, "--doubly-reparameterized")
    result, _ = result_of(tmp_path, "burda", *options, *objective)
    test = result["test"]
    assert test["negative_iwae_bound"] < test["negative_elbo"]
    assert test["nll"] < test["negative_iwae_bound"]  # ten samples against five
    assert [0 <= count <= size for count, size in zip(test["active_units"], (6, 3), strict=True)] == [True, True]
    model, params, _, config = checkpoint.load(tmp_path / "run", make_model)
    assert model.apply(params, 3, key=jax.random.key(0), method="sample").mean.shape == (3, 8, 8, 1)
    assert config.stochastic_layers == 2


@pytest.mark.slow
def test_burda_starts_at_the_mean_image_and_follows_its_schedule():
    images = data.load("digits", "train").x
    model = make_model(SimpleNamespace(**vars(PRESETS["burda"][1]), image_shape=images.shape[1:], levels=17))
    params = start_at_the_mean(model.init(jax.random.key(0), np.zeros((1, 8, 8, 1))), images, 17)
    bias = np.asarray(params["params"]["decoder"]["output"]["bias"], np.float64)
    mean = np.clip((images / 16).mean(0).ravel(), 0.001, 0.999)
    np.testing.assert_allclose(1 / (1 + np.exp(-bias)), mean, rtol=1e-5)
    assert bias.min() < -6  # a pixel that is always black: clipped, not minus infinity

    steps = 3
    optimizer = make_optimizer(PRESETS["burda"][1], steps)
    state = optimizer.init({"x": np.float32(0)})
    rates = []
    for _ in range(41 * steps):  # Adam's step for a constant gradient is its rate
        updates, state = optimizer.update({"x": np.float32(1)}, state)
        rates.append(-float(updates["x"]))
    passes = np.repeat([0, 1, 2, 3, 4], [1, 3, 9, 27, 1])  # the exponent of each pass
    np.testing.assert_allclose(rates, np.repeat(1e-3 * 10 ** (-passes / 7), steps), rtol=2e-3)


@pytest.mark.slow
def test_a_linear_vae_comes_near_its_closed_form_and_never_exceeds_it(tmp_path, undrawn):
    options = ("--data", "digits", "--latent-dim", 2, "--batch-size", 50, "--epochs", 150, "--evaluate-every", 50)
    result, said = result_of(tmp_path, "linear", *options)
    assert -1e-9 <= result["gap"]["train"] < 0.5
    np.testing.assert_allclose(result["closed_form"]["train"] - result["trained"]["train"], result["gap"]["train"])
    # Exact here, sampled there: two roads to one ELBO.
    np.testing.assert_allclose(-result["test"]["negative_elbo"], result["trained"]["test"], atol=0.5)
    np.testing.assert_allclose(-result["test"]["nll"], result["closed_form"]["test"], atol=0.5)
    assert f"train: closed form {result['closed_form']['train']:.4f}" in said
    longer = run("linear", *options, "--epochs", 300, "--resume", "--out", tmp_path / "run")
    assert longer.code == 2
    assert "decay_epochs: 150 -> 300" in longer.said


@pytest.mark.slow
def test_the_illustration_draws_both_models(tmp_path):
    result, said = result_of(tmp_path, "illustration", "--data", "digits", "--smoke")
    np.testing.assert_allclose(
        result["test"]["negative_elbo"], result["test"]["rate"] + result["test"]["distortion"], rtol=1e-5
    )
    assert str(tmp_path / "run" / "illustration.png") in said
    assert png.imread(tmp_path / "run" / "illustration.png")[..., :3].std() > 0.01
    models, params, _, _ = checkpoint.load(tmp_path / "run", make_model)
    assert models["vae"].apply(params["vae"], 3, key=jax.random.key(0), method="sample").mean.shape == (3, 8, 8, 1)
    code = models["autoencoder"].apply(params["autoencoder"], np.zeros((2, 8, 8, 1)), method="encode")
    assert code.shape == (2, 2)


@pytest.mark.slow
def test_cifar10_says_what_its_bits_are_worth(tmp_path, monkeypatch, undrawn):
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)
    monkeypatch.setattr(data, "load", lambda name, split, **options: data.from_arrays(name, images))
    options = ("--hidden", 4, "--latent-dim", 2, "--batch-size", 32)
    result, said = result_of(tmp_path, "cifar10", "--smoke", *options)
    nats = result["test"]["nll"]
    np.testing.assert_allclose(result["test"]["bits_per_dim"], nats / (768 * np.log(2)), rtol=1e-6)
    assert result["test"]["bits_per_dim"] > 8  # noise
    assert "must not be compared with published ones" in said
    assert "JPEG" in result["caveat"]


@pytest.mark.slow
@NEEDS_CIFAR10
def test_cifar10_smoke(tmp_path):
    result, _ = result_of(tmp_path, "cifar10", "--smoke")
    assert result["test"]["bits_per_dim"] < 9


def test_help_explains_itself():
    said = run("--help").said
    for word in ("digits", "mnist", "burda", "linear", "cifar10", "illustration", "dynamic binarisation"):
        assert word in said
    said = run("digits", "--help").said
    for option in ("--out", "--seed", "--epochs", "--passes", "--batch-size", "--latent-dim", "--resume", "--smoke"):
        assert option in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--latent-dim", 0), "latent_dim must be at least 1, got 0"),
        (("--evaluate-every", 0), "evaluate_every must be at least 1, got 0"),
        (("--validation", 2000), "count must lie in 1 .. 1436 for 1437 examples, got 2000"),
        (("--beta", -1), "beta must be a finite number, zero or more, got -1.0"),
        (("--beta", "nan"), "beta must be a finite number, zero or more, got nan"),
        (("--learning-rate", 0), "learning_rate must be a positive number, got 0.0"),
        (("--epochs", 0), "epochs must be at least 1, got 0"),
        (("--seed", 2**40), f"seed must lie in 0 .. 2**32 - 1, got {2**40}"),
        (("--batch-size", 5000), "a batch of 5000 is larger than the split of 1237 examples"),
        (("--data", "digitz"), "did you mean 'digits'?"),
        (("--num-samples", 0), "num_samples must be at least 1, got 0"),
        (("--objective", "iwae", "--beta", 2), "beta and beta_warmup belong to --objective vae"),
        (("--doubly-reparameterized",), "doubly_reparameterized belongs to --objective iwae"),
        (("--stochastic-layers", 2), "two stochastic layers need --network burda, got conv"),
        (("--network", "burda"), "network burda starts at Bernoulli logits: --likelihood bernoulli, got categorical"),
        (
            ("--network", "linear", "--likelihood", "shared-gaussian", "--latent-dim", 64),
            "latent_dim must lie in 1 .. 60",
        ),
        (("--network", "linear"), "a linear VAE needs --likelihood shared-gaussian and grey images"),
        (("--likelihood", "discretized-logistic"), "256-valued pixels; 'digits' has 17 values"),
        (("--patience", 3, "--validation", 0), "patience needs validation images: pass --validation N"),
    ],
)
def test_a_wrong_option_is_one_line_on_the_error(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    done = run("digits", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "run").exists()


def test_an_output_directory_that_cannot_serve_is_refused_before_training(digits, tmp_path):
    out, _ = digits
    again = run("digits", *SMALL, "--out", out)
    assert again.code == 2
    assert "holds a run already; continue it with --resume or choose another --out" in again.said
    other = run("digits", *SMALL, "--beta", 3, "--out", out, "--resume")
    assert other.code == 2
    assert "beta: 1.0 -> 3.0" in other.said
    (tmp_path / "file").write_text("")
    in_the_way = run("digits", *SMALL, "--out", tmp_path / "file")
    assert in_the_way.code == 2
    assert "is a file; choose a directory" in in_the_way.said


def test_resuming_nothing_starts_afresh_and_says_so_and_a_relative_directory_is_resolved(digits):
    out, said = digits
    assert f"nothing to resume in {out}: starting afresh" in said
    assert (out / "result.json").exists()


def test_resume_finds_the_newest_run_of_its_own_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("x-vdvae-20260101-000000", "x-vdvae-20260102-000000", "x-vdvae-cifar10-20260103-000000", "x-vdvae-mine")
    for name in names:
        (tmp_path / "runs" / name).mkdir(parents=True)
    config = SimpleNamespace(out=None, preset="vdvae", resume=True)
    assert experiment_run._directory("x", config) == tmp_path / "runs" / names[1]


def test_a_home_that_nobody_has_is_one_line():
    config = SimpleNamespace(out=Path("~nobody-at-all/run"), preset="digits", resume=False)
    with pytest.raises(ValueError, match="--out must be the path of a directory, got '~nobody-at-all/run'"):
        experiment_run._directory("vae", config)


def test_a_run_of_another_experiment_is_refused_by_its_name():
    check_made_by(SimpleNamespace(), Path("/run"), "vae")  # of an earlier version
    check_made_by(SimpleNamespace(experiment="vae"), Path("/run"), "vae")
    with pytest.raises(ValueError, match=r"/run holds a run of experiments\.latents; pass .* of experiments\.vae"):
        check_made_by(SimpleNamespace(experiment="latents"), Path("/run"), "vae")


def test_an_interrupt_is_one_line_that_says_how_to_go_on(capsys):
    command._say_of_interrupts(KeyboardInterrupt, KeyboardInterrupt(), None)
    said = capsys.readouterr().err
    assert said == "stopped: by Ctrl-C; what is in the run directory is whole: continue with --out DIR --resume\n"
    command._say_of_interrupts(KeyError, KeyError("mine"), None)
    assert "KeyError: 'mine'" in capsys.readouterr().err
