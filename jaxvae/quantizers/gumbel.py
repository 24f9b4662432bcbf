"""Codes by chance: categorical latents, relaxed in training (Jang et al., 2017), as in DALL·E's discrete VAE."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae import codebook
from jaxvae._checks import at_least, floating, integers, largest
from jaxvae.keys import check_key, noise
from jaxvae.quantizers._parts import check_count, checked, chosen, described, look_up, perplexity
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Schedule


@dataclass(frozen=True)
class GumbelCodebook:
    r"""K codes, each position's drawn from q(k|z) = softmax(z W + b): a discrete VAE's posterior.

    .. math:: y = \mathrm{softmax}\left(\frac{z W + b + g}{T}\right), \quad z_q = \sum_k y_k e_k, \quad
              \ell = w \, \mathrm{KL}(q(k | z) \,\|\, \text{uniform})

    with Gumbel noise g. Training mixes codes, the more sharply the lower T; evaluation takes the most probable one. So
    the loss of training bounds nothing: report what evaluation says.

    Parameters: {"kernel": [D, K], "bias": [K], "codes": [K, D]}. State: {"steps"} where the temperature is a schedule,
    otherwise none.

    Attributes:
      num_codes: K, at least 2.
      temperature: T, above 0; or a schedule, step -> T, such as one that falls from 1 to 1/16 (DALL·E).
      straight_through: whether the decoder is given one code in training, with the gradient of the mixture.
      kl_weight: w. The KL is a mean over the positions, as every quantiser's loss: with w = the number of positions,
        `vq_vae_loss(variance=None)` is a negative ELBO. (`Grouped` takes the mean over its groups too: that many times
        w.)

    The call returns "rate", the KL in nats, summed over the positions, and `update` "batch_perplexity". The commitment
    is zero: there is no distance to a code.

    References:
      Jang, Gu and Poole, Categorical Reparameterization with Gumbel-Softmax, 2017; Ramesh et al., Zero-Shot
      Text-to-Image Generation, 2021.
    """

    num_codes: int
    temperature: float | Schedule = 1.0
    straight_through: bool = False
    kl_weight: float = 5e-4

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range."""
        at_least(2, num_codes=self.num_codes)
        if not callable(self.temperature) and not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a positive number, or a schedule, got {self.temperature}")
        if not 0 <= self.kl_weight < math.inf:
            raise ValueError(f"kl_weight must be a finite number, zero or more, got {self.kl_weight}")

    @property
    def needs_key(self) -> bool:
        """True: training draws."""
        return True

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes and a random map to their logits; `encoded` [..., D] tells the scale, at which logits are 1."""
        check_key(key)
        at_least(1, dim=dim)
        scale: Array | float = 1.0
        if encoded is not None:
            encoded = floating(encoded, "encoded")
            if encoded.shape[-1:] != (dim,):
                raise ValueError(f"encoded must be [..., {dim}] for codes of {dim} dimensions, got {encoded.shape}")
            mean_square = jnp.square(encoded.astype(jnp.float32)).mean()
            scale = jnp.where(mean_square > 0, jnp.sqrt(mean_square), 1.0)
        code_key, kernel_key = jax.random.split(key)
        kernel = jax.random.normal(kernel_key, (dim, self.num_codes), jnp.float32) / (math.sqrt(dim) * scale)
        codes = codebook.vectors(codebook.init_codebook(self.num_codes, dim, key=code_key))
        params = {"kernel": kernel, "bias": jnp.zeros(self.num_codes, jnp.float32), "codes": codes}
        return params, {"steps": jnp.zeros((), jnp.int32)} if callable(self.temperature) else {}

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Draw the codes of vectors [B, *positions, D], by one key or one for each example. See `Quantizer`.

        Without a key none is drawn, and the most probable code is taken, with the gradient of softmax(logits / T).
        """
        codes = self.codes(params, state)
        encoded, mask = checked(encoded, codes.shape[1], mask)
        exact = jax.lax.Precision.HIGHEST
        bias = params["bias"].reshape((1,) * (encoded.ndim - 1) + (-1,))
        logits = jnp.dot(encoded.astype(jnp.float32), params["kernel"], precision=exact) + bias
        drawn = logits if key is None else logits + noise(jax.random.gumbel, key, logits.shape)
        indices = largest(drawn).astype(jnp.int32)
        vectors = chosen(codes, indices)
        latent = jnp.dot(jax.nn.softmax(drawn / self._temperature(state)), codes, precision=exact)
        if key is None or self.straight_through:
            latent = jax.lax.stop_gradient(vectors) + (latent - jax.lax.stop_gradient(latent))  # exactly the code's

        log_probs = jax.nn.log_softmax(logits)
        rate = (jnp.exp(log_probs) * log_probs).sum(axis=-1) + math.log(self.num_codes)  # [B, *positions]
        if mask is not None:
            rate = jnp.where(mask, rate, 0)
        total = rate.reshape(len(rate), -1).sum(axis=1)
        counts = rate[0].size if mask is None else jnp.maximum(mask.reshape(len(mask), -1).sum(axis=1), 1)
        return Quantized(
            vectors=vectors,
            indices=indices,
            commitment=jnp.zeros(len(encoded), jnp.float32),
            loss=self.kl_weight * total / counts,
            metrics={"rate": total.mean()},
            latent=latent.astype(encoded.dtype),
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Count the step, where the temperature is a schedule."""
        check_key(key)
        _, mask = checked(encoded, jnp.shape(encoded)[-1], mask)
        if callable(self.temperature):
            state = {"steps": self._steps(state) + 1}
        return state, {"batch_perplexity": perplexity(integers(indices, "indices"), mask, self.num_codes)}

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        return look_up(self.codes(params, state), indices)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D]."""
        if not isinstance(params, Mapping) or not {"kernel", "bias", "codes"} <= params.keys():
            raise ValueError(
                "GumbelCodebook has no codes without its parameters, {'kernel': [D, K], 'bias': [K], 'codes': [K, D]}, "
                f"got {described(params)}"
            )
        codes: Array = params["codes"]
        check_count(self.num_codes, codes)
        return codes

    def _temperature(self, state: PyTree) -> Array | float:
        return self.temperature(self._steps(state)) if callable(self.temperature) else self.temperature

    def _steps(self, state: PyTree) -> Array:
        if not isinstance(state, Mapping) or "steps" not in state:
            raise ValueError(f"a GumbelCodebook with a schedule needs its state, {{'steps'}}, got {described(state)}")
        steps: Array = state["steps"]
        return steps
