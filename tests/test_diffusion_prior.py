"""A diffusion as the prior of a trained VAE: a bound on log p(z), the negative ELBO with it, two stages, samples."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae.keys import example_keys
from jaxvae.models import CosineSchedule, Diffusion, DiffusionPrior, LinearSchedule
from jaxvae.networks import DenoisingMLP
from jaxvae.objectives import (
    bounded_vae_loss,
    init_diffusion_prior,
    init_prior,
    prior_loss,
    sampled_vae_loss,
    with_fitted_prior,
)

B, D, S = 40, 3, 1.3
KEY = jax.random.key(0)
MU = np.float32([0.5, -1.0, 0.0])
STD = np.float32([2.0, 0.5, 1.0])


def of_gaussian(z, log_snr):
    """ε of x ~ N(MU, S²), the best guess."""
    alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(each))[:, None] for each in (log_snr, -log_snr))
    return sigma * (z - alpha * MU[None]) / (alpha**2 * S**2 + sigma**2)


EXACT = DiffusionPrior(
    Diffusion(of_gaussian, (D,), schedule=LinearSchedule(9.0, -7.0), prediction="eps"),
    steps=100,
    schedule=CosineSchedule(9.0, -7.0),
)
CONSTANTS = {"latent_scale": {"std": jnp.asarray(STD)}}
PLAIN = jaxvae.VAE(*mlp(D))
LEARNED = PLAIN.clone(
    prior=DiffusionPrior(Diffusion(DenoisingMLP(32, 1, embedding=16), (D,)), steps=50, schedule=CosineSchedule())
)


@pytest.fixture(scope="module")
def trained():
    """Codes that are not N(0, I)."""
    params = jax.jit(PLAIN.init)(KEY, batch(1)["x"])
    return jax.tree.map(lambda leaf: 1.7 * leaf, params)


def start(trained, std=1.0, model=LEARNED, key=KEY):
    init = partial(init_diffusion_prior, model, trained, (), batch(1), std=std)
    return jax.jit(init)(key=key)


@partial(jax.jit, static_argnums=0, static_argnames="num_samples")
def bounded(model, params, key=KEY, num_samples=1):
    return bounded_vae_loss(model, params, (), batch(B), key=key, step=0, num_samples=num_samples)


def test_with_the_best_denoiser_the_bound_is_log_p_in_the_latents_own_units():
    record = EXACT.apply(CONSTANTS)
    z = np.float32([[1.0, -0.5, 0.3], [4.0, 0.0, -2.0]])
    num = 20_000
    draw = jax.jit(lambda z, key: record.log_prob_bound(z, key=key))
    for each in z:
        nats = np.asarray(draw(jnp.broadcast_to(each, (num, D)), example_keys(KEY, jnp.arange(num))), np.float64)
        expected = stats.norm.logpdf(each, MU * STD, S * STD).sum()
        assert nats.mean() == pytest.approx(expected, abs=5 * nats.std() / np.sqrt(num))


def test_its_samples_follow_the_density():
    num = 4_000
    z = np.asarray(EXACT.apply(CONSTANTS).sample(num, key=KEY), np.float64)
    np.testing.assert_allclose(z.mean(axis=0), MU * STD, atol=0.1)
    np.testing.assert_allclose(z.std(axis=0), S * STD, rtol=0.06)
    np.testing.assert_allclose(EXACT.apply(CONSTANTS).sample(3, key=KEY), z[:3], rtol=1e-5)


def test_the_negative_elbo_with_it_is_that_of_the_gaussian_that_it_is(trained):
    """-ELBO with the bound of N(MU·STD, S²·STD²) against that with its log p(z)."""
    model = PLAIN.clone(prior=EXACT)
    _, (_, metrics) = bounded(model, {**trained, "latent_scale": {"prior": CONSTANTS["latent_scale"]}}, num_samples=400)
    known = PLAIN.clone(prior=jaxvae.GaussianMixture(1, D))
    gaussian = {"log_weights": jnp.zeros(1), "mean": (MU * STD)[None], "log_var": 2 * np.log(S * STD)[None]}
    params = {"params": {**trained["params"], "prior": gaussian}}
    _, (_, expected) = bounded(known, params, num_samples=400)
    assert metrics["distortion"] == expected["distortion"]
    assert float(metrics["rate"]) == pytest.approx(float(expected["rate"]), abs=0.3)
    np.testing.assert_allclose(metrics["loss"], metrics["rate"] + metrics["distortion"], rtol=1e-6)
    # Of a prior with log p(z) it is the sampled ELBO.
    loss, _ = sampled_vae_loss(known, params, (), batch(B), key=KEY, step=0, num_samples=10)
    np.testing.assert_allclose(bounded(known, params, num_samples=10)[0], loss, rtol=1e-5)


@pytest.mark.slow
def test_two_stages_gain_what_the_standard_normal_missed(trained):
    """The second stage moves the prior alone, and ends near the best Gaussian or below."""
    posterior = PLAIN.apply(trained, batch(B)["x"], method="encode")
    mean = np.asarray(posterior.mean, float)
    variance = mean.var(axis=0) + np.exp(np.asarray(posterior.log_var, float)).mean(axis=0)
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 300))
    state = jaxvae.init_train_state(partial(start, trained, np.sqrt(variance)), optimizer, key=jax.random.key(2))
    loss_fn = partial(prior_loss, LEARNED, num_samples=8)
    step = jaxvae.make_train_step(loss_fn, optimizer)

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda state, _: step(state, batch(B)), state, length=300)[0]

    state = train(state)
    np.testing.assert_allclose(state.model_state["latent_scale"]["prior"]["std"], np.sqrt(variance), rtol=1e-6)
    whole = with_fitted_prior(state.params, state.model_state)
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, whole["params"][part], trained["params"][part])
    _, (_, after) = bounded(LEARNED, whole, num_samples=200)
    _, (_, before) = bounded(PLAIN, trained, num_samples=200)
    gaussian = 0.5 * (variance + mean.mean(axis=0) ** 2 - 1 - np.log(variance)).sum()
    assert before["distortion"] == after["distortion"]
    assert float(before["rate"] - after["rate"]) > 0.8 * gaussian > 0.5
    samples = LEARNED.apply(whole, 500, key=KEY, method="sample")
    assert samples.mean.shape == (500, *SHAPE)
    z = np.asarray(LEARNED.apply(whole, method="latent_prior").sample(2000, key=KEY))
    np.testing.assert_allclose(z.mean(axis=0), mean.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(z.std(axis=0), np.sqrt(variance), rtol=0.25)


def test_the_scale_is_kept_and_part_of_the_density(trained):
    _, state = start(trained, std=STD)
    np.testing.assert_array_equal(state["latent_scale"]["prior"]["std"], STD)
    assert set(state) == {"frozen", "latent_scale"}
    params, plain = jax.jit(partial(init_prior, LEARNED, trained, (), batch(1)))(key=KEY)
    np.testing.assert_array_equal(plain["latent_scale"]["prior"]["std"], 1)
    assert set(params["params"]) == {"prior"}
    wide, unit = (
        EXACT.apply(
            {"latent_scale": {"std": std}}, jnp.float32([[1.0, 2.0, 3.0]]) * std[None], key=KEY, method="log_prob_bound"
        )
        for std in (jnp.asarray(STD), jnp.ones(D))
    )
    np.testing.assert_allclose(unit - wide, np.log(STD).sum(), atol=2e-5)


def test_log_p_itself_is_refused_wherever_it_is_needed(trained):
    whole = with_fitted_prior(*start(trained))
    few = batch(4)
    says = "a DiffusionPrior gives a bound on log p"
    for loss in (jaxvae.vae_loss, sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=2)):
        with pytest.raises(TypeError, match=says):
            jax.eval_shape(lambda loss=loss: loss(LEARNED, whole, (), few, key=KEY, step=0))
    with pytest.raises(TypeError, match=says):
        jaxvae.log_likelihood(LEARNED, whole, (), few, jnp.arange(4)[None], key=KEY, num_samples=2)
    with pytest.raises(TypeError, match=says):
        jax.eval_shape(lambda: LEARNED.apply(whole, few["x"], jnp.zeros((1, 4, D)), method="log_joint"))


DIFFUSION = Diffusion(of_gaussian, (D,))
REFUSED = {
    "levels": (lambda _: DiffusionPrior(DIFFUSION.clone(levels=3)), ValueError, "leave levels of the diffusion out"),
    "classes": (lambda _: DiffusionPrior(DIFFUSION.clone(num_classes=3)), ValueError, "leave num_classes of the diff"),
    "network": (
        lambda _: DiffusionPrior(DenoisingMLP()),
        TypeError,
        "diffusion must be a Diffusion, got a? ?Denoising",
    ),
    "steps": (lambda _: DiffusionPrior(DIFFUSION, steps=0), ValueError, "steps must be at least 1, got 0"),
    "sampler": (lambda _: DiffusionPrior(DIFFUSION, sampler="euler"), ValueError, "sampler must be 'ddpm' or 'ddim'"),
    "std": (lambda trained: start(trained, std=0.0), ValueError, "std must be positive and finite, got 0.0"),
    "stds": (lambda trained: start(trained, std=np.ones(2)), ValueError, r"std must have shape \(\) or \(3,\), as the"),
    "prior": (
        lambda trained: start(trained, model=PLAIN),
        TypeError,
        "the prior must be a DiffusionPrior, got StandardNormal: take init_prior",
    ),
    "size": (
        lambda trained: jax.eval_shape(
            lambda: prior_loss(WIDE, *start(trained, model=WIDE), batch(2), key=KEY, step=0)
        ),
        ValueError,
        r"the prior is over latents of shape \(4,\), got \(3,\)",
    ),
    "model": (
        lambda _: bounded_vae_loss(jaxvae.PixelCNN(2, (2, 2)), {}, (), batch(2), key=KEY, step=0),
        TypeError,
        "this bound is one of a VAE or CVAE, and a PixelCNN has no prior of its codes",
    ),
}
WIDE = PLAIN.clone(prior=DiffusionPrior(Diffusion(DenoisingMLP(8, 1), (D + 1,))))


@pytest.mark.parametrize(("bad", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(bad, error, message, trained):
    with pytest.raises(error, match=message):
        bad(trained)
