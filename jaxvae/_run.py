"""A trained run: what it is measured by, what it can be asked, and how it is kept."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae import data
from jaxvae._checks import at_least, where_mask
from jaxvae._given import as_dataset, as_trained, evaluation_feed, observed_feed
from jaxvae._recipe import Parts
from jaxvae._saved import guarded, read, write
from jaxvae._variables import variables_of
from jaxvae.evaluation.imputation import Imputed, impute
from jaxvae.evaluation.inversion import WEIGHTED, Inverted, Method, invert
from jaxvae.evaluation.likelihood import LogLikelihood, log_likelihood
from jaxvae.evaluation.map import map_batches
from jaxvae.evaluation.observations import Linear, Visible
from jaxvae.keys import seed_key
from jaxvae.models import CVAE, VQVAE, Autoencoder, PixelCNN, PixelCNNPP, PixelRNN, TransformerPrior
from jaxvae.objectives._apply import model_inputs, observed_of
from jaxvae.training.epoch import make_evaluate
from jaxvae.training.step import make_eval_step
from jaxvae.types import Array, Batch, LossFn, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A trained model with what it needs to be used.

    Attributes:
      model: as it was trained.
      params: of the model.
      model_state: what its networks and its quantiser keep.
      objective: the mean over examples that it is evaluated by.
      dataset: the first examples that it was trained on: their shapes, their domain, and how they are prepared.
      history: one dictionary for each evaluation: "step", "epoch", "train" and, where there was a validation set,
        "validation", each the metrics of the objective.
      step: after how many steps its parameters are; the best of all evaluations where there was a validation set.
      stopped: why training ended before the last epoch, such as "early stopping", or None.
    """

    model: Any
    params: PyTree = dataclasses.field(repr=False)
    model_state: PyTree = dataclasses.field(repr=False)
    objective: LossFn = dataclasses.field(repr=False)
    dataset: data.Dataset = dataclasses.field(repr=False)
    history: list[dict[str, Any]] = dataclasses.field(repr=False)
    step: int
    stopped: str | None = None

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the model is applied to: `run.model.apply(run.variables, x, method="encode")`."""
        return variables_of(self.params, self.model_state)

    def evaluate(self, dataset: data.Dataset, *, num_samples: int = 100, seed: int = 0) -> dict[str, float]:
        """The objective's metrics on a set, and of a model with latents how likely it makes it.

        Returns:
          Means over the examples, in nats unless a name says otherwise; of a model with a prior also "nll", -log p(x)
          by importance sampling with `num_samples` draws, and "nll_standard_error", the Monte Carlo error of it.
        """
        dataset = as_trained(self.model, self.dataset, dataset)
        key, feed = seed_key(seed), evaluation_feed(dataset)
        evaluate = make_evaluate(make_eval_step(self.objective, prepare=dataset.prepare))
        state: Any = _Evaluated(self.params, self.model_state, jnp.int32(self.step))
        measured = {name: float(value) for name, value in evaluate(state, *feed, key=key).items()}
        if self._has_prior:
            estimate = self._estimate(dataset, feed, num_samples, key)
            measured |= {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}
        return measured

    def log_likelihood(self, x: ArrayLike | data.Dataset, *, num_samples: int = 100, seed: int = 0) -> LogLikelihood:
        """Estimate log p(x) of each of x [N, ...], as the data set stores it: what is odd has a small one.

        Where entries are missing it is log p of those that there are: compare like with like. `nll` of the result is
        that of `evaluate`.

        Args:
          x: as the data set stores it, a data frame in its own units, or a set.
          num_samples: importance samples for each example.
          seed: decides the draws.

        Raises:
          TypeError: the model has no prior to integrate over.
        """
        if not self._has_prior:
            raise TypeError(f"{type(self.model).__name__} has no latents under a prior, of which log p(x) is estimated")
        given = as_trained(self.model, self.dataset, x if isinstance(x, data.Dataset) else as_dataset(self.dataset, x))
        return self._estimate(given, evaluation_feed(given), num_samples, seed_key(seed))

    @property
    def _has_prior(self) -> bool:
        return hasattr(self.model, "terms") and not isinstance(self.model, Autoencoder)

    def _estimate(
        self, given: data.Dataset, feed: tuple[Batch, Array], num_samples: int, key: PRNGKey
    ) -> LogLikelihood:
        return log_likelihood(
            self.model,
            *(self.params, self.model_state, *feed),
            key=key,
            num_samples=num_samples,
            prepare=given.prepare,
        )

    def sample(self, num: int, *, condition: ArrayLike | None = None, seed: int = 0) -> np.ndarray:
        """Draw from the prior and decode: the means of p(x|z), [num, ...].

        Args:
          num: how many.
          condition: [num, ...], of a conditional model.
          seed: decides which.

        Raises:
          TypeError: the model has no prior to draw from, a condition is missing, or there is one that it does not take.
          ValueError: conditions of another number.
        """
        at_least(1, num=num)
        if not hasattr(self.model, "sample"):
            hint = ": train a PixelCNN or a TransformerPrior on its codes" if isinstance(self.model, VQVAE) else ""
            raise TypeError(f"{type(self.model).__name__} has no prior to draw from{hint}")
        if isinstance(self.model, PixelCNN | PixelCNNPP | PixelRNN | TransformerPrior):
            name = type(self.model).__name__
            raise TypeError(f"a {name} draws by itself: run.model.sample(run.params, num, key=)")
        first: Any = num
        if isinstance(self.model, CVAE):
            if condition is None:
                raise TypeError(f"a conditional model draws given a condition: pass condition [{num}, ...]")
            first = data.domain.carried(condition, "condition")
            if first.shape[:1] != (num,):
                raise ValueError(f"condition must be [{num}, ...], one for each sample, got {first.shape}")
            first = jnp.asarray(first)
        elif condition is not None:
            raise TypeError(f"a {type(self.model).__name__} takes no condition: leave it out")
        return np.asarray(self.model.apply(self.variables, first, key=seed_key(seed), method="sample").mean)

    def encode(self, x: ArrayLike | data.Dataset) -> Any:
        """The codes of x [N, ...], as the data set stores it: the posteriors' means [N, D], or a VQ-VAE's indices.

        Of a `TopDownVAE` a tuple, those of z_1 to z_L, each [N, ...].
        """
        return self._map(_encoded, x)

    def reconstruct(self, x: ArrayLike | data.Dataset) -> np.ndarray:
        """The means of p(x|z) at the codes of x [N, ...], as models see it: an image in [0, 1]."""
        means: np.ndarray = self._map(_reconstructed, x)
        return means

    def interpolate(self, start: ArrayLike, end: ArrayLike, *, num: int = 11) -> np.ndarray:
        """Decode the lines between the codes of two arrays [N, ...], [N, num, ...]: means of p(x|z).

        Raises:
          TypeError: the codes are indices, between which there is nothing.
        """
        at_least(2, num=num)
        first, last = self.encode(start), self.encode(end)
        leaf = jax.tree.leaves(first)[0]
        if not np.issubdtype(leaf.dtype, np.floating):
            raise TypeError(f"the codes of a {type(self.model).__name__} are indices: there is nothing between them")
        if jax.tree.map(np.shape, first) != jax.tree.map(np.shape, last):
            raise ValueError(f"start and end must be as many, got {len(leaf)} and {len(jax.tree.leaves(last)[0])}")

        def line(start: np.ndarray, end: np.ndarray) -> np.ndarray:
            share = np.linspace(0, 1, num, dtype=start.dtype).reshape(1, num, *[1] * (start.ndim - 1))
            between = (1 - share) * start[:, None] + share * end[:, None]
            return between.reshape(-1, *start.shape[1:])

        decoded = self.model.apply(self.variables, jax.tree.map(line, first, last), method="decode").mean
        return np.asarray(decoded).reshape(len(leaf), num, *decoded.shape[1:])

    def impute(
        self, x: ArrayLike | data.Dataset, *, num_samples: int = 1000, num_draws: int = 10, seed: int = 0
    ) -> Imputed:
        """Fill in the missing entries of x [N, ...], which are NaN, by `jaxvae.evaluation.impute`.

        Args:
          x: as the data set stores it, or a set with "observed".
          num_samples: importance samples for each example.
          num_draws: whole examples to draw for each.
          seed: decides the draws.

        Raises:
          TypeError: the model has no form for missing entries.
          ValueError: nothing says which entries are missing.
        """
        given = x if isinstance(x, data.Dataset) else as_dataset(self.dataset, x)
        if "observed" not in given.arrays:
            raise ValueError(f"{given.name!r} does not say which entries are observed: make it with observed=")
        given = as_trained(self.model, self.dataset, given)
        return impute(
            self.model,
            *(self.params, self.model_state, *evaluation_feed(given)),
            key=seed_key(seed),
            num_samples=num_samples,
            num_draws=num_draws,
            prepare=given.prepare,
        )

    def invert(
        self,
        observed: ArrayLike | data.Dataset,
        observation: Visible | Linear,
        *,
        method: Method = WEIGHTED,
        num_draws: int = 10,
        seed: int = 0,
    ) -> Inverted:
        """Draw what x may have been, given a part or a function of it, by `jaxvae.evaluation.invert`.

        Args:
          observed: of `Visible` x [N, ...] as the data set stores it, whose hidden entries are not looked at; of
            `Linear` y [N, ...], A of x as a model sees it; or a set with either.
          observation: what of x was observed.
          method: `Importance`, `Gibbs` or `Langevin`.
          num_draws: whole examples to draw for each, 2 or more.
          seed: decides the draws.

        Raises:
          TypeError: the model has no form for it, such as a `VQVAE`; or y alone for a conditional model.
          ValueError: `observed` does not fit.
        """
        source, indices, prepare = observed_feed(self.model, self.dataset, observed, observation)
        return invert(
            self.model,
            *(self.params, self.model_state, source, indices, observation),
            key=seed_key(seed),
            method=method,
            num_draws=num_draws,
            prepare=prepare,
        )

    def save(self, directory: str | Path) -> Path:
        """Write the run to a directory, which `jaxvae.load` reads; returns its absolute path.

        `run.json` describes the model, its objective and how its data is prepared, as data and never as code;
        `weights.safetensors` holds the arrays: parameters by their path in `run.params`, such as
        "params/encoder/Dense_0/kernel", and the rest by "model_state/" and the path in `run.model_state`, such as
        "model_state/batch_stats/encoder/BatchNorm_0/mean"; types are kept, bfloat16 too, and other programs read it
        by the package safetensors. `data.safetensors` holds the first examples, `history.json` the evaluations.

        A class or a function of yours is kept by its name, and `load` is then given it as one of its `parts`. A model
        that no file describes, such as one with an NNX module or a lambda in it, is given to `load` as a whole.

        Raises:
          FileExistsError: the directory holds something already.
          TypeError: the objective, or how the data is prepared, has something in it that goes by no name, such as a
            lambda: make that a function of a module.
        """
        out = absolute(directory, "directory")
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} holds something already: choose another directory")
        write(self, out)
        return out

    def push(
        self,
        repo: str,
        *,
        results: Mapping[str, Mapping[str, float]] | str | Path | None = None,
        examples: bool = False,
        private: bool | None = None,
        license: str | None = None,
        api: Any = None,
    ) -> str:
        """Save the run to a repository of the Hugging Face hub, with a model card; returns the commit.

        `jaxvae.pull(repo)` is the same run: parameters, state, model, objective and history, to the bit.

        Args:
          repo: "owner/name", made if it does not exist.
          results: the figures for the card, split -> name -> value, or the `result.json` that `jaxvae train` has
            written; of the evaluation that the run's state is from unless given.
          examples: whether the first examples that it was trained on go with it. Otherwise one of zeros does.
          private: whether a repository that is made can be seen by its owner alone; the hub's default unless given.
          license: of the model, such as "apache-2.0".
          api: in place of `huggingface_hub.HfApi()`, which finds the token of whoever is logged in.

        Raises:
          ModuleNotFoundError: huggingface_hub is missing (`pip install 'jaxvae[hub]'`).
          TypeError: the run cannot be saved, as `save` says.
        """
        from jaxvae import _hub

        options: dict[str, Any] = {"results": results, "examples": examples, "private": private, "license": license}
        return _hub.push(self, repo, **options, api=api)

    def _map(self, function: Callable[..., PyTree], x: ArrayLike | data.Dataset) -> Any:
        given = as_trained(self.model, self.dataset, x if isinstance(x, data.Dataset) else as_dataset(self.dataset, x))
        feed = evaluation_feed(given)
        return map_batches(
            partial(function, self.model), self.params, self.model_state, *feed, key=seed_key(0), prepare=given.prepare
        )


def load(directory: str | Path, *, parts: Iterable[Any] = (), model: Any = None) -> Run:
    """The run that `Run.save` wrote to a directory. Its files are data: nothing in them is run.

    Args:
      directory: of the run.
      parts: the classes and functions of your own that its model, objective or data were made of.
      model: the model, made as it was, where no file describes it, such as one with an NNX module or a lambda in it.

    Raises:
      FileNotFoundError: there is no run in the directory, or a file of it is missing.
      DamagedRunError: a file is damaged, or names what no file may name; a `ValueError`.
      TypeError: parts or the model are needed; names them.
      ValueError: an earlier version saved the run, as Python objects.
    """
    place = absolute(directory, "directory")
    own = Parts(parts)
    return guarded(place, lambda: Run(**read(place, own, model)))


def pull(
    repo: str, *, revision: str | None = None, parts: Iterable[Any] = (), model: Any = None, api: Any = None
) -> Run:
    """The run that `Run.push` saved to a repository of the Hugging Face hub. Its files are data, as those of `load`.

    Args:
      repo: "owner/name".
      revision: a commit, a tag or a branch; the newest unless given. A commit always is the same run.
      parts: as of `load`.
      model: as of `load`.
      api: in place of `huggingface_hub.HfApi()`.

    Raises:
      ModuleNotFoundError: huggingface_hub is missing (`pip install 'jaxvae[hub]'`).
      FileNotFoundError, DamagedRunError, TypeError, ValueError: as of `load`.
    """
    from jaxvae import _hub

    return load(_hub.download(repo, revision=revision, api=api), parts=parts, model=model)


def absolute(path: str | Path, argument: str) -> Path:
    """The absolute path; `ValueError` names the argument where there is none."""
    try:
        if path != "":
            return Path(path).expanduser().resolve()
        reason = "it is empty"
    except RuntimeError as error:  # nobody's home
        reason = str(error)
    raise ValueError(f"{argument} must be the path of a directory, got {str(path)!r}: {reason}")


class _Evaluated(NamedTuple):
    """What `make_evaluate` reads of a state."""

    params: PyTree
    model_state: PyTree
    step: Array


def _encoded(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> PyTree:
    del key
    if isinstance(model, VQVAE):
        return model.encode_indices(params, model_state, _without_padding(batch))
    observed = observed_of(batch, model, "encode")
    code = model.apply(variables_of(params, model_state), *model_inputs(batch), method="encode", **observed)
    if isinstance(code, jax.Array):
        return code
    return code.mean if hasattr(code, "mean") else tuple(each.mean for each in code)


def _reconstructed(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    del key
    if isinstance(model, VQVAE):
        indices = model.encode_indices(params, model_state, _without_padding(batch))
        return model.decode_indices(params, model_state, indices).mean
    observed = observed_of(batch, model, "__call__")
    return model.apply(variables_of(params, model_state), *model_inputs(batch), **observed).mean


def _without_padding(batch: Batch) -> Array:
    """X as `vq_vae_loss` shows it to the encoder: zero where it is padding."""
    return where_mask(batch["x"], batch["mask"], "x") if "mask" in batch else batch["x"]
