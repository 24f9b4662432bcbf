"""Diffusion against closed forms: of a Gaussian and of three levels the best denoiser is known, and so is the bound."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jaxvae
from jaxvae.keys import example_keys, noise
from jaxvae.models import CosineSchedule, Diffusion, LinearSchedule
from jaxvae.models._levels import level_log_prob, nearest_level, sample_level
from jaxvae.networks import DenoisingMLP
from jaxvae.objectives import diffusion_loss

MU, S = 0.7, 1.6
KEY = jax.random.key(0)
ENDS = {"log_snr_max": 13.3, "log_snr_min": -10.0}
SCHEDULES = {"linear": LinearSchedule(**ENDS), "cosine": CosineSchedule(**ENDS)}


def scales(log_snr):
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def says(prediction, x, eps, alpha, sigma):
    return {"x": x, "eps": eps, "v": alpha * eps - sigma * x}[prediction]


def of_gaussian(prediction, z, log_snr, mean=MU):
    """E[x|z] of x ~ N(mean, S²), as each of the three."""
    alpha, sigma = scales(log_snr[:, None])
    total = alpha**2 * S**2 + sigma**2
    x = mean + alpha * S**2 * (z - alpha * mean) / total
    return says(prediction, x, sigma * (z - alpha * mean) / total, alpha, sigma)


MEANS = (-1.0, 0.5, 2.0)
NO_LABEL = 0.25


def of_classes(z, log_snr, label):
    """The same for a mean of each class; the last is that of no label."""
    return of_gaussian("v", z, log_snr, jnp.array([*MEANS, NO_LABEL])[label][:, None])


LEVELS = np.float32([-1.0, 0.0, 1.0])
SHARES = np.float32([0.5, 0.2, 0.3])


def of_levels(z, log_snr):
    """E[x|z] of x on three levels."""
    alpha, _ = scales(log_snr[:, None, None])
    logits = (
        np.log(SHARES)[None, None]
        - 0.5 * jnp.exp(log_snr)[:, None, None] * (z[..., None] / alpha - LEVELS[None, None]) ** 2
    )
    return (jax.nn.softmax(logits, axis=-1) * LEVELS[None, None]).sum(axis=-1)


def gaussian(prediction="v", **options):
    return Diffusion(partial(of_gaussian, prediction), (1,), prediction=prediction, **options)


CLASSES = Diffusion(of_classes, (1,), num_classes=3)


@partial(jax.jit, static_argnums=0, static_argnames="method")
def call(model, *arguments, method="bound", **options):
    return model.apply({}, *arguments, method=method, **options)


def times():
    """Nodes and weights of an integral over [0, 1] that may be steep at either end."""
    nodes, weights = np.polynomial.legendre.leggauss(24)
    ends = np.array([0, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999, 1])
    widths = np.diff(ends)[:, None]
    return (ends[:-1, None] + widths * (nodes + 1) / 2).ravel(), (widths * weights / 2).ravel()


def integrated(model, x, eps, share):
    """The rate of the diffusion at each x [N], integrated over times and noise [M] with its weights."""
    t, weight = times()
    grid = np.meshgrid(x, t, eps, indexing="ij")
    at_x, at_t, at_eps = (jnp.asarray(each.ravel(), jnp.float32) for each in grid)
    _, rate = call(model, at_x[:, None], at_t, at_eps[:, None], method="denoising_error")
    return np.einsum("nte,t,e->n", np.asarray(rate, np.float64).reshape(grid[0].shape), weight, share)


TWO = (np.array([-1.0, 1.0]), np.array([0.5, 0.5]))  # enough for the mean of a square


@pytest.mark.parametrize(
    ("prediction", "schedule"), [("eps", "linear"), ("x", "linear"), ("v", "linear"), ("v", "cosine")]
)
def test_with_the_best_denoiser_the_bound_is_the_log_likelihood_of_every_x(prediction, schedule):
    model, x = gaussian(prediction, schedule=SCHEDULES[schedule]), np.array([-2.0, 0.7, 1.0, 4.0])
    rate = integrated(model, x, *TWO)
    bound = call(model, jnp.float32(x)[:, None], key=KEY)
    total = bound.distortion + bound.prior_rate + rate
    np.testing.assert_allclose(total, -stats.norm.logpdf(x, MU, S), atol=1e-3)


def test_over_all_x_it_is_the_entropy_and_what_is_left_of_x_at_the_end():
    """½ ∫ MMSE d SNR = ½ log (1 + s² SNR). What is left at t = 1 costs a KL, the noise at t = 0 a little."""
    schedule = LinearSchedule(6.0, -2.0)
    model, x = gaussian(schedule=schedule), MU + S * TWO[0]
    rate = integrated(model, x, *TWO).mean()
    first, last = np.exp(6.0), np.exp(-2.0)
    assert rate == pytest.approx(0.5 * np.log((1 + S**2 * first) / (1 + S**2 * last)), rel=1e-5)
    bound = call(model, jnp.float32(x)[:, None], key=KEY)
    alpha, sigma = (np.float64(each) for each in scales(jnp.float32(-2.0)))
    variance = alpha**2 * S**2 + sigma**2
    left = 0.5 * (variance + alpha**2 * MU**2 - 1 - np.log(variance))
    entropy = 0.5 * np.log(2 * np.pi * np.e * S**2)
    total = float((bound.distortion + bound.prior_rate).mean()) + rate
    assert total == pytest.approx(entropy + left + 0.5 * np.log1p(1 / (S**2 * first)), abs=1e-4)


def test_of_levels_the_bound_is_minus_the_log_of_their_shares():
    model = Diffusion(of_levels, (1,), levels=3, prediction="x")
    eps = np.linspace(-6, 6, 241)
    share = stats.norm.pdf(eps) / stats.norm.pdf(eps).sum()
    x = jnp.float32([[0.0], [0.5], [1.0]])
    rate = integrated(model, x[:, 0], eps, share)
    bound = call(model, x, key=KEY)
    np.testing.assert_allclose(bound.distortion, 0, atol=1e-4)
    np.testing.assert_allclose(bound.prior_rate + rate, -np.log(SHARES), atol=2e-3)


def test_draws_of_the_bound_have_its_mean_and_belong_to_the_example():
    model, num = gaussian(), 40_000
    x = jnp.full((num, 1), 1.5)
    each = np.asarray(call(model, x, key=KEY).negative_elbo, np.float64)
    error = each.std() / np.sqrt(num)
    assert each.mean() == pytest.approx(-stats.norm.logpdf(1.5, MU, S), abs=5 * error)
    keys = example_keys(KEY, jnp.arange(num))
    alone = call(model, x, key=keys).negative_elbo
    np.testing.assert_allclose(call(model, x[:9], key=keys[:9]).negative_elbo, alone[:9], rtol=1e-5)
    assert np.corrcoef(alone[:-1], alone[1:])[0, 1] < 0.03


def test_the_nats_of_a_narrow_x_are_those_of_a_wide_one():
    """A large x in bfloat16 has nats of four digits, of which bfloat16 keeps two."""
    model = Diffusion(lambda z, log_snr: jnp.zeros_like(z), (500,))
    x = jnp.rint(4 * jax.random.normal(KEY, (3, 500))) / 4
    expected, found = (call(model, x.astype(dtype), key=KEY) for dtype in ("float32", "bfloat16"))
    for name, nats in found._asdict().items():
        assert nats.dtype == jnp.float32, name
        np.testing.assert_allclose(nats, getattr(expected, name), rtol=1e-5, err_msg=name)


@partial(jax.jit, static_argnums=0, static_argnames=("weighting", "num_samples", "condition_dropout"))
def loss_of(model, batch, **options):
    loss, (_, metrics) = diffusion_loss(model, {}, (), batch, key=KEY, step=0, **options)
    return loss, metrics


def test_spread_times_are_uniform_and_of_less_noise():
    batch = {"x": jnp.full((2_000, 1), 1.5), "index": jnp.arange(2_000)}
    spread, metrics = loss_of(gaussian(), batch, num_samples=8)
    assert float(spread) == pytest.approx(-stats.norm.logpdf(1.5, MU, S), abs=0.15)
    np.testing.assert_allclose(metrics["rate"], metrics["prior_rate"] + metrics["diffusion_rate"], rtol=1e-5)
    np.testing.assert_allclose(metrics["negative_elbo"], metrics["rate"] + metrics["distortion"], atol=1e-4)
    times = jaxvae.objectives.diffusion.spread_times(example_keys(KEY, jnp.arange(5_000)), 4)
    assert times.shape == (4, 5_000)
    assert stats.kstest(np.asarray(times[2]), "uniform").pvalue > 1e-3
    np.testing.assert_allclose(np.diff(np.sort(times, axis=0), axis=0), 0.25, atol=1e-6)


def test_the_simple_weighting_is_the_error_of_the_noise():
    batch = {"x": jnp.full((3, 1), 1.5), "index": jnp.arange(3)}
    loss, metrics = loss_of(gaussian(), batch, weighting="simple")
    bound, _ = loss_of(gaussian(), batch)
    assert loss == metrics["squared_error"] != bound
    np.testing.assert_allclose(bound, metrics["negative_elbo"], rtol=1e-6)
    np.testing.assert_allclose(metrics["diffusion_rate"], 0.5 * 23.3 * loss, rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_schedule_falls_from_end_to_end_and_keeps_the_variance(schedule):
    t = jnp.linspace(0, 1, 101)
    log_snr = np.asarray(schedule.log_snr(t), np.float64)
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(log_snr[[0, -1]], [13.3, -10], rtol=1e-4)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-6)
    np.testing.assert_allclose(2 * np.log(np.float64(alpha) / np.float64(sigma)), log_snr, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(np.isnan(jax.jit(schedule.log_snr)(jnp.array([-0.1, 0.5, 1.1]))), [1, 0, 1])
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\], got 1.5"):
        schedule.log_snr(1.5)


def test_the_cosine_schedule_is_a_cosine():
    t = jnp.linspace(0.1, 0.9, 9)
    alpha = np.asarray(CosineSchedule(30.0, -30.0).alpha(t))
    np.testing.assert_allclose(alpha, np.cos(np.pi / 2 * np.asarray(t)), rtol=1e-5)


def test_the_cosine_schedule_reaches_its_ends_wherever_they_are():
    """Against float64: in float32 an angle near a right one has no tangent worth the name."""
    t = np.array([0.0, 0.25, 0.5, 0.9, 0.999, 1.0])
    for most, least in ((13.3, -10.0), (13.3, -25.0), (60.0, -60.0), (-20.0, -40.0)):
        first, rest = np.arctan(np.exp(-0.5 * most)), np.arctan(np.exp(0.5 * least))
        whole = np.pi / 2 - first - rest if most > 0 else np.arctan(np.exp(0.5 * most)) - rest
        small, other = first + whole * t, rest + whole * (1 - t)
        expected = np.where(small < other, -2 * np.log(np.tan(small)), 2 * np.log(np.tan(other)))
        found, slope = jax.jvp(CosineSchedule(most, least).log_snr, (jnp.float32(t),), (jnp.ones(6),))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-4)
        np.testing.assert_allclose(slope, -4 * whole / np.sin(2 * np.minimum(small, other)), rtol=1e-4)


def exact_steps(sampler, steps, schedule=SCHEDULES["linear"]):
    """x = a z_1 + b + noise of variance c, of the linear steps that the best denoiser of a Gaussian takes; float64."""
    log_snr = np.float64(schedule.log_snr(jnp.linspace(1.0, 0.0, steps + 1)))
    alpha, sigma = np.sqrt(special.expit(log_snr)), np.sqrt(special.expit(-log_snr))
    a, b, c = 1.0, 0.0, 0.0
    for t in range(steps):
        total = alpha[t] ** 2 * S**2 + sigma[t] ** 2
        slope, offset = alpha[t] * S**2 / total, MU * (1 - alpha[t] ** 2 * S**2 / total)
        if sampler == "ddim":
            of_z, of_x, drawn = sigma[t + 1] / sigma[t], alpha[t + 1] - alpha[t] * sigma[t + 1] / sigma[t], 0.0
        else:  # q(z_s | z_t, x) of Gaussians: precisions add up
            between = alpha[t] / alpha[t + 1]
            noise_between = sigma[t] ** 2 - between**2 * sigma[t + 1] ** 2
            drawn = 1 / (between**2 / noise_between + 1 / sigma[t + 1] ** 2)
            of_z, of_x = drawn * between / noise_between, drawn * alpha[t + 1] / sigma[t + 1] ** 2
        along = of_z + of_x * slope
        a, b, c = along * a, along * b + of_x * offset, along**2 * c + drawn
    return a / alpha[-1], b / alpha[-1], c / alpha[-1] ** 2


def starts(key, num):
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, jnp.arange(num)), 0)
    return noise(jax.random.normal, keys, (num, 1))


@pytest.mark.parametrize("steps", [1, 7, 400])
def test_ddim_is_the_map_that_its_steps_are(steps, key):
    drawn = gaussian().sample({}, 50, key=key, steps=steps, sampler="ddim")
    a, b, c = exact_steps("ddim", steps)
    assert c == 0
    np.testing.assert_allclose(drawn, a * starts(key, 50) + b, rtol=1e-3, atol=2e-3)
    if steps == 400:  # the flow that keeps q(z_t) at every t takes N(0, 1) to N(MU, S²)
        np.testing.assert_allclose(drawn, MU + S * starts(key, 50), atol=0.05)


@pytest.mark.parametrize("steps", [3, 200])
def test_ddpm_has_the_mean_and_the_variance_of_its_steps(steps, key):
    num = 20_000
    drawn = np.asarray(gaussian().sample({}, num, key=key, steps=steps), np.float64)
    a, b, c = exact_steps("ddpm", steps)
    variance = a**2 + c
    assert drawn.mean() == pytest.approx(b, abs=4 * np.sqrt(variance / num))
    assert drawn.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / num))
    assert stats.kstest((drawn[:, 0] - b) / np.sqrt(variance), "norm").pvalue > 1e-3
    if steps == 3:
        drawn = np.asarray(gaussian().sample({}, num, key=key, steps=9, schedule=SCHEDULES["cosine"]), np.float64)
        a, b, c = exact_steps("ddpm", 9, SCHEDULES["cosine"])
        assert drawn.var() == pytest.approx(a**2 + c, rel=4 * np.sqrt(2 / num))
    if steps == 200:
        assert (b, variance) == pytest.approx((MU, S**2), rel=0.07)
        assert (exact_steps("ddpm", 5_000)[2]) == pytest.approx(S**2, rel=0.003)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_it_draws_where_float64_is_on(sampler, key):
    expected = gaussian().sample({}, 2, key=key, steps=3, sampler=sampler)
    with jax.enable_x64(True):
        found = gaussian().sample({}, 2, key=key, steps=3, sampler=sampler)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_first_samples_do_not_depend_on_how_many_follow_and_the_path_ends_at_them(key):
    model = gaussian()
    few, path = model.denoising_path({}, 3, key=key, steps=5)
    np.testing.assert_allclose(model.sample({}, 8, key=key, steps=5)[:3], few, rtol=1e-5)
    assert path.shape == (5, 3, 1)
    np.testing.assert_allclose(path[0], MU, atol=0.05)  # at the start nothing is known but the mean
    ddim, path = model.denoising_path({}, 3, key=key, steps=50, sampler="ddim")
    np.testing.assert_allclose(path[-1], ddim, atol=0.01)
    keys = example_keys(key, jnp.arange(3))
    np.testing.assert_array_equal(model.sample({}, 3, key=keys, steps=5), few)
    within = jax.jit(lambda key: model.sample({}, 3, key=key, steps=5))(key)  # a program of someone else's
    np.testing.assert_allclose(within, few, rtol=1e-5)


def test_guidance_goes_from_no_label_to_the_label_and_beyond(key):
    label = jnp.array([2, 0, 1, 0, 2])
    draw = partial(CLASSES.sample, {}, 5, key=key, steps=20, sampler="ddim")
    plain = draw(label=label)
    of_means = np.array(MEANS)[label][:, None]
    alone = gaussian().sample({}, 5, key=key, steps=20, sampler="ddim")
    slope = (exact_steps("ddim", 20)[1]) / MU  # of a sample in the mean
    np.testing.assert_allclose(plain - alone, slope * (of_means - MU), atol=2e-3)
    np.testing.assert_array_equal(draw(label=label, guidance=1.0), plain)
    without = draw(guidance=0.0)
    np.testing.assert_allclose(without - alone, slope * (NO_LABEL - MU), atol=2e-3)
    np.testing.assert_array_equal(draw(label=label, guidance=0.0), without)
    np.testing.assert_allclose(draw(label=label, guidance=3.0), without + 3 * (plain - without), atol=5e-3)


def test_labels_are_dropped_in_training_alone_and_move_the_bound():
    num = 12_000
    x, label, time = jnp.full((num, 1), 2.0), jnp.arange(num) % 3, (jnp.arange(num) + 0.5) / num
    for dropped, means in ((False, MEANS), (True, 3 * (NO_LABEL,))):
        bound = call(CLASSES, x, label, key=KEY, time=time, dropped=jnp.full(num, dropped)).negative_elbo
        truth = -stats.norm.logpdf(2.0, means, S)
        np.testing.assert_allclose(bound.reshape(-1, 3).mean(axis=0), truth, atol=0.3)
    batch = {"x": x[:400], "index": jnp.arange(400), "label": label[:400]}
    assert loss_of(CLASSES, batch)[0] != loss_of(CLASSES, batch, condition_dropout=0.5)[0]
    step = jaxvae.make_eval_step(partial(diffusion_loss, CLASSES, condition_dropout=0.5))
    plain = jaxvae.make_eval_step(partial(diffusion_loss, CLASSES))
    few = {name: values[:4] for name, values in batch.items()} | {"weight": jnp.ones(4)}
    sums = [each({}, (), few, key=KEY, step=jnp.int32(0))[0]["loss"] for each in (step, plain)]
    assert sums[0] == sums[1]


def test_at_the_first_noise_of_levels_they_are_told_apart():
    for levels, expected in ((2, 3.008), (256, 14.091)):
        log_snr = jaxvae.models.log_snr_of_levels(levels)
        assert log_snr == pytest.approx(expected, abs=1e-3)
        assert 1 / (levels - 1) == pytest.approx(4.5 * np.exp(-log_snr / 2))
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        jaxvae.models.log_snr_of_levels(1)


@pytest.mark.parametrize("levels", [2, 3, 17])
def test_the_levels_of_a_centre_are_a_softmax_of_distances(levels):
    values = np.linspace(-1, 1, levels)
    for centre, log_snr in ((0.3, 1.0), (-1.4, 2.0), (0.05, 13.3)):
        logits = -0.5 * np.exp(log_snr) * (centre - values) ** 2
        found = jax.jit(level_log_prob, static_argnums=3)(
            jnp.full(levels, centre), log_snr, jnp.float32(values), levels
        )
        np.testing.assert_allclose(found, special.log_softmax(logits), rtol=2e-3, atol=1e-4)
        uniform = (jnp.arange(1000) + 0.5) / 1000
        drawn = np.asarray(jax.jit(sample_level, static_argnums=3)(jnp.full(1000, centre), log_snr, uniform, levels))
        share = [(np.abs(drawn - value) < 1e-5).mean() for value in values]
        np.testing.assert_allclose(share, special.softmax(logits), atol=2e-3)
        assert float(nearest_level(jnp.float32(centre), levels)) == pytest.approx(values[logits.argmax()], abs=1e-6)
    bernoulli = level_log_prob(jnp.float32([0.3]), 1.0, jnp.float32([1.0]), 2)
    assert float(bernoulli[0]) == pytest.approx(np.log(special.expit(2 * np.exp(1.0) * 0.3)), rel=1e-5)
    assert np.isnan(sample_level(jnp.array([jnp.nan]), 1.0, jnp.array([0.5]), levels)).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-23])
def test_no_uniform_number_draws_a_level_that_has_no_probability(uniform):
    """Of 256 levels and centres anywhere: a draw may be two off, and is never the black or white at the sum's end."""
    centre = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, 2000), jnp.float32)
    drawn = jax.jit(sample_level, static_argnums=3)(centre, 14.1, jnp.full(2000, uniform, jnp.float32), 256)
    assert np.abs(drawn - nearest_level(centre, 256)).max() < 2.5 * 2 / 255


def test_samples_of_levels_are_levels_as_often_as_they_are_probable(key):
    model, num = Diffusion(of_levels, (1,), levels=3, prediction="x"), 4_000
    drawn = np.asarray(model.sample({}, num, key=key, steps=200))
    share = [(drawn == value).mean() for value in (0, 0.5, 1)]
    np.testing.assert_allclose(share, SHARES, atol=4 * 0.5 / np.sqrt(num))
    ddim = np.asarray(model.sample({}, 50, key=key, steps=50, sampler="ddim"))
    assert np.isin(ddim, [0, 0.5, 1]).all()


TINY = Diffusion(DenoisingMLP(8, 1, embedding=8, num_classes=256), (2,), num_classes=256)


@pytest.fixture(scope="module")
def tiny():
    params = jax.jit(TINY.init)(KEY, jnp.zeros((1, 2)), jnp.zeros(1, jnp.int32))
    return jax.tree.map(lambda leaf: leaf + 0.1, params)


def test_labels_of_every_integer_type_mean_the_same_and_others_are_no_number(tiny):
    bound = jax.jit(lambda label: TINY.apply(tiny, jnp.ones((3, 2)), label, key=KEY, method="bound").negative_elbo)
    label = np.array([0, 127, 255])
    expected = bound(label)
    assert len(np.unique(expected)) == 3
    np.testing.assert_array_equal(bound(label.astype(np.uint8)), expected)
    np.testing.assert_array_equal(np.isnan(bound(np.array([-1, 3, 256]))), [True, False, True])
    np.testing.assert_array_equal(np.isnan(bound(np.array([-1, 3, 4], np.int8))), [True, False, False])
    with pytest.raises(ValueError, match=r"label 256 at index 1 is outside 0 .. 255"):
        TINY.sample(tiny, 2, key=KEY, steps=2, label=jnp.array([0, 256]))
    drawn = jax.jit(lambda label: TINY.sample(tiny, 2, key=KEY, steps=2, label=label))(jnp.array([0, 256]))
    np.testing.assert_array_equal(np.isnan(drawn).all(axis=1), [False, True])


def test_a_nan_stays_with_its_example(tiny):
    x = jnp.ones((3, 2)).at[1, 0].set(jnp.nan)
    bound = jax.jit(lambda x: TINY.apply(tiny, x, jnp.zeros(3, jnp.int32), key=KEY, method="bound"))(x)
    np.testing.assert_array_equal(np.isnan(bound.negative_elbo), [False, True, False])
    levels = Diffusion(of_levels, (1,), levels=3, prediction="x")
    off = jax.jit(lambda x: levels.apply({}, x, key=KEY, method="bound").negative_elbo)
    np.testing.assert_array_equal(np.isnan(off(jnp.array([[0.5], [0.4], [1.5], [jnp.nan]]))), [False, True, True, True])


def test_a_model_pickles():
    for model in (TINY, Diffusion(DenoisingMLP(), [3], schedule=CosineSchedule())):
        assert pickle.loads(pickle.dumps(model)) == model
        hash(model)


PLAIN = gaussian()
LABELLED = partial(TINY.sample, key=KEY, steps=2)
REFUSED = {
    "prediction": (lambda: gaussian().clone(prediction="score"), ValueError, "prediction must be 'eps', 'x' or 'v'"),
    "no shape": (lambda: Diffusion(of_levels, ()), ValueError, r"shape must have at least one axis, got \(\)"),
    "a zero": (lambda: Diffusion(of_levels, (0,)), ValueError, r"shape must be at least 1, got \(0,\)"),
    "one level": (lambda: Diffusion(of_levels, (1,), levels=1), ValueError, "levels must be at least 2, got 1"),
    "no classes": (lambda: Diffusion(of_levels, (1,), num_classes=0), ValueError, "num_classes must be at least 1"),
    "a name": (lambda: Diffusion("unet", (1,)), TypeError, "Diffusion.network must be a network or a function"),
    "schedule": (lambda: gaussian(schedule=1.0), TypeError, r"schedule must have log_snr\(t\), such as Linear"),
    "ends": (lambda: LinearSchedule(-5.0, 5.0), ValueError, "log_snr_max must be above log_snr_min, got -5.0 and 5.0"),
    "an end": (lambda: CosineSchedule(float("nan")), ValueError, "log_snr_max must be finite, got nan"),
    "text": (lambda: LinearSchedule(5.0, "low"), TypeError, "log_snr_min must be a number, got 'low'"),
    "steps": (lambda: PLAIN.sample({}, 2, key=KEY, steps=0), ValueError, "steps must be at least 1, got 0"),
    "half a step": (lambda: PLAIN.sample({}, 2, key=KEY, steps=1.5), TypeError, "steps must be an integer, got 1.5"),
    "num": (lambda: PLAIN.sample({}, 0, key=KEY), ValueError, "num must be at least 1, got 0"),
    "sampler": (lambda: PLAIN.sample({}, 2, key=KEY, sampler="euler"), ValueError, "sampler must be 'ddpm' or 'ddim'"),
    "key": (lambda: PLAIN.sample({}, 2, key=0), TypeError, "key must come from jax.random.key, got 0"),
    "keys": (
        lambda: PLAIN.sample({}, 2, key=jax.random.split(KEY, 3)),
        ValueError,
        r"shape \(\) or \(2,\), got \(3,\)",
    ),
    "guidance": (
        lambda: CLASSES.sample({}, 2, key=KEY, label=jnp.array([0, 1]), guidance=float("nan")),
        ValueError,
        "guidance must be a finite number, zero or more, got nan",
    ),
    "guided without": (lambda: PLAIN.sample({}, 2, key=KEY, guidance=2.0), ValueError, "guidance needs a model with"),
    "no label": (lambda: CLASSES.sample({}, 2, key=KEY), ValueError, r"the model has 3 classes: pass label \[B\]"),
    "a label": (lambda: PLAIN.sample({}, 2, key=KEY, label=jnp.zeros(2, int)), ValueError, "the model has no classes"),
    "floats": (
        lambda: CLASSES.sample({}, 2, key=KEY, label=jnp.zeros(2)),
        TypeError,
        r"labels must be integers \(batch,\)",
    ),
    "x": (lambda: call(PLAIN, jnp.zeros((2, 3)), key=KEY), ValueError, r"expected x \(batch, 1\), got \(2, 3\)"),
    "bytes": (lambda: call(PLAIN, jnp.zeros((2, 1), jnp.uint8), key=KEY), TypeError, "x must be floating, got uint8"),
    "off the levels": (
        lambda: Diffusion(of_levels, (1,), levels=3).apply({}, jnp.array([[0.4]]), key=KEY, method="bound"),
        ValueError,
        "x must be on 3 levels from 0 to 1, got 0.4",
    ),
    "time": (
        lambda: PLAIN.apply({}, jnp.ones((2, 1)), key=KEY, time=jnp.array([0.5, 2.0]), method="bound"),
        ValueError,
        r"t must lie in \[0, 1\], got 2.0",
    ),
    "times": (
        lambda: call(PLAIN, jnp.ones((2, 1)), key=KEY, time=jnp.zeros(3)),
        ValueError,
        r"time must be \(2,\) and eps \(2, 1\), got \(3,\)",
    ),
    "dropped": (
        lambda: call(PLAIN, jnp.ones((2, 1)), key=KEY, dropped=jnp.ones(2, bool)),
        ValueError,
        "the model has no classes that could be dropped",
    ),
    "numbers dropped": (
        lambda: call(CLASSES, jnp.ones((2, 1)), jnp.zeros(2, int), key=KEY, dropped=jnp.ones(2)),
        ValueError,
        r"dropped must be bool \(2,\), got float32\[2\]",
    ),
    "network": (
        lambda: Diffusion(lambda z, log_snr: z[:, :1], (2,)).init(KEY, jnp.zeros((1, 2))),
        ValueError,
        r"the network must return \(1, 2\), as z is, got \(1, 1\)",
    ),
    "weights": (
        lambda: jaxvae.log_likelihood(PLAIN, {}, (), {}, [], key=KEY, num_samples=1),
        TypeError,
        "model must have `terms`, or be a function of log weights",
    ),
}
BATCH = {"x": jnp.ones((2, 1)), "index": jnp.arange(2)}
REFUSED |= {
    f"loss, {name}": (partial(diffusion_loss, PLAIN, {}, (), BATCH | changed, key=KEY, step=0, **options), error, said)
    for name, changed, options, error, said in (
        ("weighting", {}, {"weighting": "snr"}, ValueError, "weighting must be 'bound' or 'simple', got 'snr'"),
        ("samples", {}, {"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ("dropout", {}, {"condition_dropout": 1.0}, ValueError, r"condition_dropout must lie in \[0, 1\), got 1.0"),
        ("drops", {}, {"condition_dropout": 0.1}, ValueError, "the model has no classes that could be dropped"),
        ("observed", {"observed": jnp.ones((2, 1), bool)}, {}, ValueError, "has missing entries"),
        ("padding", {"mask": jnp.ones(2, bool)}, {}, ValueError, "has padding"),
    )
}


@pytest.mark.parametrize(("bad", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(bad, error, message):
    with pytest.raises(error, match=message):
        bad()
