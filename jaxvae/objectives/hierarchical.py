"""The objective of hierarchies: what keeps a group of latents from falling silent while the others learn."""

import jax
import jax.numpy as jnp

from jaxvae._checks import weight_at
from jaxvae._whole_batch import needs_whole_batch
from jaxvae.objectives._apply import terms_of
from jaxvae.objectives.elbo import check_prior
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree, Schedule


def hierarchical_vae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
    free_bits: float | Array | Schedule = 0.0,
    balanced: bool = False,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean distortion and β times what each group of latents pays for its rate.

    .. math:: \frac1B \sum_i -\log p(x_i | z_i) + \beta \sum_l \gamma_l \max(\lambda, R_l), \qquad
              R_l = \frac1B \sum_i KL(q(z_l | z_{>l}, x_i) || p(z_l | z_{>l}))

    With free bits λ a group pays nothing for its first λ nats, so that none has a reason to fall silent before the
    groups below have learnt to read it. Here they are of a whole group, in `beta_vae_loss` of each latent.

    Balanced, a group with a large rate for its size pays more and one with a small rate less while β < 1, as in NVAE:
    γ_l is the group's rate divided by its number of latents (1 where the rate is sampled, as in a `HierarchicalVAE`),
    made to have mean 1 over the groups, and no gradient goes through it. From β = 1 on every γ_l is 1.

    With β = 1 and neither, this is `vae_loss` with the rate of each group told: what a run is evaluated by.

    Args:
      model: a `LatentModel` of several groups, such as `TopDownVAE` or `HierarchicalVAE`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what schedules are evaluated at.
      beta: a number, or an optax schedule of the step: a warm-up is `optax.linear_schedule(0.0, 1.0, steps)`.
      free_bits: λ, in nats for each group; a number or a schedule.
      balanced: whether γ balances the groups while β < 1.

    Beta and free bits are zero or more; a traced value is not checked.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate" (what it is, not what is paid),
      "distortion", "negative_elbo", and the rate of each group, "rate_z1" and so on; means over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, β or free bits are negative or not a number, the model has no
        prior, or `balanced` where β is a number from 1 on, which would balance nothing.

    References:
      Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016 (free bits); Sønderby et al.,
      Ladder Variational Autoencoders, 2016 (warm-up); Vahdat and Kautz, NVAE: A Deep Hierarchical Variational
      Autoencoder, 2020, appendix A (balancing; its code divides by the positions of a group).
    """
    terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=1)
    check_prior(terms)
    has_free_bits = callable(free_bits) or isinstance(free_bits, Array) or free_bits
    if has_free_bits or balanced:
        needs_whole_batch("hierarchical_vae_loss with free bits or balanced", instead="evaluate it without either")
    if balanced and not callable(beta) and not isinstance(beta, Array) and beta >= 1:
        raise ValueError(
            f"groups are balanced while β < 1, and it is {beta}: pass beta=optax.linear_schedule(0.0, 1.0, steps)"
        )
    weight, floor = weight_at("beta", beta, step), weight_at("free_bits", free_bits, step)

    distortion = -terms.log_likelihood.mean()
    rates = {name: rate.sum(axis=-1).mean() for name, rate in terms.rates.items()}
    each = jnp.stack(list(rates.values()))
    paid = jnp.maximum(each, floor)
    if balanced:
        sizes = jnp.array([rate.shape[-1] for rate in terms.rates.values()], each.dtype)
        paid = paid * jnp.where(weight < 1, _balance(each, sizes), 1)
    metrics = {
        "loss": distortion + weight * paid.sum(),
        "rate": each.sum(),
        "distortion": distortion,
        "negative_elbo": distortion + each.sum(),
        **{f"rate_{name}": rate for name, rate in rates.items()},
    }
    return metrics["loss"], (model_state, metrics)


def _balance(rates: Array, sizes: Array) -> Array:
    """What each group's rate is multiplied by, mean 1; no gradient."""
    shares = jax.lax.stop_gradient((jnp.abs(rates) + 0.01) / sizes)  # as NVAE's code: a silent group still pays
    return shares / shares.mean()
