"""experiments.latents_sweep: what it starts, what it leaves alone, and the table of it all."""

import json

import pytest
from commands import result_of, run

from experiments import command, latents_sweep


@pytest.fixture
def started(monkeypatch):
    """The commands of a sweep whose processes end at once; −ELBO is 80 and the seed."""
    known = {}

    def run_all(commands, logs, *, report):
        known.update(commands)
        for name in commands:
            row, seed = name.split("-")
            test = {"negative_elbo": 80.0 + int(seed), "nll": 79.0, "rate": 10.0, "active_units": 5}
            test |= {"aggregate_kl": 3.0} if row == "digits" else {}
            (logs / name).mkdir()
            (logs / name / "result.json").write_text(json.dumps({"test": test, "train_seconds": 2.0}))
            report(name, 1, 1)

    monkeypatch.setattr(command, "run_all", run_all)
    return known


def test_every_row_has_every_seed_and_what_has_ended_is_left_alone(started, tmp_path):
    out = tmp_path / "out"
    options = ("digits", "flow", "--seeds", 1, 4)
    two_epochs = lambda given: latents_sweep.main([*given, "--", "--epochs", "2"])  # noqa: E731
    result, said = result_of(two_epochs, out, *options)
    assert list(started) == ["digits-1", "digits-4", "flow-1", "flow-4"]
    own = ["--seed", "4", "--out", str(out / "flow-4"), "--resume"]
    assert started["flow-4"] == ["-m", "experiments.latents", "flow", "--epochs", "2", *own]
    digits = result["test"]["digits"]
    assert (digits["negative_elbo"], digits["negative_elbo_std"]) == (82.5, pytest.approx(4.5**0.5))
    assert digits["aggregate_kl"] == 3
    assert "aggregate_kl" not in result["test"]["flow"]
    assert result["members"]["flow"]["4"]["negative_elbo"] == 84
    assert all(figure in said for figure in ("82.50", "± 2.12"))
    started.clear()
    other = run(latents_sweep.main, *options, "--out", out)
    assert (other.code, 'had other options, ["--epochs", "2"]: choose another --out' in other.said) == (2, True)
    again, _ = result_of(two_epochs, out, *options, 2)
    assert list(started) == ["digits-2", "flow-2"]
    assert again["test"]["digits"]["negative_elbo"] == pytest.approx(80 + 7 / 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "rows must be given, each once, got none"),
        (("nothing",), "there is no preset 'nothing' among mnist, digits"),
        (("flow", "flow"), "rows must be given, each once, got flow flow"),
        (("flow", "--seeds", -1), "seed must lie in 0 .. 2**32 - 1, got -1"),
        (("flow", "--seeds", 1, 1), "seeds must be given, each once, got 1 1"),
        (("flow", "--", "--seed", 1), "--seed is not for the runs of a sweep: pass --seeds and --out before --"),
        (("flow", "--", "--out=x"), "--out=x is not for the runs of a sweep"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(latents_sweep.main, *arguments)
    assert done.code == 2
    assert said in done.said
    assert not started
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_processes_run(tmp_path):
    def main(given):
        latents_sweep.main([*given, "--", "--smoke", "--data", "digits"])

    result, _ = result_of(main, tmp_path / "out", "digits", "cholesky", "--seeds", 0)
    assert result["test"].keys() == {"digits", "cholesky"}
    assert all(row["negative_elbo"] > 0 and "negative_elbo_std" in row for row in result["test"].values())
    failed = run(latents_sweep.main, "digits", "--seeds", 0, "--out", tmp_path / "no", "--", "--latent-dim", 0)
    assert (failed.code, "latent_dim must be at least 1" in failed.said) == (1, True)
