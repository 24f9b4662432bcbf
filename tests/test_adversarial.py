"""Losses of a discriminator and a generator, penalties of slopes, discriminators, and one optimiser over two groups."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import norm

from jaxvae import losses
from jaxvae.convolution import conv
from jaxvae.losses import HINGE, MINIMAX, NON_SATURATING, WASSERSTEIN
from jaxvae.networks import ConvDiscriminator, MLPDiscriminator, PatchDiscriminator
from jaxvae.training import adversarial_optimizer

LOGITS = np.array([-120.0, -2.0, -0.5, 0.0, 0.5, 3.0, 120.0], np.float32)


def log_sigmoid(logits):
    logits = np.asarray(logits, np.float64)
    return np.minimum(logits, 0) - np.log1p(np.exp(-np.abs(logits)))


@pytest.mark.parametrize(
    ("loss", "real", "fake", "generator"),
    [
        (NON_SATURATING, -log_sigmoid(LOGITS), -log_sigmoid(-LOGITS), -log_sigmoid(LOGITS)),
        (MINIMAX, -log_sigmoid(LOGITS), -log_sigmoid(-LOGITS), log_sigmoid(-LOGITS)),
        (HINGE, np.maximum(0, 1 - LOGITS), np.maximum(0, 1 + LOGITS), -LOGITS),
        (WASSERSTEIN, -LOGITS, LOGITS, -LOGITS),
    ],
    ids=["non-saturating", "minimax", "hinge", "wasserstein"],
)
def test_losses_are_their_formulas(loss, real, fake, generator):
    np.testing.assert_allclose(loss.real(jnp.array(LOGITS)), real, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(loss.fake(jnp.array(LOGITS)), fake, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(loss.generator(jnp.array(LOGITS)), generator, rtol=1e-6, atol=1e-30)
    both = loss.discriminator(jnp.array(LOGITS), jnp.array(LOGITS[::-1]))
    np.testing.assert_allclose(both, real + fake[::-1], rtol=1e-6, atol=1e-30)
    patches = jnp.array(LOGITS[:6]).reshape(2, 3, 1)
    np.testing.assert_allclose(loss.real(patches), real[:6].reshape(2, 3).mean(axis=1), rtol=1e-6)


def test_the_best_discriminator_is_p_over_p_plus_q_and_worth_log_4_where_they_agree():
    """Of two known densities of three values, by Newton's method on the logits: no better ones exist."""
    p, q = jnp.array([0.2, 0.5, 0.3]), jnp.array([0.6, 0.3, 0.1])

    def value(logits, p, q):
        return (p * NON_SATURATING.real(logits)).sum() + (q * NON_SATURATING.fake(logits)).sum()

    @jax.jit
    def best(fake):
        def newton(_, logits):
            gradient = jax.grad(value)(logits, p, fake)
            return logits - gradient / jnp.diagonal(jax.hessian(value)(logits, p, fake))

        return jax.lax.fori_loop(0, 20, newton, jnp.zeros(3))

    for fake in (q, p):
        logits = best(fake)
        np.testing.assert_allclose(jax.nn.sigmoid(logits), p / (p + fake), rtol=1e-5)
        mixed = 0.5 * (p + fake)
        jensen_shannon = 0.5 * (p * jnp.log(p / mixed)).sum() + 0.5 * (fake * jnp.log(fake / mixed)).sum()
        assert value(logits, p, fake) == pytest.approx(np.log(4) - 2 * float(jensen_shannon), rel=1e-6)
    # The generator's gain at the best discriminator: minimax is exactly minus what its fakes cost the discriminator.
    np.testing.assert_array_equal(MINIMAX.generator(logits), -MINIMAX.fake(logits))


def test_the_gradient_penalty_is_of_each_example_at_its_own_point(key):
    """D(x) = Σ x³ has the slope 3 x²: the point between follows from the penalty."""
    real, fake = jnp.ones((5, 2, 3)), jnp.full((5, 2, 3), 3.0)
    cubic = lambda x: (x**3).sum(axis=(1, 2))  # noqa: E731
    keys = jax.random.split(key, 5)
    slope = 1 + np.sqrt(losses.gradient_penalty(cubic, real, fake, key=keys))
    point = np.sqrt(slope / (3 * np.sqrt(6)))
    share = jax.vmap(jax.random.uniform)(keys)
    np.testing.assert_allclose(point, share * 1.0 + (1 - share) * 3.0, rtol=1e-5)
    one = losses.gradient_penalty(cubic, real, fake, key=key)
    assert len(np.unique(one)) == 5
    # Shuffled examples keep their own.
    order = jnp.array([3, 1, 4, 0, 2])
    shuffled = losses.gradient_penalty(cubic, real[order], fake[order], key=keys[order])
    np.testing.assert_allclose(shuffled, losses.gradient_penalty(cubic, real, fake, key=keys)[order])


def test_a_flat_critic_is_penalised_without_nan(key):
    x = jnp.ones((3, 4))

    def penalty(w):
        return losses.gradient_penalty(lambda x: (x * w).sum(axis=1), x, 2 * x, key=key).sum()

    value, gradient = jax.value_and_grad(penalty)(jnp.float32(0))
    assert value == 3
    assert gradient == 0
    assert jax.grad(penalty)(jnp.float32(0.25)) == pytest.approx(3 * 2 * (0.5 - 1) * 2)  # norm = 2 |w|


def test_the_linear_critic_of_a_penalised_distance_is_known(key):
    """min_w -d w + λ (|w| - 1)²: w = 1 + d / 2λ, and the objective is d + d² / 4λ."""
    distance, weight = 1.5, 10.0
    real, fake = jnp.array([[distance]]), jnp.array([[0.0]])

    def paid(w):
        critic = lambda x: x[:, 0] * w  # noqa: E731
        penalty = losses.gradient_penalty(critic, real, fake, key=key)
        return (WASSERSTEIN.discriminator(critic(real), critic(fake)) + weight * penalty).mean()

    step = jax.jit(lambda w: w - 0.03 * jax.grad(paid)(w))
    w = jnp.float32(0.3)
    for _ in range(60):
        w = step(w)
    assert w == pytest.approx(1 + distance / (2 * weight), rel=1e-5)
    assert -paid(w) == pytest.approx(distance + distance**2 / (4 * weight), rel=1e-5)


def test_r1_is_half_the_squared_slope_at_real_examples():
    x = jnp.array([[[1.0, -2.0]], [[0.5, 3.0]]])
    square = losses.r1_penalty(lambda x: (x**2).sum(axis=(1, 2)), x)
    np.testing.assert_allclose(square, 0.5 * 4 * np.square(x).sum(axis=(1, 2)))
    patches = losses.r1_penalty(lambda x: x[:, 0] ** 2, x)  # two logits of each example: the slope of their mean
    np.testing.assert_allclose(patches, 0.5 * np.square(x).sum(axis=(1, 2)))


def test_the_adaptive_weight_is_a_bounded_ratio_without_a_gradient():
    of = losses.adaptive_weight
    assert of(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0])) == pytest.approx(5 / (2 + 1e-4))
    assert of(jnp.ones(3), jnp.zeros(3)) == 1e4  # 17320 without the bound
    assert of(jnp.zeros(3), jnp.ones(3)) == 0
    assert np.all(jax.grad(lambda a: of(a, jnp.ones(2)))(jnp.array([3.0, 4.0])) == 0)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda key: HINGE.real(jnp.array([1])), TypeError, "logits must be floating, got int32"),
        (lambda key: HINGE.real(jnp.array(1.0)), ValueError, "logits must have a batch axis, \\[B, ...\\], got a scal"),
        (
            lambda key: losses.gradient_penalty(lambda x: x[:, 0], jnp.ones((2, 3)), jnp.ones((2, 4)), key=key),
            ValueError,
            r"real and fake must have one shape, got \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda key: losses.gradient_penalty(lambda x: x[:, 0], jnp.ones((2, 3)), jnp.ones((2, 3)), key=0),
            TypeError,
            "key must come from jax.random.key, got 0",
        ),
        (
            lambda key: losses.gradient_penalty(
                lambda x: x[:, 0], jnp.ones((2, 3)), jnp.ones((2, 3)), key=jax.random.split(key, 3)
            ),
            ValueError,
            r"key must have shape \(\) or \(2,\) \(one for each example\), got \(3,\)",
        ),
        (
            lambda key: losses.r1_penalty(lambda x: x.sum()[None], jnp.ones((2, 3))),
            ValueError,
            r"the critic must return logits \(2, \.\.\.\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, says, key):
    with pytest.raises(error, match=says):
        call(key)


NETWORKS = {
    "dense": (MLPDiscriminator((16, 8)), (), {"layer_0": (16,), "layer_1": (8,), None: (8,)}),
    "convolutional": (
        ConvDiscriminator((4, 6), 10),
        (),
        {"layer_0": (4, 4, 4), "layer_1": (2, 2, 6), "hidden": (10,), None: (10,)},
    ),
    "patches": (
        PatchDiscriminator((4, 6)),
        (2, 2),
        {"layer_0": (4, 4, 4), "hidden": (2, 2, 6), None: (2, 2, 6)},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_discriminators_say_logits_and_the_features_of_a_layer(name, key):
    network, logits_shape, layers = NETWORKS[name]
    x = jax.random.uniform(key, (3, 8, 8, 1))
    params = network.init(key, x)
    logits = network.apply(params, x)
    assert logits.shape == (3, *logits_shape)
    for layer, shape in layers.items():
        same, features = network.apply(params, x, layer=layer, method="with_features")
        assert features.shape == (3, *shape)
        np.testing.assert_array_equal(same, logits)
    # The last features alone decide: what is named is what the logits are made of.
    last = network.apply(params, x, method="with_features")[1]
    output = params["params"]["output"]
    np.testing.assert_allclose(logits, (last @ output["kernel"])[..., 0] + output["bias"][0], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="there is no layer 'layer_9', only layer_0, "):
        network.apply(params, x, layer="layer_9", method="with_features")
    with pytest.raises(ValueError, match="of no classes got 1 arrays of labels"):
        network.apply(params, x, jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_projected_onto_the_last_features(name, key):
    network = NETWORKS[name][0].clone(num_classes=4)
    x, label = jax.random.uniform(key, (3, 8, 8, 1)), jnp.array([3, 0, 3])
    params = network.init(key, x, label)
    logits, features = network.apply(params, x, label, method="with_features")
    own = params["params"]
    vectors = own["embed"]["vectors"]["embedding"][label]
    spread = vectors.reshape(3, *[1] * (features.ndim - 2), -1)
    expected = (features @ own["output"]["kernel"])[..., 0] + own["output"]["bias"][0]
    expected += (features * spread).sum(axis=-1) / np.sqrt(features.shape[-1])
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="of 4 classes got 0 arrays of labels"):
        network.apply(params, x)


def test_a_penalty_goes_through_convolutions_twice(key):
    """Its gradient for the kernels, against XLA's own convolution; the sizes take each way of `jaxvae.convolution`."""
    x, keys = jax.random.normal(key, (2, 8, 8, 1)), jax.random.split(key, 3)
    shapes = ((4, 4, 1, 20), (4, 4, 20, 8), (4 * 8, 1))
    kernels = [0.3 * jax.random.normal(each, shape) for each, shape in zip(keys, shapes, strict=True)]

    def stock(x, kernel, *, strides):
        return jax.lax.conv_general_dilated(
            x, kernel, (strides,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def penalty(kernels, convolve):
        def critic(x):
            for kernel in kernels[:-1]:
                x = jnp.tanh(convolve(x, kernel, strides=2))
            return x.reshape(len(x), -1) @ kernels[-1]

        return losses.gradient_penalty(critic, x, -x, key=key).sum()

    ours, theirs = (jax.jit(jax.grad(partial(penalty, convolve=each)))(kernels) for each in (conv, stock))
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


PARAMS = {"params": {"generator": {"w": jnp.ones(2)}, "discriminator": {"w": jnp.ones(3)}}}


def gradient(generator, discriminator):
    return {
        "params": {"generator": {"w": generator * jnp.ones(2)}, "discriminator": {"w": discriminator * jnp.ones(3)}}
    }


def test_each_group_is_moved_by_its_own_optimiser():
    optimizer = adversarial_optimizer(optax.sgd(0.1), optax.sgd(10.0))
    updates, _ = optimizer.update(gradient(1.0, 2.0), optimizer.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(updates, gradient(-0.1, -20.0))


def test_a_group_without_a_gradient_keeps_its_moments_and_its_step():
    """Adam after 2 steps with a gradient and 3 without is Adam after 2 steps; NaN is not nothing."""
    rate = optax.linear_schedule(0.1, 0.0, 10)
    optimizer = adversarial_optimizer(optax.adam(rate), optax.adam(1e-2))
    plain = optax.adam(rate)
    state, alone = optimizer.init(PARAMS), plain.init(PARAMS["params"]["generator"])
    for mine in (1.0, 0.0, 0.0, -2.0, 0.0):
        updates, state = jax.jit(optimizer.update)(gradient(mine, 1.0), state, PARAMS)
        own = updates["params"]["generator"]
        if mine:
            expected, alone = plain.update(gradient(mine, 0.0)["params"]["generator"], alone)
            chex.assert_trees_all_close(own, expected, rtol=1e-6)
        else:
            assert np.all(own["w"] == 0)
        assert np.all(updates["params"]["discriminator"]["w"] < 0)
    updates, _ = optimizer.update(gradient(np.nan, 1.0), state, PARAMS)
    assert np.isnan(updates["params"]["generator"]["w"]).all()


@pytest.mark.parametrize(("name", "missing"), [("generator", "discriminator"), ("discriminator", "generator")])
def test_a_missing_group_is_named(name, missing):
    optimizer = adversarial_optimizer(optax.sgd(0.1), optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"there are no parameters of a {missing}"):
        optimizer.init({"params": {name: PARAMS["params"][name]}})


@pytest.mark.slow
def test_a_critic_reads_the_distance_of_two_gaussians():
    """W₁ of N(0, 1) and N(d, σ²): s √(2/π) e^(-d²/2s²) + d (1 - 2 Φ(-d/s)), s = |1 - σ|, within 3 %.

    The best critic rises, then falls. The penalty of slopes below 1 holds one that rises throughout where it is, which
    reads |d| alone, so the weight begins small.
    """
    shift, scale, first, weight, steps = 1.0, 2.5, 0.3, 100.0, 2000
    s = abs(1 - scale)
    exact = s * np.sqrt(2 / np.pi) * np.exp(-(shift**2) / (2 * s**2)) + shift * (1 - 2 * norm.cdf(-shift / s))
    network = MLPDiscriminator((64, 64))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps), b1=0.5, b2=0.9)
    growing = optax.exponential_decay(first, int(0.6 * steps), weight / first, end_value=weight)

    def pairs(key, count):
        real, fake = jax.random.normal(key, (2, count, 1))
        return real, shift + scale * fake

    def paid(params, step):
        data_key, point_key = jax.random.split(jax.random.fold_in(jax.random.key(1), step))
        real, fake = pairs(data_key, 256)
        critic = lambda x: network.apply(params, x)  # noqa: E731
        penalty = losses.gradient_penalty(critic, real, fake, key=point_key)
        return (WASSERSTEIN.discriminator(critic(real), critic(fake)) + growing(step) * penalty).mean()

    @jax.jit
    def train(params):
        def step(i, carry):
            params, state = carry
            updates, state = optimizer.update(jax.grad(paid)(params, i), state)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, steps, step, (params, optimizer.init(params)))[0]

    params = train(network.init(jax.random.key(0), jnp.zeros((1, 1))))
    real, fake = pairs(jax.random.key(2), 400_000)
    distance = -WASSERSTEIN.discriminator(network.apply(params, real), network.apply(params, fake)).mean()
    assert distance == pytest.approx(exact, rel=0.03)
