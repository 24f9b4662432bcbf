"""Compiled programs are kept in a folder, read back, bounded, and never in the way."""

import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxvae import _cache
from jaxvae._cache import keep_programs

OPTIONS = {
    "jax_compilation_cache_dir": None,
    "jax_enable_compilation_cache": True,
    "jax_compilation_cache_max_size": -1,
    "jax_persistent_cache_min_compile_time_secs": 1.0,
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An empty folder, and JAX as it is in a process where nobody has asked for one."""
    monkeypatch.setenv("JAXVAE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_cache, "LEAST_SECONDS", 0.0)
    before = {name: getattr(jax.config, name) for name in OPTIONS}

    def choose(options):
        compilation_cache.reset_cache()
        for name, value in options.items():
            jax.config.update(name, value)

    choose(OPTIONS)
    yield tmp_path
    choose(before)


@pytest.fixture
def events():
    seen = []

    def listen(event, **_):
        seen.append(event.removeprefix("/jax/compilation_cache/"))

    jax.monitoring.register_event_listener(listen)
    yield seen
    jax.monitoring.unregister_event_listener(listen)


def compiled_anew(events):
    """What a program returns that JAX has forgotten, and whether its folder knew it."""
    x = np.linspace(0, 1, 7, dtype=np.float32)
    jax.clear_caches()
    compilation_cache.reset_cache()
    events.clear()
    value = jax.jit(lambda x: jnp.tanh(x) * 3 + x[::-1])(x)
    return np.asarray(value), {"hits": events.count("cache_hits"), "misses": events.count("cache_misses")}


def entries(folder):
    return sorted(path for path in folder.iterdir() if path.name.endswith("-cache"))


def test_programs_are_kept_and_read_back_with_the_same_bits(root, events):
    without, counts = compiled_anew(events)
    assert counts == {"hits": 0, "misses": 0}
    folder = keep_programs()
    assert folder.parent == root / "programs"
    first, counts = compiled_anew(events)
    assert counts == {"hits": 0, "misses": 1}
    assert len(entries(folder)) == 1
    again, counts = compiled_anew(events)
    assert counts == {"hits": 1, "misses": 0}
    np.testing.assert_array_equal(first, without)
    np.testing.assert_array_equal(again, without)


def test_a_damaged_program_is_compiled_again(root, events):
    folder = keep_programs()
    value, _ = compiled_anew(events)
    (entry,) = entries(folder)
    entry.write_bytes(b"\0" * 99)
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache entry"):
        again, counts = compiled_anew(events)
    assert counts["hits"] == 0
    np.testing.assert_array_equal(again, value)


def test_what_a_killed_process_left_is_removed(root, events):
    folder = keep_programs()
    value, _ = compiled_anew(events)
    (entry,) = entries(folder)
    entry.write_bytes(entry.read_bytes()[:50])
    entry.with_name(entry.name.replace("-cache", "-atime")).unlink()  # JAX writes it after the program
    jax.config.update("jax_compilation_cache_dir", None)
    assert keep_programs() == folder
    assert entries(folder) == []
    again, counts = compiled_anew(events)
    assert counts == {"hits": 0, "misses": 1}
    np.testing.assert_array_equal(again, value)


def test_the_folder_is_bounded(root, events, monkeypatch):
    folder = keep_programs()
    compiled_anew(events)
    (first,) = entries(folder)
    jax.config.update("jax_compilation_cache_max_size", int(1.5 * first.stat().st_size))
    compilation_cache.reset_cache()
    jax.jit(lambda x: jnp.tanh(x) * 4 + x[::-1])(np.ones(7, np.float32))
    assert len(entries(folder)) == 1
    assert entries(folder) != [first]
    assert _cache.MOST_BYTES == 2**29


def test_whoever_has_chosen_keeps_that(root, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", "/chosen")
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir == "/chosen"
    jax.config.update("jax_compilation_cache_dir", None)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "filelock", None)
        assert keep_programs() is None
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        assert keep_programs() is None
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert jax.config.jax_compilation_cache_dir is None
    assert not (root / "programs").exists()


def test_a_folder_that_cannot_be_written_is_left_alone(root, monkeypatch):
    (root / "file").write_text("")
    monkeypatch.setenv("JAXVAE_CACHE_DIR", str(root / "file"))
    assert keep_programs() is None
    assert jax.config.jax_compilation_cache_dir is None


def test_each_machine_has_its_own_folder_and_old_ones_go(root, monkeypatch):
    old, recent = (root / "programs" / f"jax-0.{i}-x86_64-2-cores-0123456789ab" for i in (1, 2))
    for folder in (old, recent):
        folder.mkdir(parents=True)
    os.utime(old, times=(0, time.time() - 91 * 86_400))
    folder = keep_programs()
    assert sorted((root / "programs").iterdir()) == sorted([recent, folder])
    here = _cache._machine()
    monkeypatch.setenv("NPROC", "1")
    assert _cache._machine() != here
    monkeypatch.delenv("NPROC")
    assert _cache._machine() == here


RUN = """
import sys
from collections import Counter

import jax

seen = Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.rpartition("/")[2]]))
from jaxvae import _cache
from jaxvae.__main__ import main

_cache.LEAST_SECONDS = 0.0  # every program, however fast the machine
main(sys.argv[1:])
print(seen["compile_requests_use_cache"], seen["cache_hits"], seen["cache_misses"], seen["tasks_using_cache"])
"""
TRAIN = ["train", "digits", "--num-samples", "2", "--batch-size", "300", "--hidden", "8", "--model", "vae", "--out"]


def start(cache, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        env=clean | {"JAXVAE_CACHE_DIR": str(cache), "NPROC": "2"} | environment,  # threads change bits
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counts_of(process):
    """Programs asked for, read back and written, and whether there was a folder; nothing may be complained of."""
    said, complaints = process.communicate(timeout=600)
    assert (process.returncode, complaints) == (0, "")
    return tuple(map(int, said.splitlines()[-1].split()))


def bits(run):
    return [(run / name).read_bytes() for name in ("weights.safetensors", "samples.png")]


@pytest.mark.slow
def test_the_command_keeps_programs_and_a_resumed_run_compiles_none_of_them(tmp_path):
    cache, (without, first, second) = tmp_path / "cache", (tmp_path / name for name in ("without", "first", "second"))
    off = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    assert counts_of(start(cache, *TRAIN, without, "--epochs", "2", **off)) == (0, 0, 0, 0)
    for process in [start(cache, *TRAIN, run, "--epochs", "1") for run in (first, second)]:  # two at once
        requests, hits, misses, used = counts_of(process)
        assert (requests, used) == (hits + misses, 1)
        assert requests > 20
    resumed = [counts_of(start(cache, *TRAIN, run, "--epochs", "2", "--resume")) for run in (first, second)]
    assert resumed[0][2] <= 2  # what only a resumed run needs, to read its checkpoint
    assert resumed[1] == (resumed[1][0], resumed[1][0], 0, 1)
    assert bits(without) == bits(first) == bits(second)


def test_a_root_of_the_users_own_loses_nothing_else(root):
    """`~` as the root has whatever else the user keeps in ~/programs."""
    names = ("mine", "jax-0.1", "jax-0.1-x86_64-2-cores-notes", "jax-0.1-x86_64-2-cores-0123456789ab")
    for name in names:
        (root / "programs" / name).mkdir(parents=True)
        (root / "programs" / name / "work").write_text("all of it")
        os.utime(root / "programs" / name, times=(0, 0))
    folder = keep_programs()
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, *names[:3]}
    assert (root / "programs" / "mine" / "work").read_text() == "all of it"
