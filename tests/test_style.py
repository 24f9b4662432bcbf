"""The style-based generator: its arithmetic, its noise, its styles, and a GAN that has it."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import SHAPE, batch

import jaxvae
from jaxvae.models import GAN
from jaxvae.networks import MLPDiscriminator, ModulatedConv, StyleGenerator
from jaxvae.objectives import gan_loss

B, D = 3, 4
GENERATOR = StyleGenerator(SHAPE, channels=(4,), mapping=(8, 6))
LATENT = jax.random.normal(jax.random.key(7), (B, D))
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def params():
    """With weights for the noise, which is none at the start."""
    params = jax.jit(GENERATOR.init)(jax.random.key(0), LATENT)
    for i in range(2):
        params["params"][f"layer_{i}"]["noise"] += 0.5
    return params


@pytest.fixture(scope="module")
def generate():
    return jax.jit(GENERATOR.apply)


@pytest.mark.parametrize("demodulate", [True, False])
def test_one_convolution_for_all_is_one_of_each_examples_own(key, demodulate):
    """Against weights of Karras et al. (2020), eq. 1 and 3, made for each example in float64."""
    layer = ModulatedConv(5, (3, 3), demodulate)
    x, style = jax.random.normal(key, (B, 4, 6, 2)), jax.random.normal(jax.random.key(1), (B, 7))
    made, variables = layer.init_with_output(key, x, style)
    own = jax.tree.map(partial(np.asarray, dtype=np.float64), variables["params"])
    scale = np.asarray(style, np.float64) @ own["style"]["kernel"] + 1  # the bias starts at 1
    weights = own["kernel"] * scale[:, None, None, :, None]
    if demodulate:
        weights /= np.sqrt(np.square(weights).sum(axis=(1, 2, 3), keepdims=True) + 1e-8)
        np.testing.assert_allclose(np.square(weights).sum(axis=(1, 2, 3)), 1, atol=1e-6)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((B, 4, 6, 5))
    for row, column in np.ndindex(3, 3):
        window = padded[:, row : row + 4, column : column + 6]
        expected += np.einsum("bhwi,bio->bhwo", window, weights[:, row, column])
    np.testing.assert_allclose(made, expected, rtol=1e-4, atol=1e-5)


def test_features_have_unit_variance_whatever_the_style(key):
    layer = ModulatedConv(4)
    style = 20 * jax.random.normal(jax.random.key(1), (2, 7))
    x = jax.random.normal(key, (2, 66, 66, 8))
    inside = np.asarray(layer.init_with_output(key, x, style)[0])[:, 1:-1, 1:-1]
    np.testing.assert_allclose(inside.var(axis=(1, 2)), 1, atol=0.15)
    assert inside.var() == pytest.approx(1, abs=0.03)


def test_noise_is_none_at_the_start_and_without_a_key(generate, params):
    fresh = jax.jit(GENERATOR.init)(jax.random.key(0), LATENT)
    np.testing.assert_allclose(generate(fresh, LATENT, key=KEY), generate(fresh, LATENT), rtol=1e-6, atol=1e-7)
    assert not any(fresh["params"][f"layer_{i}"]["noise"].any() for i in range(2))
    with_noise, without = generate(params, LATENT, key=KEY), generate(params, LATENT)
    assert np.abs(with_noise - without).reshape(B, -1).max(axis=1).min() > 1e-2
    assert np.abs(with_noise - generate(params, LATENT, key=jax.random.key(12))).max() > 1e-2
    np.testing.assert_array_equal(without, generate(params, LATENT))


def test_noise_belongs_to_the_example(generate, params):
    keys = jax.random.split(KEY, B)
    together = generate(params, LATENT, key=keys)
    for i in range(B):
        alone = generate(params, LATENT[i : i + 1], key=keys[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], rtol=1e-5, atol=1e-6)


def test_a_mixture_of_styles_goes_from_one_latent_to_the_other(generate, params):
    """Layer 0 is the second's alone, the last the first's; between them each layer adds something of the first."""
    mix = jax.jit(partial(GENERATOR.apply, method="mix"), static_argnums=3)
    first, second = LATENT, LATENT[::-1] + 1
    assert GENERATOR.num_layers == 3
    mixed = [np.asarray(mix(params, first, second, layer, key=KEY)) for layer in range(4)]
    np.testing.assert_allclose(mixed[0], generate(params, second, key=KEY), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[3], generate(params, first, key=KEY), rtol=1e-5, atol=1e-6)
    for one, next_one in itertools.pairwise(mixed):
        assert np.abs(one - next_one).max() > 1e-3


def test_the_scale_of_a_latent_is_lost_and_its_direction_counts(generate, params):
    np.testing.assert_allclose(generate(params, 3 * LATENT), generate(params, LATENT), rtol=1e-4, atol=1e-5)
    assert np.abs(generate(params, -LATENT) - generate(params, LATENT)).max() > 1e-2


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1), (8, 8, 1, 2)])
def test_sizes_are_any(key, shape):
    network = StyleGenerator(shape, channels=(4, 8), mapping=(8,))
    made, variables = jax.eval_shape(lambda: network.init_with_output(key, LATENT, key=KEY))
    assert made.shape == (B, *shape)
    assert made.dtype == jnp.float32
    assert variables["params"]["constant"].shape == (-(-shape[0] // 4), -(-shape[1] // 4), 8)


MODEL = GAN(GENERATOR, MLPDiscriminator((8,)), D, output=jax.nn.sigmoid)


def test_a_gan_hands_it_the_keys_and_trains_all_of_it(generate, params):
    x = batch(B)["x"]
    variables = jax.jit(MODEL.init)(jax.random.key(0), x)
    variables = {"params": {**variables["params"], "generator": params["params"]}}
    loss = lambda own: gan_loss(MODEL, own, (), batch(B), key=KEY, step=0)[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(variables)["params"]["generator"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    keys = jax.random.split(KEY, B)
    latent = jnp.stack([jax.random.normal(each, (D,)) for each in keys])
    own = jnp.stack([jax.random.fold_in(each, 2**32 - 1) for each in keys])
    expected = jax.nn.sigmoid(generate(params, latent, key=own))
    apply = lambda method, *of: jax.jit(partial(MODEL.apply, method=method))(variables, *of)  # noqa: E731
    drawn = jax.jit(lambda keys: MODEL.apply(variables, B, key=keys, method="sample"))(keys)
    np.testing.assert_allclose(drawn, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(apply("simulate", keys), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(apply("generate", latent) - drawn).max() > 1e-3


def test_noise_reaches_it_through_a_condition(params, key):
    conditioned = jaxvae.Conditioned(GENERATOR)
    made = lambda **noise: conditioned.apply(own, LATENT[:, :2], LATENT[:, 2:], **noise)  # noqa: E731
    own = {"params": {"body": params["params"]}}
    np.testing.assert_allclose(made(key=KEY), GENERATOR.apply(params, LATENT, key=KEY), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made(), GENERATOR.apply(params, LATENT), rtol=1e-5, atol=1e-6)


def test_bad_input_is_named(params):
    mix = partial(GENERATOR.apply, params, LATENT, LATENT, method="mix")
    for call, error, says in (
        (lambda: StyleGenerator((8,)), ValueError, r"output_shape must be \(H, W, ...\), got \(8,\)"),
        (lambda: StyleGenerator(SHAPE, channels=()), ValueError, "channels must hold at least one width"),
        (lambda: StyleGenerator(SHAPE, mapping=()), ValueError, "mapping must hold at least one width"),
        (lambda: StyleGenerator(SHAPE, mapping=(0,)), ValueError, "mapping must be at least 1"),
        (lambda: mix(4), ValueError, "layer must be at most 3, the number of layers, got 4"),
        (lambda: mix(-1), ValueError, "layer must be at least 0, got -1"),
        (lambda: mix(0.5), TypeError, "layer must be an integer, got 0.5"),
        (lambda: GENERATOR.apply(params, LATENT[:0]), ValueError, "which holds nothing"),
        (lambda: GENERATOR.apply(params, LATENT, key=0), TypeError, "key must come from jax.random.key"),
        (lambda: GENERATOR.apply(params, LATENT, key=jax.random.split(KEY, 5)), ValueError, r"key must have shape"),
    ):
        with pytest.raises(error, match=says):
            call()
