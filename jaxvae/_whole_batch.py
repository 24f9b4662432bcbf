"""How an objective that needs the whole batch is refused where it would see a part of it, whatever it is wrapped in.

`make_eval_step` gives an objective one example at a time, `shard_map` and `pmap` a device's share of the batch. Each
binds a named axis around it, which the objective can ask for while it is traced: one that is not a mean over examples
calls `needs_whole_batch`, which raises where there is such an axis.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax

Result = TypeVar("Result")


class WholeBatchError(ValueError):
    """An objective that is no mean over examples was given a part of the batch."""


ONE_EXAMPLE = "jaxvae.one_example"
SHARE = "jaxvae.share"


def each_example(function: Callable[..., Result], batch: Any) -> Result:
    """`function` of each example of a batch by itself, as a batch of one; results get a leading axis."""

    def of_one(example: Any) -> Result:
        return function(jax.tree.map(lambda leaf: leaf[None], example))

    return jax.vmap(of_one, axis_name=ONE_EXAMPLE)(batch)


def on_share(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, told that its batch is a device's share of the whole one."""

    def wrapped(*arguments: Any, **keywords: Any) -> Result:
        def run(arguments: Any, keywords: Any) -> Result:
            return function(*arguments, **keywords)

        return jax.vmap(run, in_axes=None, out_axes=None, axis_name=SHARE, axis_size=1)(arguments, keywords)

    return wrapped


def in_evaluation() -> bool:
    """Whether the objective is being asked about one example at a time, by `make_eval_step`."""
    return _is_bound(ONE_EXAMPLE)


def needs_whole_batch(what: str, *, instead: str = "") -> None:
    """Declare that what follows is no mean over examples; an objective of yours calls it first.

    Args:
      what: the subject of the error's sentence, such as "my_loss".
      instead: how to evaluate instead, such as "evaluate by vae_loss".

    Raises:
      WholeBatchError: a `ValueError`; the objective is being traced for one example by itself or for a device's share
        of the batch.
    """
    if in_evaluation():
        raise WholeBatchError(
            f"{what} is not a mean over examples, so it cannot be evaluated example by example; "
            f"{instead or 'evaluate by an objective that is one'}"
        )
    if _is_bound(SHARE):
        raise WholeBatchError(
            f"{what} is not a mean over examples, so devices cannot take a share of the batch each: "
            "compile it by jit_train_step(..., mesh=mesh)"
        )


def _is_bound(axis: str) -> bool:
    try:
        jax.lax.axis_size(axis)
    except NameError:
        return False
    return True
