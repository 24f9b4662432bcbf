"""Imports go one way, `import jaxvae` is light, files and functions are short. The files are parsed, not run."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxvae"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

EXTRAS = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
EXPERIMENTS = sorted((PACKAGE.parent / "experiments").glob("*.py"))

# What a file may import at module level: libraries, and the rooms above its own in jaxvae/ (in this order). The longest
# matching name decides.
SHARED = {
    *("jaxvae.types", "jaxvae.keys", "jaxvae.losses"),
    *("jaxvae._checks", "jaxvae._host", "jaxvae._variables", "jaxvae._whole_batch"),
}
NETWORKS = {"jaxvae.distributions", "jaxvae.convolution", "jaxvae.networks", *SHARED}
QUANTIZERS = {"jaxvae.codebook", "jaxvae.quantizers"}
MODELS = {"jaxvae.flows", "jaxvae.priors", "jaxvae.models", *QUANTIZERS, *NETWORKS}
STREETS = {
    "jaxvae.types": {"jax"},
    "jaxvae.keys": {"jax", "jaxvae.types"},
    "jaxvae.losses": {"jax", "jaxvae.losses"},
    "jaxvae._cache": {"jax"},
    "jaxvae._checks": {"jax", "numpy", "jaxvae.types"},
    "jaxvae._host": {"jax", "numpy"},
    "jaxvae._variables": {"jaxvae.types"},
    "jaxvae._whole_batch": {"jax"},
    "jaxvae.distributions": {"jax", "numpy", "jaxvae.distributions", *SHARED},
    "jaxvae.convolution": {"jax", "flax", "numpy", "jaxvae.types", "jaxvae._checks"},
    "jaxvae.networks": {"jax", "flax", "numpy", *NETWORKS},
    "jaxvae.flows": {"jax", "flax", "numpy", "jaxvae.flows", *NETWORKS},
    "jaxvae.posteriors": {"jax", "flax", "jaxvae.flows", *NETWORKS},
    "jaxvae.priors": {"jax", "flax", "numpy", "jaxvae.flows", *NETWORKS},
    "jaxvae.codebook": {"jax", "jaxvae.codebook", *SHARED},
    "jaxvae.quantizers": {"jax", "numpy", "jaxvae._whole_batch", *QUANTIZERS, *SHARED},
    "jaxvae.models": {"jax", "flax", "numpy", *MODELS},
    "jaxvae.objectives": {"jax", "flax", "optax", "jaxvae.objectives", *MODELS},
    # Meets objectives only through LossFn.
    "jaxvae.training": {
        *("jax", "flax.struct", "optax", "numpy"),
        *("jaxvae.types", "jaxvae.keys", "jaxvae._checks", "jaxvae._variables", "jaxvae._whole_batch"),
        "jaxvae.training",
    },
    "jaxvae.data": {"jax", "numpy", "jaxvae.types", "jaxvae.keys", "jaxvae._checks", "jaxvae._host", "jaxvae.data"},
    "jaxvae.data.tables": {"numpy", "jaxvae.types", "jaxvae.data", "pandas"},  # pandas for its types alone
    "jaxvae.data._table_files": {"pandas"},  # the same
    "jaxvae.data._prepared": {"numpy", "jaxvae._cache", "jaxvae._json"},
    "jaxvae.data._pictures": {"numpy", "PIL"},
    "jaxvae.data._sounds": {"numpy", "soundfile"},
    "jaxvae.evaluation.refinement": {
        "jax",
        "numpy",
        "optax",
        "jaxvae.distributions",
        "jaxvae.models",
        "jaxvae.objectives",
        "jaxvae.evaluation",
        *SHARED,
    },
    "jaxvae.evaluation": {
        *("jax", "numpy", "optax", "jaxvae.distributions", "jaxvae.models", "jaxvae.objectives", "jaxvae.evaluation"),
        *SHARED,
    },
    "jaxvae._sealed": {"jax", "numpy", "orbax", "jaxvae.types"},
    "jaxvae.checkpoint": {"jax", "numpy", "jaxvae.types", "jaxvae._checks", "jaxvae._json", "jaxvae._sealed"},
    "jaxvae.figures": {
        *("jax", "numpy", "matplotlib", "PIL"),
        *("jaxvae.types", "jaxvae._checks", "jaxvae._host", "jaxvae.figures"),
    },
    "jaxvae.trackers": {"numpy", "jaxvae.training"},
    "jaxvae.progress": {"rich", "jaxvae._terminal", "jaxvae.types", "jaxvae.training"},
    "jaxvae._given": {"jax", "numpy", "jaxvae.data", "jaxvae.evaluation", "jaxvae.models", "jaxvae.types"},
    "jaxvae._json": set(),
    "jaxvae._tensors": {"jax", "numpy", "jaxvae._json"},
    "jaxvae._names": {"jax", "flax", "numpy"},  # what it names it finds by name
    "jaxvae._recipe": {"jax", "flax", "numpy", "jaxvae._names"},
    "jaxvae._saved": {"jax", "numpy", "jaxvae._json", "jaxvae._names", "jaxvae._recipe", "jaxvae._tensors"},
    "jaxvae._hub": {"numpy", "jaxvae._json", "jaxvae._saved"},
    "jaxvae._run": {
        *(
            "jax",
            "numpy",
            "jaxvae._hub",
            "jaxvae._saved",
            "jaxvae._names",
            "jaxvae._recipe",
            "jaxvae.data",
            "jaxvae.evaluation",
            "jaxvae.models",
            "jaxvae._run",
            "jaxvae._given",
        ),
        *("jaxvae.objectives", "jaxvae.training", *SHARED),
    },
    "jaxvae._directory": {"jax", "numpy", "jaxvae._json", "jaxvae.checkpoint", "jaxvae.training"},
    "jaxvae._watch": {
        *(
            "jax",
            "numpy",
            "jaxvae.data",
            "jaxvae.training",
            "jaxvae._directory",
            "jaxvae._run",
            "jaxvae._given",
            *SHARED,
        ),
    },
    "jaxvae.run": {
        *(
            "jax",
            "numpy",
            "optax",
            "jaxvae.data",
            "jaxvae.distributions",
            "jaxvae.models",
            "jaxvae._run",
            "jaxvae._given",
            "jaxvae._hub",
            "jaxvae._saved",
            "jaxvae._names",
            "jaxvae._recipe",
        ),
        *("jaxvae._directory", "jaxvae._watch", "jaxvae.objectives", "jaxvae.training", "jaxvae.progress", *SHARED),
    },
    "jaxvae._terminal": {"rich"},
    "jaxvae._doctor": {"jax", "jaxvae._cache", "jaxvae.data", *SHARED},
    "jaxvae._command": {
        *(
            "jax",
            "flax",
            "numpy",
            "optax",
            "rich",
            "tyro",
            "jaxvae._cache",
            "jaxvae._command",
            "jaxvae._terminal",
            "jaxvae._doctor",
            "jaxvae._json",
            "jaxvae.data",
            "jaxvae.evaluation",
            "jaxvae.figures",
        ),
        *("jaxvae.distributions", "jaxvae.models", "jaxvae.networks", "jaxvae.quantizers", "jaxvae.run"),
        *("jaxvae.training", *SHARED),
    },
    "jaxvae.__main__": {"jaxvae._command", "jaxvae._doctor"},
    "jaxvae": {"jaxvae"},
}
# They come on first use: they are not needed to train a model, and most need an extra.
LAZY = ("checkpoint", "data", "figures", "progress", "run", "trackers")
NOT_FROM_THE_TOP = {
    *(f"jaxvae.{name}" for name in LAZY),
    *("jaxvae.evaluation.disentanglement", "jaxvae.evaluation.samples"),
}


def imported(path, inside_functions):
    """The full names that a file imports."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else [n for top in tree.body for n in module_level(top)]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_level(node):
    """The node and what runs with it on import: not the bodies of functions."""
    yield node
    for_types_alone = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    if not for_types_alone and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        for child in ast.iter_child_nodes(node):
            yield from module_level(child)


def is_within(name, room):
    return name == room or name.startswith(room + ".")


def street(module):
    return STREETS[max((room for room in STREETS if is_within(module, room)), key=len)]


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_only_what_its_street_allows(module):
    allowed = street(module)
    for name in imported(MODULES[module], inside_functions=False):
        if name.split(".")[0] in sys.stdlib_module_names:
            continue
        assert any(is_within(name, room) for room in allowed), f"{module} must not import {name}"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_reaches_around_the_streets(module):
    """Libraries may be imported late; rooms of jaxvae may not, and nothing imports the experiments."""
    for name in imported(MODULES[module], inside_functions=True):
        assert not is_within(name, "experiments")
        if is_within(name, "jaxvae"):
            assert any(is_within(name, room) for room in street(module)), f"{module} must not import {name}"


def test_the_test_sees_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("if True:\n    from jaxvae.models import vae\n\ndef f():\n    import orbax\n")
    assert list(imported(wrong, inside_functions=False)) == ["jaxvae.models.vae"]
    assert set(imported(wrong, inside_functions=True)) == {"jaxvae.models.vae", "orbax"}


FOR_MODELS = ("flax", "optax", "jaxvae.models", "jaxvae.training")  # not for the losses
HEAVY = [
    *("tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "PIL", "sklearn", "pandas", "soundfile"),
    *("scipy.stats", "tyro"),
]
# One process for all of them, because every start of one costs two seconds: what must come first does.
IN_A_FRESH_PROCESS = f"""
import contextlib, importlib, io, json, sys

import jaxvae
from jaxvae.losses import gaussian_kl

said = dict(for_models=[name for name in {FOR_MODELS} if name in sys.modules])
jaxvae.VAE, jaxvae.fit, jaxvae.objectives
said["missing"] = [name for name in {FOR_MODELS} if name not in sys.modules]
for name in jaxvae.__all__:
    getattr(jaxvae, name)
said |= dict(heavy=[name for name in {[*HEAVY, *sorted(NOT_FROM_THE_TOP)]} if name in sys.modules])
said["lazy"] = set({LAZY}) <= set(dir(jaxvae))
said["twice"] = len(dir(jaxvae)) - len(set(dir(jaxvae)))

def without(names, do):
    there = {{name: sys.modules.get(name) for name in names}}
    sys.modules.update(dict.fromkeys(names))
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            do()
        except ImportError as error:
            print(error)
        except SystemExit as stop:
            code = stop.code
    for name, module in there.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module
    return out.getvalue(), err.getvalue(), code

from jaxvae.__main__ import main

said["orbax"] = without(["orbax", "orbax.checkpoint"], lambda: jaxvae.checkpoint)
for name in ("tyro", "rich.console"):
    said[name] = without([name], lambda: main(["--help"]))
said["names"] = [jaxvae.data.from_arrays.__name__, jaxvae.checkpoint.load.__name__, jaxvae.progress.__name__]
said["names"] += [jaxvae.evaluation.disentanglement.__name__, jaxvae.figures.__name__]
said["disentanglement"] = "disentanglement" in dir(jaxvae.evaluation)
said["no such"] = [hasattr(jaxvae, "no_such_name"), hasattr(jaxvae.evaluation, "no_such_name")]
for name in {[f"experiments.{path.stem}" for path in EXPERIMENTS if path.stem != "__init__"]}:
    importlib.import_module(name)
from jax._src import xla_bridge

said["backends"] = list(xla_bridge._backends)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    """What a process says that starts with `import jaxvae`."""
    command = [sys.executable, "-c", IN_A_FRESH_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_losses_come_without_what_models_need(said):
    assert (said["for_models"], said["missing"]) == ([], [])


def test_import_jaxvae_is_light_and_the_rest_comes_on_first_use(said):
    assert (said["heavy"], said["lazy"], said["twice"]) == ([], True, 0)
    assert said["names"] == [
        *("from_arrays", "load", "jaxvae.progress"),
        *("jaxvae.evaluation.disentanglement", "jaxvae.figures"),
    ]
    assert said["disentanglement"]
    assert said["no such"] == [False, False]


def test_a_missing_extra_is_named(said):
    assert said["orbax"] == ["checkpoints need orbax-checkpoint: pip install 'jaxvae[checkpoints]'\n", "", None]


def extra_of(requirement):
    """The packages of an extra, those of extras in it too."""
    packages = set()
    for name in re.search(r"\[(.+)\]", requirement)[1].split(","):
        for each in EXTRAS[name]:
            packages |= extra_of(each) if each.startswith("jaxvae[") else {re.match(r"[\w-]+", each)[0]}
    return packages


def test_every_package_that_may_be_missing_is_in_the_extra_that_the_error_names():
    """Wherever an import is tried: the libraries in the `try`, the extra in the `except`."""
    packages = {"orbax": "orbax-checkpoint", "PIL": "pillow", "sklearn": "scikit-learn"}
    packages |= {"tensorflow_datasets": "tensorflow-datasets"}
    found = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            said = (
                re.search(r"jaxvae\[[\w,]+\]", "".join(map(ast.unparse, node.handlers)))
                if isinstance(node, ast.Try)
                else None
            )
            for each in ast.walk(ast.Module(node.body, [])) if said else ():
                names = [each.module] if isinstance(each, ast.ImportFrom) else []
                names += [alias.name for alias in each.names] if isinstance(each, ast.Import) else []
                for name in (name.split(".")[0] for name in names):
                    assert packages.get(name, name) in extra_of(said[0]), (path, name)
                    found.add(name)
    assert found == {
        *packages,
        "constriction",
        "huggingface_hub",
        "matplotlib",
        "pandas",
        "rich",
        "soundfile",
        "tyro",
        "tensorboardX",
        "wandb",
        "mlflow",
    }


@pytest.mark.parametrize("missing", ["tyro", "rich.console"])
def test_the_command_names_the_extra_in_one_line(said, missing):
    """Flax needs rich too, but nobody promises that."""
    printed, complaint, code = said[missing]
    assert (code, printed) == (2, "")
    assert re.fullmatch(r"error: .* pip install 'jaxvae\[all\]'\n", complaint)


def test_the_version_is_that_of_the_installed_package():
    import jaxvae

    assert jaxvae.__version__ == importlib.metadata.version("jaxvae")


def test_importing_starts_no_device(said):
    """A program may still choose its devices and cores after its imports, those of all experiments too."""
    assert said["backends"] == []


def test_type_checkers_are_told_what_the_top_level_brings():
    """The imports for them, against the tables that `__getattr__` reads."""
    import jaxvae

    told = set(imported(MODULES["jaxvae"], inside_functions=True)) - {"importlib", "importlib.metadata"}
    brought = {f"jaxvae.{room}" for room in jaxvae.ROOMS}
    brought |= {f"{home}.{name}" for home, names in jaxvae.HOMES.items() for name in names}
    assert told - {"typing.Any", "typing.TYPE_CHECKING"} == brought
    assert set(jaxvae.NEED_EXTRAS) == set(LAZY)
    assert not set(imported(MODULES["jaxvae"], inside_functions=False)) & brought


def test_every_public_name_exists():
    import jaxvae

    assert sorted(jaxvae.__all__) == sorted(set(jaxvae.__all__))
    for name in jaxvae.__all__:
        assert getattr(jaxvae, name) is not None


def lines_of(function):
    """How many lines its body has, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize("path", [*MODULES.values(), *EXPERIMENTS], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_file_is_read_top_to_bottom(path):
    """No file over 400 lines, no function over 60."""
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert text.count("\n") <= 400
    assert {node.name: lines_of(node) for node in functions if lines_of(node) > 60} == {}


def test_the_test_sees_a_long_function():
    lines = "".join(f"    x = {i}\n" for i in range(61))
    function = ast.parse(f'def f():\n    """Say.\n\n    More.\n    """\n{lines}').body[0]
    assert lines_of(function) == 61


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_programs_make_keys_that_noise_per_example_needs(path):
    """Whatever generator is JAX's default: `seed_key` makes threefry's, `jax.random.key` the default one's."""
    assert "jax.random.key(" not in path.read_text()
