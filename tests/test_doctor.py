"""`jaxvae doctor`: what it finds, and that each thing that is wrong is named."""

import importlib.metadata
import json
import subprocess
import sys

import jax
import pytest

from jaxvae import _doctor
from jaxvae.__main__ import main


@pytest.fixture(autouse=True)
def sound(monkeypatch, tmp_path):
    """A machine on which nothing is wrong, whatever is around the tests."""
    for name in ("TFDS_DATA_DIR", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAXVAE_CACHE_DIR", str(tmp_path / "cache"))


def versions(monkeypatch, **changed):
    """Other versions than those that are installed; None: not installed."""
    installed = _doctor._version
    monkeypatch.setattr(_doctor, "_version", lambda name: changed.get(name.replace("-", "_"), installed(name)))


def problems_of():
    return _doctor.examine().problems


def test_what_it_finds(monkeypatch, tmp_path):
    (tmp_path / "sets" / "mnist" / "3.0.1").mkdir(parents=True)
    (tmp_path / "sets" / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "array").write_bytes(bytes(3 * 2**20))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    examination = _doctor.examine()
    found = examination.found
    assert examination.problems == []
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")
    assert "pytest" not in found["versions"]
    assert found["devices"]["cpu"] == f"{jax.device_count()} (cpu)"
    assert found["paths and caches"]["prepared sets"] == f"{tmp_path / 'sets'}: mnist"
    assert found["paths and caches"]["decoded sets"] == f"{tmp_path / 'cache'}: 3.0 MiB"
    assert found["environment"]["TFDS_DATA_DIR"] == str(tmp_path / "sets")
    assert "HOME" not in found["environment"]
    assert _doctor.as_text(examination).endswith("nothing is wrong")


def test_versions_that_are_too_old_or_new_or_missing_are_named(monkeypatch):
    versions(monkeypatch, flax="0.12.5", orbax_checkpoint="1.0.0", soundfile=None, optax=None, jaxlib="0.4.30")
    examination = _doctor.examine()
    assert examination.found["versions"]["soundfile"] == "not installed: pip install 'jaxvae[sound]'"
    said = "\n".join(examination.problems)
    assert "flax is 0.12.5, and jaxvae needs >=0.12.6: pip install -U 'jaxvae'" in said
    assert "orbax-checkpoint is 1.0.0, and jaxvae needs <1,>=0.12: pip install -U 'jaxvae[checkpoints]'" in said
    assert "optax is not installed, and jaxvae needs it" in said
    assert f"jax {jax.__version__} needs jaxlib " in said
    assert "and 0.4.30 is installed" in said
    assert len(examination.problems) == 4
    assert _doctor.as_text(examination).count("\n  - ") == 4


@pytest.mark.parametrize(
    ("version", "limits", "within"),
    [
        *(("0.12.6", ">=0.12.6", True), ("0.12", ">=0.12.6", False), ("0.9.9", ">=0.10", False)),
        *(("1.0", ">=0.12,<1", False), ("0.99", "<1,>=0.12", True), ("2.0rc1", ">=2", True), ("7", "", True)),
        *(("0.10.2", "<=0.10.2,>=0.10.1", True), ("0.10.3", "<=0.10.2", False), ("1.2", "==1.2.0", True)),
    ],
)
def test_limits(version, limits, within):
    assert _doctor._within(version, limits) is within


def test_paths_that_cannot_serve_are_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXVAE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    said = problems_of()
    assert len(said) == 2
    assert (
        f"TFDS_DATA_DIR={tmp_path / 'none'} does not exist or is closed to you: prepare a set there, or unset it"
        in said
    )
    assert f"nothing can be written to {tmp_path / 'file' / 'cache'}" in said[1]


def test_settings_that_break_a_promise_are_named():
    with jax.enable_x64(True), jax.default_prng_impl("rbg"):
        said = problems_of()
    assert [problem.split(":")[0] for problem in said] == ["JAX_DEFAULT_PRNG_IMPL is rbg", "JAX_ENABLE_X64 is True"]


def test_an_accelerator_that_is_installed_and_not_seen_is_named(monkeypatch):
    class Plugin:
        metadata, version = {"Name": "jax-cuda13-plugin"}, "0.10.2"

    monkeypatch.setattr(_doctor.importlib.metadata, "distributions", lambda: [Plugin])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert problems_of() == ["jax-cuda13-plugin installed, and JAX sees no accelerator: JAX_PLATFORMS=cpu may hide it"]


def test_a_backend_that_does_not_start_is_named(monkeypatch):
    def refuse():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(_doctor.jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    said = "JAX_PLATFORMS=cuda asks for one that is not here: Unable to initialize backend 'cuda'"
    assert problems_of() == [f"no device can be used, {said}"]


def test_the_command(capsys, monkeypatch, tmp_path):
    main(["doctor"])
    assert capsys.readouterr().out.endswith("nothing is wrong\n")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as stop:
        main(["doctor", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert (stop.value.code, len(printed["problems"])) == (1, 1)


def test_it_speaks_where_the_command_line_itself_cannot_be_read():
    program = "import sys\nsys.modules['tyro'] = None\nfrom jaxvae.__main__ import main\nmain(['doctor'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'jaxvae[all]'" in done.stderr
    assert done.stdout.startswith("versions:\n")


def test_a_folder_that_is_closed_to_the_user_is_named(monkeypatch, tmp_path):
    (tmp_path / "sets").mkdir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))

    def closed(self, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(_doctor.os.path, "isdir", lambda path: str(path) != str(tmp_path / "sets"))
    monkeypatch.setattr(type(tmp_path), "stat", closed)  # what pathlib asks
    paths = _doctor._paths(problems := [])
    assert "does not exist or is closed to you" in paths["prepared sets"]
    assert problems == [
        f"TFDS_DATA_DIR={tmp_path / 'sets'} does not exist or is closed to you: prepare a set there, or unset it"
    ]


def test_files_that_vanish_while_they_are_counted_are_not_missed(monkeypatch, tmp_path):
    (tmp_path / "array").write_bytes(bytes(10))
    monkeypatch.setattr(_doctor.os, "walk", lambda folder: [(str(folder), [], ["array", "gone"])])
    assert _doctor._bytes_in(tmp_path) == 10
