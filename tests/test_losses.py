"""Losses against float64 SciPy, at the edges of their domains, and against what users get wrong."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxvae import losses

B, SHAPE = 5, (3, 2)


def draw(seed=0, *shape):
    return np.random.default_rng(seed).normal(size=shape or (B, *SHAPE))


def kl_reference(mean, log_var, prior_mean, prior_log_var):
    """KL between Gaussians from their entropy and cross-entropy, float64."""
    entropy = 0.5 * (np.log(2 * np.pi * np.e) + log_var)
    cross = 0.5 * (
        np.log(2 * np.pi) + prior_log_var + (np.exp(log_var) + (mean - prior_mean) ** 2) / np.exp(prior_log_var)
    )
    return (cross - entropy).reshape(B, -1).sum(1)


def categorical_reference(logits, targets):
    log_p = special.log_softmax(logits, axis=-1)
    return -np.take_along_axis(log_p, targets[..., None], -1).reshape(B, -1).sum(1)


def logistic_reference(mean, log_scale, targets, levels=256):
    """The logistic CDF at the edges of each target's bin, the outermost open."""
    half = 1 / (levels - 1)
    upper = np.where(targets > 1 - half, np.inf, targets + half)
    lower = np.where(targets < half - 1, -np.inf, targets - half)
    cdf = stats.logistic(mean, np.exp(log_scale)).cdf
    return -np.log(cdf(upper) - cdf(lower)).reshape(len(mean), -1).sum(1)


def squared_error_reference(encoded, quantized):
    return ((encoded - quantized) ** 2).reshape(B, -1).mean(1)


PIXELS = np.linspace(-1, 1, 256)[np.random.default_rng(8).integers(64, 192, (B, *SHAPE))]
PIXELS[:, 0, 0], PIXELS[:, 0, 1] = -1, 1
LABELS = np.random.default_rng(9).integers(0, 7, (B, *SHAPE))

# name: (function, arguments, float64 reference)
CASES = {
    "gaussian_kl": (losses.gaussian_kl, (draw(0), draw(1)), lambda m, v: kl_reference(m, v, 0 * m, 0 * v)),
    "gaussian_kl_between": (
        losses.gaussian_kl_between,
        tuple(draw(i) for i in range(4)),
        kl_reference,
    ),
    "gaussian_nll": (
        losses.gaussian_nll,
        tuple(draw(i) for i in range(3)),
        lambda m, v, x: -stats.norm.logpdf(x, m, np.exp(v / 2)).reshape(B, -1).sum(1),
    ),
    "bernoulli_nll": (
        losses.bernoulli_nll,
        (draw(0), special.expit(draw(1))),
        lambda logits, x: -(x * special.log_expit(logits) + (1 - x) * special.log_expit(-logits)).reshape(B, -1).sum(1),
    ),
    "discretized_logistic_nll": (
        losses.discretized_logistic_nll,
        (0.3 * draw(0), 0.3 * draw(1) - 1, PIXELS),
        logistic_reference,
    ),
    "categorical_nll": (losses.categorical_nll, (draw(0, B, *SHAPE, 7), LABELS), categorical_reference),
    "commitment": (losses.commitment, (draw(0), draw(1)), squared_error_reference),
    "codebook_loss": (  # its gradient is to the second argument
        lambda quantized, encoded: losses.codebook_loss(encoded, quantized),
        (draw(0), draw(1)),
        squared_error_reference,
    ),
}
every_loss = pytest.mark.parametrize(("loss", "arguments", "reference"), CASES.values(), ids=CASES)


def cast(arguments, dtype):
    return [jnp.asarray(a, dtype if a.dtype.kind == "f" else None) for a in arguments]


@every_loss
def test_equals_the_float64_reference(loss, arguments, reference, x64):
    nats = loss(*cast(arguments, x64))
    assert nats.shape == (B,)
    assert nats.dtype == jnp.float64
    np.testing.assert_allclose(nats, reference(*arguments), rtol=1e-12)


@every_loss
def test_float32_is_close_and_narrow_types_are_widened(loss, arguments, reference):
    np.testing.assert_allclose(loss(*cast(arguments, jnp.float32)), reference(*arguments), rtol=2e-6)
    narrow = cast(arguments, jnp.bfloat16)
    assert loss(*narrow).dtype == jnp.float32
    rounded = [np.asarray(a, np.float64 if a.dtype == jnp.bfloat16 else None) for a in narrow]
    np.testing.assert_allclose(loss(*narrow), reference(*rounded), rtol=2e-6)


@every_loss
def test_an_example_does_not_see_its_batch(loss, arguments, reference):
    once = cast(arguments, jnp.float32)
    twice = [jnp.concatenate([a, a]) for a in once]
    np.testing.assert_array_equal(loss(*twice), np.tile(loss(*once), 2))
    rows = [loss(*[a[i : i + 1] for a in once])[0] for i in range(B)]
    np.testing.assert_allclose(loss(*once), rows, rtol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="how XLA compiles for a CPU")
@pytest.mark.parametrize(
    "loss",
    [losses.bernoulli_nll, losses.gaussian_nll, losses.laplace_nll, losses.gaussian_kl],
    ids=lambda f: f.__name__,
)
def test_loops_run_over_flat_examples(loss):
    """XLA would move the reshape behind the loop, over [28, 28, 1], which takes many times as long."""
    arrays = [jnp.asarray(draw(i, 3, 28, 28, 1), jnp.float32) for i in range(3)]
    arrays = arrays if loss in (losses.gaussian_nll, losses.laplace_nll) else arrays[:2]
    compiled = jax.jit(lambda *each: loss(*each).mean()).lower(*arrays).compile().as_text()
    work = [
        line for line in compiled.splitlines() if re.search(r" (exponential|log-plus-one|multiply|subtract)\(", line)
    ]
    assert any("f32[3,784]" in line for line in work)
    assert not any("28,1]" in line for line in work)


def test_losses_of_pictures_have_second_derivatives(key):
    """Behind what keeps them flat."""
    logits = jax.random.normal(key, (2, 3, 2, 1))
    hessian = jax.hessian(lambda each: losses.bernoulli_nll(each, jnp.ones_like(each)).sum())(logits)
    p = jax.nn.sigmoid(logits.ravel())
    np.testing.assert_allclose(hessian.reshape(12, 12), np.diag(p * (1 - p)), atol=1e-6)


@every_loss
def test_jit_vmap_and_gradient(loss, arguments, reference):
    arrays = cast(arguments, jnp.float32)
    np.testing.assert_allclose(jax.jit(loss)(*arrays), loss(*arrays), rtol=1e-6)
    stacked = [jnp.stack([a, a[::-1]]) for a in arrays]
    np.testing.assert_allclose(jax.vmap(loss)(*stacked)[1], loss(*arrays)[::-1], rtol=1e-6)


@every_loss
def test_gradient_equals_finite_differences(loss, arguments, reference, x64):
    arrays = cast(arguments, x64)
    first, rest = arrays[0], arrays[1:]
    jax.test_util.check_grads(lambda first: loss(first, *rest).sum(), (first,), order=1, modes=["rev"])


@every_loss
def test_integers_and_scalars_are_refused(loss, arguments, reference):
    first, *rest = cast(arguments, jnp.float32)
    with pytest.raises(TypeError, match=r"must be floating, got int32"):
        loss(first.astype(jnp.int32), *rest)
    with pytest.raises(ValueError, match=r"\(5, 3, 2|batch axis|\[B, \.\.\., V\]"):
        loss(jnp.float32(0), *rest)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"targets must broadcast to mean \(5, 3\), got \(5, 4\)"):
        losses.gaussian_nll(jnp.zeros((5, 3)), jnp.float32(0), jnp.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"log_var must broadcast to mean \(1, 3\), got \(5, 3\)"):
        losses.gaussian_kl(jnp.zeros((1, 3)), jnp.zeros((5, 3)))  # it would otherwise make five examples of one
    with pytest.raises(ValueError, match=r"targets \[B, ...\], got \(5, 7\) and \(5, 1\)"):
        losses.categorical_nll(jnp.zeros((5, 7)), jnp.zeros((5, 1), jnp.int32))
    with pytest.raises(ValueError, match=r"one shape \[B, \.\.\.\], got \(5, 3\) and \(5, 1\)"):
        losses.commitment(jnp.zeros((5, 3)), jnp.zeros((5, 1)))
    with pytest.raises(TypeError, match="targets must be integers, got float32"):
        losses.categorical_nll(jnp.zeros((5, 7)), jnp.zeros((5,)))
    with pytest.raises(TypeError, match="targets must be floating, got uint8; convert it first"):
        losses.bernoulli_nll(jnp.zeros((5, 7)), jnp.zeros((5, 7), jnp.uint8))


def test_a_label_out_of_range_is_not_silent():
    nats = losses.categorical_nll(jnp.zeros((4, 3)), jnp.array([0, 2, 3, -1]))
    np.testing.assert_allclose(nats, [np.log(3), np.log(3), np.nan, np.nan], rtol=1e-6)


def test_the_masses_of_the_discretised_logistic_sum_to_one(x64):
    values = np.linspace(-1, 1, 256)
    for mean in (-3.0, -1.0, 0.0, 0.3, 1.0, 40.0):
        for log_scale in (-12.0, -6.0, -2.0, 0.0, 5.0):
            for dtype, tolerance in ((jnp.float32, 1e-5), (x64, 1e-12)):
                arrays = [jnp.full((256, 1), v, dtype) for v in (mean, log_scale)]
                nats = losses.discretized_logistic_nll(*arrays, jnp.asarray(values[:, None], dtype))
                np.testing.assert_allclose(np.exp(-np.asarray(nats, np.float64)).sum(), 1, atol=tolerance)


def test_the_discretised_logistic_has_other_levels():
    values = jnp.linspace(-1, 1, 17)[:, None]
    nats = losses.discretized_logistic_nll(jnp.full((17, 1), 0.2), jnp.float32(-1.0), values, levels=17)
    np.testing.assert_allclose(np.exp(-np.asarray(nats, np.float64)).sum(), 1, atol=1e-6)
    reference = logistic_reference(np.full((17, 1), 0.2), -1.0, np.linspace(-1, 1, 17)[:, None], levels=17)
    np.testing.assert_allclose(nats, reference, rtol=2e-6)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        losses.discretized_logistic_nll(values, values, values, levels=1)


def test_the_gradient_at_logit_zero_is_half_minus_the_target():
    grad = jax.grad(lambda v: losses.bernoulli_nll(v, jnp.float32([[0.0], [0.25], [1.0]])).sum())(jnp.zeros((3, 1)))
    np.testing.assert_array_equal(grad, [[0.5], [0.25], [-0.5]])


def test_the_iwae_bound_is_the_logarithm_of_the_mean_weight(x64):
    log_weights = 5 * draw(0, 7, B) - 300
    bound = losses.iwae_bound(jnp.asarray(log_weights, x64))
    assert bound.shape == (B,)
    np.testing.assert_allclose(bound, special.logsumexp(log_weights, axis=0) - np.log(7), rtol=1e-14)
    np.testing.assert_allclose(losses.iwae_bound(jnp.asarray(log_weights[:1], x64)), log_weights[0], rtol=1e-15)
    grad = jax.grad(lambda w: losses.iwae_bound(w).sum())(jnp.asarray(log_weights, x64))
    np.testing.assert_allclose(grad, special.softmax(log_weights, axis=0), rtol=1e-12)  # the best weigh most


def test_the_iwae_bound_survives_weights_that_underflow():
    assert losses.iwae_bound(jnp.float32([[-5000.0], [-5000.0]])) == -5000
    np.testing.assert_allclose(losses.iwae_bound(jnp.float32([[-jnp.inf], [0.0]])), [-np.log(2)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (5,), (0, 5), (2, 3, 4)])
def test_log_weights_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"log_weights must be \[S, B\] with S of 1 or more, got \("):
        losses.iwae_bound(jnp.zeros(shape))
    with pytest.raises(TypeError, match="log_weights must be floating, got int32"):
        losses.iwae_bound(jnp.zeros((2, 3), jnp.int32))


def test_eight_bits_are_eight_bits_per_dimension():
    assert losses.bits_per_dim(3072 * np.log(256), 3072) == pytest.approx(8)
    np.testing.assert_allclose(losses.bits_per_dim(jnp.float32([np.log(2)]), 1), [1], rtol=1e-6)
    with pytest.raises(ValueError, match="num_dims must be at least 1, got 0"):
        losses.bits_per_dim(1.0, 0)


def test_a_scalar_log_var_is_one_fixed_variance():
    mean, x = cast((draw(0), draw(1)), jnp.float32)
    expected = losses.gaussian_nll(mean, jnp.full_like(mean, -1.5), x)
    np.testing.assert_array_equal(losses.gaussian_nll(mean, jnp.float32(-1.5), x), expected)


def test_the_kl_keeps_its_digits_near_the_prior():
    """The form exp(v) - 1 - v gives 0 or a negative number here; the truth is v**2 / 4 to first order."""
    log_var = jnp.float32([[1e-4], [-1e-4], [1e-3]])
    kl = losses.gaussian_kl(jnp.zeros_like(log_var), log_var)
    np.testing.assert_allclose(kl, np.asarray(log_var, np.float64)[:, 0] ** 2 / 4, rtol=2e-3)


@pytest.mark.parametrize(
    ("loss", "values"),
    [
        (lambda v: losses.gaussian_kl(jnp.ones_like(v), v), np.linspace(-200, 80, 57)),
        (lambda v: losses.gaussian_nll(jnp.zeros_like(v), v, jnp.ones_like(v)), np.linspace(-80, 80, 33)),
        (lambda v: losses.bernoulli_nll(v, jnp.ones_like(v)), np.r_[-1e4, -110, -17, 0, 17, 110, 1e4]),
        (lambda v: losses.bernoulli_nll(v, jnp.zeros_like(v)), np.r_[-1e4, -110, -17, 0, 17, 110, 1e4]),
        (
            lambda v: losses.categorical_nll(jnp.pad(v, ((0, 0), (0, 1))), jnp.zeros(len(v), jnp.int32)),
            np.r_[-1e4, -110, 0, 110, 1e4],
        ),
        (
            lambda v: losses.discretized_logistic_nll(v, jnp.float32(-5.0), jnp.zeros_like(v)),
            np.r_[-1e4, -1, 0, 1, 1e4],
        ),
        (lambda v: losses.discretized_logistic_nll(jnp.zeros_like(v), v, jnp.zeros_like(v)), np.linspace(-40, 40, 17)),
        (lambda v: losses.discretized_logistic_nll(jnp.zeros_like(v), v, jnp.ones_like(v)), np.linspace(-40, 40, 17)),
        (lambda v: losses.iwae_bound(v.T), np.r_[-1e4, -200, 0]),
    ],
    ids=[
        *("gaussian_kl", "gaussian_nll", "bernoulli of ones", "bernoulli of zeros", "categorical"),
        *("logistic mean", "logistic scale", "logistic scale at the edge", "iwae_bound"),
    ],
)
def test_value_and_gradient_are_finite_at_the_extremes(loss, values):
    values = jnp.asarray(values[:, None], jnp.float32)
    chex.assert_tree_all_finite((loss(values), jax.grad(lambda v: loss(v).sum())(values)))


def test_certain_and_wrong_costs_the_logit():
    nats = losses.bernoulli_nll(jnp.float32([[1e4], [-1e4]]), jnp.float32([[0], [1]]))
    np.testing.assert_array_equal(nats, [1e4, 1e4])


@pytest.mark.parametrize("shape", [(0, 3, 2), (0, 4)])
def test_no_examples_have_no_losses(shape):
    none, logits, targets = jnp.zeros(shape), jnp.zeros((*shape, 5)), jnp.zeros(shape, int)
    for values in (
        losses.bernoulli_nll(none, none),
        losses.gaussian_kl(none, none),
        losses.categorical_nll(logits, targets),
        losses.categorical_kl(logits, logits),
        losses.real_nll(none),
        losses.r1_penalty(lambda x: x.sum(axis=tuple(range(1, x.ndim))), none),
    ):
        assert values.shape == (0,)
