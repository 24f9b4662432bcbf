"""Inverse problems with a trained model as the prior: what x may have been, given a part or a function of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least
from jaxvae.evaluation._samplers import Problem, completed, gibbs, langevin, resample
from jaxvae.evaluation.map import map_batches
from jaxvae.evaluation.observations import Visible
from jaxvae.keys import example_keys
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree


class Inverted(NamedTuple):
    """Draws of what x may have been, in the units in which the model sees it.

    Attributes:
      mean: [N, ...], E[x|y]: the mean over the latents drawn of E[x|z]. Visible entries are themselves.
      std: [N, ...], the standard deviation of the draws; 0 of a visible entry.
      draws: [N, num_draws, ...], whole examples from p(x|y).
      latent: [N, num_draws, ...], of each of them.
      diagnostics: name -> [N]. Of weighted samples "effective_samples", (Σ w)² / Σ w², which near 1 says that a single
        sample has all the weight, and "log_evidence", log p(y) in nats. Of chains "acceptance", the mean probability of
        accepting a proposal, and "r_hat", which compares how log p(z, y) varies between chains with how it does within
        each (Gelman and Rubin, 1992): well above 1, they do not agree and more steps are needed. Of Langevin also
        "step_size", the mean over the chains.
    """

    mean: np.ndarray
    std: np.ndarray
    draws: np.ndarray
    latent: np.ndarray
    diagnostics: dict[str, np.ndarray]


class TrainedEncoder(NamedTuple):
    """A `PartialEncoder` with what training has made of it: `jaxvae.objectives.partial_encoder_loss`."""

    encoder: Any
    params: PyTree
    model_state: PyTree = ()


@dataclass(frozen=True, eq=False)
class Importance:
    r"""Weighted samples, of which draws are taken by their share of the weights.

    .. math:: w_s = \frac{p(y | z_s)\, p(z_s)}{r(z_s)}, \quad z_s \sim r

    Right for many samples, whatever r is; how many are enough, the effective samples say.

    Attributes:
      num_samples: of each example.
      proposal: a `TrainedEncoder`, r(z|y); the prior p(z) where there is none.
    """

    num_samples: int = 1000
    proposal: TrainedEncoder | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        at_least(2, num_samples=self.num_samples)


WEIGHTED, START = Importance(), Importance(100)


@dataclass(frozen=True, eq=False)
class Gibbs:
    """Metropolis within Gibbs: hidden entries from p(x|z), then z proposed by the model's own encoder, q(z|x).

    The proposal is accepted with the probability that leaves p(z, x|y) as it is: where q is the exact posterior,
    always. In the burn-in every proposal is accepted, which leads to where the encoder's proposals are good and would
    by itself, as pseudo-Gibbs sampling, be biased. For `Visible` alone. Each draw is the end of a chain of its own.

    Attributes:
      steps: after the burn-in.
      burn_in: steps before.
      start: where the chains begin.

    References:
      Rezende, Mohamed and Wierstra, Stochastic Backpropagation and Approximate Inference in Deep Generative Models,
      2014 (pseudo-Gibbs); Mattei and Frellsen, Leveraging the Exact Likelihood of Deep Latent Variable Models, 2018.
    """

    steps: int = 200
    burn_in: int = 50
    start: Importance = START

    def __post_init__(self) -> None:
        """Check the options."""
        _check_chains(self)


@dataclass(frozen=True, eq=False)
class Langevin:
    r"""Steps along the gradient of log p(z, y) with noise, in the space of the latents.

    .. math:: z' = z + h \nabla_z \log p(z, y) + \sqrt{2h}\, \varepsilon, \quad \varepsilon \sim N(0, I)

    Adjusted, a Metropolis step follows each, which makes it exact (MALA), and in the burn-in each chain adapts its h
    towards an acceptance of .574. Unadjusted, h stays and the draws are biased, for good: of N(0, s²) their variance is
    s² / (1 - h / (2 s²)), and from h ≥ 2 s² on there is none. For latents with a density on all of R^D. Each draw is
    the end of a chain of its own.

    Attributes:
      step_size: h; where it is adjusted, the first one.
      steps: after the burn-in.
      burn_in: steps before.
      adjusted: whether the Metropolis step is taken.
      start: where the chains begin.

    References:
      Roberts and Tweedie, Exponential Convergence of Langevin Distributions and Their Discrete Approximations, 1996;
      Roberts and Rosenthal, Optimal Scaling of Discrete Approximations to Langevin Diffusions, 1998.
    """

    step_size: float = 0.01
    steps: int = 500
    burn_in: int = 500
    adjusted: bool = True
    start: Importance = START

    def __post_init__(self) -> None:
        """Check the options."""
        _check_chains(self)
        if not 0 < self.step_size < np.inf:
            raise ValueError(f"step_size must be a positive number, got {self.step_size}")


Method = Importance | Gibbs | Langevin


def invert(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    observation: Any,
    *,
    key: PRNGKey,
    method: Method = WEIGHTED,
    num_draws: int = 10,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Inverted:
    r"""Draw what x may have been, given what is observed of it: z ~ p(z|y), then x ~ p(x|z).

    The model is one of whole examples, and stays as it is: inpainting, a larger picture of a small one, colours of a
    grey one need no training of their own. An example draws the same in any batch.

    Args:
      model: a `VAE` or `CVAE`, or another with `decode` and `latent_prior` (for `Gibbs`, `encode`), of one array of
        latents.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...], with `indices` from `jaxvae.data.evaluation_feed`: for `Visible` "x", for `Linear` "y",
        "index", and "condition" where the model takes one.
      indices: [n, B] into them; -1 is padding.
      observation: `Visible(mask)` or `Linear(operator, scale)`.
      key: decides the draws.
      method: `Importance`, `Gibbs` or `Langevin`, with options of its own.
      num_draws: of each example, 2 or more.
      prepare: as in training.
      progress: called with (batches done, batches).

    Raises:
      TypeError: the model or the observation has no form for the method, or as for `map_batches`.
      ValueError: the source lacks what is observed, or something does not fit; no sample of the proposal gives y any
        probability; chains have run away to what is not finite; or as for `map_batches`.

    References:
      Harvey, Naderiparizi and Wood, Conditional Image Generation by Conditioning Variational Auto-Encoders, 2022.
    """
    at_least(2, num_draws=num_draws)
    _check(model, source, observation, method)
    start = method if isinstance(method, Importance) else method.start
    encoder, own_params, own_state = start.proposal or (None, {}, ())
    own: dict[str, Any] = {"proposal": own_params}
    if isinstance(method, Langevin):
        own["step_size"] = np.float32(method.step_size)  # another one compiles nothing anew
    draw = partial(_inverted, model, observation, _Options.of(method, encoder), int(num_draws))
    inverted: Inverted = map_batches(
        *(draw, (params, own), (model_state, own_state), source, indices),
        key=key,
        prepare=prepare,
        progress=progress,
    )
    _check_result(inverted, method)
    return inverted


class _Options(NamedTuple):
    """A method without arrays, so that equal ones compile once."""

    kind: str
    num_samples: int
    encoder: Any
    of_chains: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, method: Method, encoder: Any) -> "_Options":
        if isinstance(method, Importance):
            return cls("importance", int(method.num_samples), encoder)
        chains: dict[str, Any] = {"steps": int(method.steps), "burn_in": int(method.burn_in)}
        if isinstance(method, Langevin):
            chains["adjusted"] = bool(method.adjusted)
        kind = type(method).__name__.lower()
        return cls(kind, int(method.start.num_samples), encoder, tuple(chains.items()))


def _inverted(
    model: Any,
    observation: Any,
    options: _Options,
    num_draws: int,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
) -> Inverted:
    """One batch: `Inverted`, each [B, ...]."""
    problem = Problem(model, params[0], model_state[0], batch, observation)
    start_key, chain_key, x_key = (example_keys(each, batch["index"]) for each in jax.random.split(key, 3))
    propose = problem.from_prior
    if options.encoder is not None:
        propose = partial(problem.from_encoder, options.encoder, params[1]["proposal"], model_state[1])
    latent, diagnostics = resample(
        problem, propose, keys=start_key, num_samples=options.num_samples, num_draws=num_draws
    )
    if options.kind != "importance":
        chains: Any = {"gibbs": gibbs, "langevin": langevin}[options.kind]
        step_size = {name: value for name, value in params[1].items() if name == "step_size"}
        latent, diagnostics = chains(problem, latent, keys=chain_key, **step_size, **dict(options.of_chains))
    means, draws = completed(problem, latent, keys=x_key)
    fields: list[Any] = [
        problem.filled(means.mean(axis=0)),
        problem.filled(jnp.std(draws, axis=0, ddof=1), 0.0),
        jnp.moveaxis(jax.vmap(problem.filled)(draws), 0, 1),
        jnp.moveaxis(latent, 0, 1),
        diagnostics,
    ]
    return Inverted(*fields)


def _check_chains(method: Gibbs | Langevin) -> None:
    at_least(2, steps=method.steps)  # of which a chain's variance is taken
    at_least(0, burn_in=method.burn_in)
    if not isinstance(method.start, Importance):
        raise TypeError(f"start must be Importance(...), got {type(method.start).__name__}")


def _check(model: Any, source: Batch, observation: Any, method: Method) -> None:
    """Raise where the parts do not go together, before anything is compiled."""
    if not isinstance(method, Importance | Gibbs | Langevin):
        raise TypeError(f"method must be Importance(...), Gibbs(...) or Langevin(...), got {method!r}")
    needed = ["decode", "latent_prior", *(["encode"] if isinstance(method, Gibbs) else [])]
    lacking = [name for name in needed if not hasattr(model, name)]
    if lacking:
        raise TypeError(
            f"a {type(model).__name__} has no {' and no '.join(lacking)}: invert is for models of one array of latents "
            "with a prior of its own, such as a VAE or a CVAE"
        )
    if isinstance(method, Gibbs) and not isinstance(observation, Visible):
        raise TypeError(
            "Gibbs draws the hidden entries of x between steps, and of a "
            f"{type(observation).__name__} observation no entry is known: use Importance or Langevin"
        )
    needed = ["index", *(["x"] if isinstance(observation, Visible) else ["y"])]
    lacking = [name for name in needed if name not in source]
    if lacking:
        raise ValueError(
            f"the source needs {' and '.join(map(repr, lacking))} for {type(observation).__name__}, it has "
            f"{', '.join(sorted(source))}; 'y' is observation.observe(x, key=key)"
        )


def _check_result(inverted: Inverted, method: Method) -> None:
    if isinstance(method, Importance):
        dead = int((~np.isfinite(inverted.diagnostics["effective_samples"])).sum())
        if dead:
            raise ValueError(
                f"none of the {method.num_samples} samples gives y of {dead} examples any probability, or it is not "
                "finite: check what is observed, or take more num_samples"
            )
    gone = int((~np.isfinite(inverted.latent.reshape(len(inverted.latent), -1)).all(axis=1)).sum())
    if gone:
        raise ValueError(
            f"the chains of {gone} examples began where y has no probability, or ran away to what is not finite"
            + (f": take a step_size below {method.step_size}, or adjusted=True" if isinstance(method, Langevin) else "")
        )
