"""The gradient of every objective against central differences of its value, in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import VARIANTS, batch, vq_vae

import jaxvae

B, DIRECTIONS, STEP = 3, 3, 1e-6
# One of each objective; the likelihoods' own gradients are in tests/test_losses.py, the convolutions' in
# tests/test_convolution.py. The doubly reparameterised gradient equals the value's derivative in expectation alone:
# tests/test_iwae.py.
OBJECTIVES = [
    *("beta", "capacity", "free bits", "total correlation", "iwae", "hierarchical", "linear", "autoencoder"),
    *("conditional", "semi-supervised"),
]
VQ_VAES = {
    "groups by moving averages": vq_vae(
        jaxvae.Grouped(jaxvae.EMACodebook(8, restart_threshold=0.0), 2), commitment_weight=0.7
    ),
    "codes by gradient": vq_vae(jaxvae.GradientCodebook(8), commitment_weight=0.7),
}


def wide(tree):
    """Floating leaves as float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def noise_like(tree, seed):
    """Of length one, as a vector of all leaves."""
    rng = np.random.default_rng(seed)
    noise = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), tree)
    length = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(noise)))
    return jax.tree.map(lambda leaf: leaf / length, noise)


def shifted(params, direction, step):
    """In NumPy: JAX would compile it for every shape."""
    return jax.tree.map(lambda leaf, towards: leaf + step * towards, params, direction)


def start_from(init):
    """Parameters near the initial ones, and the model's state. Biases of 0 are where a ReLU of zeros has its kink."""
    params, model_state = wide(init(key=jax.random.key(1)))
    return shifted(params, noise_like(params, seed=9), 0.5), model_state


def check_gradient(value, params, smooth=None):
    """That the gradient of `value` is the slope of `smooth`, of `value` itself unless given, in random directions."""
    both = jax.jit(jax.value_and_grad(value))
    gradient = both(params)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float64)}
    height = jax.jit(smooth) if smooth else lambda params: both(params)[0]
    for seed in range(DIRECTIONS):
        direction = noise_like(params, seed)
        slope = (height(shifted(params, direction, STEP)) - height(shifted(params, direction, -STEP))) / (2 * STEP)
        component = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
        np.testing.assert_allclose(component, slope, rtol=1e-6, atol=1e-7)
        assert abs(slope) > 1e-4  # or there was nothing to see


@pytest.mark.parametrize(
    "name",  # the slow run takes the others, each of which has another test of its value
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("iwae", "hierarchical", "semi-supervised")))
        for name in OBJECTIVES
    ],
)
def test_the_gradient_is_the_derivative(name, x64):
    variant = VARIANTS[name]
    params, model_state = start_from(variant.init)
    examples = wide(batch(B))
    check_gradient(
        lambda params: variant.loss_fn(params, model_state, examples, key=jax.random.key(2), step=jnp.int32(20))[0],
        params,
    )


def test_the_gradient_of_a_pixel_cnn_is_the_derivative(x64):
    model = jaxvae.PixelCNN(4, (3, 3), channels=4, layers=2, num_classes=3, dtype=x64)
    maps = {"code": jnp.asarray(np.random.default_rng(0).integers(0, 4, (B, 3, 3))), "label": jnp.arange(B)}
    params, _ = start_from(lambda *, key: (jax.jit(model.init)(key, maps["code"], maps["label"]), ()))
    loss = partial(jaxvae.pixel_cnn_loss, model)
    check_gradient(lambda params: loss(params, (), maps, key=jax.random.key(2), step=0)[0], params)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.startswith("codes")) for name in VQ_VAES]
)
def test_the_gradient_of_a_vq_vae_is_that_of_its_terms(name, x64):
    """With the indices fixed each term is smooth, in what its gradient reaches.

    The encoder gets the distortion's derivative with respect to the decoder's input, and the commitment's; the decoder
    the distortion's; codes that are parameters the second term's.
    """
    variant = VQ_VAES[name]
    start, model_state = start_from(variant.init)
    x = wide(batch(B))["x"]
    encode, decode = (jax.jit(partial(variant.model.apply, method=method)) for method in ("encode", "decode"))
    encoded = encode({"params": start["params"]}, x)
    quantizer, state = variant.model.quantizer, dict(model_state or {}).get("quantizer", {})
    quantized, indices = jax.jit(quantizer.__call__)(start.get("quantizer", {}), state, encoded)[:2]

    def distance(encoded, codes):
        return jnp.square(encoded - codes).reshape(B, -1).mean(axis=1)

    def terms(params):
        networks = {"params": params["params"]}
        moved = encode(networks, x)
        distortion = -decode(networks, quantized + moved - encoded).log_prob(x)
        total = distortion + 0.7 * distance(moved, quantized)
        if "quantizer" in params:
            total += distance(encoded, params["quantizer"]["codes"][indices])
        return total.mean()

    examples = batch(B) | {"x": x}

    def value(params):
        return variant.loss_fn(params, model_state, examples, key=jax.random.key(2), step=0)[0]

    terms = jax.jit(terms)
    np.testing.assert_allclose(value(start), terms(start), rtol=1e-12)
    check_gradient(value, start, smooth=terms)
