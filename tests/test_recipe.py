"""Every kind of model, objective and data set as JSON and back; and the arrays of a run in the safetensors format."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxvae
from jaxvae import data
from jaxvae._recipe import Describer, Parts, Rebuilder
from jaxvae._tensors import parse_tensors, write_tensors
from jaxvae.networks import DenoisingMLP, Stage, UNet
from tests.variants import VARIANTS

SHAPE = (8, 8, 1)


def there_and_back(value, parts=()):
    describer = Describer()
    recipe = json.loads(json.dumps(describer.describe(value, "value"), allow_nan=False))
    return Rebuilder(describer.arrays, Parts(parts)).rebuild(recipe)


def body():
    return jaxvae.MLPEncoder(2, hidden=(4,)), jaxvae.MLPDecoder(SHAPE, hidden=(4,))


OTHERS = {
    "hierarchy": lambda: jaxvae.HierarchicalVAE((body()[0], body()[0]), (body()[1], body()[0])),
    "top down": lambda: jaxvae.models.top_down_vae(SHAPE, [Stage(6, (3,)), Stage(4, (2,))]),
    "autoencoder": lambda: jaxvae.Autoencoder(jaxvae.MLPDecoder((2,)), body()[1]),
    "codes": lambda: jaxvae.VQVAE(jaxvae.ResidualEncoder(4), jaxvae.ResidualDecoder(1), jaxvae.EMACodebook(8)),
    "pixels": lambda: jaxvae.PixelCNN(4, (5, 5)),
    "more pixels": lambda: (jaxvae.PixelCNNPP(SHAPE), jaxvae.PixelRNN(4, (5, 5))),
    "tokens": lambda: jaxvae.TransformerPrior((4, 3), [5, 5], prefix=[3, 7]),
    "diffusion": lambda: (DenoisingMLP(3), UNet(1)),
    "table": lambda: jaxvae.models.table_vae((jaxvae.types.Column("a", "real"), jaxvae.types.Column("b", "counts")), 2),
    "layers": lambda: nn.Sequential([nn.Dense(3), nn.gelu, jnp.log1p, nn.LayerNorm(dtype=jnp.bfloat16)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_models(name):
    model = OTHERS[name]()
    assert repr(there_and_back(model)) == repr(model)


CLOSURES = {"beta schedule", "capacity", "conditional", "semi-supervised"}  # what they hold goes by no name


@pytest.mark.parametrize("name", sorted(VARIANTS.keys() - CLOSURES))
def test_variants(name):
    variant = VARIANTS[name]
    assert repr(there_and_back(variant.model)) == repr(variant.model)
    loss = variant.loss_fn.__wrapped__
    again = there_and_back(loss)
    assert repr(again) == repr(loss)
    assert again.func is loss.func


@pytest.mark.parametrize("name", ["digits", "sprites", "speech", "moving_sprites"])
def test_sets(name):
    first = data.load(name, "train").take(slice(2))
    again = there_and_back(first)
    assert (again.prepare, again.domain, again.name) == (first.prepare, first.domain, name)
    for array, values in first.arrays.items():
        np.testing.assert_array_equal(again.arrays[array], values)
        assert again.arrays[array].dtype == values.dtype


@pytest.mark.parametrize(
    "name",
    [
        *("os:system", "builtins:eval", "subprocess:run", "jaxvae.run:train", "jaxvae._saved:write"),
        *("jaxvae.figures:image_grid", "jaxvae.data.files:from_file", "jaxvae.networks._pickling:_look_up"),
        *("jaxvae.models.vae:np", "jaxvae.models.vae:__loader__", "jaxvae.models.vae:VAE.apply", "jaxvae.models:vae"),
        *("jax.numpy:load", "jax.numpy:save", "jax:device_get", "flax.linen:tabulate", "flax.linen:module"),
        *(
            "numpy:load",
            "functools:reduce",
            "jaxvae.models.:VAE",
            "jaxvae.models...os:system",
            "flax.core:copy",
            ":",
            "",
        ),
        *("jaxvae.models.vae:partial", "jaxvae.types:Protocol", "jaxvae.networks._run:run", "jaxvae.codebook:jax"),
    ],
)
def test_names_that_no_file_may_use(name):
    rebuilder = Rebuilder({}, Parts())
    for recipe in ({"name": name}, {"new": name, "with": {}}, {"new": name, "attributes": {}}):
        with pytest.raises((ValueError, ImportError)):
            rebuilder.rebuild(recipe)


def test_what_is_on_the_list_neither_reads_nor_writes_files():
    """Public functions of the rooms, by what their code names: none of them opens, loads, saves or starts anything."""
    import importlib
    import pkgutil

    from jaxvae._names import ROOMS, _may_be_named

    touching = {"open", "load", "save", "savez", "tofile", "write_text", "write_bytes", "mkdir", "unlink", "rename"}
    touching |= {"exec", "eval", "system", "Popen", "import_module", "__import__", "read_bytes", "read_text", "imread"}
    seen = 0
    for room in ROOMS:
        package = importlib.import_module(room)
        within = [each.name for each in pkgutil.iter_modules(getattr(package, "__path__", []), f"{room}.")]
        for module in (package, *map(importlib.import_module, within)):
            for name, part in vars(module).items():
                if callable(part) and not isinstance(part, type) and _may_be_named(module.__name__, name, part):
                    code = getattr(getattr(part, "__wrapped__", part), "__code__", None)
                    assert code is None or not touching & set(code.co_names), (module.__name__, name)
                    seen += 1
    assert seen > 100


TYPES = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64 float8_e4m3fn"


def test_arrays_of_every_type_and_shape_come_back(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 2)).astype(jnp.dtype(name)) for name in TYPES.split()}
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 4), np.int8), "complex": np.array([1 + 2j], np.complex64)}
    arrays |= {"turned": np.asarray(rng.normal(size=(2, 3))).T, "wide": np.arange(3, dtype=">i4"), 'ü/"': np.ones(1)}
    arrays = {name: np.asarray(values) for name, values in arrays.items()}
    write_tensors(tmp_path / "x.safetensors", arrays)
    again = parse_tensors((tmp_path / "x.safetensors").read_bytes())
    assert again.keys() == arrays.keys()
    for name, values in arrays.items():
        np.testing.assert_array_equal(again[name], values)
        assert (again[name].shape, again[name].dtype) == (values.shape, values.dtype.newbyteorder("<"))
    with pytest.raises(TypeError, match="no file of weights holds such an element type: odd is int4"):
        write_tensors(tmp_path / "y.safetensors", {"odd": np.zeros(2, jnp.int4)})


def test_the_package_reads_what_we_write_and_the_other_way_round(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, bool), "c": np.array(7)}
    write_tensors(tmp_path / "ours.safetensors", arrays)
    package.save_file(arrays, tmp_path / "theirs.safetensors", metadata={"format": "np"})
    for again in (
        package.load_file(tmp_path / "ours.safetensors"),
        parse_tensors((tmp_path / "theirs.safetensors").read_bytes()),
    ):
        assert again.keys() == arrays.keys()
        for name, values in arrays.items():
            np.testing.assert_array_equal(again[name], values)


def test_a_partial_of_a_partial():
    made = functools.partial(functools.partial(jaxvae.DiagGaussian, log_var=0.0))
    assert there_and_back(made).keywords == {"log_var": 0.0}
