"""What the adversarial objectives share: which parts a gradient reaches, and a discriminator beside another model."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.objectives._apply import apply
from jaxvae.types import Array, PRNGKey, PyTree, Schedule

DISCRIMINATOR = "discriminator"
PARAMS = "params"


def init_with_discriminator(
    model: Any, discriminator: Any, x: Array, *condition: Array, key: PRNGKey
) -> tuple[PyTree, PyTree]:
    """The parameters of a model and of a discriminator beside it, and the model's state.

    The discriminator's are at `params["params"]["discriminator"]`, the model's where they are without it: whatever
    takes a `VAE` or a `VQVAE` with its parameters takes it with these. `adversarial_optimizer` trains both.

    Args:
      model: a `VAE`, or a `VQVAE`, whose quantiser is seeded from the encoder's vectors of x.
      discriminator: of `jaxvae.networks`, or a Linen module with `with_features`.
      x: [B, ...], one example or a batch.
      condition: [B, ...], where the model takes one.
      key: decides the parameters.

    Returns:
      What `init_train_state` takes, once all but the key is bound.

    Raises:
      TypeError: the discriminator has no `with_features`.
      ValueError: the discriminator keeps more than parameters, or the model has a part of that name.
    """
    check_judge(discriminator)
    model_key, discriminator_key = jax.random.split(key)
    if hasattr(model, "init_with_quantizer"):
        params, state = model.init_with_quantizer(x, key=model_key)
    else:
        params, state = dict(model.init(model_key, x[:1], *(each[:1] for each in condition))), ()
    if DISCRIMINATOR in params[PARAMS]:
        raise ValueError(f"the {type(model).__name__} has a part called {DISCRIMINATOR!r} already")
    own = discriminator_params(discriminator.init(discriminator_key, x[:1]))
    return {**params, PARAMS: {**params[PARAMS], DISCRIMINATOR: own}}, state


def discriminator_params(variables: PyTree) -> PyTree:
    """The parameters of a discriminator; `ValueError` where it keeps anything else."""
    if more := sorted(set(variables) - {PARAMS}):
        raise ValueError(
            f"a discriminator keeps parameters alone, this one {', '.join(more)} too: with batch statistics the logit "
            "of an example depends on the others (use LayerNorm or GroupNorm)"
        )
    return variables[PARAMS]


def check_judge(discriminator: Any) -> None:
    """Raise `TypeError` unless a hidden layer's features can be asked for."""
    if not (hasattr(discriminator, "with_features") and hasattr(discriminator, "apply")):
        raise TypeError(
            "the discriminator must be a Linen module with with_features(x, layer=) -> (logits, features), such as "
            f"those of jaxvae.networks, got {type(discriminator).__name__}"
        )


def judge_of(discriminator: Any, layer: str | None, networks_key: PRNGKey) -> Callable[..., tuple[Array, Array]]:
    """(its own parameters, x) -> logits [B, ...], and the features of a layer."""
    check_judge(discriminator)

    def judge(params: PyTree, x: Array) -> tuple[Array, Array]:
        options: dict[str, Any] = {"method": "with_features", "networks_key": networks_key, "layer": layer}
        (logits, features), _ = apply(discriminator, {PARAMS: params}, (), x, **options)
        return logits, features

    return judge


def own_params(params: PyTree) -> PyTree:
    """The discriminator's among the parameters of both; `ValueError` where there are none."""
    inside = params.get(PARAMS, {}) if isinstance(params, Mapping) else {}
    if DISCRIMINATOR not in inside:
        raise ValueError("params['params'] must hold 'discriminator': init_with_discriminator")
    return inside[DISCRIMINATOR]


def only(params: PyTree, *parts: str) -> PyTree:
    """The parameters, of which a gradient reaches these parts alone."""
    stopped = jax.lax.stop_gradient(params)
    return {**stopped, PARAMS: {**stopped[PARAMS], **{name: params[PARAMS][name] for name in _known(params, parts)}}}


def without(params: PyTree, *parts: str) -> PyTree:
    """The parameters, of which a gradient reaches all but these parts."""
    stopped = {name: jax.lax.stop_gradient(params[PARAMS][name]) for name in _known(params, parts)}
    return {**params, PARAMS: {**params[PARAMS], **stopped}}


def _known(params: PyTree, parts: tuple[str, ...]) -> list[str]:
    return [name for name in parts if name in params[PARAMS]]


def is_nothing(weight: float | Array | Schedule) -> bool:
    """Whether it is the number 0, so that nothing need be computed for it."""
    return not callable(weight) and not isinstance(weight, jax.Array) and weight == 0


def feature_distortion(features: Array, target: Array) -> Array:
    """-log N(target; features, I) but for a constant, [B] nats: half the squared error, summed over the example."""
    return 0.5 * jnp.square(features - target).reshape(len(features), -1).sum(axis=1)


def two_keys(keys: PRNGKey) -> tuple[PRNGKey, PRNGKey]:
    """Two keys of each example, [B] each, of its one."""
    return tuple(jax.vmap(jax.random.split, out_axes=1)(keys))
