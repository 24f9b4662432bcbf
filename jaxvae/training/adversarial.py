"""One optimiser over two parameter groups: a generator's and its adversary's."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvae.types import PyTree

DISCRIMINATOR = "discriminator"
GENERATOR = "generator"


def adversarial_optimizer(
    generator: optax.GradientTransformation, discriminator: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Each group of parameters by its own optimiser: `params["params"]["discriminator"]`, and all the others.

    A step in which a group has no gradient at all, such as the steps between the generator's that
    `gan_loss(..., critic_steps=5)` takes, leaves that group and its optimiser as they were: moments do not decay and
    schedules count the group's own steps.

    Args:
      generator: of all but the discriminator, such as `optax.adam(1e-4, b1=0.0, b2=0.9)`.
      discriminator: of the discriminator.

    Raises:
      ValueError: when first used: there are no parameters of a discriminator, or no others.
    """
    groups = {GENERATOR: _where_it_has_a_gradient(generator), DISCRIMINATOR: _where_it_has_a_gradient(discriminator)}
    return optax.partition(groups, _groups)


def _groups(params: PyTree) -> PyTree:
    """The name of each parameter's group."""
    groups: Any = jax.tree_util.tree_map_with_path(lambda path, leaf: _group(path), params)
    if missing := {GENERATOR, DISCRIMINATOR} - {*jax.tree.leaves(groups)}:
        raise ValueError(
            f"there are no parameters of a {missing.pop()}: those of the discriminator are at "
            "params['params']['discriminator'], those of the generator beside it"
        )
    return groups


def _group(path: tuple[Any, ...]) -> str:
    return DISCRIMINATOR if any(getattr(key, "key", None) == DISCRIMINATOR for key in path[:2]) else GENERATOR


def _where_it_has_a_gradient(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimiser, but that a gradient of zeros alone moves nothing."""
    inner = optax.with_extra_args_support(optimizer)

    def update(grads: PyTree, state: PyTree, params: PyTree = None, **extra: Any) -> tuple[PyTree, PyTree]:
        some = jnp.stack([(leaf != 0).any() for leaf in jax.tree.leaves(grads)]).any()  # a NaN is not zero
        return jax.lax.cond(
            some,
            lambda: inner.update(grads, state, params, **extra),
            lambda: (jax.tree.map(jnp.zeros_like, grads), state),
        )

    return optax.GradientTransformationExtraArgs(inner.init, update)
