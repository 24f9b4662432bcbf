"""Every loss over random shapes, types and extreme values, and every network in bfloat16."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from variants import SHAPE, batch

import jaxvae
from jaxvae import losses

LEVELS = 17  # of the discretised logistic: its values and the width of its bins are exact in bfloat16 too


def between(low, high):
    """Mostly anywhere in [low, high], at times at an end or at 0."""

    def draw(rng, shape):
        ends = rng.choice([low, high, np.clip(0.0, low, high)], shape)
        return np.where(rng.random(shape) < 0.3, ends, rng.uniform(low, high, shape))

    return draw


def one_of(*values):
    return lambda rng, shape: rng.choice(values, shape)


def scalar_at_times(draw):
    return lambda rng, shape: draw(rng, shape if rng.random() < 0.6 else ())


def kl(mean, log_var, prior_mean, prior_log_var):
    log_ratio = log_var - prior_log_var
    scaled = np.square(mean - prior_mean) * np.exp(-prior_log_var)
    return 0.5 * (np.expm1(log_ratio) - log_ratio + scaled), np.abs(log_ratio) + 0 * mean


def gaussian(mean, log_var, x):
    constant = np.log(2 * np.pi) + log_var
    return 0.5 * (constant + np.square(x - mean) * np.exp(-log_var)), np.abs(constant) + 0 * mean


def bernoulli(logits, x):
    return -x * special.log_expit(logits) - (1 - x) * special.log_expit(-logits), np.abs(logits)


def logistic(mean, log_scale, x):
    half, scale = 1 / (LEVELS - 1), np.exp(log_scale)
    below, above = special.log_expit((x - mean + half) / scale), special.log_expit(-(x - mean - half) / scale)
    inside = below + above + np.log(-np.expm1(-2 * half / scale))
    return -np.where(x == -1, below, np.where(x == 1, above, inside)), 0 * mean


def squared_error(encoded, quantized):
    return np.square(encoded - quantized) / max(1, encoded[0].size), 0 * encoded


# name: (function, what draws its arguments, the float64 terms of an example and the size of what cancels in them)
LOSSES = {
    "gaussian_kl": (
        losses.gaussian_kl,
        [between(-1e4, 1e4), scalar_at_times(between(-200, 80))],
        lambda mean, log_var: kl(mean, log_var, 0.0, 0.0),
    ),
    "gaussian_kl_between": (
        losses.gaussian_kl_between,
        [between(-1e4, 1e4), between(-40, 40), between(-1e4, 1e4), scalar_at_times(between(-40, 40))],
        kl,
    ),
    "gaussian_nll": (
        losses.gaussian_nll,
        [between(-1, 1), scalar_at_times(between(-80, 80)), one_of(-1.0, 0.0, 1.0)],
        gaussian,
    ),
    "bernoulli_nll": (losses.bernoulli_nll, [between(-1e4, 1e4), one_of(0.0, 0.125, 0.5, 1.0)], bernoulli),
    "discretized_logistic_nll": (
        partial(losses.discretized_logistic_nll, levels=LEVELS),
        [between(-1e4, 1e4), scalar_at_times(between(-40, 40)), one_of(*np.linspace(-1, 1, LEVELS))],
        logistic,
    ),
    "commitment": (losses.commitment, [between(-1e4, 1e4)] * 2, squared_error),
    "codebook_loss": (losses.codebook_loss, [between(-1e4, 1e4)] * 2, squared_error),
}
every_type = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])


def random_shapes(rng):
    """Two batches of 1 to 5 examples; with 0 to 3 axes, which differ."""
    return [tuple(rng.integers(1, [6, *[4] * axes]).tolist()) for axes in rng.permutation(4)[:2]]


def check(loss, arguments, total, magnitude, dtype, batch_axis=0):
    """Finite, close to float64, and each example for itself."""
    moving = [i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.floating)]

    @jax.jit
    def both(*arguments):
        return loss(*arguments), jax.grad(lambda *arguments: loss(*arguments).sum(), moving)(*arguments)

    value, gradient = both(*arguments)
    assert value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
    relative, rounding = (1e-12, 1e-15) if dtype == "float64" else (1e-5, 1e-6)
    assert np.all(np.abs(value - total) <= relative * np.abs(total) + rounding * magnitude), (value, total)

    chex.assert_tree_all_finite((value, gradient))
    order = np.random.default_rng(0).permutation(len(value))
    permuted = [np.take(np.asarray(a), order, axis=batch_axis) if a.ndim > batch_axis else a for a in arguments]
    np.testing.assert_allclose(both(*permuted)[0], value[order], rtol=1e-6)


@every_type
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_exact_for_every_shape_at_the_extremes(name, dtype):
    loss, draws, reference = LOSSES[name]
    rng = np.random.default_rng(sum(map(ord, name + dtype)))
    with jax.enable_x64(dtype == "float64"):
        for shape in random_shapes(rng):
            arguments = [jnp.asarray(draw(rng, shape), dtype) for draw in draws]
            terms, magnitude = reference(*(np.asarray(a, np.float64) for a in arguments))
            total, magnitude = (x.reshape(shape[0], -1).sum(axis=1) for x in (terms, magnitude))
            check(loss, arguments, total, magnitude, dtype)


@every_type
def test_a_categorical_is_exact_for_every_shape_at_the_extremes(dtype):
    rng = np.random.default_rng(len(dtype))
    with jax.enable_x64(dtype == "float64"):
        for shape in random_shapes(rng):
            num_values = rng.integers(1, 6)
            logits = jnp.asarray(between(-1e4, 1e4)(rng, (*shape, num_values)), dtype)
            targets = jnp.asarray(rng.integers(0, num_values, shape))
            wide = np.asarray(logits, np.float64)
            terms = -np.take_along_axis(special.log_softmax(wide, axis=-1), np.asarray(targets)[..., None], -1)
            magnitude = np.abs(wide).max(axis=-1).reshape(shape[0], -1).sum(axis=1)
            total = terms.reshape(shape[0], -1).sum(axis=1)
            check(losses.categorical_nll, [logits, targets], total, magnitude, dtype)


@every_type
def test_the_iwae_bound_is_exact_for_every_shape_at_the_extremes(dtype):
    rng = np.random.default_rng(len(dtype))
    with jax.enable_x64(dtype == "float64"):
        for _ in range(2):
            log_weights = jnp.asarray(between(-1e4, 1e4)(rng, tuple(rng.integers(1, 6, 2))), dtype)
            wide = np.asarray(log_weights, np.float64)
            bound = special.logsumexp(wide, axis=0) - np.log(len(wide))
            check(losses.iwae_bound, [log_weights], bound, np.abs(wide).max(axis=0), dtype, batch_axis=1)


def bodies(dtype):
    return jaxvae.MLPEncoder(3, (16,), dtype=dtype), jaxvae.MLPDecoder(SHAPE, (16,), dtype=dtype)


def labelled(model_of, loss):
    """A model of x and labels in some type, with its arguments for `init` and its objective."""

    def make(dtype):
        model = model_of(dtype)
        return model, (batch(1)["x"], jnp.zeros(1, jnp.int32)), partial(loss, model)

    return make


def unlabelled(model_of, loss, **options):
    def make(dtype):
        model = model_of(dtype)
        return model, (batch(1)["x"],), partial(loss, model, **options)

    return make


def hierarchical(dtype):
    return jaxvae.HierarchicalVAE(
        encoders=(jaxvae.MLPEncoder(4, (16,), dtype=dtype), jaxvae.MLPEncoder(2, (8,), dtype=dtype)),
        decoders=(jaxvae.MLPDecoder(SHAPE, (16,), dtype=dtype), jaxvae.MLPEncoder(4, (8,), dtype=dtype)),
    )


def conditional(dtype):
    return jaxvae.CVAE(*map(jaxvae.Conditioned, bodies(dtype)), embed=jaxvae.LabelEmbedding(3, 4))


def conditional_convolutions(dtype):
    encoder = jaxvae.Conditioned(jaxvae.ConvEncoder(3, (4, 8), 16, dtype=dtype), as_channels=True)
    decoder = jaxvae.Conditioned(jaxvae.ConvDecoder(SHAPE, (4, 8), 16, dtype=dtype))
    return jaxvae.CVAE(encoder, decoder, embed=jaxvae.LabelEmbedding(3, 4))


def vq_vae(dtype):
    encoder = jaxvae.ResidualEncoder(4, (8,), 2, 4, dtype=dtype)
    decoder = jaxvae.ResidualDecoder(1, (8,), 2, 4, dtype=dtype)
    return jaxvae.VQVAE(encoder, decoder, jaxvae.EMACodebook(8), jaxvae.Bernoulli)


def pixel_cnn(dtype):
    return jaxvae.PixelCNN(5, SHAPE, channels=8, layers=2, num_classes=3, dtype=dtype or jnp.float32)


IN_BOTH_TYPES = {
    "hierarchical": unlabelled(hierarchical, jaxvae.sampled_vae_loss),
    "conditional": labelled(conditional_convolutions, jaxvae.cvae_loss),
    "semi-supervised": unlabelled(
        lambda dtype: jaxvae.SemiSupervisedVAE(conditional(dtype), jaxvae.MLPDecoder((3,), (8,), dtype=dtype)),
        jaxvae.semi_supervised_loss,
        classification_weight=1.0,
    ),
    "vq-vae": unlabelled(vq_vae, jaxvae.vq_vae_loss),
    "pixel_cnn": labelled(pixel_cnn, partial(jaxvae.pixel_cnn_loss, field="x")),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "pixel_cnn")) for name in IN_BOTH_TYPES],
)
def test_bfloat16_computes_nearly_the_same(name, key):
    """Within a hundredth of the loss; what comes out, statistics included, is float32."""
    examples = batch(6) | {"label": jnp.arange(6) % 3, "condition": jnp.arange(6) % 3}
    if name != "conditional":
        del examples["condition"]
    codebook = jaxvae.codebook.init_codebook(8, 4, key=key)._asdict()
    model_state = {"quantizer": codebook} if name == "vq-vae" else ()
    (model, arguments, loss), (*_, narrow_loss) = map(IN_BOTH_TYPES[name], (None, jnp.bfloat16))
    params = jax.jit(model.init)(key, *arguments)
    results = [jax.jit(each)(params, model_state, examples, key=key, step=jnp.int32(0)) for each in (loss, narrow_loss)]
    assert {leaf.dtype for leaf in jax.tree.leaves(results)} == {jnp.dtype(jnp.float32)}
    (wide, _), (narrow, _) = results
    assert wide != narrow
    np.testing.assert_allclose(narrow, wide, rtol=1e-2)
