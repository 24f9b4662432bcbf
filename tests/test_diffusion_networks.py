"""The networks of diffusions: the U-Net of x of any size, with the noise and without; the dense one."""

import pickle
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxvae.networks import DenoisingMLP, NoiseEmbedding, UNet
from jaxvae.networks.unet import SpatialAttention

SMALL = {"channels": (4, 8), "blocks": 1, "groups": 2}
KEY = jax.random.key(0)


@cache
def moved(model, *shapes):
    """Parameters away from where they start, which is at zero; the inputs are zeros of these shapes and types."""
    tree = jax.eval_shape(model.init, KEY, *(jax.ShapeDtypeStruct(*each) for each in shapes))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(scale=1 / 3, size=leaf.shape), jnp.float32), tree)


def params_of(model, *arguments):
    return moved(model, *((each.shape, each.dtype) for each in arguments))


@partial(jax.jit, static_argnums=0)
def run(model, params, *arguments):
    return model.apply(params, *arguments)


@partial(jax.jit, static_argnums=0)
def gradient(model, params, *arguments):
    return jax.grad(lambda params: jnp.square(model.apply(params, *arguments) - 1).sum())(params)


def x_of(*shape):
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize(
    ("spatial", "channels"),
    [((7, 5), (4, 4)), ((5,), (4, 4, 4)), pytest.param((3, 6, 5), (4,), marks=pytest.mark.slow)],
)
def test_images_of_any_size_in_any_dimension_come_out_as_large(spatial, channels):
    model, x = UNet(2, channels, groups=4, embedding=None), x_of(2, *spatial, 3)
    params = params_of(model, x)
    output = run(model, params, x)
    assert output.shape == (2, *spatial, 2)
    assert output.dtype == jnp.float32
    # Every place matters: the last of each axis too, where the halves of odd sizes end.
    changed = run(model, params, x.at[(0, *(size - 1 for size in spatial), 0)].add(1.0))
    assert np.abs(changed[0] - output[0]).max() > 1e-3
    np.testing.assert_array_equal(changed[1], output[1])


WHOLE = UNet(1, heads=2, num_classes=3, **SMALL)
TOLD = x_of(3, 4, 4, 1), jnp.array([-3.0, 0.0, 5.0]), jnp.array([0, 2, 3])


def test_it_starts_at_zero_and_every_parameter_learns():
    np.testing.assert_array_equal(run(WHOLE, jax.jit(WHOLE.init)(KEY, *TOLD), *TOLD), 0)
    slopes = gradient(WHOLE, params_of(WHOLE, *TOLD), *TOLD)
    for path, leaf in jax.tree.leaves_with_path(slopes):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    label = slopes["params"]["noise"]["label"]["vectors"]["embedding"]
    np.testing.assert_array_equal(np.abs(label).max(axis=1) > 0, [True, False, True, True])


def test_an_example_is_told_its_own_noise_and_label_and_nothing_of_the_others():
    params, (x, log_snr, label) = params_of(WHOLE, *TOLD), TOLD
    output = run(WHOLE, params, x, log_snr, label)
    for changed in (
        (x.at[1].add(1), log_snr, label),
        (x, log_snr.at[1].add(1), label),
        (x, log_snr, label.at[1].set(1)),
    ):
        other = run(WHOLE, params, *changed)
        np.testing.assert_array_equal((other != output).any(axis=(1, 2, 3)), [False, True, False])


def test_attention_is_a_softmax_over_all_places():
    model, x = SpatialAttention(2, groups=4), x_of(1, 2, 3, 4)
    params = params_of(model, x)
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    flat = np.asarray(x, np.float64).reshape(6, 4)
    norm = own["Modulated_0"]["GroupNorm_0"]
    normed = (flat - flat.mean(axis=0)) / np.sqrt(flat.var(axis=0) + 1e-6) * norm["scale"] + norm["bias"]
    query, key, value = np.split((normed @ own["qkv"]["kernel"] + own["qkv"]["bias"]).reshape(6, 6, 2), 3, axis=1)
    weights = special.softmax(np.einsum("thd,shd->hts", query, key) / np.sqrt(2), axis=-1)
    mixed = np.einsum("hts,shd->thd", weights, value).reshape(6, 4)
    expected = flat + mixed @ own["output"]["kernel"] + own["output"]["bias"]
    np.testing.assert_allclose(run(model, params, x).reshape(6, 4), expected, rtol=1e-4, atol=1e-4)


def test_the_dense_network_keeps_any_shape_and_every_parameter_learns():
    model, z = DenoisingMLP(8, 2, embedding=8, num_classes=2), x_of(3, 2, 2)
    arguments = z, jnp.array([-3.0, 0.0, 5.0]), jnp.array([0, 1, 2])
    np.testing.assert_array_equal(run(model, jax.jit(model.init)(KEY, *arguments), *arguments), 0)
    params = params_of(model, *arguments)
    output = run(model, params, *arguments)
    assert output.shape == z.shape
    for leaf in jax.tree.leaves(gradient(model, params, *arguments)):
        assert np.abs(leaf).max() > 0
    for changed in ((z, arguments[1].at[1].add(1.0), arguments[2]), (z.at[1].add(1), *arguments[1:])):
        np.testing.assert_array_equal((run(model, params, *changed) != output).any(axis=(1, 2)), [False, True, False])


def test_noise_levels_are_told_apart_from_end_to_end():
    embed = NoiseEmbedding(16)
    log_snr = jnp.linspace(-20, 20, 401)
    features = np.asarray(run(embed, params_of(embed, log_snr), log_snr))
    steps = np.linalg.norm(np.diff(features, axis=0), axis=1)
    assert steps.min() > 1e-3
    assert steps.max() < 50 * steps.min()  # no jumps
    far = np.linalg.norm(features[:, None] - features[None], axis=-1)[np.triu_indices(401, 40)]
    assert far.min() > steps.min()


def test_they_hash_and_pickle():
    for model in (UNet(1, [4, 8]), DenoisingMLP(num_classes=3)):
        assert pickle.loads(pickle.dumps(model)) == model
        hash(model)


@pytest.mark.slow
def test_bfloat16_computes_nearly_the_same():
    x, log_snr = x_of(2, 4, 4, 1), jnp.array([0.0, 2.0])
    wide, narrow = UNet(1, heads=2, **SMALL), UNet(1, heads=2, dtype=jnp.bfloat16, **SMALL)
    params = params_of(wide, x, log_snr)
    exact, rounded = run(wide, params, x, log_snr), run(narrow, params, x, log_snr)
    assert rounded.dtype == jnp.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def of(model, *arguments):
    return jax.eval_shape(model.init, KEY, *arguments)


X, LOG_SNR = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2)
REFUSED = {
    "channels": (lambda: UNet(1, ()), ValueError, "channels must hold at least one width"),
    "a width": (lambda: UNet(1, (4, 0)), ValueError, r"channels must be at least 1, got \(4, 0\)"),
    "blocks": (lambda: UNet(1, blocks=0), ValueError, "blocks must be at least 1, got 0"),
    "heads": (lambda: UNet(1, (4, 8), heads=3), ValueError, "heads must divide the last of channels, 8, got 3"),
    "classes": (lambda: UNet(1, embedding=None, num_classes=3), ValueError, "num_classes needs an embedding"),
    "half": (lambda: UNet(1.5), TypeError, "output_channels must be an integer, got 1.5"),
    "no noise": (lambda: of(UNet(1), X), ValueError, "the network is told of the noise: pass log_snr, or make it with"),
    "noise": (lambda: of(UNet(1, embedding=None), X, LOG_SNR), ValueError, "the network is one of x alone: pass nei"),
    "label": (lambda: of(UNet(1), X, LOG_SNR, jnp.zeros(2, int)), ValueError, "made with num_classes where it is giv"),
    "no label": (lambda: of(UNet(1, num_classes=3), X, LOG_SNR), ValueError, "and else without: it has 3"),
    "nothing": (lambda: of(UNet(1), X[:0], LOG_SNR[:0]), ValueError, "which holds nothing"),
    "dense blocks": (lambda: DenoisingMLP(blocks=0), ValueError, "blocks must be at least 1, got 0"),
    "dense hidden": (lambda: DenoisingMLP(hidden=0), ValueError, "hidden must be at least 1, got 0"),
    "dense label": (lambda: of(DenoisingMLP(8), X, LOG_SNR, LOG_SNR), ValueError, "made with num_classes where it is"),
}


@pytest.mark.parametrize(("bad", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(bad, error, message):
    with pytest.raises(error, match=message):
        bad()
