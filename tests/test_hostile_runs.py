"""Run directories are data: whatever their files hold, a load gives exactly what was saved or one documented error.

It runs no code from them, writes nothing, and takes no more time and memory than their size explains.
"""

import ast
import hashlib
import json
import os
import random
import resource
import shutil
import struct
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
from tests.test_hub import Folder

SHAPE = (3, 2)
REFUSALS = (jaxvae.DamagedRunError, FileNotFoundError, _saved.UnknownPartsError, _saved.FormerFormatError)
TENSORS = ("weights.safetensors", "data.safetensors")
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


# Damage: the files are not what was saved, and the checksums are as they were


def flip(rng, content):
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def cut(rng, content):
    return content[: rng.randrange(len(content))]


def grow(rng, content):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randrange(1, 40)) + content[place:]


def blank(rng, content):
    begin = rng.randrange(len(content))
    return content[:begin] + bytes(min(16, len(content) - begin)) + content[begin + 16 :]


def no_text(rng, content):
    place = rng.randrange(len(content))
    return content[:place] + b"\xff\xfe\xc3" + content[place + 3 :]


def damage_bytes(rng, place):
    file = place / rng.choice(FILES)
    change = rng.choice((flip, flip, flip, cut, grow, blank, no_text))
    file.write_bytes(change(rng, bytearray(file.read_bytes())))
    return f"{change.__name__} {file.name}"


def swap(rng, place):
    first, second = rng.sample(FILES, 2)
    (place / first).rename(place / "between")
    (place / second).rename(place / first)
    (place / "between").rename(place / second)
    return f"swap {first} {second}"


def in_place_of_a_file(rng, place):
    file = place / rng.choice(FILES)
    file.unlink()
    kind = rng.choice(("nothing", "folder", "pipe", "link out", "endless", "broken link", "own link"))
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "nothing":
        target = {"link out": __file__, "endless": "/dev/zero", "broken link": place / "none", "own link": file}[kind]
        file.symlink_to(target)
    return f"{kind} for {file.name}"


# Attack: the files say something else, and the checksums are those of what they say

NAMES = (
    *(
        "os:system",
        "builtins:eval",
        "builtins:exec",
        "subprocess:run",
        "pickle:loads",
        "jaxvae.run:train",
        "shutil:rmtree",
    ),
    *("jaxvae._saved:write", "jaxvae.figures:image_grid", "jax.numpy:load", "jax.numpy:save", "numpy:fromfile"),
    *("jaxvae.networks._pickling:_look_up", "jaxvae.models.vae:VAE", "jaxvae.distributions:Bernoulli", "jax.nn:relu"),
    *(
        "flax.linen:Dense",
        "flax.linen:Sequential",
        "../../evil:main",
        "__main__:exit",
        "jaxvae.models.vae:partial",
        "antigravity:x",
    ),
)
DEEP = 100_000


def hostile(rng):
    """A value that nobody expects where it stands."""
    name = rng.choice(NAMES)
    return rng.choice(
        (
            *(
                None,
                True,
                -1,
                0,
                2**31,
                2**64,
                10**40,
                1.5,
                "",
                "../../../etc/passwd",
                "\u0000\u001b[2J",
                "x" * 10_000,
                [],
                {},
                [[]],
            ),
            *({"name": name}, {"new": name, "with": {}}, {"new": name, "attributes": {"a": 1}}),
            {"partial": {"name": name}, "args": ["touch harmed"], "keywords": {}},
            {"new": name, "with": {"features": 10**12, "layers": [{"name": "jax.nn:relu"}]}},
            *(
                {"array": "../x"},
                {"array": "params/params/encoder/Dense_0/kernel"},
                {"numpy": "x"},
                {"dtype": "object"},
            ),
            *(
                {"dtype": "V100000000000"},
                {"scalar": ["float32", {"float": "nan"}]},
                {"scalar": ["O", 1]},
                {"same": "model"},
            ),
            *(
                {"float": "1e999"},
                {"dict": [[[], 1]]},
                {"dict": [[{"list": []}, 1]]},
                {"list": 3},
                {"as": "model", "name": name},
            ),
            *({"new": "jaxvae.data.dataset:Dataset", "with": {"name": "x", "arrays": {"dict": []}}}, {"frozen": {}}),
        )
    )


def nodes(value, found):
    """Every place in JSON: the container and the key in it."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        nodes(value[key], found)
    return found


def seal(place, record, text=None):
    record["files"] = {
        name: hashlib.sha256((place / name).read_bytes()).hexdigest() for name in FILES if name != "run.json"
    }
    sealed = {"format": 1, "sha256": _saved._digest(record), "record": record}
    (place / "run.json").write_text(json.dumps(sealed) if text is None else text(json.dumps(sealed)))


def read_record(place):
    return json.loads((place / "run.json").read_text())["record"]


def change_the_record(rng, place):
    record = read_record(place)
    said = []
    for _ in range(rng.randrange(1, 4)):
        container, key = rng.choice(nodes(record, []))
        if rng.random() < 0.2:
            said.append(f"without {key}")
            del container[key]
        else:
            container[key] = hostile(rng)
            said.append(f"{key}: {str(container[key])[:100]}")
    seal(place, record)
    return "; ".join(said)


def change_the_text(rng, place):
    """What `json.dumps` would never write: two entries of one name, NaN, no end of nesting, no end of digits."""
    change = rng.choice(
        (
            lambda text: text.replace('"step":', '"step": 4, "step":', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": NaN', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": Infinity', 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + "[" * DEEP + "]" * DEEP, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + '{"a":' * DEEP + "1" + "}" * DEEP, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": ' + "9" * 100_000, 1),
            lambda text: text.replace('"beta": 4.0', '"beta": 1e999999', 1),
            lambda text: text.replace('"format": 1', '"format": 2', 1),
            lambda text: "[" * DEEP + text + "]" * DEEP,
            lambda text: text.replace("VAE", "V\\ud800E"),
        )
    )
    record = read_record(place)
    seal(place, record, change)
    return "text"


def nest_the_record(rng, place):
    """As deep as JSON is still read: the code that walks it must not be what ends."""
    record = read_record(place)
    value = 1
    for _ in range(rng.choice((300, 600, 900))):
        value = rng.choice(([value], {"list": [value]}, {"partial": value, "args": [], "keywords": {}}))
    record[rng.choice(("model", "objective", "dataset", "params"))] = value
    try:
        seal(place, record)
    except RecursionError:  # nobody can write it either
        return "nothing"
    return "nested"


def change_the_tensors(rng, place):
    file = place / rng.choice(TENSORS)
    content = file.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header, rest = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = rng.choice(list(header))
    entry = header[name]
    change = rng.randrange(12)
    if change == 0:
        entry["shape"] = rng.choice(([2**62, 4], [10**12], [-1], [1] * 100, [0, 2**63], "x", [1.0], [True], None))
    elif change == 1:
        entry["data_offsets"] = rng.choice(([0, 2**62], [5, 1], [-8, 8], [0], [0, 1, 2], {}, [None, None], [0, 10**30]))
    elif change == 2:
        entry["dtype"] = rng.choice(("O", "F32", "F64", "PICKLE", "I8", 7, None, "BOOL", "C64"))
    elif change == 3:
        header[rng.choice(("../../x", "/etc/passwd", "", "a" * 5000, "__metadata__"))] = header.pop(name)
    elif change == 4:
        header["twin"] = dict(entry)
    elif change == 5:
        del header[name]
    elif change == 6:
        header = rng.choice(([], 3, None, {}, {"__metadata__": 5}))
    elif change == 7:
        entry["pickle"] = "cos\nsystem\n"
    elif change == 8:
        entry["shape"], entry["dtype"] = [*entry["shape"], 1], entry["dtype"]
    text = json.dumps(header).encode()
    size = rng.choice((2**63, 2**64 - 1, 10**9, 0, 1)) if change == 9 else len(text)
    if change == 10:
        text = b"[" * DEEP + b"]" * DEEP
        size = len(text)
    if change == 11:
        rest = rng.randbytes(len(rest))  # NaN, infinity and booleans that are neither
    file.write_bytes(struct.pack("<Q", size) + text + rest)
    seal(place, read_record(place))
    return f"tensors {change} {name} {str(entry)[:100]}"


def change_the_history(rng, place):
    (place / "history.json").write_text(
        rng.choice(("{}", "3", "[1]", "null", "[" * DEEP, '[{"step": 1, "step": 2}]', "[NaN]", "[{}]", '["\\ud800"]'))
    )
    seal(place, read_record(place))
    return "history"


def plant_a_pickle(rng, place):
    """Where a former version kept code, or where NumPy would take it from."""
    harm = b"cos\nsystem\n(S'touch harmed'\ntR."
    if rng.random() < 0.5:
        (place / "run.pickle").write_bytes(harm)
        (place / "run.json").unlink()
        return "run.pickle"
    file = place / rng.choice(FILES)
    file.write_bytes(harm)
    if file.name != "run.json":
        seal(place, read_record(place))
    return f"a pickle as {file.name}"


DAMAGE = (damage_bytes,) * 6 + (swap, in_place_of_a_file)
ATTACKS = (change_the_record,) * 6 + (change_the_tensors,) * 3
ATTACKS += (change_the_text, nest_the_record, change_the_history, plant_a_pickle)


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
