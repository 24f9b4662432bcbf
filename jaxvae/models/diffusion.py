"""Diffusion in continuous time: noise is added to x until nothing is left of it, and a network takes it away again.

z_t = α_t x + σ_t ε for t in [0, 1], with log SNR(t) = log α² / σ² that falls from one end of the schedule to the
other. The network says ε, x or v = α ε - σ x of a z_t; all three say the same.

References:
  Kingma, Salimans, Poole and Ho, Variational Diffusion Models, 2021; Ho, Jain and Abbeel, Denoising Diffusion
  Probabilistic Models, 2020; Song, Meng and Ermon, Denoising Diffusion Implicit Models, 2021; Salimans and Ho,
  Progressive Distillation for Fast Sampling of Diffusion Models, 2022 (v); Ho and Salimans, Classifier-Free Diffusion
  Guidance, 2022.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae import losses
from jaxvae._checks import at_least, check_shape, check_x, weight_at
from jaxvae.convolution import widen
from jaxvae.keys import check_key, example_keys, noise
from jaxvae.models._conditions import guided
from jaxvae.models._levels import level_log_prob, nearest_level, sample_level
from jaxvae.models._parts import adopted, checked_label
from jaxvae.models._schedules import LinearSchedule, checked_schedule, checked_time, noise_scale, signal_scale
from jaxvae.networks._arrays import as_tuples
from jaxvae.networks._run import run
from jaxvae.types import Array, PRNGKey, PyTree

Prediction = Literal["eps", "x", "v"]
Sampler = Literal["ddpm", "ddim"]
SAMPLERS = ("ddpm", "ddim")


class DiffusionBound(NamedTuple):
    """What -log p(x) is at most, in expectation over the draws: the sum of the first three, each [B] nats.

    Attributes:
      distortion: -log p(x | z_0).
      prior_rate: KL(q(z_1 | x) || N(0, I)), in closed form.
      diffusion_rate: what all steps between cost, estimated at one time: -½ d log SNR / dt · |ε - ε̂|².
      squared_error: |ε - ε̂|² at that time, the sum over the example; no nats.
    """

    distortion: Array
    prior_rate: Array
    diffusion_rate: Array
    squared_error: Array

    @property
    def rate(self) -> Array:
        """Both rates."""
        return self.prior_rate + self.diffusion_rate

    @property
    def negative_elbo(self) -> Array:
        """All three."""
        return self.distortion + self.rate


class Diffusion(nn.Module):
    r"""A density of x by a bound, in nats, and samples of it.

    .. math:: -\log p(x) \le -E \log p(x | z_0) + KL(q(z_1 | x) || N(0, I))
              + \tfrac12 \int_0^1 -\frac{d \log SNR}{dt} E |\epsilon - \hat\epsilon(z_t, t)|^2 dt

    The integral is estimated at one time for each example, drawn from the example's own key. (Times that are spread
    evenly over a batch would make its examples depend on each other; `objectives.diffusion_loss` spreads those of
    several draws of one example.) With the best network there is, E[x | z_t], the bound is log p(x) itself, but for
    the noise at either end.

    What p(x | z_0) is: of continuous x N(z_0 / α_0, 1 / SNR(0)), a density in the units of x, which should be scaled to
    about unit variance. With `levels` L, for x in [0, 1] on the L values 0, 1/(L-1), ..., 1, such as pixels, the levels
    with the probabilities of their distance from z_0 / α_0; inside, they are then in [-1, 1]. L = 2 for binary pixels.
    The schedule's `log_snr_max` need not be above `log_snr_of_levels(L)`.

    Attributes:
      network: (z [B, *shape], log SNR [B]) -> [B, *shape], or (z, log SNR, label [B]) where there are classes, with the
        label `num_classes` for none; such as `networks.UNet` or `networks.DenoisingMLP`. A Linen or NNX module, or a
        function.
      shape: of one x.
      levels: L, or None for continuous x.
      schedule: `LinearSchedule`, `CosineSchedule`, or a frozen record of yours with `log_snr(t)`.
      prediction: what the network says: "eps", "x" or "v".
      num_classes: of the labels, for a class-conditional model.

    It has no `terms`: its bound is no log weight log p(x, z) - log q(z | x), so that nothing may be importance weighted
    by it.

    Raises (when it is made):
      TypeError: the network is no network, or hides JAX arrays that no training would reach.
      ValueError: a size, the levels or the prediction do not fit.
    """

    network: Callable[..., Array]
    shape: Sequence[int]
    levels: int | None = None
    schedule: Any = LinearSchedule()
    prediction: Prediction = "v"
    num_classes: int | None = None

    def __post_init__(self) -> None:
        """Check the parts."""
        self.network = adopted(self.network, "Diffusion.network")
        as_tuples(self, "shape")
        at_least(1, shape=self.shape)
        if not self.shape:
            raise ValueError("shape must have at least one axis, got ()")
        if self.levels is not None:
            at_least(2, levels=self.levels)
        if self.num_classes is not None:
            at_least(1, num_classes=self.num_classes)
        if self.prediction not in ("eps", "x", "v"):
            raise ValueError(f"prediction must be 'eps', 'x' or 'v', got {self.prediction!r}")
        checked_schedule(self.schedule)
        super().__post_init__()

    def __call__(self, x: Array, label: Array | None = None) -> Array:
        """What the network makes of x itself, halfway in time; what `init` runs."""
        signal = self.scaled(x)
        told, _ = self.told(len(x), label)
        return self.output(signal, jnp.full(len(x), self.schedule.log_snr(0.5), signal.dtype), *told)

    def bound(
        self,
        x: Array,
        label: Array | None = None,
        *,
        key: PRNGKey,
        time: Array | None = None,
        dropped: Array | None = None,
    ) -> DiffusionBound:
        """What -log p(x | label) is at most.

        Args:
          x: [B, *shape] floating.
          label: [B] integers in 0 .. num_classes - 1, where the model has classes. No error can be raised for others
            under `jit`: they give NaN, as does an x that is not on its levels.
          key: of shape () or [B], one for each example.
          time: [B] in [0, 1], in place of times drawn from the key. The bound needs uniform ones, each by itself.
          dropped: [B] bool, the examples that are told that there is no label.

        Returns:
          Its parts, [B] each.

        Raises:
          TypeError: x is not floating, the labels are not integers, or the key is not typed.
          ValueError: x, time, label or dropped do not fit the model; levels, times or labels that are not traced and
            are out of range.
        """
        check_key(key)
        signal = self.scaled(x)
        split = partial(jax.random.split, num=3)
        time_key, noise_key, last_key = split(key) if key.shape == () else jax.vmap(split, out_axes=1)(key)
        if time is None:
            time = noise(jax.random.uniform, time_key, (len(x),))
        squared_error, diffusion_rate = self.denoising_error(
            x, time, noise(jax.random.normal, noise_key, x.shape), label, dropped
        )
        end, start = self.schedule.log_snr(1.0), self.schedule.log_snr(0.0)
        prior_rate = losses.gaussian_kl(signal_scale(end) * signal, jax.nn.log_sigmoid(-end))
        if self.levels is None:  # the mean over z_0, in closed form
            distortion = jnp.full(len(x), 0.5 * signal[0].size * (losses.LOG_2PI + 1 - start), signal.dtype)
        else:
            centre = signal + jnp.exp(-0.5 * start) * noise(jax.random.normal, last_key, x.shape)
            distortion = -_sum(level_log_prob(centre, start, signal, self.levels))
        return DiffusionBound(distortion, prior_rate, diffusion_rate, squared_error)

    def denoising_error(
        self, x: Array, time: Array, eps: Array, label: Array | None = None, dropped: Array | None = None
    ) -> tuple[Array, Array]:
        """|ε - ε̂|² at the z_t of times [B] and noise ε of x's shape, and what it costs, -½ d log SNR / dt as much.

        The mean of the second over uniform times and standard normal noise is the diffusion's rate, in nats; so it can
        be integrated by other means than draws.

        Returns:
          Two [B].
        """
        signal = self.scaled(x)
        time = checked_time(time)
        if time.shape != x.shape[:1] or eps.shape != x.shape:
            raise ValueError(f"time must be {x.shape[:1]} and eps {x.shape}, got {time.shape} and {eps.shape}")
        told, bad = self.told(len(x), label, dropped)
        log_snr, slope = jax.jvp(self.schedule.log_snr, (time,), (jnp.ones_like(time),))
        spread = _spread(log_snr, x)
        alpha, sigma = signal_scale(spread), noise_scale(spread)
        output = self.output(alpha * signal + sigma * eps, log_snr, *told)
        if self.prediction == "eps":
            error = eps - output
        elif self.prediction == "x":
            error = jnp.exp(0.5 * spread) * (output - signal)
        else:
            error = alpha * (alpha * eps - sigma * signal - output)
        squared = jnp.where(bad, jnp.nan, _sum(jnp.square(error)))
        return squared, -0.5 * slope * squared

    def denoise(self, z: Array, log_snr: Array, label: Array | None = None) -> Array:
        """What the network takes for x behind z [B, *shape] at a log SNR [B]; in [-1, 1] where x has levels."""
        told, bad = self.told(len(z), label)
        x = as_x(self.prediction, self.output(z, log_snr, *told), z, _spread(log_snr, z))
        return jnp.where(_spread(bad, z), jnp.nan, x)

    def output(self, z: Array, log_snr: Array, *told: Array) -> Array:
        """What the network says, checked; `told` is the label, `num_classes` for none."""
        check_shape((0, *self.shape), z.shape)
        output = run(self.network, z, log_snr, *told, train=self.has_rng("dropout"))
        if output.shape != z.shape:
            raise ValueError(f"the network must return {z.shape}, as z is, got {output.shape}")
        return output

    @nn.nowrap
    def told(self, batch: int, label: Array | None, dropped: Array | None = None) -> tuple[tuple[Array, ...], Array]:
        """What the network is told of B labels, and which of them are out of range, [B]."""
        label = checked_label(label, batch, self.num_classes)
        if label is None or self.num_classes is None:
            if dropped is not None:
                raise ValueError("the model has no classes that could be dropped")
            return (), jnp.zeros(batch, bool)
        bad = label == self.num_classes
        if dropped is not None:
            if dropped.dtype != bool or dropped.shape != (batch,):
                raise ValueError(f"dropped must be bool ({batch},), got {dropped.dtype}{list(dropped.shape)}")
            label = jnp.where(dropped, self.num_classes, label)
        return (label,), bad

    @nn.nowrap
    def scaled(self, x: Array) -> Array:
        """X as it is diffused: itself or, where it has levels, in [-1, 1]; NaN, or an error, where it is on none."""
        check_x(x)
        check_shape((0, *self.shape), x.shape)
        x = widen(x)  # nats, and the distances of levels, are too fine for a narrow type
        if self.levels is None:
            return x
        steps = x * (self.levels - 1)
        off = ~(jnp.abs(steps - jnp.rint(steps)) < 0.01) | (steps < -0.01) | (steps > self.levels - 0.99)
        if not isinstance(off, jax.core.Tracer) and off.any():
            raise ValueError(
                f"x must be on {self.levels} levels from 0 to 1, got {float(x[off][0])}: draw it as one of them, or "
                "leave levels out, for a density of continuous x"
            )
        return jnp.where(off, jnp.nan, 2 * x - 1)

    @nn.nowrap
    def sample(
        self,
        params: PyTree,
        num: int,
        *,
        key: PRNGKey,
        steps: int = 100,
        sampler: Sampler = "ddpm",
        schedule: Any = None,
        label: Array | None = None,
        guidance: float | Array = 1.0,
    ) -> Array:
        """Draw `num` x, from noise at t = 1 in equal steps of time. A plain method.

        Args:
          params: what `init` returned.
          num: N.
          key: of shape (), or [N]; example i draws from `fold_in(key, i)`, and each step from a key of its own of that,
            so the first x are the same for every larger N. What a sampler starts from depends on nothing else.
          steps: how often the network is asked; more are better, up to some hundreds.
          sampler: "ddpm" draws every step from the reverse process; "ddim" draws nothing after the start and is better
            in few steps.
          schedule: where its equal steps of time stop, in place of the model's; `CosineSchedule` is better in few.
          label: [N] integers, where the model has classes.
          guidance: the weight w of the label, output = (1 - w) · without + w · with it, zero or more: 1 is the model
            itself, 0 draws without label. What is neither asks the network twice, and is of use where the model was
            trained with `condition_dropout`.

        Returns:
          [N, *shape] float32; in [0, 1] and on its levels where x has some: the most probable ones of "ddim".

        Raises:
          TypeError: the key is not typed, `num` or `steps` is no integer, or the labels are not integers.
          ValueError: a number is out of range, the labels do not fit the model, or `guidance` of one without classes.
        """
        drawn, _ = self.denoising_path(
            params, num, key=key, steps=steps, sampler=sampler, schedule=schedule, label=label, guidance=guidance
        )
        return drawn

    @nn.nowrap
    def denoising_path(
        self,
        params: PyTree,
        num: int,
        *,
        key: PRNGKey,
        steps: int = 100,
        sampler: Sampler = "ddpm",
        schedule: Any = None,
        label: Array | None = None,
        guidance: float | Array = 1.0,
    ) -> tuple[Array, Array]:
        """As `sample`, and what the network took for x at every step, [steps, N, *shape], in the units of x."""
        at_least(1, num=num, steps=steps)
        check_key(key)
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be 'ddpm' or 'ddim', got {sampler!r}")
        if key.shape not in ((), (num,)):
            raise ValueError(f"key must have shape () or ({num},), got {key.shape}")
        guidance = weight_at("guidance", guidance, 0)  # as it is: a number that jax holds may not be read under jit
        (label, _, dropped), both = guided(num, label, None, guidance, num_classes=self.num_classes, sizes=None)
        keys = example_keys(key, jnp.arange(num)) if key.shape == () else key
        options = {"steps": int(steps), "sampler": sampler, "schedule": checked_schedule(schedule or self.schedule)}
        return _sample(self, params, keys, label, dropped, jnp.float32(guidance), both=both, **options)


def as_x(prediction: Prediction, output: Array, z: Array, log_snr: Array) -> Array:
    """What x is, by what the network says of z; log SNR of z's rank."""
    if prediction == "x":
        return output
    alpha, sigma = signal_scale(log_snr), noise_scale(log_snr)
    return (z - sigma * output) / alpha if prediction == "eps" else alpha * z - sigma * output


@partial(jax.jit, static_argnames=("model", "steps", "sampler", "schedule", "both"))
def _sample(
    model: Diffusion,
    params: PyTree,
    keys: PRNGKey,
    label: Array | None,
    dropped: Array | None,
    guidance: Array,
    *,
    steps: int,
    sampler: Sampler,
    schedule: Any,
    both: bool,
) -> tuple[Array, Array]:
    """One scan over the steps; every example has a key for its start, for what is read off z_0, and for each step."""
    num = len(keys)
    told, bad = model.told(num, label, dropped)
    if both and model.num_classes is not None:
        told = (jnp.concatenate([*told, jnp.full(num, model.num_classes)]),)

    def drawn(sampler: Callable[..., Array], index: Array | int) -> Array:
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        return noise(sampler, own, (num, *model.shape))

    def denoised(z: Array, log_snr: Array) -> Array:
        twice = jnp.concatenate([z, z]) if both else z
        output: Any = model.apply(params, twice, jnp.full(len(twice), log_snr), *told, method="output")
        if both:
            given, without = jnp.split(output, 2)
            output = without + guidance * (given - without)
        return as_x(model.prediction, output, z, log_snr)

    def step(z: Array, ends: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        log_snr, less_noisy, index = ends
        x = denoised(z, log_snr)
        alpha, sigma = signal_scale(log_snr), noise_scale(log_snr)
        next_alpha, next_sigma = signal_scale(less_noisy), noise_scale(less_noisy)
        if sampler == "ddim":
            return (next_alpha * x + next_sigma / sigma * (z - alpha * x)).astype(z.dtype), x
        share = -jnp.expm1(log_snr - less_noisy)  # of the noise that the step takes away
        mean = next_alpha * ((1 - share) / alpha * z + share * x)
        return (mean + next_sigma * jnp.sqrt(share) * drawn(jax.random.normal, index + 2)).astype(z.dtype), x

    log_snr = jnp.asarray(schedule.log_snr(jnp.linspace(1.0, 0.0, steps + 1, dtype=jnp.float32)), jnp.float32)
    start = drawn(jax.random.normal, 0)
    start = jnp.where(_spread(bad, start), jnp.nan, start)
    z, path = jax.lax.scan(step, start, (log_snr[:-1], log_snr[1:], jnp.arange(steps)))
    centre = z / signal_scale(log_snr[-1])
    if model.levels is None:
        last = centre + jnp.exp(-0.5 * log_snr[-1]) * drawn(jax.random.normal, 1) if sampler == "ddpm" else centre
        return last, path
    if sampler == "ddpm":
        last = sample_level(centre, log_snr[-1], drawn(jax.random.uniform, 1), model.levels)
    else:
        last = nearest_level(centre, model.levels)
    return (last + 1) / 2, (path + 1) / 2


def _spread(values: Array, like: Array) -> Array:
    """[B] -> [B, 1, ..., 1], of the rank of `like`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def _sum(values: Array) -> Array:
    """Over the example, [B, ...] -> [B]."""
    return values.reshape(len(values), -1).sum(axis=1)
