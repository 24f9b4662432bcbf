"""Runs on a hub of models: the files of a run, which are data, and a model card written from its figures."""

import dataclasses
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxvae._json import read_json_object
from jaxvae._saved import EXAMPLES, HISTORY, RECORD, WEIGHTS, write

CARD = "README.md"
FILES = (RECORD, WEIGHTS, EXAMPLES, HISTORY)
TAGS = ("jaxvae", "jax", "flax", "variational-autoencoder")
UNITS = {
    "nll": "-log p(x), nats",
    "negative_elbo": "-ELBO, nats",
    "rate": "rate, nats",
    "distortion": "distortion",
    "loss": "loss",
}
Results = Mapping[str, Mapping[str, float]]


def push(
    run: Any,
    repo: str,
    *,
    results: Results | str | Path | None,
    examples: bool,
    private: bool | None,
    license: str | None,
    api: Any,
) -> str:
    """See `Run.push`."""
    api = _api() if api is None else api
    measured = _measured(run, results)
    kept = run if examples else dataclasses.replace(run, dataset=_without_examples(run.dataset))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(kept, folder)
        (folder / CARD).write_text(card(run, repo, measured, license), encoding="utf-8")
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message=f"Save a {type(run.model).__name__} of jaxvae"
        )
    return str(getattr(commit, "oid", commit))


def download(repo: str, *, revision: str | None, api: Any) -> Path:
    """The folder that the files of a run on a hub were downloaded to, these and no others."""
    api = _api() if api is None else api
    return Path(api.snapshot_download(repo, revision=revision, allow_patterns=list(FILES)))


def _api() -> Any:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a hub needs huggingface_hub: pip install 'jaxvae[hub]'") from error
    return HfApi(library_name="jaxvae")


def _without_examples(dataset: Any) -> Any:
    """The set with one example of zeros in place of what the run was trained on: its shapes and types are enough."""
    arrays = {
        name: np.ones((1, *values.shape[1:]), values.dtype)
        if name in ("observed", "mask")
        else np.zeros((1, *values.shape[1:]), values.dtype)
        for name, values in dataset.arrays.items()
    }
    return dataclasses.replace(dataset, arrays=arrays, example_names=())


def _measured(run: Any, results: Results | str | Path | None) -> dict[str, dict[str, float]]:
    """Split -> name -> value: as given, or of the evaluation that the run's state is from."""
    if results is None:
        of_step = [record for record in run.history if record["step"] == run.step] or run.history[-1:]
        results = {name: of_step[-1][name] for name in ("train", "validation") if of_step and name in of_step[-1]}
    elif isinstance(results, str | Path):
        results = read_json_object(Path(results).expanduser())
    splits = {str(split): dict(_numbers(figures)) for split, figures in results.items() if isinstance(figures, Mapping)}
    return {split: figures for split, figures in splits.items() if figures}


def _numbers(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in figures.items():
        if isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value):
            yield str(name), float(value)


def card(run: Any, repo: str, measured: Mapping[str, Mapping[str, float]], license: str | None) -> str:
    """A model card: what hubs read of it, as YAML, and what people do."""
    model, dataset = type(run.model).__name__, run.dataset
    results = [
        {
            "task": {"type": "density-estimation", "name": "density estimation"},
            "dataset": {"type": dataset.name, "name": dataset.name, "split": split},
            "metrics": [
                {"type": name, "name": UNITS.get(name, name), "value": value} for name, value in figures.items()
            ],
        }
        for split, figures in measured.items()
    ]
    about: dict[str, Any] = {"library_name": "jaxvae", "tags": [*TAGS, model.lower()]}
    about |= {} if license is None else {"license": license}
    about |= {"model-index": [{"name": repo.rpartition("/")[2], "results": results}]} if results else {}
    head = "\n".join(f"{name}: {_yaml(value)}" for name, value in about.items())
    rows = [
        f"| {_cell(split)} | {_cell(UNITS.get(name, name))} | {value:.5g} |"
        for split, figures in measured.items()
        for name, value in figures.items()
    ]
    table = "\n".join(["| split | figure, mean over examples | value |", "|---|---|---|", *rows])
    return f"""---
{head}
---

# {model} of {_cell(dataset.name)}

A {model} that jaxvae has trained: {run.step} steps on x of shape
{tuple(dataset.shape)}, {dataset.domain.kind}.

```python
import jaxvae

run = jaxvae.pull({json.dumps(repo)})
x = run.sample(16)
```

`{WEIGHTS}` holds the parameters, which other programs read by the package safetensors; `{RECORD}` describes the model
as data, with a checksum of every file. Nothing here is code, and loading it runs none.

{table if rows else "No figures were given."}

```
{repr(run.model).replace("```", "'''")}
```
"""


def _yaml(value: Any) -> str:
    """JSON, which is YAML but for two things; whatever is in a name stays within its quotes.

    YAML 1.1, which hubs read, takes 1e-05 for a word, 1.0e-05 for a number, and half of a character for a whole one.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_yaml(str(name))}: {_yaml(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    text = json.dumps(value)
    if isinstance(value, float):
        return re.sub(r"^(-?\d+)e", r"\1.0e", text)
    halves = r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})"
    return re.sub(halves, _whole, text)


def _whole(halves: re.Match[str]) -> str:
    """A character that JSON escapes in two halves, in one."""
    character = json.loads(f'"{halves[0]}"')
    return f"\\U{ord(character):08x}"


def _cell(text: str) -> str:
    """Text within a line of Markdown."""
    return " ".join(text.replace("|", "/").replace("`", "'").replace("<", "(").replace(">", ")").split())
