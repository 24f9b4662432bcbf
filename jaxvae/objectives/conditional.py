"""The conditional VAE's objective: `vae_loss` that insists on a condition."""

from jaxvae.objectives._apply import apply, batch_keys, observed_of
from jaxvae.objectives.elbo import vae_loss
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree, Schedule


def cvae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of distortion + β · rate given the condition: the negative conditional ELBO at β = 1.

    .. math:: \frac1B \sum_i -\frac1S \sum_s \log p(x_i | z_{si}, c_i) + \beta\, KL(q(z | x_i, c_i) || p(z | c_i)),
              \quad z_{si} \sim q(z | x_i, c_i)

    Args:
      model: a `CVAE`, or another `LatentModel` of x and a condition.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: "x" [B, ...] floating, "condition" [B, ...] as the model takes it, "index" [B] integer.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      beta: a number, or an optax schedule of the step. Zero or more; a traced value is not checked.
      num_samples: S, draws of the latent for each example.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats.

    Raises:
      TypeError: x or the conditions are not floating (labels: not integers), or the key is not typed.
      ValueError: the batch has no conditions, they or x do not fit the model, or β is negative or not finite.

    References:
      Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models, 2015.
    """
    condition_of(batch)
    return vae_loss(model, params, model_state, batch, key=key, step=step, beta=beta, num_samples=num_samples)


def cvae_prior_log_weights(
    model: LatentModel, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> Array:
    """`CVAE.prior_log_weights` as a `LogWeightsFn`, [S, B] nats: log p(x|c) by Monte Carlo from the prior.

    The estimate needs many more samples than `vae_log_weights` does; it is what a model that only sees c can say.
    """
    log_weights, _ = apply(
        model,
        params,
        model_state,
        batch["x"],
        condition_of(batch),
        method="prior_log_weights",
        key=batch_keys(key, batch),
        num_samples=num_samples,
        **observed_of(batch, model, "prior_log_weights"),
    )
    return log_weights


def condition_of(batch: Batch) -> Array:
    """The batch's conditions; `ValueError` where it has none."""
    if "condition" not in batch:
        raise ValueError(f"a conditional model needs batch['condition'], got {', '.join(sorted(batch))}")
    return batch["condition"]
