"""A run with a directory: killed at any point and resumed, it is bit for bit the run that was never interrupted."""

import json
import signal
from functools import partial

import chex
import jax
import numpy as np
import optax
import pytest

import jaxvae
from jaxvae import _saved, data
from jaxvae._directory import RunDirectory
from jaxvae.checkpoint import Checkpointer
from jaxvae.training import fit as fit_module

SHAPE, N, D = (4, 4, 1), 120, 2
ANGLE = np.linspace(0, 2 * np.pi, N)
IMAGES = (255 / (1 + np.exp(-3 * np.sin(ANGLE[:, None] + np.linspace(0, 4, 16))))).astype(np.uint8).reshape(N, *SHAPE)
LABELS = (np.pi < ANGLE).astype(int)
MINE = data.from_arrays("mine", IMAGES, LABELS, levels=256)
# The second half is ruined, so that the best state lies before most kills.
RUINED = optax.adam(optax.piecewise_constant_schedule(0.02, {20: 300.0}))
OPTIONS = {"epochs": 6, "seed": 3, "batch_size": 16, "progress": False}


def vae(hidden=16):
    return jaxvae.VAE(jaxvae.MLPEncoder(D, hidden=(hidden,)), jaxvae.MLPDecoder(SHAPE, hidden=(hidden,)))


def quantised():
    encoder = jaxvae.ResidualEncoder(4, channels=(8,), blocks=0, window=2)
    return jaxvae.VQVAE(encoder, jaxvae.ResidualDecoder((1,), channels=(8,), blocks=0, window=2), jaxvae.EMACodebook(8))


def train(model=None, dataset=MINE, **options):
    return jaxvae.train(vae() if model is None else model, dataset, **{"optimizer": RUINED} | OPTIONS | options)


@pytest.fixture(autouse=True)
def _programs_of_three_steps(monkeypatch):
    """However fast the machine: epochs of 6 steps (7 without validation) in programs of 3."""

    class Clock(fit_module._Clock):
        def next_count(self, step, evaluate_every):
            self._count = 3
            return super().next_count(step, evaluate_every)

    monkeypatch.setattr(fit_module, "_Clock", Clock)


class Killed(BaseException):
    """Nothing that anyone catches: as good as a SIGKILL, but for the process."""


def at(step, does):
    """A report that does something at a step."""

    def report(progress):
        return does() if progress.step == step else None

    return report


def raises(error):
    raise error


def check_same(run, whole):
    chex.assert_trees_all_equal((run.params, run.model_state), (whole.params, whole.model_state))
    assert (run.history, run.step, run.stopped) == (whole.history, whole.step, whole.stopped)


def last_state(directory):
    """What the newest checkpoint holds."""
    _, params, model_state, _ = jaxvae.checkpoint.load(directory, lambda config: None, step=newest(directory))
    return params, model_state


def newest(directory):
    return max(int(path.name) for path in (directory / "checkpoints").iterdir() if path.name.isdecimal())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is never interrupted, and its directory."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return train(out=directory), directory


def test_the_directory_changes_no_bit_and_loads(whole):
    run, directory = whole
    check_same(run, train())
    check_same(jaxvae.load(directory), run)
    assert [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()] == run.history
    assert run.step < 36 == newest(directory)
    names = {"checkpoints", "config.json", "data.safetensors", "history.json", "metrics.jsonl", "run.json"}
    assert {path.name for path in directory.iterdir()} == names | {"weights.safetensors"}


KILLS = [(kill, step) for kill in ("error", "kill", "stop", "signal") for step in (3, 6, 21, 24, 33, 36)]
QUICK = {("kill", 24)}


@pytest.mark.parametrize(
    ("kill", "step"),  # within an epoch and at its end; before and after the best
    [pytest.param(*each, marks=[] if each in QUICK else pytest.mark.slow) for each in KILLS],
)
def test_a_killed_run_resumes_bit_for_bit(whole, tmp_path, kill, step):
    run, directory = whole
    if kill == "error":
        with pytest.raises(OSError, match="yours") as raised:
            train(out=tmp_path, report=at(step, lambda: raises(OSError("yours"))))
        assert raised.value.__notes__ == [f"raised after step {step}, whose state was saved as a checkpoint"]
    elif kill == "kill":
        with pytest.raises(Killed):
            train(out=tmp_path, report=at(step, lambda: raises(Killed())))
    else:
        does = (lambda: True) if kill == "stop" else (lambda: signal.raise_signal(signal.SIGTERM))
        stopped = train(out=tmp_path, report=at(step, does))
        later = 3 if kill == "signal" and step < 36 else 0  # a signal is seen after the next program
        assert stopped.stopped == (None if kill == "signal" and step == 36 else {"stop": "report"}.get(kill, "SIGTERM"))
        assert newest(tmp_path) == step + later
        check_same(jaxvae.load(tmp_path), stopped)
    resumed = train(out=tmp_path, resume=True)
    check_same(resumed, run)
    check_same(jaxvae.load(tmp_path), run)
    chex.assert_trees_all_equal(last_state(tmp_path), last_state(directory))
    assert (tmp_path / "metrics.jsonl").read_text() == (directory / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_patience_counts_what_came_before_the_kill(tmp_path):
    options = {"patience": 2, "epochs": 50}
    run = train(**options)
    assert run.stopped == "early stopping"
    end = run.history[-1]["step"]
    with pytest.raises(Killed):
        train(out=tmp_path, report=at(end - 3, lambda: raises(Killed())), **options)
    assert newest(tmp_path) == end - 6
    check_same(train(out=tmp_path, resume=True, **options), run)
    check_same(train(out=tmp_path, resume=True, **options), run)  # it had ended, and ends at once


@pytest.mark.slow
def test_without_validation_and_with_a_codebook(tmp_path):
    options = {"validation": 0, "epochs": 2, "optimizer": optax.adam(0.01)}
    run = train(quantised(), **options)
    train(quantised(), out=tmp_path, report=at(9, lambda: True), **options)
    check_same(train(quantised(), out=tmp_path, resume=True, **options), run)
    assert run.step == 14


@pytest.mark.slow
def test_more_epochs_and_not_fewer(tmp_path):
    options = {"optimizer": optax.adam(0.02)}
    train(out=tmp_path, epochs=1, **options)
    check_same(train(out=tmp_path, epochs=2, resume=True, **options), train(epochs=2, **options))
    with pytest.raises(ValueError, match=r"is at step 12, epochs=1 end at 6"):
        train(out=tmp_path, epochs=1, resume=True, **options)
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 2  # what was refused changes nothing


@pytest.mark.parametrize(("line", "reason"), [("garbage", "Expecting value"), ('{"epoch": 1}', "it holds no eval")])
def test_a_damaged_line_of_metrics_is_named(tmp_path, line, reason):
    train(out=tmp_path, epochs=1)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(f"{line}\n" + metrics.read_text())
    with pytest.raises(ValueError, match=rf"line 1 of .*metrics\.jsonl is damaged: {reason}.*; remove it to go on"):
        train(out=tmp_path, epochs=2, resume=True)


def test_a_history_that_was_removed_is_missed(tmp_path):
    train(out=tmp_path, epochs=1)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match=r"metrics\.jsonl is missing at step 6: the history begins anew, and early"):
        run = train(out=tmp_path, epochs=2, resume=True)
    assert [record["step"] for record in run.history] == [12]


@pytest.mark.slow
def test_what_is_not_evaluated_is_not_saved(tmp_path, monkeypatch):
    """A feed that fails between an epoch's last step and its evaluation: the epoch before it is what is left."""
    take = data.Resident.__call__

    def broken(self, start, count):
        return raises(OSError("yours")) if start == 12 else take(self, start, count)

    options = {"epochs": 3, "out": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(data.Resident, "__call__", broken)
        with pytest.raises(OSError, match="yours") as raised:
            train(**options)
    assert "could not be saved (it was not evaluated yet; resume from the checkpoint" in raised.value.__notes__[0]
    assert newest(tmp_path) == 6
    assert [record["step"] for record in train(resume=True, **options).history] == [6, 12, 18]


def test_a_failed_save_leaves_the_last_good_one(tmp_path, monkeypatch):
    options = {"epochs": 2, "out": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(_saved, "write_tensors", lambda *_: raises(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            train(**options)
    assert not (tmp_path / "run.json").exists()
    run = train(resume=True, **options)  # nothing is left to train
    check_same(jaxvae.load(tmp_path), run)
    with monkeypatch.context() as patch:
        patch.setattr(_saved, "write_tensors", lambda *_: raises(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            train(resume=True, **options | {"epochs": 3})
    check_same(jaxvae.load(tmp_path), run)
    assert newest(tmp_path) == 18


@pytest.mark.parametrize(
    ("names", "model", "dataset", "options"),
    [
        (["seed", "sha256 of the first examples"], None, MINE, {"seed": 4}),  # which examples are kept apart
        (["batch_size"], None, MINE, {"batch_size": 8}),
        (["num_examples"], None, MINE.take(slice(119)), {}),
        (["arrays"], None, data.from_arrays("mine", IMAGES, levels=256), {}),
        (["sha256 of the first examples"], None, data.from_arrays("mine", 255 - IMAGES, LABELS, levels=256), {}),
        (["prepare"], None, MINE.with_prepare(data.make_prepare(256, binarize=True)), {}),
        (["model"], vae(hidden=8), MINE, {}),
        (["validation"], None, MINE, {"validation": 0.2}),
        (["loss"], None, MINE, {"loss": partial(jaxvae.beta_vae_loss, beta=2.0)}),
    ],
)
def test_other_settings_are_refused_by_name(whole, names, model, dataset, options):
    _, directory = whole
    with pytest.raises(ValueError, match="settings differ from those of the saved run") as raised:
        train(model, dataset, out=directory, resume=True, **options)
    for name in names:
        assert f"{name}: " in str(raised.value)


def test_another_optimizer_is_refused_by_what_it_keeps(whole):
    with pytest.raises(ValueError, match="opt_state/0/count: int32"):
        train(out=whole[1], resume=True, optimizer=optax.sgd(0.1))


def test_directories_that_cannot_be(whole, tmp_path):
    _, directory = whole
    with pytest.raises(FileExistsError, match=r"holds a run already; continue it with resume=True or choose another"):
        train(out=directory)
    with pytest.raises(ValueError, match="resume=True needs the directory of the run that goes on: pass out="):
        train(resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file is a file: choose a directory"):
        train(out=tmp_path / "file")
    for nowhere in ("", "~nobody-at-all/run"):
        with pytest.raises(ValueError, match="out must be the path of a directory, got "):
            train(out=nowhere)
    with pytest.raises(FileExistsError, match="holds something already, such as file: choose another directory"):
        train(out=tmp_path, resume=True)
    with pytest.raises(TypeError, match=r"the run cannot be saved: objective.* is .*<lambda>, which goes by no name"):
        train(out=tmp_path / "run", loss=lambda *arguments, **options: jaxvae.vae_loss(*arguments, **options))
    assert not (tmp_path / "run").exists()


def test_what_a_checkpoint_notes_comes_back_with_it(tmp_path):
    state = jaxvae.init_train_state(
        lambda *, key: ({"a": jax.random.normal(key, (2,))}, ()), RUINED, key=jax.random.key(0)
    )
    notes = {"by_step": {"loss": [0.1, float("inf")]}}
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(state, notes=notes)
        checkpointer.save(state.replace(step=state.step + 1))
        checkpointer.wait()
        assert checkpointer.notes == {}
        checkpointer.save(state.replace(step=state.step + 2), notes=notes)
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        assert checkpointer.notes == notes


def directory_of(path, settings, **options):
    return RunDirectory(path, settings, way_out="choose another", **{"resume": False, **options})


def saved_state():
    state = jaxvae.init_train_state(
        lambda *, key: ({"a": jax.random.normal(key, (2,))}, ()), optax.sgd(0.1), key=jax.random.key(0)
    )
    return state.replace(step=state.step + 7)


def test_a_run_whose_settings_were_removed_is_not_gone_on_with_under_others(tmp_path):
    with directory_of(tmp_path, {"seed": 3}) as files:
        files.checkpointer.save(saved_state())
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileExistsError, match="holds a run already; choose another"):
        directory_of(tmp_path, {"seed": 4})
    with pytest.raises(ValueError, match="seed: 3 -> 4"):
        directory_of(tmp_path, {"seed": 4}, resume=True)
    assert not (tmp_path / "config.json").exists()
    with directory_of(tmp_path, {"seed": 3}, resume=True) as files:
        assert (files.resumed, files.latest_step) == (True, 7)
    assert json.loads((tmp_path / "config.json").read_text()) == {"seed": 3}


@pytest.mark.parametrize("resume", [False, True])
def test_metrics_of_something_else_are_not_written_over(resume, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(mine := '{"step": 9, "mine": 1}\n')
    said = "no config.json, so nothing says" if resume else "holds a run already; choose another"
    with pytest.raises((ValueError, FileExistsError), match=said):
        directory_of(tmp_path, {"seed": 3}, resume=resume)
    assert (tmp_path / "metrics.jsonl").read_text() == mine


def test_an_evaluation_without_what_is_monitored_is_named(tmp_path):
    with directory_of(tmp_path, {"seed": 3}) as files:
        for validation in ({"loss": 2.5}, {"rate": 1.0}):
            files.append({"step": 1, "validation": validation})
        with pytest.raises(ValueError, match=r"metrics.jsonl is damaged: an evaluation lacks validation loss, which"):
            files.earlier("validation", "loss")
        assert files.earlier("validation", None).values == []


def test_a_run_beyond_its_end_is_refused_and_keeps_its_settings(tmp_path):
    with directory_of(tmp_path, {"epochs": 4}) as files:
        files.checkpointer.save(saved_state())
    with directory_of(tmp_path, {"epochs": 2}, resume=True, may_change={"epochs"}) as files:
        files.check_end(7, 7, 2)
        assert json.loads((tmp_path / "config.json").read_text()) == {"epochs": 2}
    with (
        directory_of(tmp_path, {"epochs": 1}, resume=True, may_change={"epochs"}) as files,
        pytest.raises(ValueError, match="is at step 7, and 1 epochs end at 4: ask for more, or"),
    ):
        files.check_end(7, 4, 1)
    assert json.loads((tmp_path / "config.json").read_text()) == {"epochs": 2}
