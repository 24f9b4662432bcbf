"""Where parameters and state hold what is a quantiser's, and what of both is the networks'."""

from collections.abc import Mapping

from jaxvae.types import PyTree

QUANTIZER = "quantizer"


def variables_of(params: PyTree, model_state: PyTree) -> dict[str, PyTree]:
    """What `model.apply` takes: parameters and collections of the state; what a quantiser keeps is neither."""
    collections = model_state if isinstance(model_state, Mapping) else {}
    return {name: tree for name, tree in {**params, **collections}.items() if name != QUANTIZER}
