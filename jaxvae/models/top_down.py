"""A VAE with several groups of latents, z_L -> ... -> z_1 -> x, proposed top down.

p(x, z) = p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2, ..., z_L) p(x | z),
q(z | x) = q(z_L | x) q(z_{L-1} | z_L, x) ... q(z_1 | z_2, ..., z_L, x).

One pass over x from the bottom up makes features for every group. Then prior and posterior go down together: what the
groups above have said is a state that both of them read, so that the posterior only says what x adds to it.

References:
  Sønderby et al., Ladder Variational Autoencoders, 2016;
  Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016 (the order of this proposal);
  Vahdat and Kautz, NVAE: A Deep Hierarchical Variational Autoencoder, 2020;
  Child, Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images, 2021.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least, check_x
from jaxvae.distributions import Bernoulli, DiagGaussian, rate
from jaxvae.keys import check_key, sample_keys
from jaxvae.models._parts import adopt_parts
from jaxvae.models.vae import decoded_log_prob, log_prob_of_each
from jaxvae.networks._run import mode_of, run
from jaxvae.networks.top_down import BottomUp, Rung, Stage, StateDecoder, checked_stages
from jaxvae.types import Array, Likelihood, PRNGKey, Terms

Latents = tuple[Array, ...]  # z_1 to z_L
Draw = Callable[[int, DiagGaussian, DiagGaussian | None], Array]  # of a group, from its prior and its posterior


def residual_posterior(prior: DiagGaussian, mean: Array, log_var: Array) -> DiagGaussian:
    r"""What x adds to the prior: q = N(μ_p + Δμ, σ_p² e^Δ), as in NVAE; zeros leave the prior as it is.

    .. math:: KL(q || p) = \tfrac12 \sum \left(\Delta\mu^2 / \sigma_p^2 + e^\Delta - \Delta - 1\right)

    Args:
      prior: p, over [N, ...].
      mean: Δμ, of the same shape.
      log_var: Δ, of the same shape.
    """
    return DiagGaussian(prior.mean + mean, prior.log_var + log_var)


def merged_posterior(prior: DiagGaussian, mean: Array, log_var: Array) -> DiagGaussian:
    r"""The product of the prior and what x says, by their precisions, as in the ladder VAE.

    .. math:: \hat\sigma^{-2} = \sigma_q^{-2} + \sigma_p^{-2}, \qquad
              \hat\mu = \hat\sigma^2 (\mu_q \sigma_q^{-2} + \mu_p \sigma_p^{-2})

    As σ_q grows the posterior becomes the prior.

    Args:
      prior: p, over [N, ...].
      mean: μ_q, of the same shape.
      log_var: log σ_q², of the same shape.
    """
    share = nn.sigmoid(prior.log_var - log_var)  # of what x says in the mean
    return DiagGaussian(prior.mean + share * (mean - prior.mean), -jnp.logaddexp(-prior.log_var, -log_var))


class _Descent(NamedTuple):
    """A way down: the state below z_1, and of every group, z_1 first, its draw, prior and posterior."""

    state: Array
    latents: Latents
    priors: tuple[DiagGaussian, ...]
    posteriors: tuple[DiagGaussian, ...]


class TopDownVAE(nn.Module):
    """L groups of latents of any shape, the group at x first, each a diagonal Gaussian given those above.

    `jaxvae.models.top_down_vae` makes one from sizes.

    Attributes:
      encoder: x [B, ...] -> features of z_1 to z_L, a sequence of L arrays [B, ...].
      rungs: of z_1 to z_L. A rung is a module, or an object without parameters, with
        `prior(state) -> (state, mean, log_var)`, the state brought to where the group is, and p given it;
        `posterior(state, features) -> (mean, log_var)`, what `posterior` below makes of x;
        `merge(state, latent) -> state`, what the groups below are told;
        and the last one, z_L, with `start(num) -> state` [num, ...], before anything was said.
      decoder: the state below z_1 -> the likelihood's parameters.
      likelihood: as in `VAE`.
      posterior: (prior, *what the rung says of x) -> q: `residual_posterior` or `merged_posterior`.

    Raises:
      ValueError: there is no rung, or as methods run: not as many features as rungs, latents of other shapes.
      TypeError: a rung has not the methods above or is an NNX module; `posterior` returns no `DiagGaussian`.
    """

    encoder: Callable[[Array], Sequence[Array]]
    rungs: Sequence[Any]
    decoder: Callable[[Array], Any]
    likelihood: Callable[..., Likelihood] = Bernoulli
    posterior: Callable[..., DiagGaussian] = residual_posterior

    def __post_init__(self) -> None:
        """Raise unless there are rungs that can be climbed; take the parts, or refuse them."""
        if not self.rungs:
            raise ValueError("there must be at least one rung, which is a group of latents")
        for i, rung in enumerate(self.rungs):
            wanted = ("prior", "posterior", "merge", *(("start",) if i + 1 == len(self.rungs) else ()))
            missing = [name for name in wanted if not callable(getattr(rung, name, None))]
            if missing:
                raise TypeError(f"rungs[{i}], a {type(rung).__name__}, has no method {' and no '.join(missing)}")
        given = self.rungs
        adopt_parts(self)
        for i, (rung, taken) in enumerate(zip(given, self.rungs, strict=True)):
            if taken is not rung:  # it would be a network of one method
                raise TypeError(
                    f"rungs[{i}], a {type(rung).__name__}, is an NNX module, of which only __call__ can be taken: make "
                    "the rung a Linen module, whose networks may be NNX by flax.nnx.bridge.to_linen"
                )
        super().__post_init__()

    def __call__(self, x: Array) -> Likelihood:
        """p(x|z) at the posteriors' means, all the way down; also what `init` runs."""
        return self.reconstruct(x)

    def encode(self, x: Array, *, key: PRNGKey | None = None) -> tuple[DiagGaussian, ...]:
        """The posteriors of z_1 to z_L, each over [B, ...], given draws of the groups above; their means without a key.

        Args:
          x: [B, ...].
          key: of shape () or [B] (one per example).
        """
        return self._descend(len(x), self._chosen(key), self._features(x)).posteriors

    def decode(self, latents: Latents) -> Likelihood:
        """p(x|z) of latents z_1 to z_L, each [N, ...]."""
        self._check_latents(latents, 1)
        return self._decoded(self._descend(len(latents[0]), lambda i, prior, posterior: latents[i]).state)

    def reconstruct(self, x: Array, *, up_to: int = 1, key: PRNGKey | None = None) -> Likelihood:
        """p(x|z) where x decides the groups from z_L to `up_to`, and the prior those below: what each rung knows.

        Args:
          x: [B, ...].
          up_to: the lowest group that sees x, 1 to L.
          key: of shape () or [B], for draws of the posteriors and priors; their means without one.
        """
        self._check_group("up_to", up_to)

        def seen(i: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> DiagGaussian:
            return prior if posterior is None or i + 1 < up_to else posterior

        return self._decoded(self._descend(len(x), self._chosen(key, seen), self._features(x)).state)

    def sample(
        self, num: int, *, key: PRNGKey, temperature: float | Array = 1.0, from_group: int | None = None
    ) -> Likelihood:
        """p(x|z) at `num` draws from the prior; each group has a key of its own.

        Args:
          num: how many.
          key: of shape ().
          temperature: what every standard deviation of the prior is multiplied by; 0 draws the means.
          from_group: the highest group that is drawn anew for each, 1 to L; all share one draw of those above. L, and
            so nothing is shared, unless given.

        Raises:
          ValueError: a temperature that is negative or not finite, or a group that there is not.
        """
        check_key(key)
        at_least(1, num=num)
        if not isinstance(temperature, jax.core.Tracer) and not 0 <= float(temperature) < float("inf"):
            raise ValueError(f"temperature must be a finite number, zero or more, got {temperature}")
        own = len(self.rungs) if from_group is None else from_group
        self._check_group("from_group", own)
        keys = jax.random.split(key, len(self.rungs))

        def draw(i: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Array:
            del posterior
            if i + 1 > own:  # one of them all
                prior = jax.tree.map(lambda leaf: leaf[:1], prior)
            drawn = DiagGaussian(jnp.zeros_like(prior.mean), prior.log_var).sample(key=keys[i])
            return jnp.broadcast_to(prior.mean + temperature * drawn, (num, *prior.mean.shape[1:]))

        return self._decoded(self._descend(num, draw).state)

    def propose(self, x: Array, *, key: PRNGKey, num_samples: int) -> tuple[Latents, Array]:
        """Draw z ~ q(z|x), `num_samples` times for each example.

        Args:
          x: [B, ...].
          key: of shape () or [B] (one per example); the first S draws are the same for every larger S.
          num_samples: S.

        Returns:
          The latents z_1 to z_L, each [S, B, ...], and their log q(z|x), [S, B] nats.
        """
        descent = self._proposed(x, key=key, num_samples=num_samples)
        latents = tuple(_by_sample(latent, num_samples) for latent in descent.latents)
        return latents, _total(descent.posteriors, descent.latents).reshape(num_samples, -1)

    def log_posterior(self, x: Array, latents: Latents) -> Array:
        """Log q(z|x) of latents, each [S, B, ...]; [S, B] nats."""
        descent = self._given(latents, self._features(x))
        return _total(descent.posteriors, descent.latents).reshape(len(latents[0]), -1)

    def log_joint(self, x: Array, latents: Latents) -> tuple[Array, Array]:
        """Log p(x|z) and log p(z) of latents, each [S, B, ...]; each [S, B] nats."""
        descent, num_samples = self._given(latents, None), len(latents[0])
        log_prior = _total(descent.priors, descent.latents).reshape(num_samples, -1)
        return decoded_log_prob(self._decoded, x, _by_sample(descent.state, num_samples)), log_prior

    def terms(self, x: Array, *, key: PRNGKey, num_samples: int) -> Terms:
        """What objectives and estimates read, at `propose`'s draws; the rates of "z1" to "zL".

        Each is KL(q || p) of a group in closed form given the draws of those above.
        """
        descent = self._proposed(x, key=key, num_samples=num_samples)
        log_posterior = [_log_prob(q, z) for q, z in zip(descent.posteriors, descent.latents, strict=True)]
        log_ratio = _total(descent.priors, descent.latents) - sum(log_posterior[1:], log_posterior[0])
        groups = zip(descent.posteriors, descent.priors, descent.latents, log_posterior, strict=True)
        closed = [rate(q, p, z[None], log_q[None]) for q, p, z, log_q in groups]
        rates = {f"z{i}": each.reshape(num_samples, len(x), -1) for i, each in enumerate(closed, start=1)}
        log_likelihood = decoded_log_prob(self._decoded, x, _by_sample(descent.state, num_samples))
        return Terms(log_likelihood, log_ratio.reshape(num_samples, -1), rates)

    def posterior_means(self, x: Array, *, key: PRNGKey, num_samples: int) -> Latents:
        """E[z_l | x], each [B, D_l]: what `active_units` reads; means of conditional means, exact for z_L."""
        posteriors = self._proposed(x, key=key, num_samples=num_samples).posteriors
        return tuple(q.mean.reshape(num_samples, len(x), -1).mean(axis=0) for q in posteriors)

    def _proposed(self, x: Array, *, key: PRNGKey, num_samples: int) -> _Descent:
        """Down by draws of the posteriors, over S·B examples, the first B of which are the first draw's."""
        check_x(x)
        check_key(key)
        at_least(1, num_samples=num_samples)
        keys = sample_keys(key, len(self.rungs))  # one for each group

        def draw(i: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Array:
            del prior
            each = jax.tree.map(lambda leaf: _by_sample(leaf, num_samples), posterior)
            drawn = jax.vmap(lambda q, key: q.sample(key=key))(each, sample_keys(keys[i], num_samples))
            return drawn.reshape(-1, *drawn.shape[2:])

        return self._descend(num_samples * len(x), draw, self._features(x, num_samples))

    def _given(self, latents: Latents, features: Sequence[Array] | None) -> _Descent:
        """Down by latents, each [S, B, ...]."""
        self._check_latents(latents, 2)
        num_samples, count = latents[0].shape[:2]
        flat = [latent.reshape(-1, *latent.shape[2:]) for latent in latents]
        repeated = None if features is None else [_repeated(each, num_samples) for each in features]
        return self._descend(num_samples * count, lambda i, prior, posterior: flat[i], repeated)

    def _descend(self, count: int, draw: Draw, features: Sequence[Array] | None = None) -> _Descent:
        """From the start of z_L to the state below z_1, with features along the posteriors too."""
        state = self._called(len(self.rungs) - 1, "start", count)
        latents, priors, posteriors = [], [], []
        for i in reversed(range(len(self.rungs))):
            state, *moments = self._called(i, "prior", state)
            prior, posterior = DiagGaussian(*moments), None
            prior = DiagGaussian(prior.mean, jnp.broadcast_to(prior.log_var, prior.mean.shape))
            if features is not None:
                posterior = self._posterior(i, prior, self._called(i, "posterior", state, features[i]))
                posteriors.append(posterior)
            latent = draw(i, prior, posterior)
            if latent.shape != prior.mean.shape:
                raise ValueError(f"z_{i + 1} must be {prior.mean.shape}, as its prior is, got {latent.shape}")
            state = self._called(i, "merge", state, latent)
            latents.append(latent)
            priors.append(prior)
        return _Descent(state, tuple(latents[::-1]), tuple(priors[::-1]), tuple(posteriors[::-1]))

    def _posterior(self, i: int, prior: DiagGaussian, said: tuple[Array, ...]) -> DiagGaussian:
        """Q of a group, checked, its variances as many as its means."""
        posterior: Any = run(self.posterior, prior, *said, train=self.has_rng("dropout"))
        if type(posterior) is not DiagGaussian:
            raise TypeError(f"the posterior of a group must be a DiagGaussian, got {type(posterior).__name__}")
        if posterior.mean.shape != prior.mean.shape:
            raise ValueError(f"q of z_{i + 1} must be {prior.mean.shape}, as its prior is, got {posterior.mean.shape}")
        return DiagGaussian(posterior.mean, jnp.broadcast_to(posterior.log_var, posterior.mean.shape))

    def _called(self, i: int, method: str, *arguments: Any) -> Any:
        """A method of a rung, told whether the networks are in training."""
        rung = self.rungs[i]
        return getattr(rung, method)(*arguments, **mode_of(rung, method, train=self.has_rng("dropout")))

    def _features(self, x: Array, num_samples: int = 1) -> list[Array]:
        """Of z_1 to z_L, each [S·B, ...]."""
        check_x(x)
        features = run(self.encoder, x, train=self.has_rng("dropout"))
        if not isinstance(features, Sequence) or len(features) != len(self.rungs):
            got = f"{len(features)} of them" if isinstance(features, Sequence) else type(features).__name__
            raise ValueError(f"the encoder must return features of each of the {len(self.rungs)} groups, got {got}")
        for i, each in enumerate(features):
            if each.shape[:1] != x.shape[:1]:
                raise ValueError(f"features of z_{i + 1} must be ({len(x)}, ...), got {each.shape}")
        return [_repeated(each, num_samples) for each in features]

    def _decoded(self, state: Array) -> Likelihood:
        train = self.has_rng("dropout")
        return run(self.likelihood, run(self.decoder, state, train=train), train=train)

    def _chosen(self, key: PRNGKey | None, of: Callable[..., DiagGaussian] | None = None) -> Draw:
        """Draws of the posterior, or of what `of` makes of group, prior and posterior; the means without a key."""
        keys = None if key is None else sample_keys(key, len(self.rungs))

        def draw(i: int, prior: DiagGaussian, posterior: DiagGaussian | None) -> Array:
            record: Any = posterior if of is None else of(i, prior, posterior)
            return record.mean if keys is None else record.sample(key=keys[i])

        return draw

    def _check_group(self, name: str, group: int) -> None:
        at_least(1, **{name: group})
        if group > len(self.rungs):
            raise ValueError(f"{name} must be a group of 1 .. {len(self.rungs)}, got {group}")

    def _check_latents(self, latents: Latents, axes: int) -> None:
        """Raise unless there is an array for each group, all with the same first axes."""
        if not isinstance(latents, tuple | list) or len(latents) != len(self.rungs):
            got = f"{len(latents)} of them" if isinstance(latents, tuple | list) else type(latents).__name__
            raise ValueError(f"latents must be a tuple of z_1 to z_{len(self.rungs)}, got {got}")
        if any(latent.shape[:axes] != latents[0].shape[:axes] for latent in latents):
            raise ValueError(f"latents must be as many of each group, got {[latent.shape for latent in latents]}")


def _by_sample(flat: Array, num_samples: int) -> Array:
    """[S·B, ...] -> [S, B, ...]."""
    return flat.reshape(num_samples, -1, *flat.shape[1:])


def _repeated(values: Array, num_samples: int) -> Array:
    """[B, ...] -> [S·B, ...]."""
    repeated = jnp.broadcast_to(values, (num_samples, *values.shape))
    return repeated.reshape(-1, *values.shape[1:])


def _log_prob(record: DiagGaussian, latent: Array) -> Array:
    """Of [N, ...], [N] nats."""
    return log_prob_of_each(record, latent[None], "a group")[0]


def _total(records: Sequence[DiagGaussian], latents: Latents) -> Array:
    """The log-probabilities of all groups together, [N] nats."""
    each = [_log_prob(record, latent) for record, latent in zip(records, latents, strict=True)]
    return sum(each[1:], each[0])


def top_down_vae(
    shape: Sequence[int],
    stages: Sequence[Stage],
    *,
    blocks: int = 1,
    channels: Sequence[int] = (),
    likelihood: Callable[..., Likelihood] = Bernoulli,
    posterior: Callable[..., DiagGaussian] = residual_posterior,
    conditional: bool = True,
    output_width: int = 0,
    **options: Any,
) -> TopDownVAE:
    """A `TopDownVAE` of residual blocks, dense or convolutional at several resolutions.

    `top_down_vae((28, 28, 1), [Stage(24, (1, 1), 2), Stage(48, (2, 2, 2), 2), Stage(64, (16,))])` has two groups of one
    channel at 14×14, three of two channels at 7×7 and one of 16 numbers above; `[Stage(512, (64,)), Stage(256, (32,))]`
    has two of vectors.

    Args:
      shape: of x, without the batch.
      stages: from x upwards.
      blocks: residual blocks of a stage on the way up, and of a group on the way down.
      channels: what the likelihood has of each value of x, such as (2,) for `jaxvae.PixelScale`.
      likelihood: as in `VAE`.
      posterior: as in `TopDownVAE`.
      conditional: as in `jaxvae.networks.Rung`.
      output_width: channels of one more layer at the size of x, before the likelihood's parameters; 0: none.
      **options: bottleneck, windows, activation, normalization, checkpoint, dtype: as in `jaxvae.networks.BottomUp`.

    Raises:
      TypeError, ValueError: sizes that do not fit.
    """
    shape, stages = tuple(shape), checked_stages(stages)
    at_least(1, shape=shape)
    at_least(0, output_width=output_width)
    positions = shape[:-1]
    rungs = []
    for stage in stages:
        positions = () if stage.shrink is None else tuple(-(-size // stage.shrink) for size in positions)
        shared = options | {"positions": positions, "blocks": blocks, "conditional": conditional}
        rungs += [Rung(latent, stage.width, **shared) for latent in stage.latents]
    # What lies below the lowest group is grown at once, however many stages that is.
    first = next(i for i, stage in enumerate(stages) if stage.latents)
    below = [stage.shrink for stage in stages[: first + 1]]
    shrinks = [each for each in below if each is not None]
    shrink = math.prod(shrinks) if len(shrinks) == len(below) else None
    kept = {name: value for name, value in options.items() if name not in ("bottleneck", "windows", "checkpoint")}
    decoder = StateDecoder((*shape, *channels), shrink, output_width, **kept)
    return TopDownVAE(
        BottomUp(stages, blocks=blocks, input_shape=shape, **options), tuple(rungs), decoder, likelihood, posterior
    )
