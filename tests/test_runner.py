"""The benchmark runner, with contestants that only pretend to train."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import jax
import matplotlib.image
import optax
import pytest

import jaxvae
from benchmarks import picture, runner, vae, workload
from benchmarks.contestants.vae_jaxvae import make_model
from benchmarks.runner import Contestant, ContestantError, compare, compete, foreign_seconds
from jaxvae.data import make_prepare

FAKE = """
import json, os, sys
losses, seconds, turns, device = json.loads(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
ready = {"examples": 100, "losses": losses, "compile_s": 0.5, "device": device, "versions": {}, "counts": {}}
print(json.dumps(ready | {"cores": sorted(os.sched_getaffinity(0))}), flush=True)
for turn, _ in enumerate(sys.stdin):
    if turn == turns:
        raise RuntimeError("the dog ate the gradients")
    print(json.dumps({"seconds": seconds, "counts": {"compilations": 3}}), flush=True)
"""
CORES = os.sched_getaffinity(0)


def quiet(session, cores):
    return 0.0


def others(*shares):
    """Foreign seconds, read before and after each turn of a second, in which others used these shares of the cores."""
    readings = iter([reading for share in shares for reading in (10.0, 10.0 + share * len(CORES))])
    return lambda session, cores: next(readings)


@pytest.fixture
def fake(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)

    def contestant(name, losses=(3.0, 2.0), seconds=1.0, turns=99, device="none"):
        command = [sys.executable, "-S", str(script), json.dumps(losses), str(seconds), str(turns), device]
        return Contestant(name, command)

    return contestant


def test_everyone_takes_a_turn_in_each_round_in_a_changing_order(fake):
    contestants = [fake("slow", seconds=2.0), fake("fast", seconds=0.5), fake("middling")]
    result = compete(contestants, ours="fast", cores=CORES, foreign=quiet)
    orders = [tuple(turn["name"] for turn in turns) for turns in result["rounds"]]
    assert len(orders) == 7
    assert all(sorted(order) == ["fast", "middling", "slow"] for order in orders)
    assert len(set(orders)) > 1
    rows = result["rows"]
    assert {name: row["median"] for name, row in rows.items()} == {"slow": 50, "fast": 200, "middling": 100}
    assert {name: row["ratio"] for name, row in rows.items()} == {"slow": 4, "fast": 1, "middling": 2}
    assert rows["slow"]["counts"] == {"compilations": 3}
    assert result["disturbed"] == 0


def test_contestants_have_the_given_cores_and_the_runner_keeps_its_own(fake):
    core = max(CORES)
    result = compete([fake("a"), fake("b")], ours="a", cores={core}, rounds=1, foreign=quiet)
    assert result["rows"]["a"]["cores"] == result["rows"]["b"]["cores"] == [core]
    assert os.sched_getaffinity(0) == CORES


def test_a_disturbed_turn_is_taken_again(fake):
    result = compete([fake("a")], ours="a", cores=CORES, rounds=2, foreign=others(0.5, 0.06, 0.01, 0.04))
    turns = [turn for (turn,) in result["rounds"]]
    assert [turn["attempts"] for turn in turns] == [3, 1]
    assert [turn["disturbance"] for turn in turns] == pytest.approx([0.01, 0.04])
    assert result["disturbed"] == 0


def test_the_table_says_which_turns_stayed_disturbed(fake, capsys):
    result = compete([fake("a")], ours="a", cores=CORES, rounds=2, foreign=others(0.5, 0.4, 0.3, 0.4, 0.6, 0.0))
    assert [turn["attempts"] for (turn,) in result["rounds"]] == [runner.ATTEMPTS, 1]
    assert result["disturbed"] == 1
    runner.report("fakes", result)
    said = " ".join(capsys.readouterr().out.split())
    assert "4 disturbed turns were taken again" in said
    assert "1 of 2 turns stayed disturbed: others used up to 30 % of the cores" in said


def test_unequal_losses_are_refused(fake):
    agreeing = compete([fake("a"), fake("b", losses=(3.0, 2.001))], ours="a", cores=CORES, rounds=1, foreign=quiet)
    assert agreeing["losses"]["difference"] == pytest.approx(5e-4)
    for losses in ((3.0, 2.003), (3.0, float("nan"))):
        with pytest.raises(ContestantError, match="b trains something else than a"):
            compete([fake("a"), fake("b", losses=losses)], ours="a", cores=CORES, foreign=quiet)


def test_unequal_devices_are_refused(fake):
    with pytest.raises(ContestantError, match=r"not on the same device: .*'b': 'cpu'"):
        compete([fake("a"), fake("b", device="cpu")], ours="a", cores=CORES, foreign=quiet)


@pytest.mark.slow
def test_the_tolerance_of_the_vae_allows_other_noise_but_no_missing_rate():
    x, model, optimizer = workload.digits("random", 10 * vae.BATCH), make_model(), optax.adam(1e-3)
    params = workload.narrow(workload.init_params(model, x))

    def step_of(beta):
        return jaxvae.jit_train_step(partial(jaxvae.vae_loss, model, beta=beta), optimizer, prepare=make_prepare(256))

    def train(step, seed):
        state = jaxvae.init_train_state(lambda *, key: (params, ()), optimizer, key=jax.random.key(seed))
        taken = []
        for indices in workload.shuffled(len(x), vae.BATCH):
            state, metrics = step(state, {"x": x[indices], "index": indices})
            taken.append(float(metrics["loss"]))
        return {"losses": taken}

    step = step_of(beta=1.0)
    ours = train(step, seed=0)
    runner.check_losses({"a": ours, "b": train(step, seed=1)}, vae.TOLERANCE)
    with pytest.raises(ContestantError, match="b trains something else than a"):
        runner.check_losses({"a": ours, "b": train(step_of(beta=0.0), seed=0)}, vae.TOLERANCE)


def test_a_dying_contestant_is_quoted(fake):
    with pytest.raises(ContestantError, match=re.compile("b died with exit code 1.*the dog ate the gradients", re.S)):
        compete([fake("a"), fake("b", turns=2)], ours="a", cores=CORES, foreign=quiet)


def test_a_contestant_that_cannot_run_here_is_left_out(fake, capsys):
    skipping = Contestant("b", [sys.executable, "-c", """print('{"skip": "no compiler"}')"""])
    result = compete([fake("a"), skipping], ours="a", cores=CORES, rounds=1, foreign=quiet)
    assert list(result["rows"]) == ["a"]
    runner.report("fakes", result)
    assert "b was left out: no compiler" in capsys.readouterr().out


def test_foreign_seconds_are_everyone_elses():
    core = max(CORES)
    busy = subprocess.Popen(["taskset", "-c", str(core), "sh", "-c", "while :; do :; done"], start_new_session=True)
    try:
        sessions = (-1, busy.pid)  # nobody's: a container's processes may have session 0
        before = [foreign_seconds(session, {core}) for session in sessions]
        time.sleep(1)
        everyone, others = (foreign_seconds(s, {core}) - b for s, b in zip(sessions, before, strict=True))
    finally:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        busy.kill()
        busy.wait()
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = spent.ru_utime + spent.ru_stime - children.ru_utime - children.ru_stime
    assert everyone - others == pytest.approx(own, abs=0.1)
    assert everyone > 0.8  # the core was never idle


def table(ratio=2.0, compilations=1, device="cpu"):
    rows = {
        "epoch program": {"ratio": 1.0, "counts": {"compilations": compilations}},
        "PyTorch": {"ratio": ratio, "counts": {}},
    }
    return {"VQ-VAE": {"ours": "epoch program", "device": device, "processor": "p", "cores": 2, "rows": rows}}


@pytest.mark.parametrize(
    ("new", "sentence"),
    [
        (table(), None),
        (table(ratio=1.75), None),
        (table(ratio=9.0), None),
        (table(ratio=1.65), "VQ-VAE, PyTorch: the ratio was 2.00, now 1.65"),
        (table(compilations=2), "VQ-VAE, epoch program: counts were {'compilations': 1}, now {'compilations': 2}"),
        (table(compilations=0), "counts were {'compilations': 1}, now {'compilations': 0}"),
        (table(device="gpu"), "VQ-VAE: not comparable, device cpu and gpu"),
        ({}, "no table is in both files"),
    ],
)
def test_compare_fails_on_what_got_worse(tmp_path, capsys, new, sentence):
    files = [tmp_path / "baseline.json", tmp_path / "new.json"]
    for path, tables in zip(files, (table(), new), strict=True):
        path.write_text(json.dumps(tables))
    with pytest.raises(SystemExit) as stop:
        runner.main(["compare", *map(str, files)])
    assert stop.value.code == (0 if sentence is None else 1)
    assert (sentence or "") in " ".join(capsys.readouterr().out.split())
    assert len(compare(table(), new)) == (sentence is not None)


def test_tables_are_added_to_a_file(fake, tmp_path):
    out = tmp_path / "tables.json"
    for title in ("one", "two"):
        runner.report(title, compete([fake("a")], ours="a", cores=CORES, rounds=1, foreign=quiet), out)
    assert list(json.loads(out.read_text())) == ["one", "two"]


def test_the_picture_is_drawn_from_the_files(tmp_path):
    baselines = Path(runner.__file__).with_name("baselines")
    for tables in sorted(baselines.glob("*cores.json")):
        copies = [shutil.copy(path, tmp_path) for path in (tables, tables.with_name(f"{tables.stem}-limits.json"))]
        drawn = picture.draw(*copies)
        assert drawn == tmp_path / f"{tables.stem}.png"
        height, width, _ = matplotlib.image.imread(drawn).shape
        rows = sum(len(table["rows"]) for table in json.loads(tables.read_text()).values())
        assert height > 20 * rows  # one bar under the other
        assert 1000 < width < 1200
        assert compare(json.loads(tables.read_text()), json.loads(tables.read_text())) == []
