"""Run directories are data: whatever their files hold, a load gives exactly what was saved or one documented error.

It runs no code from them, writes nothing, and takes no more time and memory than their size explains.
"""

import ast
import os
import random
import resource
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxvae
from jaxvae import _saved, data
from jaxvae._hub import FILES
from tests.hostile import ATTACKS, DAMAGE, DEEP
from tests.test_hub import Folder

SHAPE = (3, 2)
REFUSALS = (jaxvae.DamagedRunError, FileNotFoundError, _saved.UnknownPartsError, _saved.FormerFormatError)
MOST_SECONDS, MOST_GROWTH = 20, 400 * 2**10  # of CPU for one load; KiB for all of them

# What the interpreter itself reports: code that is run, processes, connections; files opened to be written, too.
FORBIDDEN = ("pickle.", "marshal.load", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.")
FORBIDDEN += (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "os.chmod",
    "shutil.",
    "ctypes.",
)
seen = []
watching = False


def audit(event, arguments):
    if not watching:
        return
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if written and str(arguments[0]).startswith(os.environ["JAX_COMPILATION_CACHE_DIR"]):
        return  # JAX keeps what it compiles for shapes that it has not met
    if written or event.startswith(FORBIDDEN):
        seen.append((event, str(arguments)[:200]))


sys.addaudithook(audit)


@pytest.fixture(scope="module")
def run():
    model = jaxvae.VAE(
        jaxvae.MLPEncoder(2, hidden=(3,)), jaxvae.MLPDecoder(SHAPE, hidden=(3,)), prior=jaxvae.GaussianMixture(2, 2)
    )
    x = np.random.default_rng(0).random((4, *SHAPE), np.float32)
    params = model.init(jax.random.key(0), x)
    state = {"batch_stats": {"mean": np.float32([1, 2])}}
    objective = partial(jaxvae.beta_vae_loss, model, beta=4.0)
    history = [{"step": 3, "epoch": 1.0, "train": {"loss": 0.25}, "validation": {"loss": float("nan")}}]
    return jaxvae.Run(model, params, state, objective, data.from_arrays("x", x), history, 3)


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    return run.save(tmp_path_factory.mktemp("saved") / "run")


def values_of(run):
    """All of a run, as text that is equal where it is the same to the bit."""
    trees = (run.params, run.model_state, dict(run.dataset.arrays))
    leaves = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(trees)]
    arrays = [(name, str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()) for name, leaf in leaves]
    parts = (run.model, run.objective, run.dataset.prepare, run.dataset.domain, run.dataset.name)
    return repr((arrays, parts, run.history, run.step, run.stopped))


def attempt(function):
    """What a load gave, or the documented error; anything else raises, and so does what it must not do or take."""
    global watching
    started, result = time.process_time(), None
    seen.clear()
    watching = True
    try:
        result = function()
    except REFUSALS as error:
        result = error
    finally:
        watching = False
    assert seen == []
    assert time.process_time() - started < MOST_SECONDS
    if isinstance(result, Exception):
        assert str(result).isprintable()
        assert len(str(result)) < 2000
    return result


def mutate_and_load(saved, scratch, count, seed, load):
    """How many of each kind were refused and loaded."""
    expected = values_of(jaxvae.load(saved))
    counts = {"refused": 0, "the same": 0, "an attack that loads": 0}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(count):
        rng = random.Random(f"{seed} {i}")
        place = scratch / "place" / "run"
        shutil.copytree(saved, place)
        before = sorted(path.name for path in scratch.iterdir())
        mutations = DAMAGE if i % 2 else ATTACKS
        what = rng.choice(mutations)(rng, place)
        try:
            result = attempt(partial(load, place))
            if not isinstance(result, Exception) and mutations is DAMAGE:
                assert values_of(result) == expected
        except BaseException as error:
            error.add_note(f"mutation {i}: {what}")
            raise
        same = mutations is DAMAGE
        counts["refused" if isinstance(result, Exception) else "the same" if same else "an attack that loads"] += 1
        assert sorted(path.name for path in scratch.iterdir()) == before, what
        assert not Path("harmed").exists(), what
        shutil.rmtree(scratch / "place")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_GROWTH
    return counts


def pull_from(place):
    """A hub that gives out a hostile run: the download itself, by the stand-in, is not watched."""
    return jaxvae.pull(place.name, api=Given(place))


class Given(Folder):
    """A hub whose snapshot is there already."""

    def snapshot_download(self, repo_id, *, revision, allow_patterns):
        assert (repo_id, revision, allow_patterns) == (self.root.name, None, list(FILES))
        return str(self.root)


def test_hostile_runs_are_refused_or_load_the_same(saved, tmp_path):
    counts = mutate_and_load(saved, tmp_path, 100, "quick", jaxvae.load)
    assert counts["refused"] > 80


@pytest.mark.slow
@pytest.mark.parametrize(("load", "count"), [(jaxvae.load, 3000), (pull_from, 1500)])
def test_thousands_of_hostile_runs(saved, tmp_path, load, count, capsys):
    counts = mutate_and_load(saved, tmp_path, count, "many", load)
    with capsys.disabled():
        print(f"\n{count} mutated runs: {counts}")
    assert counts["refused"] > 0.8 * count


def test_without_checksums_damage_loads_other_values(saved, tmp_path, monkeypatch):
    """The test above can fail."""
    monkeypatch.setattr(_saved, "_sealed", lambda place, record, name: (place / name).read_bytes())
    with pytest.raises(AssertionError, match=r"mutation \d+: \w+ (weights|data)"):
        mutate_and_load(saved, tmp_path, 100, "quick", jaxvae.load)


def test_the_watch_sees_what_is_forbidden(tmp_path):
    import pickle

    for harm in (
        lambda: (tmp_path / "x").write_text("x"),
        lambda: pickle.loads(b"cos\ngetpid\n."),
        lambda: os.system("true"),
    ):
        with pytest.raises(AssertionError):
            attempt(harm)


# No code of ours loads a pickle

PACKAGE = Path(jaxvae.__file__).parent
SOURCES = [*sorted(PACKAGE.rglob("*.py")), *sorted((PACKAGE.parent / "experiments").glob("*.py"))]


@pytest.mark.parametrize("path", [PACKAGE, PACKAGE.parent / "experiments"], ids=lambda path: path.name)
def test_nothing_loads_a_pickle_or_runs_text(path):
    loaders = {"load", "loads", "Unpickler"}
    for file in path.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert not (
                    node.value.id in ("pickle", "cloudpickle", "dill", "joblib", "marshal") and node.attr in loaders
                ), file
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert not (isinstance(node.func, ast.Name) and called in ("eval", "exec")), file
                assert "allow_pickle" not in {keyword.arg for keyword in node.keywords}, file
            if isinstance(node, ast.ImportFrom):
                assert not (node.module == "pickle" and {alias.name for alias in node.names} & loaders), file


def test_files_of_arrays_that_hold_objects_are_refused_unread(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, ("touch harmed",)

    np.save(tmp_path / "x.npy", np.array([Harm()], object), allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.array([Harm()], object))
    for name in ("x.npy", "x.npz"):
        with pytest.raises(ValueError, match="allow_pickle=False"):
            data.from_file(tmp_path / name)
    assert not Path("harmed").exists()


@pytest.mark.parametrize("text", ["[" * DEEP, "3", '{"a": 1, "a": 2}', "\udc80{}", "{" + '"a":{' * DEEP, ""])
def test_the_settings_of_an_experiment_are_data_too(tmp_path, text):
    checkpoint = pytest.importorskip("jaxvae.checkpoint")
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"config\.json is damaged: "):
        checkpoint.load(tmp_path, lambda config: config)
