"""The deterministic autoencoder: a code instead of a posterior, no rate, no prior to sample from.

References:
  Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006.
"""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import check_x
from jaxvae.distributions import Bernoulli
from jaxvae.models._parts import adopt_parts
from jaxvae.models.vae import decoded_log_prob
from jaxvae.networks._run import run
from jaxvae.types import Array, Likelihood, PRNGKey, Terms


class Autoencoder(nn.Module):
    """An encoder, a decoder and a likelihood.

    Attributes:
      encoder: x [B, ...] -> codes [B, D], such as `MLPDecoder((D,))`.
      decoder: codes [B, D] -> the likelihood's parameters, [B, ...].
      likelihood: as in `VAE`; with a Gaussian of fixed variance the loss is the squared error.
      latent_dim: D; lets an error name the shape of x that would fit.
    """

    encoder: Callable[..., Array]
    decoder: Callable[..., Array]
    likelihood: Callable[..., Likelihood] = Bernoulli
    latent_dim: int | None = None

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, x: Array) -> Likelihood:
        """Reconstruct; also what `init` runs."""
        return self.decode(self.encode(x))

    def encode(self, x: Array) -> Array:
        """x [B, ...] -> codes [B, D].

        Raises:
          TypeError: x is not floating, or the encoder's output is no array.
          ValueError: x is empty, or there are not as many codes.
        """
        check_x(x)
        code = run(self.encoder, x, train=self.has_rng("dropout"))
        if not hasattr(code, "shape"):
            raise TypeError(f"the encoder of an autoencoder must return codes [B, ...], got {type(code).__name__}")
        if code.shape[:1] != x.shape[:1]:
            raise ValueError(f"the encoder must return codes ({len(x)}, ...), one for each example, got {code.shape}")
        return code

    def decode(self, code: Array) -> Likelihood:
        """Codes [B, D] -> a record over x [B, ...]."""
        train = self.has_rng("dropout")
        return run(self.likelihood, run(self.decoder, code, train=train), train=train)

    def terms(self, x: Array, *, key: PRNGKey, num_samples: int) -> Terms:
        """Log p(x|code(x)), [1, B]: nothing is drawn, and there are no rates, so no bound on log p(x) either."""
        del key, num_samples
        log_likelihood = decoded_log_prob(self.decode, x, self.encode(x)[None])
        return Terms(log_likelihood, jnp.zeros_like(log_likelihood), {})
