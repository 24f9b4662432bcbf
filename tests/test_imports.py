"""Imports go one way, and `import jaxvae` is light. The files are parsed, not run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jaxvae"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}

# What a file may import at module level: other rooms of jaxvae, and libraries. The longest matching name decides.
ARITHMETIC = {"jaxvae.types", "jaxvae.keys", "jaxvae.losses", "jaxvae.distributions", "jaxvae.codebook"}
STREETS = {
    "jaxvae.types": {"jax"},
    "jaxvae.keys": {"jax", "jaxvae.types"},
    "jaxvae.losses": {"jax"},
    "jaxvae.distributions": {"jax", "jaxvae.types", "jaxvae.keys", "jaxvae.losses"},
    "jaxvae.codebook": {"jax", "jaxvae.types", "jaxvae.keys"},
    "jaxvae.classical": {"jax", "numpy", "jaxvae.types", "jaxvae.keys", "jaxvae.losses"},
    "jaxvae.convolution": {"jax", "flax", "numpy", "jaxvae.types"},
    "jaxvae.networks": {"jax", "flax", "numpy", "jaxvae.types", "jaxvae.convolution"},
    "jaxvae.likelihoods": {"jax", "flax", "jaxvae.networks", *ARITHMETIC},
    "jaxvae.models": {
        "jax",
        "flax",
        "optax",
        "jaxvae.networks",
        "jaxvae.convolution",
        "jaxvae.likelihoods",
        "jaxvae.models",
        *ARITHMETIC,
    },
    "jaxvae.training": {
        "jax",
        "flax.struct",
        "optax",
        "numpy",
        "jaxvae.types",
        "jaxvae.keys",
        "jaxvae.training",
    },
    "jaxvae.evaluation": {"jax", "numpy", *ARITHMETIC},
    "jaxvae.sprites": {"jax", "numpy", "jaxvae.types"},
    "jaxvae.quadrants": {"jax", "numpy", "jaxvae.types"},
    "jaxvae.data": {"jax", "numpy", "jaxvae.types", "jaxvae.keys", "jaxvae.prepared", "jaxvae.sprites"},
    "jaxvae.prepared": {"numpy"},
    "jaxvae.checkpoint": {"jax", "numpy", "orbax", "jaxvae.types", "jaxvae.sealed"},
    "jaxvae.sealed": {"jax", "numpy", "orbax", "jaxvae.types"},
    "jaxvae.figures": {"jax", "numpy", "matplotlib", "PIL", "jaxvae.types", "jaxvae.figures"},
    "jaxvae.progress": {"rich", "jaxvae.types", "jaxvae.training"},
    "jaxvae": {"jaxvae"},
}
NOT_FROM_THE_TOP = {
    "jaxvae.data",
    "jaxvae.evaluation.disentanglement",
    "jaxvae.checkpoint",
    "jaxvae.figures",
    "jaxvae.progress",
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
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
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


def test_import_jaxvae_is_light():
    heavy = ["tensorflow_datasets", "tensorflow", "orbax", "matplotlib", "sklearn", "scipy.stats"]
    program = f"import jaxvae, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_starts_no_device():
    """A program may still choose its devices and cores after its imports."""
    program = (
        "import jaxvae, experiments.beta_vae, experiments.cvae, experiments.rate_distortion;"
        "import experiments.semi_supervised, experiments.vae, experiments.vq_vae;"
        "from jax._src import xla_bridge; print(xla_bridge._backends)"
    )
    root = PACKAGE.parent
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "{}"


def test_the_top_level_imports_all_but_the_heavy_rooms():
    names = set(imported(MODULES["jaxvae"], inside_functions=False))
    assert not any(is_within(name, room) for name in names for room in NOT_FROM_THE_TOP)


def test_every_public_name_exists():
    import jaxvae

    assert sorted(jaxvae.__all__) == sorted(set(jaxvae.__all__))
    for name in jaxvae.__all__:
        assert getattr(jaxvae, name) is not None
