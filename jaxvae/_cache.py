"""The folder where decoded data and compiled programs are kept: `$JAXVAE_CACHE_DIR`, or `~/.cache/jaxvae`."""

import hashlib
import os
import platform
import re
import shutil
import time
from pathlib import Path
from typing import Any

import jax

MOST_BYTES = 512 * 2**20
LEAST_SECONDS = 0.1  # what is compiled faster is hardly slower than reading it back
OLDEST_SECONDS = 90 * 86_400.0
FOLDER = r"jax-.*-\d+-cores-[0-9a-f]{12}"  # as `_machine` names it


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir` unless it is None; else `$JAXVAE_CACHE_DIR`, `$XDG_CACHE_HOME/jaxvae`, or `~/.cache/jaxvae`."""
    root = cache_dir or os.environ.get("JAXVAE_CACHE_DIR")
    return expanded(root or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxvae")


def expanded(path: str | Path) -> Path:
    """With `~` as the home directory; as it is, and so found nowhere, for a user who has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def keep_programs() -> Path | None:
    """Have JAX keep what this process compiles in a folder, and read it back from there; for programs, once.

    At most half a gigabyte, the least recently used going first. Whoever has chosen a folder of their own
    (`JAX_COMPILATION_CACHE_DIR`) or none (`JAX_ENABLE_COMPILATION_CACHE=false`) keeps that.

    Returns:
      The folder; None where nothing was changed: the choice was made, filelock, which JAX bounds the folder with, is
      missing, or the folder cannot be written or locked.
    """
    config: Any = jax.config  # its options carry no types
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return None
    try:
        import filelock
    except ImportError:
        return None
    folder = cache_root() / "programs" / _machine()
    try:
        if str(folder).startswith("~"):  # no home directory is known
            return None
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        with filelock.FileLock(folder / ".lockfile", timeout=5):
            _remove_halves(folder)
        _forget_old(folder)
    except (OSError, NotImplementedError):
        return None
    config.update("jax_compilation_cache_dir", str(folder))
    config.update("jax_compilation_cache_max_size", MOST_BYTES)
    config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)
    return folder


def _machine() -> str:
    """Names what programs depend on and JAX's key for them does not hold: the instructions and the number of cores."""
    features = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features += "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
    except OSError:
        pass  # not Linux
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = [os.environ.get(name, "") for name in ("NPROC", "PJRT_NPROC")]  # what XLA reads, beside XLA_FLAGS
    digest = hashlib.sha256(f"{features} {threads}".encode()).hexdigest()
    return f"jax-{jax.__version__}-{platform.machine()}-{cores}-cores-{digest[:12]}"


def _remove_halves(folder: Path) -> None:
    """Remove what a killed process left: JAX writes a program, then its time, and fails where one is missing."""
    names = {path.name for path in folder.iterdir()}
    for name in names:
        stem, _, kind = name.rpartition("-")
        other = {"cache": "atime", "atime": "cache"}.get(kind)
        if other is not None and f"{stem}-{other}" not in names:
            (folder / name).unlink(missing_ok=True)


def _forget_old(folder: Path) -> None:
    """Remove the folders of other versions and processors that no program has asked for in three months.

    Those that are named as `_machine` names them: the root may be a folder of the user's, with a `programs` of its own.
    """
    others = [other for other in folder.parent.iterdir() if other != folder and re.fullmatch(FOLDER, other.name)]
    for other in others:
        if time.time() - other.stat().st_mtime > OLDEST_SECONDS:
            shutil.rmtree(other, ignore_errors=True)
