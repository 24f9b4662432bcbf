"""The bookkeeping of `benchmarks.accelerator`, with parts that only pretend to measure."""

import dataclasses
import json
import signal
import subprocess
import sys
import time

import pytest

from benchmarks import accelerator
from benchmarks.accelerator import PARTS, Folder, Part, run_all

POPEN = subprocess.Popen
WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
SLEEPS = "import time; time.sleep(60)"
SAVES = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
run.mkdir(parents=True, exist_ok=True)
steps = run / "steps"
done = int(steps.read_text()) if steps.exists() else 0
print("from", done, flush=True)
try:
    if done == 0:
        steps.write_text("5")
        time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
(run / "result.json").write_text(json.dumps({"step": done + 1}))
"""


@pytest.fixture(autouse=True)
def pretended(monkeypatch):
    """A part's first word is a program, in place of a module's name."""

    def command(folder, part, *, peers, smoke):
        words = real(folder, part, peers=peers, smoke=smoke)
        return [sys.executable, "-S", "-c", *words[2:]]

    real = Folder.command
    monkeypatch.setattr(Folder, "command", command)


@pytest.fixture
def over_once_it_wrote(monkeypatch):
    """A part's time is over as soon as it has written to a file, however slow the machine."""

    def over(file):
        class Watched(subprocess.Popen):
            def wait(self, timeout=None):
                if timeout in (None, accelerator.GRACE):
                    return super().wait(timeout)
                while not (file.exists() and file.read_text()):
                    time.sleep(0.01)
                raise subprocess.TimeoutExpired(self.args, timeout)

        monkeypatch.setattr(accelerator.subprocess, "Popen", Watched)

    return over


def states(folder):
    return {name: facts["state"] for name, facts in Folder(folder).parts.items()}


def test_each_part_leaves_its_file_and_a_failed_one_stops_nothing(tmp_path, capsys):
    fails = Part("fails", ("raise SystemExit('no such device')",))
    parts = [Part("first", (WRITES, "FILE", '{"a": 1}')), fails, Part("last", (WRITES, "FILE", '{"b": 2}'))]
    run_all(parts, Folder(tmp_path), minutes=1)
    assert states(tmp_path) == {"first": "done", "fails": "failed", "last": "done"}
    assert json.loads((tmp_path / "first.json").read_text()) == {"a": 1}
    assert json.loads((tmp_path / "last.json").read_text()) == {"b": 2}
    assert not (tmp_path / "fails.json").exists()
    assert "no such device" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_what_is_done_is_left_alone_and_the_rest_done_again(tmp_path):
    first = Part("first", (f"{WRITES}; open(sys.argv[1][:-3] + 'seen', 'a').write('1')", "FILE", "1"))
    seen = tmp_path / ".first.scratch.jseen"
    run_all([first, Part("second", ("1 / 0",))], Folder(tmp_path), minutes=1)
    run_all([first, Part("second", (WRITES, "FILE", "2"))], Folder(tmp_path), minutes=1)
    assert [(tmp_path / f"{name}.json").read_text() for name in ("first", "second")] == ["1\n", "2\n"]
    assert states(tmp_path) == {"first": "done", "second": "done"}
    assert seen.read_text() == "1"
    run_all([dataclasses.replace(first, command=(*first.command, "other"))], Folder(tmp_path), minutes=1)
    assert seen.read_text() == "11"  # with other options it is another measurement


def test_a_part_that_takes_too_long_is_stopped_and_keeps_what_it_wrote(tmp_path, over_once_it_wrote):
    slow = Part("slow", (f"{WRITES}; {SLEEPS}", "FILE", '{"half": 1}'))
    over_once_it_wrote(tmp_path / ".slow.scratch.json")
    run_all([slow], Folder(tmp_path), minutes=1)
    assert states(tmp_path) == {"slow": "stopped"}
    assert json.loads((tmp_path / "slow.json").read_text()) == {"half": 1}


def test_a_long_run_goes_on_in_the_next_call(tmp_path, monkeypatch, over_once_it_wrote):
    run = Part("run", (SAVES, "RUN"), long=True)
    over_once_it_wrote(tmp_path / "runs" / "run" / "steps")
    run_all([run], Folder(tmp_path), minutes=1)
    monkeypatch.setattr(accelerator.subprocess, "Popen", POPEN)
    assert states(tmp_path) == {"run": "stopped"}
    assert Folder(tmp_path).parts["run"]["exit"] == 130  # it had time to save
    assert not (tmp_path / "run.json").exists()
    run_all([run], Folder(tmp_path), minutes=1)
    assert json.loads((tmp_path / "run.json").read_text()) == {"step": 6}
    said = (tmp_path / "logs" / "run.txt").read_text()
    assert said.index("\nfrom 0\n") < said.index("\nfrom 5\n")


def test_no_part_begins_without_time(tmp_path, capsys):
    run_all([Part("one", (WRITES, "FILE", "1")), Part("two", ("",))], Folder(tmp_path), minutes=0)
    assert states(tmp_path) == {}
    assert "no time is left for one, two" in capsys.readouterr().out


def test_shares():
    short, long = Part("short", (), minutes=2), Part("long", (), long=True)
    assert accelerator.share(short, [long], 600) == 120
    assert accelerator.share(short, [long], 60) == 60
    assert accelerator.share(long, [long, long, long], 600) == 200


def test_half_written_json_is_not_kept(tmp_path):
    run_all([Part("half", (WRITES, "FILE", '{"a": '))], Folder(tmp_path), minutes=1)
    assert [path.name for path in tmp_path.glob("*half*")] == []


def test_contests_are_gathered(tmp_path):
    rows = {"ours": {"ratio": 1.0, "median": 9.0}, "PyTorch": {"ratio": 2.0, "median": 4.5}}
    for name in ("vae", "iwae"):
        table = json.dumps({name.upper(): {"ours": "ours", "device": "some GPU", "rounds": [1], "rows": rows}})
        part = Part(name, (WRITES, "FILE", table), contest=True)
        run_all([part], Folder(tmp_path), minutes=1)
    assert list(json.loads((tmp_path / "tables.json").read_text())) == ["VAE", "IWAE"]
    assert (tmp_path / "tables.png").stat().st_size > 5000


def test_a_kill_leaves_what_was_done(tmp_path):
    program = (
        "import sys, pathlib\nfrom benchmarks import accelerator\nfrom benchmarks.accelerator import *\n"
        "Folder.command = lambda folder, part, **_: [sys.executable, '-S', '-c', part.command[0], "
        "str(folder.path / f'.{part.name}.scratch.json'), *part.command[1:]]\n"
        f"run_all([Part('first', ({WRITES!r}, '1')), Part('second', ({SLEEPS!r},))], "
        "Folder(pathlib.Path(sys.argv[1])), minutes=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("first: done")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "first.json").read_text() == "1\n"
    assert states(tmp_path)["first"] == "done"


def test_every_part_is_a_program_with_its_own_file():
    names = [part.name for part in PARTS]
    assert len(names) == len(set(names))
    root = accelerator.ROOT
    for part in PARTS:
        module = part.command[0]
        assert (root / f"{module.replace('.', '/')}.py").exists()
        assert ("RUN" if part.long else "FILE") in part.command
        assert part.smoke
    assert sum(60 * part.minutes for part in PARTS if not part.long) < 35 * 60
