"""NNX modules within Linen ones."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from jaxvae.networks._run import run
from jaxvae.types import Array


class Held:
    """An NNX module, kept from Linen, which would take it for a pytree of attributes."""

    def __init__(self, module: nnx.Module) -> None:
        self.module = module

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.module is self.module

    def __hash__(self) -> int:
        return id(self.module)

    def why_not_saved(self) -> str:
        """For whoever saves a run, and asks each part."""
        kind = type(self.module)
        return f"{kind.__module__}.{kind.__qualname__}, an NNX module, which no file makes again"


class NNXNetwork(nn.Module):
    """An NNX module as a Linen one: it starts from the module's own values and never changes the module itself.

    Its `nnx.Param`s are parameters, what else it keeps becomes Flax collections, and its random streams draw from the
    step's "dropout" key. In training it is in its `train()` mode, otherwise in `eval()`: a layer that should do the
    same in both says so when it is called.
    """

    held: Held

    @nn.nowrap
    def variables_held(self) -> list[Any]:
        """The module's variables, its random streams aside."""
        found = [node for _, node in nnx.iter_graph(self.held.module) if isinstance(node, nnx.Variable)]
        return [each for each in found if not isinstance(each, nnx.RngState)]

    @property
    def latent_dim(self) -> int | None:
        """The module's, where it has one."""
        return getattr(self.held.module, "latent_dim", None)

    @nn.compact
    def __call__(self, *arguments: Array, train: bool = True) -> Any:
        """Run the module, in training only where the model is."""
        train = train and self.has_rng("dropout")
        parts: Any = nnx.split(self.held.module, nnx.RngState, ...)
        graph, streams, state = parts
        by_collection = _by_collection(state)
        if self.is_initializing():
            for collection, tree in by_collection.items():
                for name, value in tree.items():
                    self.put_variable(collection, name, value)
        values = {name: _merge(tree, self.variables.get(name, {})) for name, tree in by_collection.items()}
        nnx.replace_by_pure_dict(state, functools.reduce(_merge, values.values(), {}))
        if train:
            streams = _reseeded(streams, self.make_rng("dropout"))
        module = nnx.merge(graph, streams, state)
        module.train() if train else module.eval()
        output = run(module, *arguments, train=train)
        if not self.is_initializing():
            for collection, tree in _by_collection(nnx.state(module, nnx.Not(nnx.RngState))).items():
                if collection != "params" and self.is_mutable_collection(collection):
                    for name, value in tree.items():
                        self.put_variable(collection, name, value)
        return output


def _by_collection(state: Any) -> dict[str, dict[str, Any]]:
    """The values of an NNX state as nested dictionaries, by the name of their Flax collection."""
    collections: dict[str, dict[str, Any]] = {}
    for path, variable in nnx.to_flat_state(state):
        if not isinstance(variable, nnx.Variable):
            raise TypeError(
                f"an NNX module holds a bare array at {'.'.join(map(str, path))}, which no training reaches: make it "
                "an nnx.Param, or an nnx.Variable where no gradient should move it"
            )
        collection = nnx.variable_name_from_type(type(variable), allow_register=True)
        tree = collections.setdefault(collection, {})
        for name in path[:-1]:
            tree = tree.setdefault(str(name), {})
        tree[str(path[-1])] = variable.get_value()
    return collections


def _merge(first: Any, second: Any) -> Any:
    """The second nested dictionary over the first."""
    if not isinstance(first, Mapping) or not isinstance(second, Mapping):
        return second
    return {**first, **{name: _merge(first[name], each) if name in first else each for name, each in second.items()}}


def _reseeded(streams: Any, key: Array) -> Any:
    """The random streams of an NNX module, each with a key of its own from the step's."""
    flat = []
    for i, (path, variable) in enumerate(nnx.to_flat_state(streams)):
        value = variable.get_value()
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        flat.append((path, variable.replace(jax.random.fold_in(key, i) if is_key else jnp.zeros_like(value))))
    return nnx.from_flat_state(flat)
