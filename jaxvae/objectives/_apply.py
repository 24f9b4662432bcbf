"""How an objective runs a model: parameters and collections joined, keys handed out, shapes explained."""

import inspect
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
from flax import errors

from jaxvae._checks import check_shape, check_x
from jaxvae._variables import variables_of
from jaxvae._whole_batch import in_evaluation, needs_whole_batch
from jaxvae.keys import check_key, example_keys
from jaxvae.models.vae import latent_dim_of
from jaxvae.types import Array, Batch, CodePrior, LatentModel, PRNGKey, PyTree, Terms

OF_THE_NETWORKS = 2**32 - 1  # no example's index, so their key is nobody else's
OURS = ("jaxvae.", "flax.", "jax.", "jaxlib.")


def apply(
    model: LatentModel | CodePrior,
    params: PyTree,
    model_state: PyTree,
    *inputs: Array,
    method: str,
    networks_key: PRNGKey | None = None,
    floating: bool = True,
    **options: Any,
) -> tuple[Any, PyTree]:
    """`model.apply`, and the model state after it; unless `floating`, the first input may be integers.

    With `networks_key` the networks are in training: what draws for the whole batch at once (dropout) draws from it,
    and collections may move, as batch statistics do; the objective then needs the whole batch. Without it, and wherever
    `make_eval_step` asks, nothing moves.

    Raises:
      TypeError: x is not floating.
      ValueError: x does not have the model's shape; a device's share of the batch would move batch statistics; a
        network changes its collections in evaluation.
    """
    if floating:
        check_x(inputs[0])
    variables = variables_of(params, model_state)
    collections = [name for name in variables if name != "params"]
    training = networks_key is not None and not in_evaluation()
    if training:
        options |= {"rngs": {"dropout": networks_key}, "mutable": collections}
    try:
        output = model.apply(variables, *inputs, method=method, **options)
    except errors.ModifyScopeVariableError as error:
        raise ValueError(
            "a network changes its collections in evaluation too: give its __call__ an argument train, and write "
            f"use_running_average=not train ({error})"
        ) from error
    except errors.InvalidRngError as error:
        raise ValueError(
            "a network draws in evaluation too: give its __call__ an argument train, and write "
            f"deterministic=not train ({error})"
        ) from error
    except Exception as error:
        _explain(error, model, variables, inputs)
        raise
    if not training:
        return output, model_state
    output, updated = output
    if not any(new is not old for new, old in _pairs(updated, variables)):
        return output, model_state
    needs_whole_batch(f"an objective whose networks keep {', '.join(collections)}")
    return output, {**(model_state or {}), **updated}


def terms_of(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    num_samples: int,
    train: bool = True,
) -> tuple[Terms, PyTree]:
    """The terms of a batch and the model state after it: what an objective of your own starts from.

    Networks are in training unless `train` is false (or `make_eval_step` evaluates): dropout draws from the key, batch
    statistics move.

    Args:
      model: a `LatentModel`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: "x" [B, ...] and "index" [B]; "condition" [B, ...] where the model takes one; "observed" [B, ...], boolean,
        where entries of x are missing.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      num_samples: S, draws of the latents for each example.
      train: whether the networks are in training.

    Returns:
      `jaxvae.types.Terms`, nats, and the model state to return.

    Raises:
      TypeError: x is not floating, the key is not typed, or the model has no form for missing entries.
      ValueError: x does not have the model's shape, or the terms have others than `Terms` says.
    """
    keys = batch_keys(key, batch)
    terms, model_state = apply(
        model,
        params,
        model_state,
        *model_inputs(batch),
        method="terms",
        networks_key=networks_key(key, batch) if train else None,
        key=keys,
        num_samples=num_samples,
        **observed_of(batch, model, "terms"),
    )
    for name, nats in (("log_likelihood", terms.log_likelihood), ("log_ratio", terms.log_ratio)):
        if nats.ndim != 2 or nats.shape[1] != len(batch["x"]):
            raise ValueError(f"the model's terms must have {name} [S, {len(batch['x'])}], got {nats.shape}")
    for name, nats in terms.rates.items():
        if nats.ndim != 3 or nats.shape[:2] not in {(1, len(batch["x"])), terms.log_ratio.shape}:
            raise ValueError(
                f"the model's terms must have rates[{name!r}] [S or 1, {len(batch['x'])}, D or 1], got {nats.shape}"
            )
    return terms, model_state


def batch_keys(key: PRNGKey, batch: Batch, field: str = "x") -> PRNGKey:
    """One key per example, [B], by its position in the split, batch["index"]."""
    check_key(key)
    if not isinstance(batch, Mapping) or field not in batch:
        got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TypeError(f"batch must be a dictionary that has {field!r} and 'index', got {got}")
    index, shape = batch.get("index"), batch[field].shape
    if index is None or index.shape != shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        actual = "none" if index is None else f"{index.dtype}{list(index.shape)}"
        raise ValueError(f"batch['index'] must be integers {shape[:1]}, one for each of {field} {shape}, got {actual}")
    return example_keys(key, index)


def networks_key(key: PRNGKey, batch: Batch) -> PRNGKey:
    """The key for what draws once for the whole batch, such as dropout; each device that has a share gets its own."""
    check_key(key)
    own = jax.random.fold_in(key, OF_THE_NETWORKS)
    index = batch.get("index")
    return own if index is None or not index.size else jax.random.fold_in(own, index[0])


def model_inputs(batch: Batch) -> tuple[Array, ...]:
    """What a model sees of a batch: x, and the condition where there is one.

    Raises:
      ValueError: some of x is padding.
    """
    refuse_padding(batch)
    return (batch["x"], batch["condition"]) if "condition" in batch else (batch["x"],)


def observed_of(batch: Batch, model: Any, method: str) -> dict[str, Any]:
    """What tells a method of a model which entries of x there are; nothing where the batch does not say.

    Raises:
      TypeError: the method does not take it, so that it would read what stands in place of missing entries.
      ValueError: some of x is padding.
    """
    refuse_padding(batch)
    if "observed" not in batch:
        return {}
    if "observed" not in inspect.signature(getattr(model, method)).parameters:
        raise TypeError(
            f"the batch has missing entries (batch['observed']), and {type(model).__name__}.{method} has no argument "
            "observed to be told of them: use a VAE or a CVAE, or fill them in and leave observed out"
        )
    return {"observed": batch["observed"]}


def refuse_missing(batch: Batch, objective: str, *, padding: bool = False) -> None:
    """Raise `ValueError` where entries of x are missing, or unless `padding` is known are padding."""
    if not padding:
        refuse_padding(batch)
    if "observed" in batch:
        raise ValueError(
            f"the batch has missing entries (batch['observed']), which {objective} would read as values: train a VAE "
            "by vae_loss or iwae_loss, or fill them in and leave observed out"
        )


def refuse_padding(batch: Batch) -> None:
    """Raise `ValueError` where some of x is padding, which would be read as values."""
    if "mask" in batch:
        raise ValueError(
            "the batch has padding (batch['mask']), which this objective or model would read as values: train a VQ-VAE "
            "by vq_vae_loss, cut x to one length, or pass what is padding as missing, observed="
        )


def _pairs(updated: PyTree, variables: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    before = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables))}
    after = jax.tree_util.tree_leaves_with_path(dict(updated))
    return [(leaf, before.get(jax.tree_util.keystr(path))) for path, leaf in after]


def _explain(error: Exception, model: Any, variables: Mapping[str, Any], inputs: tuple[Array, ...]) -> None:
    """Raise what would fit where x does not and a layer says so in its own words; a user's error stays as it is."""
    latent_dim = latent_dim_of(model)
    if not (inputs and _is_ours(error.__traceback__)):  # a prior of all examples alike sees no x
        return
    x, *condition = inputs
    if latent_dim is None:
        if isinstance(error, errors.ScopeParamShapeError):
            raise ValueError(f"x {x.shape} is not (batch, ...) as the model's: {error}") from error
        return
    latent = jnp.zeros((len(x), latent_dim))
    try:
        decoded = jax.eval_shape(lambda: model.apply(variables, latent, *condition, method="decode").mean)
    except Exception:  # the decoder is what fails: its own error says more
        return
    check_shape(decoded.shape, x.shape, error)


def _is_ours(traceback: TracebackType | None) -> bool:
    """Whether an error was raised by a library, not by code that a user plugged in."""
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and traceback.tb_frame.f_globals.get("__name__", "").startswith(OURS)
