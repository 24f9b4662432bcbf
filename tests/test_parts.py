"""What is plugged into a model and does not fit: refused by name, or read as it is meant."""

from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxvae
from jaxvae.distributions import DiagGaussian, rate
from jaxvae.models import linear_vae
from jaxvae.objectives import linear_vae_loss

B, D, SHAPE = 4, 3, (4, 4, 1)
WEIGHTS = jnp.ones((16, 2 * D))
SCALE = jnp.float32(2.0)


def batch():
    return {"x": jax.random.uniform(jax.random.key(5), (B, *SHAPE)), "index": jnp.arange(B)}


def parts(latent_dim=D):
    return jaxvae.MLPEncoder(latent_dim, hidden=(8,)), jaxvae.MLPDecoder(SHAPE, hidden=(8,))


def reads_a_global(x):
    return tuple(jnp.split(x.reshape(len(x), -1) @ WEIGHTS, 2, axis=1))


def reads_it_inside(x):
    return (lambda flat: tuple(jnp.split(flat @ WEIGHTS, 2, axis=1)))(x.reshape(len(x), -1))


def reads_a_scalar(x):
    flat = SCALE * x.reshape(len(x), -1)[:, : 2 * D]
    return tuple(jnp.split(flat, 2, axis=1))


class Slots:
    __slots__ = ("kernel",)

    def __init__(self):
        self.kernel = WEIGHTS

    def __call__(self, x):
        return tuple(jnp.split(x.reshape(len(x), -1) @ self.kernel, 2, axis=1))


class ReadsAGlobal:
    def __call__(self, x):
        return reads_a_global(x)


class ClassAttribute:
    kernel = WEIGHTS

    def __call__(self, x):
        return tuple(jnp.split(x.reshape(len(x), -1) @ self.kernel, 2, axis=1))


class LinenReadsAGlobal(nn.Module):
    def __call__(self, x):
        return tuple(jnp.split(x.reshape(len(x), -1) @ WEIGHTS, 2, axis=1))


class LinenSetUp(nn.Module):
    def setup(self):
        self.kernel = WEIGHTS

    def __call__(self, x):
        return tuple(jnp.split(x.reshape(len(x), -1) @ self.kernel, 2, axis=1))


class NNXReadsAGlobal(nnx.Module):
    def __call__(self, x):
        return tuple(jnp.split(x.reshape(len(x), -1) @ WEIGHTS, 2, axis=1))


@pytest.mark.parametrize(
    "encoder",
    [
        *(reads_a_global, reads_it_inside, Slots(), ReadsAGlobal(), ClassAttribute()),
        *(LinenReadsAGlobal(), LinenSetUp(), NNXReadsAGlobal()),
    ],
    ids=lambda encoder: getattr(encoder, "__name__", type(encoder).__name__),
)
def test_arrays_that_are_read_from_elsewhere_are_refused(encoder):
    with pytest.raises(TypeError, match=r"VAE\.encoder.*\.(WEIGHTS|kernel) holds a JAX array float32\[16, 6\] that no"):
        jaxvae.VAE(encoder, parts()[1])


def test_a_global_scalar_is_an_option_and_a_name_is_no_network(key):
    model = jaxvae.VAE(reads_a_scalar, parts()[1])
    params = jax.jit(model.init)(key, batch()["x"])
    assert np.isfinite(jax.jit(partial(jaxvae.vae_loss, model, step=0))(params, (), batch(), key=key)[0])
    with pytest.raises(TypeError, match=r"VAE\.likelihood must be a network or a function, got the name 'bernoulli'"):
        jaxvae.VAE(*parts(), likelihood="bernoulli")
    for field in ("likelihood", "posterior", "prior"):
        with pytest.raises(TypeError, match=rf"VAE\.{field} must be a network or a function, got None"):
            jaxvae.VAE(*parts(), **{field: None})


class Tied(nnx.Module):
    def __init__(self, linear):
        self.linear = linear

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1))


def test_nnx_modules_that_share_a_layer_or_hold_a_bare_array_are_refused(key):
    """Each part is trained by itself: one layer in two of them would become two."""
    linear = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"Autoencoder\.encoder and \.decoder share an NNX variable of shape \["):
        jaxvae.Autoencoder(Tied(linear), Tied(linear))
    bare = Tied(linear)
    bare.kernel = nnx.data(WEIGHTS)
    with pytest.raises(TypeError, match="an NNX module holds a bare array at kernel, which no training reaches"):
        jaxvae.Autoencoder(bare, parts()[1]).init(key, batch()["x"])


class Rates(nn.Module):
    shape: tuple[int, ...]

    def terms(self, x, *, key, num_samples):
        return jaxvae.types.Terms(jnp.zeros((1, len(x))), jnp.zeros((1, len(x))), {"z": jnp.ones(self.shape)})


@pytest.mark.parametrize("shape", [(1, B), (1, 1, B), (2, B, 1), (B,)])
def test_rates_that_are_not_by_example_are_refused(shape, key):
    """A rate [1, B] would be summed over the batch, and each example pay for all."""
    with pytest.raises(ValueError, match=r"must have rates\['z'\] \[S or 1, 4, D or 1\], got \("):
        jaxvae.vae_loss(Rates(shape), {}, (), batch(), key=key, step=0)


@pytest.mark.parametrize(
    "prior",
    [
        jaxvae.GaussianMixture(3, latent_dim=1),
        jaxvae.GaussianMixture(1, latent_dim=1),
        jaxvae.priors.StandardNormal(D + 1),
        lambda: DiagGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1))),
    ],
    ids=["mixture", "one component", "standard normal", "gaussian"],
)
def test_a_prior_of_another_size_is_refused(prior, key):
    model = jaxvae.VAE(*parts(), prior=prior)
    params = jax.jit(model.init)(key, batch()["x"])
    with pytest.raises(ValueError, match=r"the prior is over latents of shape \([14],\), but those of the encoder .*3"):
        jaxvae.vae_loss(model, params, (), batch(), key=key, step=0)


def test_log_variances_that_do_not_broadcast_are_refused(key):
    def encoder(x):
        return x.reshape(len(x), -1)[:, :D], x.reshape(len(x), -1)[:, : D - 1]

    with pytest.raises(ValueError, match=r"the encoder's log_var must broadcast to its mean \(4, 3\), got \(4, 2\)"):
        jaxvae.VAE(encoder, parts()[1]).init(key, batch()["x"])


class ScalarPrior(NamedTuple):
    def __call__(self):
        return self

    def log_prob(self, z):
        return -0.5 * jnp.square(z).sum()

    def sample(self, count, *, key):
        return jnp.zeros((count, D))


def test_a_record_may_be_its_own_prior_and_its_log_prob_must_be_by_example(key):
    model = jaxvae.VAE(*parts(), prior=ScalarPrior())
    params = jax.jit(model.init)(key, batch()["x"])
    for loss in (jaxvae.vae_loss, partial(jaxvae.tc_vae_loss, num_examples=9)):
        with pytest.raises(ValueError, match=r"the prior's log_prob must be \(4,\), one number of nats"):
            loss(model, params, (), batch(), key=key, step=0)
    assert model.apply(params, 5, key=key, method="sample").mean.shape == (5, *SHAPE)


class Few(ScalarPrior):
    @property
    def mean(self):
        raise NotImplementedError

    def log_prob(self, z):
        return -0.5 * jnp.square(z).sum(axis=1)

    def sample(self, num, *, key):
        return jnp.zeros((1, D))


def test_a_prior_must_draw_as_many_as_asked_and_a_pair_is_of_each_example(key):
    model = jaxvae.VAE(*parts(), prior=Few())
    params = jax.jit(model.init)(key, batch()["x"])
    assert np.isfinite(jaxvae.vae_loss(model, params, (), batch(), key=key, step=0)[0])  # a prior needs no mean
    with pytest.raises(ValueError, match="the prior's sample returned 1 latents where 4 are asked for"):
        model.apply(params, 4, key=key, method="sample")
    with pytest.raises(ValueError, match=r"says \(mean, log_var\) of each example given its condition, \[B, D\]"):
        jaxvae.VAE(*parts(), prior=lambda: (jnp.zeros(D), jnp.zeros(D))).init(key, batch()["x"])


class Halved(DiagGaussian):
    """Another density under the name of a Gaussian's class."""

    def log_prob(self, x):
        return 0.5 * super().log_prob(x)


def test_a_class_made_from_a_gaussian_is_not_taken_for_one():
    mean, log_var = jnp.ones((B, D)), jnp.zeros((B, D))
    latent = jnp.full((1, B, D), 0.5)
    own = Halved(mean, log_var)
    value = rate(own, jaxvae.priors.StandardNormal(), latent, own.log_prob(latent[0])[None])
    expected = -0.25 * D * (0.25 + np.log(2 * np.pi)) + 0.5 * D * (0.25 + np.log(2 * np.pi))
    np.testing.assert_allclose(value, np.full((1, B, 1), expected), rtol=1e-6)
    with pytest.raises(TypeError, match=r"density factorises over latents .*: a DiagGaussian, got Halved over"):
        jaxvae.objectives.rate_terms(own, latent[0], num_examples=9)


class Told(nnx.Module):
    """An NNX module that wants to know whether it is in training, as Linen ones do."""

    def __init__(self, *, rngs):
        self.linear, self.latent_dim = nnx.Linear(16, 2 * D, rngs=rngs), D

    def __call__(self, x, train):
        output = self.linear(x.reshape(len(x), -1))
        return tuple(jnp.split(output + (100.0 if train else 0.0), 2, axis=1))


def test_an_nnx_module_is_told_whether_it_is_in_training(key):
    model = jaxvae.VAE(Told(rngs=nnx.Rngs(0)), parts()[1])
    params = jax.jit(model.init)(key, batch()["x"])
    training = jax.jit(partial(jaxvae.vae_loss, model, step=0))(params, (), batch(), key=key)[1][1]
    step = jax.jit(jaxvae.make_eval_step(partial(jaxvae.vae_loss, model)))
    sums, _ = step(params, (), batch() | {"weight": jnp.ones(B)}, key=key, step=jnp.int32(0))
    assert float(training["rate"]) > 1000 > float(sums["rate"] / B)


class Maps(nn.Module):
    """A posterior over maps of latents [B, H, W], H = B: shapes that broadcast where they should not."""

    @nn.compact
    def __call__(self, x):
        features = nn.Dense(2 * B * 2)(x.reshape(len(x), -1)).reshape(len(x), B, 2, 2)
        return features[..., 0], 0.1 * features[..., 1]


class FlatDecoder(nn.Module):
    @nn.compact
    def __call__(self, latent):
        return nn.Dense(16)(latent.reshape(len(latent), -1)).reshape(-1, *SHAPE)


def test_doubly_reparameterised_gradients_of_maps_of_latents(key):
    """Each example's samples are weighed by its own shares: the batch's gradient is the mean of its examples'."""
    model = jaxvae.VAE(Maps(), FlatDecoder())
    params = jax.jit(model.init)(key, batch()["x"])

    @jax.jit
    @jax.grad
    def gradient(params, examples):
        options = {"num_samples": 2, "doubly_reparameterized": True, "key": key, "step": 0}
        return jaxvae.iwae_loss(model, params, (), examples, **options)[0]

    singles = [gradient(params, {name: values[i : i + 1] for name, values in batch().items()}) for i in range(B)]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / B, *singles)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), gradient(params, batch()), mean)


LINEAR = linear_vae(SHAPE, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": jaxvae.MLPDecoder(SHAPE, hidden=(2,))},
        {"prior": jaxvae.GaussianMixture(2, latent_dim=2)},
        {"likelihood": jaxvae.Bernoulli},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_linear_objective_is_for_linear_models(change, key):
    model = LINEAR.clone(**change)
    params = jax.jit(model.init)(key, batch()["x"])
    with pytest.raises(TypeError, match="linear_vae_loss is exact for a model from linear_vae alone"):
        linear_vae_loss(model, params, (), batch(), key=key, step=0)


class DroppingPrior(nn.Module):
    """A density of codes whose network drops features in training."""

    num_codes: int = 5

    @nn.compact
    def log_prob(self, indices, train):
        logits = nn.Dense(self.num_codes, name="out")(nn.Dropout(0.5, deterministic=not train)(jnp.ones((1, 64))))
        return jax.nn.log_softmax(logits)[0][indices].reshape(len(indices), -1).sum(axis=1)


def test_a_prior_over_codes_trains_with_dropout_and_is_evaluated_without(key):
    model, codes = DroppingPrior(), {"code": jnp.arange(20).reshape(4, 5) % 5, "index": jnp.arange(4)}
    params = jax.jit(partial(model.init, method="log_prob", train=False))(key, codes["code"])
    loss = partial(jaxvae.pixel_cnn_loss, model)
    exact = -np.asarray(model.apply(params, codes["code"], False, method="log_prob")).mean()
    training = [float(loss(params, (), codes, key=jax.random.key(seed), step=0)[0]) for seed in range(3)]
    assert len({*training, float(exact)}) == 4
    step = jaxvae.make_eval_step(loss)
    sums, weight = step(params, (), codes | {"weight": jnp.ones(4)}, key=key, step=jnp.int32(0))
    np.testing.assert_allclose(sums["nll"] / weight, exact, rtol=1e-5)


class Own(jaxvae.GradientCodebook):
    """A quantiser that goes wrong in one way: its attributes say which."""

    metrics: ClassVar = {}
    returned: ClassVar = {}
    updated: ClassVar = ({}, {})

    def __call__(self, params, state, encoded, *, mask=None):
        return super().__call__(params, state, encoded, mask=mask)._replace(metrics=self.metrics, **self.returned)

    def update(self, state, encoded, indices, *, mask=None, key):
        return self.updated


ZERO = np.float32(0)
WRONG = {
    "a loss": ({"metrics": {"loss": ZERO}}, ValueError, "must not be called as the objective's own, got loss"),
    "updated": ({"updated": ({}, {"distortion": ZERO})}, ValueError, "as the objective's own, got distortion"),
    "no pair": ({"updated": None}, TypeError, r"update must return \(state, metrics\), got NoneType"),
    "floats": ({"returned": {"indices": np.zeros((B, 2))}}, TypeError, "indices must be integers, got float"),
    "flat": ({"returned": {"indices": np.zeros(2 * B, int)}}, ValueError, r"indices must be \(4, 2\), .* got \(8,\)"),
    "vectors": ({"returned": {"vectors": np.zeros((B, 2, 1))}}, ValueError, r"vectors must be \(4, 2, 3\), got \("),
}


@pytest.mark.parametrize(("attributes", "error", "message"), WRONG.values(), ids=WRONG)
def test_a_quantiser_that_returns_something_else_is_refused(attributes, error, message, key):
    """A metric called "loss" would else take the place of what is minimised."""
    quantizer = type("Own", (Own,), attributes)(num_codes=5)
    model = jaxvae.VQVAE(CodeEncoder(), jaxvae.MLPDecoder(SHAPE, hidden=()), quantizer)
    params, state = jax.jit(partial(model.init_with_quantizer, seeded=False))(batch()["x"], key=key)
    with pytest.raises(error, match=message):
        jaxvae.vq_vae_loss(model, params, state, batch(), key=key, step=0)


class CodeEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2 * D)(x.reshape(len(x), -1)).reshape(len(x), 2, D)


class Bare(jaxvae.GradientCodebook):
    def __call__(self, params, state, encoded, *, mask=None):
        return encoded, jnp.zeros(encoded.shape[:-1], jnp.int32)

    def init(self, dim, *, key, encoded=None):
        return jnp.zeros((self.num_codes, dim)), {}


def test_what_a_quantiser_returns_is_named(key):
    model = jaxvae.VQVAE(CodeEncoder(), jaxvae.MLPDecoder(SHAPE, hidden=()), Bare(5))
    with pytest.raises(TypeError, match=r"the quantiser's init must return \(params, state\), two dictionaries"):
        model.init_with_quantizer(batch()["x"], key=key)
    params = model.init(key, batch()["x"])
    with pytest.raises(TypeError, match=r"must return a jaxvae\.types\.Quantized, got tuple without vectors, indices"):
        jaxvae.vq_vae_loss(model, params, (), batch(), key=key, step=0)


class AlwaysDrops(nn.Module):
    @nn.compact
    def __call__(self, latent):
        return nn.Dense(16)(nn.Dropout(0.5, deterministic=False)(latent)).reshape(-1, *SHAPE)


def test_dropout_that_never_ends_is_refused_in_evaluation(key):
    model = jaxvae.VAE(parts()[0], AlwaysDrops())
    params = model.init({"params": key, "dropout": key}, batch()["x"])
    assert np.isfinite(jaxvae.vae_loss(model, params, (), batch(), key=key, step=0)[0])
    step = jaxvae.make_eval_step(partial(jaxvae.vae_loss, model))
    with pytest.raises(ValueError, match="a network draws in evaluation too: give its __call__ an argument train"):
        step(params, (), batch() | {"weight": jnp.ones(B)}, key=key, step=jnp.int32(0))


def test_a_sampled_rate_is_a_mean_over_the_samples(key):
    """As many samples as there are: a sum would charge for each of them."""
    model = jaxvae.VAE(*parts(), prior=jaxvae.GaussianMixture(3, latent_dim=D))
    params = jax.jit(model.init)(key, batch()["x"])
    terms, _ = jax.jit(partial(jaxvae.objectives.terms_of, model, num_samples=3))(params, (), batch(), key=key)
    assert terms.rates["z"].shape == (3, B, 1)
    loss = jax.jit(partial(jaxvae.vae_loss, model, step=0, num_samples=3))
    metrics = loss(params, (), batch(), key=key)[1][1]
    np.testing.assert_allclose(metrics["rate"], -terms.log_ratio.mean(), rtol=1e-5)
