"""The table of variants that the contract test and the training tests run over. A new variant is one row here."""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import jaxvae
from jaxvae.distributions import Bernoulli, Categorical, ContinuousBernoulli, DiagGaussian, NegativeBinomial
from jaxvae.networks import DenoisingMLP, Stage, UNet
from jaxvae.quantizers import FiniteScalar, Projected, Residual

SHAPE = (8, 8, 1)
STANDARD_NORMAL = jaxvae.StandardNormal()


class Variant(NamedTuple):
    """A small model with its objective; the functions are compiled once for all tests."""

    model: Any
    loss_fn: Any
    init: Any
    log_weights_fn: Any
    draws: bool = True  # whether the objective uses its key
    pairs: bool = False  # whether it compares the examples of a batch with each other
    any_size: bool = False  # whether the network takes x of other sizes too
    levels: bool = False  # whether it models x as integers, which it takes too

    @property
    def tolerance(self):
        """How far two programs for the same thing may be apart, relatively."""
        encoder = getattr(self.model, "encoder", None)
        return 2e-2 if getattr(encoder, "dtype", None) == jnp.bfloat16 else 1e-4


@cache
def init_of(model):
    """Compiled once for all objectives of a model."""

    def init(*, key):
        return model.init(key, jnp.zeros((1, *SHAPE))), ()

    return jax.jit(init)


@cache
def log_weights_of(model):
    return jax.jit(partial(jaxvae.objectives.vae_log_weights, model), static_argnames="num_samples")


def variant(model, loss=jaxvae.vae_loss, draws=True, pairs=False, **options):
    log_weights = log_weights_of(model) if hasattr(model, "propose") else None
    return Variant(model, jax.jit(partial(loss, model, **options)), init_of(model), log_weights, draws, pairs)


def vae(encoder, decoder, likelihood, loss=jaxvae.vae_loss, prior=STANDARD_NORMAL, **options):
    return variant(jaxvae.VAE(encoder, decoder, likelihood, prior=prior), loss, **options)


def moved(made):
    """The variant from parameters away from where they start: what begins as the identity hides gradients behind it."""

    def init(*, key):
        params, state = made.init(key=key)
        flat, unravel = ravel_pytree(params)  # one draw for all: far less to compile
        return unravel(flat + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), flat.shape)), state

    return made._replace(init=jax.jit(init))


def flows():
    posterior = jaxvae.flows.FlowPosterior((jaxvae.flows.Autoregressive((8,)),))
    encoder = jaxvae.MLPEncoder(3, (16,), context_dim=2)
    prior = jaxvae.priors.FlowPrior((jaxvae.flows.AffineCoupling((8,)),), 3)
    return moved(variant(jaxvae.VAE(encoder, mlp()[1], posterior=posterior, prior=prior)))


def mixtures():
    encoder = jaxvae.MLPEncoder(3, (16,), context_dim=4)
    return moved(variant(jaxvae.VAE(encoder, mlp()[1], posterior=jaxvae.posteriors.MixturePosterior(2))))


def categories():
    encoder, prior = (
        jaxvae.networks.CategoricalEncoder(2, 3, (16,)),
        jaxvae.priors.AutoregressiveCategorical(2, 3, (8,)),
    )
    return moved(variant(jaxvae.VAE(encoder, mlp()[1], posterior=jaxvae.posteriors.GumbelSoftmax(), prior=prior)))


def hierarchical(loss, **options):
    return variant(
        jaxvae.HierarchicalVAE(
            encoders=(jaxvae.MLPEncoder(4, (16,)), jaxvae.MLPEncoder(2, (8,))),
            decoders=(jaxvae.MLPDecoder(SHAPE, (16,)), jaxvae.MLPEncoder(4, (8,))),
        ),
        loss,
        **options,
    )


def top_down(stages, loss=jaxvae.vae_loss, form=jaxvae.models.residual_posterior, **options):
    small: Any = {"blocks": 0, "normalization": None}  # it compiles in a third of the time
    small |= {"windows": (3, 3), "output_width": 4}
    return moved(variant(jaxvae.models.top_down_vae(SHAPE, stages, posterior=form, **small), loss, **options))


def autoencoder():
    model = jaxvae.Autoencoder(jaxvae.MLPDecoder((3,), (16,)), jaxvae.MLPDecoder(SHAPE, (16,)), latent_dim=3)
    return variant(model, jaxvae.autoencoder_loss, draws=False)


def mlp(latent_dim=3, channels=(), **options):
    return jaxvae.MLPEncoder(latent_dim, (16,), **options), jaxvae.MLPDecoder((*SHAPE, *channels), (16,), **options)


def conv(**options):
    return jaxvae.ConvEncoder(3, (4, 8), 16, **options), jaxvae.ConvDecoder(SHAPE, (4, 8), 16, **options)


def of_levels(model):
    """A density of x as levels, which has shapes and types of its own (tests of the model)."""
    return variant(model, jaxvae.code_prior_loss, draws=False, field="x")._replace(any_size=True, levels=True)


def diffusion(network, **options):
    return moved(variant(jaxvae.Diffusion(network, SHAPE), jaxvae.diffusion_loss, **options))


def vq_vae(quantizer, dim=4, draws=False, **options):
    model = jaxvae.VQVAE(
        jaxvae.ResidualEncoder(dim, (8,), 1, 4), jaxvae.ResidualDecoder(1, (8,), 1, 4), quantizer, Bernoulli
    )
    init = jax.jit(partial(model.init_with_quantizer, jnp.zeros((1, *SHAPE)), seeded=False))
    loss = jax.jit(partial(jaxvae.vq_vae_loss, model, **options))
    return Variant(model, loss, init, None, draws=draws, any_size=True)


def of_labels(loss, model_of, fields, **options):
    """A model of x and labels; the label of example i is i modulo 3, under the names of `fields`."""
    cvae = jaxvae.CVAE(*map(jaxvae.Conditioned, mlp()), embed=jaxvae.LabelEmbedding(3, 4))
    model = model_of(cvae)

    def labelled_loss(model, params, model_state, batch, **keywords):
        label = (batch["index"] % 3).astype(jnp.int32)
        return loss(model, params, model_state, batch | dict.fromkeys(fields, label), **options, **keywords)

    def init(*, key):
        label = (jnp.zeros(1, jnp.int32),) if model is cvae else ()
        return model.init(key, jnp.zeros((1, *SHAPE)), *label), ()

    return Variant(model, jax.jit(partial(labelled_loss, model)), jax.jit(init), None)


VARIANTS = {
    "bernoulli": vae(*mlp(), Bernoulli),
    "categorical": vae(*mlp(channels=(17,)), Categorical),
    "gaussian": vae(*mlp(), partial(DiagGaussian, log_var=-1.0)),
    "one learned variance, four draws": vae(*mlp(), jaxvae.SharedScale(), num_samples=4),
    "a variance per pixel": vae(*mlp(channels=(2,)), jaxvae.PixelScale()),
    "discretised logistic": vae(*mlp(channels=(2,)), jaxvae.PixelScale(jaxvae.networks.logistic_image)),
    "continuous bernoulli": vae(*mlp(), ContinuousBernoulli),
    "negative binomial": vae(*mlp(channels=(2,)), jaxvae.PixelScale(NegativeBinomial)),
    "convolutional": vae(*conv(), Bernoulli),
    "bfloat16": vae(*conv(dtype=jnp.bfloat16), Bernoulli),
    "beta": vae(*mlp(), Bernoulli, beta=4.0),
    "beta schedule": vae(*mlp(), Bernoulli, beta=lambda step: jnp.minimum(1.0, 0.25 * (step + 1))),
    "capacity": vae(*mlp(), Bernoulli, jaxvae.beta_vae_loss, beta=10.0, capacity=optax.linear_schedule(0.0, 5.0, 50)),
    "free bits": vae(*mlp(), Bernoulli, jaxvae.beta_vae_loss, beta=1.0, free_bits=0.05),
    "total correlation": vae(*mlp(), Bernoulli, jaxvae.tc_vae_loss, pairs=True, num_examples=100),
    "semi-amortised": vae(*mlp(), Bernoulli, jaxvae.objectives.semi_amortized_vae_loss, num_steps=2),
    "mixture prior": vae(*mlp(), Bernoulli, prior=jaxvae.GaussianMixture(4, 3)),
    "vamp prior": vae(*mlp(), Bernoulli, prior=jaxvae.priors.VampPrior(4, SHAPE)),
    "flow posterior and prior": flows(),
    "mixture posterior": mixtures(),
    "categorical latents": categories(),
    "iwae": vae(*mlp(), Bernoulli, jaxvae.iwae_loss, num_samples=4),
    "doubly reparameterised": hierarchical(jaxvae.iwae_loss, num_samples=4, doubly_reparameterized=True),
    "hierarchical": hierarchical(jaxvae.sampled_vae_loss),
    "top-down": top_down([Stage(4, (2,), 2), Stage(8, (3,))]),
    "ladder, free bits": top_down(
        [Stage(8, (3,)), Stage(8, (2,))],
        jaxvae.objectives.hierarchical_vae_loss,
        jaxvae.models.merged_posterior,
        free_bits=0.1,
        beta=0.5,
        balanced=True,
    ),
    "diffusion": diffusion(DenoisingMLP(16, 1, embedding=8), num_samples=2),
    "diffusion, simple": diffusion(UNet(1, (4,), groups=2, embedding=8), weighting="simple"),
    "linear": variant(jaxvae.models.linear_vae(SHAPE, 3), jaxvae.objectives.linear_vae_loss, draws=False),
    "autoencoder": autoencoder(),
    "conditional": of_labels(jaxvae.cvae_loss, lambda cvae: cvae, ["condition"], beta=2.0),
    "semi-supervised": of_labels(
        jaxvae.semi_supervised_loss,
        lambda cvae: jaxvae.SemiSupervisedVAE(cvae, jaxvae.MLPDecoder((3,), (8,))),
        ["label"],
        classification_weight=1.0,
    ),
    "vq-vae": vq_vae(jaxvae.EMACodebook(8, restart_threshold=0.0)),
    "vq-vae, groups": vq_vae(jaxvae.Grouped(jaxvae.EMACodebook(8, restart_threshold=0.0), 2)),
    "vq-vae, gradient codes": vq_vae(jaxvae.GradientCodebook(8), commitment_weight=2.0),
    "vq-vae, residual": vq_vae(Residual(jaxvae.EMACodebook(4, restart_threshold=0.0), 2, dropout=0.5), draws=True),
    "vq-vae, finite scalar": vq_vae(Projected(FiniteScalar((5, 4), temperature=0.1), 2), draws=True),
    "pixelcnn++": of_levels(jaxvae.PixelCNNPP(SHAPE, 4, channels=4, layers=2, components=2)),
    "pixelrnn": of_levels(jaxvae.PixelRNN(4, SHAPE, channels=4, layers=1, first_kernel=3)),
    "pixel vae": variant(
        jaxvae.models.pixel_vae(SHAPE, 3, num_values=4, channels=4, layers=1, features=2, hidden=(16,), dense=True)
    ),
}


def batch(num, seed=0, start=0):
    """Grey x and their indices."""
    x = jax.random.uniform(jax.random.key(seed), (num, *SHAPE))
    return {"x": x, "index": jnp.arange(start, start + num, dtype=jnp.int32)}
