"""An encoder of what is observed of x, for a model that was trained on the whole of it."""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxvae.distributions import DiagGaussian
from jaxvae.models._parts import adopt_parts, record_of
from jaxvae.networks._run import run
from jaxvae.types import Array, Distribution


class PartialEncoder(nn.Module):
    """r(z|y): a proposal for the latents of another model, which stays as it is; `partial_encoder_loss` trains it.

    Attributes:
      encoder: what an observation shows of x -> the posterior's parameters, such as (mean, log_var), [B, D] each. Of
        `evaluation.Visible` it sees x, zero where it is hidden, and the mask beside it, [B, ..., 2C]; of
        `evaluation.Linear` y. Where the model takes a condition, it comes after.
      posterior: its output -> a record over the model's latents with `log_prob`, `sample` and `mean`.

    Raises (when it is made):
      TypeError: a part hides JAX arrays that no training would reach.

    References:
      Harvey, Naderiparizi and Wood, Conditional Image Generation by Conditioning Variational Auto-Encoders, 2022.
    """

    encoder: Callable[..., tuple[Array, ...]]
    posterior: Callable[..., Distribution] = DiagGaussian

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, seen: Array, *condition: Array) -> Distribution:
        """r(z|y): a record over latents [B, D]."""
        train = self.has_rng("dropout")
        output: Any = run(self.encoder, seen, *condition, train=train)
        return record_of(self.posterior, output, len(seen), train=train)
