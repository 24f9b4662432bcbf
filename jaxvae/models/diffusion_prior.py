"""A diffusion over the latents of a VAE: a prior that can be drawn from and that gives a bound on log p(z)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.models._schedules import checked_schedule
from jaxvae.models.diffusion import SAMPLERS, Diffusion, Sampler
from jaxvae.types import Array, PRNGKey, PyTree

SCALE = "latent_scale"


class DiffusionPrior(nn.Module):
    """p(z) by a `Diffusion` of z over its standard deviation, whatever the condition.

    It is fitted in a second stage to the codes of a trained VAE, `objectives.prior_loss`, from what
    `objectives.init_diffusion_prior` makes: the standard deviation of all training codes is a constant of the state, in
    the collection "latent_scale", and part of the density. What it says of a z is a bound on log p(z), at draws:
    `objectives.bounded_vae_loss` gives the negative ELBO with it, which is then a bound on -log p(x) as any. Where
    log p(z) itself is needed, as for importance weights, it is refused.

    Attributes:
      diffusion: of continuous z, without classes, of the latent's shape; such as
        `Diffusion(networks.DenoisingMLP(), (D,))`.
      steps: of a sample.
      sampler: "ddpm" or "ddim".
      schedule: of a sample's steps, such as `CosineSchedule`; the diffusion's own where it is None.

    Raises (when it is made):
      TypeError: `diffusion` is no `Diffusion`, or `steps` no integer.
      ValueError: it has levels or classes; no steps; there is no such sampler.

    References:
      Rombach et al., High-Resolution Image Synthesis with Latent Diffusion Models, 2022; Vahdat, Kreis and Kautz,
      Score-based Generative Modeling in Latent Space, 2021.
    """

    diffusion: Diffusion
    steps: int = 100
    sampler: Sampler = "ddpm"
    schedule: Any = None

    def __post_init__(self) -> None:
        """Check the parts."""
        if not isinstance(self.diffusion, Diffusion):
            raise TypeError(f"diffusion must be a Diffusion, got {type(self.diffusion).__name__}")
        for name in ("levels", "num_classes"):
            if getattr(self.diffusion, name) is not None:
                raise ValueError(f"latents are continuous and have no classes: leave {name} of the diffusion out")
        at_least(1, steps=self.steps)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be 'ddpm' or 'ddim', got {self.sampler!r}")
        checked_schedule(self.schedule or self.diffusion.schedule)
        super().__post_init__()

    def setup(self) -> None:
        """Make the constant, one until it is set."""
        self.std = self.variable(SCALE, "std", jnp.ones, tuple(self.diffusion.shape))

    def __call__(self, *condition: Array) -> "DiffusedLatents":
        """The record."""
        if self.is_initializing():
            self.diffusion(jnp.zeros((1, *self.diffusion.shape)))
        unbound, variables = self.unbind()
        return DiffusedLatents(variables, unbound)

    def log_prob_bound(self, z: Array, *, key: PRNGKey) -> Array:
        """What log p(z) is at least, in expectation over the draws, [B] nats of z [B, *shape].

        Raises:
          ValueError: z has another shape.
        """
        if z.shape[1:] != tuple(self.diffusion.shape):
            raise ValueError(f"the prior is over latents of shape {self.diffusion.shape}, got {z.shape[1:]}")
        log_det = jnp.log(self.std.value).sum()
        return -self.diffusion.bound(z / self.std.value[None], key=key).negative_elbo - log_det


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["prior"])
@dataclass(frozen=True)
class DiffusedLatents:
    """What a `DiffusionPrior` says of every example.

    Attributes:
      variables: of the prior.
      prior: the module.
    """

    variables: Mapping[str, Any]
    prior: DiffusionPrior

    def log_prob(self, z: Array) -> NoReturn:
        """Raise `TypeError`: there is none."""
        del z
        raise TypeError(
            "a DiffusionPrior gives a bound on log p(z), at draws, and no log p(z), which importance weights need: fit "
            "it by objectives.prior_loss, measure by objectives.bounded_vae_loss, or take a FlowPrior"
        )

    def log_prob_bound(self, z: Array, *, key: PRNGKey) -> Array:
        """What log p(z) is at least, in expectation over the draws: [B] nats, with one key or with one for each."""
        nats: Any = self.prior.apply(self.variables, z, key=key, method="log_prob_bound")
        return nats

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, *shape], with one key or with `num`."""
        own: PyTree = {name: tree["diffusion"] for name, tree in self.variables.items() if "diffusion" in tree}
        options: dict[str, Any] = {name: getattr(self.prior, name) for name in ("steps", "sampler", "schedule")}
        return self.prior.diffusion.sample(own, num, key=key, **options) * self.variables[SCALE]["std"][None]
