"""What there is on this machine and what is wrong with it, as `jaxvae doctor` prints it. Needs no extra.

Nothing here is changed, downloaded or sent. Where JAX itself cannot be imported its own error says why: this file,
part of a package that imports it, is not reached.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from jaxvae._cache import cache_root, keep_programs
from jaxvae.data._prepared import data_root, prepared_folders
from jaxvae.keys import GENERATOR

PLUGINS = r"jax[-_](cuda\d*|rocm\d*)[-_]plugin|jax[-_]metal|libtpu"
SHOWN = r"JAX_.*|JAXVAE_.*|XLA_.*|TFDS_DATA_DIR|XDG_CACHE_HOME|CUDA_VISIBLE_DEVICES"
COLLECTIONS = ("all", "experiments")  # extras that are made of others come last, for what only they have
OF_DEVELOPERS = ("dev", "docs")
HIDING = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
NOT_PACKAGES = ("cuda", "tpu")  # their packages are plugins, which are found by name


class Examination(NamedTuple):
    """What was found: section -> what -> how it is; and what is wrong, each with a way out."""

    found: dict[str, dict[str, str]]
    problems: list[str]


def examine() -> Examination:
    """Look at versions, devices, paths, caches and the environment."""
    problems: list[str] = []
    found = {
        "versions": _versions(problems),
        "devices": _devices(problems),
        "paths and caches": _paths(problems),
        "environment": {name: value for name, value in sorted(os.environ.items()) if re.fullmatch(SHOWN, name)},
        "settings of JAX": _settings(problems),
    }
    return Examination(found, problems)


def as_text(examination: Examination) -> str:
    """The examination for a person, or to be pasted into an issue."""
    lines = []
    for section, entries in examination.found.items():
        width = max(map(len, entries), default=0)
        lines += [f"{section}:", *(f"  {name:{width}}  {value}" for name, value in entries.items())]
        lines += [] if entries else ["  none that matters is set"]
    wrong = [f"  - {problem}" for problem in examination.problems]
    return "\n".join([*lines, "what is wrong:" if wrong else "nothing is wrong", *wrong])


def _versions(problems: list[str]) -> dict[str, str]:
    found = {"python": platform.python_version(), "system": platform.platform(), "jaxvae": _version("jaxvae") or ""}
    if not found["jaxvae"]:
        found["jaxvae"] = "not installed: a checkout on the path, so nothing says which versions it needs"
    missing = []
    for extra, name, limits in _requirements("jaxvae"):
        version = _version(name)
        if version is None:
            found[name] = f"not installed: pip install 'jaxvae[{extra}]'" if extra else "not installed"
            missing += [] if extra else [name]
        else:
            found[name] = version
            _check_version(name, version, limits, extra, problems)
    problems += [f"{name} is not installed, and jaxvae needs it: pip install jaxvae" for name in missing]
    jaxlib = _version("jaxlib")
    found["jaxlib"] = jaxlib or "not installed"
    for extra, name, limits in _requirements("jax"):
        if (extra, name) == ("", "jaxlib") and jaxlib is not None and not _within(jaxlib, limits):
            problems.append(
                f"jax {_version('jax')} needs jaxlib {limits}, and {jaxlib} is installed: pip install -U jax jaxlib"
            )
    return found


def _check_version(name: str, version: str, limits: str, extra: str, problems: list[str]) -> None:
    if not _within(version, limits):
        package = f"jaxvae[{extra}]" if extra else "jaxvae"
        problems.append(f"{name} is {version}, and jaxvae needs {limits}: pip install -U '{package}'")


def _requirements(package: str) -> Iterator[tuple[str, str, str]]:
    """(extra, name, limits) of each package that one needs, or may use; the extra is "" for what it must have."""
    try:
        asked = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return
    read = []
    for requirement in asked:
        needed, _, marker = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", marker)
        name = re.match(r"\s*([\w.-]+)\s*(\[[^]]*\])?\s*(.*)", needed)
        if name is not None and (extra is None or extra[1] not in NOT_PACKAGES):
            read.append((extra[1] if extra else "", name[1], name[3].strip(" ()")))
    last = {extra: place for place, extra in enumerate(COLLECTIONS, 1)}
    seen = set()
    for each in sorted(read, key=lambda each: last.get(each[0], 0)):
        if each[1] not in seen and each[0] not in OF_DEVELOPERS:
            seen.add(each[1])
            yield each


def _within(version: str, limits: str) -> bool:
    """Whether a version is within limits such as ">=0.12,<1"; of its numbers alone, and other signs hold."""
    numbers = _numbers(version)
    for sign, limit in re.findall(r"(>=|<=|<|==)\s*([\d.]+)", limits):
        bound = _numbers(limit)
        width = max(len(numbers), len(bound))
        mine, other = (each + (0,) * (width - len(each)) for each in (numbers, bound))
        if not {">=": mine >= other, "<=": mine <= other, "<": mine < other, "==": mine == other}[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices(problems: list[str]) -> dict[str, str]:
    names = {each.metadata["Name"] or "": each.version for each in importlib.metadata.distributions()}
    plugins = sorted(name for name in names if re.fullmatch(PLUGINS, name))
    found = {"plugins": ", ".join(f"{name} {names[name]}" for name in plugins) or "none"}
    try:
        devices = jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        platforms = os.environ.get("JAX_PLATFORMS", "")
        asked = f"JAX_PLATFORMS={platforms} asks for one that is not here" if platforms else "JAX finds none"
        problems.append(f"no device can be used, {asked}: {reason}")
        return found | {"devices": f"none: {reason}"}
    for kind in sorted({device.device_kind for device in devices}):
        alike = [device for device in devices if device.device_kind == kind]
        found[kind] = f"{len(alike)} ({alike[0].platform}){_memory(alike[0])}"
    if plugins and devices[0].platform == "cpu":
        named = [f"{name}={os.environ[name]}" for name in HIDING if name in os.environ]
        reason = f"{' and '.join(named)} may hide it" if named else "see its driver, and what JAX logs as it starts"
        problems.append(f"{', '.join(plugins)} installed, and JAX sees no accelerator: {reason}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return found | {"CPU cores": f"{cores} of {os.cpu_count()}"}


def _memory(device: jax.Device) -> str:
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except Exception:  # backends without the figure raise errors of their own
        limit = None
    return f", {_size(limit)} each" if limit else ""


def _paths(problems: list[str]) -> dict[str, str]:
    data, cache = data_root(), cache_root()
    found = {"jaxvae": str(Path(__file__).parent)}
    if os.path.isdir(data):  # unlike pathlib's it is false, and no error, below a folder that is closed to the user
        names = sorted({str(folder.parent.relative_to(data)) for folder in prepared_folders(data)})
        found["prepared sets"] = f"{data}: {', '.join(names) or 'none'}"
    else:
        found["prepared sets"] = (
            f"{data} does not exist or is closed to you; digits, sprites, speech and moving_sprites need no files"
        )
        if os.environ.get("TFDS_DATA_DIR"):
            problems.append(
                f"TFDS_DATA_DIR={data} does not exist or is closed to you: prepare a set there, or unset it"
            )
    found["decoded sets"] = f"{cache}: {_size(_bytes_in(cache))}"
    if not _can_write(cache):
        problems.append(
            f"nothing can be written to {cache}, so sets are decoded anew in every run: set JAXVAE_CACHE_DIR to a "
            "folder that can be"
        )
    keep_programs()  # as the command and the experiments do
    compiled: str | None = getattr(jax.config, "jax_compilation_cache_dir", None)
    found["compiled programs"] = "not kept"
    if compiled:
        found["compiled programs"] = f"{compiled}: {_size(_bytes_in(Path(compiled)))}"
        if "://" not in compiled and not _can_write(Path(compiled)):
            problems.append(f"nothing can be written to {compiled}: every run compiles anew")
    return found


def _can_write(folder: Path) -> bool:
    """Whether a folder can be written, or made."""
    there = next((each for each in (folder, *folder.parents) if os.path.exists(each)), folder)
    return os.path.isdir(there) and os.access(there, os.W_OK | os.X_OK)


def _bytes_in(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # another process may remove it meanwhile
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def _settings(problems: list[str]) -> dict[str, str]:
    """Those of JAX, from wherever they were set, that take away something which jaxvae promises."""
    broken = {
        "jax_default_prng_impl": (
            GENERATOR,
            "jax.random.key then makes keys that jaxvae refuses: their noise does not belong to the example under vmap",
        ),
        "jax_threefry_partitionable": (True, "noise then depends on how an array lies on devices"),
        "jax_enable_x64": (False, "results are then not those of float32, which documents give, and programs slower"),
        "jax_disable_jit": (False, "nothing is compiled: an epoch takes hundreds of times as long"),
    }
    found = {}
    for name, (expected, harm) in broken.items():
        value = getattr(jax.config, name, expected)
        found[name] = str(value)
        if value != expected:
            problems.append(f"{name.upper()} is {value}: {harm}; unset it")
    return found
