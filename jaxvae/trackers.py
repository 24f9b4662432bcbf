"""Reports for `jaxvae.train` and `fit` that write to TensorBoard, Weights & Biases or MLflow. Each needs an extra.

    with trackers.tensorboard("runs/mine/events", settings={"epochs": 20}) as board:
        run = jaxvae.train(model, dataset, epochs=20, report=board)

Numbers go under "train/..." and "evaluation/..." at their step; nats unless their names say otherwise.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from jaxvae.training.fit import Progress

# A function of a `Progress`; the run ends where it returns true.
Report = Callable[[Progress], object]
# Of a `Progress`, name -> image [H, W, 1 or 3] in [0, 1].
Pictures = Callable[[Progress], Mapping[str, np.ndarray]]
MOST_METRICS = 1000  # in one request to MLflow


class Tracker(NamedTuple):
    """A report, and a context manager that closes what it writes to.

    Attributes:
      numbers: called with name -> value and the step.
      picture: called with a name, an image [H, W, 1 or 3] in [0, 1] and the step.
      close: called once, in the end, with whether an error ended the run.
      pictures: what to draw after an evaluation, or None.
    """

    numbers: Callable[[dict[str, float], int], object]
    picture: Callable[[str, np.ndarray, int], object]
    close: Callable[[bool], object]
    pictures: Pictures | None = None

    def __call__(self, progress: Progress) -> None:
        """Log where the run is."""
        groups = {"train": progress.train, "evaluation": progress.evaluation or {}}
        values = {f"{group}/{name}": float(value) for group, named in groups.items() for name, value in named.items()}
        self.numbers({"epoch": progress.epoch, **values}, progress.step)
        if self.pictures is None or progress.evaluation is None:
            return
        for name, image in self.pictures(progress).items():
            image = np.asarray(image)
            if image.dtype.kind in "iu":  # 0..255 would all be white
                raise TypeError(
                    f"the picture {name!r} must be floating, in [0, 1], got {image.dtype}: divide it by 255"
                )
            image = image.astype(np.float32)
            if image.ndim != 3 or image.shape[-1] not in (1, 3):
                raise ValueError(f"the picture {name!r} must be [H, W, 1 or 3], got {image.shape}")
            self.picture(name, np.clip(image, 0, 1), progress.step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error is not None)


def together(*reports: Report) -> Callable[[Progress], bool]:
    """One report of several, which are called in turn; where one of them asks for the end, all are called first."""

    def report(progress: Progress) -> bool:
        answers = [each(progress) for each in reports]
        return any(answer is not None and bool(answer) for answer in answers)

    return report


def tensorboard(
    directory: str | Path, *, settings: Mapping[str, Any] | None = None, pictures: Pictures | None = None
) -> Tracker:
    """Event files for TensorBoard, by tensorboardX; `tensorboard --logdir DIRECTORY` shows them.

    Args:
      directory: made if it does not exist; a resumed run may go on in the one that it had.
      settings: of the run; a text at the first step.
      pictures: given the `Progress` after an evaluation, name -> image [H, W, 1 or 3] in [0, 1]: such as
        `lambda progress: {"sample": progress.run().sample(1)[0]}`.

    Raises:
      ModuleNotFoundError: tensorboardX is missing (`pip install 'jaxvae[tensorboard]'`).
    """
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tensorboard needs tensorboardX: pip install 'jaxvae[tensorboard]'") from error
    writer = SummaryWriter(str(Path(directory).expanduser()))
    if settings:
        writer.add_text("settings", _text(settings))

    def numbers(values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def picture(name: str, image: np.ndarray, step: int) -> None:
        writer.add_image(name, image, step, dataformats="HWC")

    return Tracker(numbers, picture, lambda failed: writer.close(), pictures)


def wandb(
    project: str, *, settings: Mapping[str, Any] | None = None, pictures: Pictures | None = None, **options: Any
) -> Tracker:
    """A run of Weights & Biases; failed, where an error leaves the `with`.

    Args:
      project: of the run.
      settings: of the run, its `config`.
      pictures: as of `tensorboard`.
      **options: of `wandb.init`, such as `mode="offline"`, `dir=`, `id=` and `resume="allow"`.

    Raises:
      ModuleNotFoundError: wandb is missing (`pip install 'jaxvae[wandb]'`).
    """
    try:
        import wandb as library
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Weights & Biases needs wandb: pip install 'jaxvae[wandb]'") from error
    run = library.init(project=project, config=dict(settings or {}), **options)

    def picture(name: str, image: np.ndarray, step: int) -> None:
        run.log({name: library.Image(image)}, step=step)

    def numbers(values: dict[str, float], step: int) -> None:
        run.log(values, step=step)

    return Tracker(numbers, picture, lambda failed: run.finish(exit_code=int(failed)), pictures)


def mlflow(
    experiment: str,
    *,
    tracking_uri: str | None = None,
    settings: Mapping[str, Any] | None = None,
    pictures: Pictures | None = None,
    run_id: str | None = None,
) -> Tracker:
    """A run of MLflow, by a client of its own: what the process has set as its active run stays.

    It is failed, where an error leaves the `with`.

    Args:
      experiment: made if it does not exist.
      tracking_uri: such as "sqlite:///runs.db" or a server's address; what MLflow takes unless given.
      settings: of the run, its parameters.
      pictures: as of `tensorboard`.
      run_id: of a run to go on with.

    Raises:
      ModuleNotFoundError: mlflow is missing (`pip install 'jaxvae[mlflow]'`).
    """
    try:
        from mlflow import MlflowClient, entities
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("MLflow needs mlflow: pip install 'jaxvae[mlflow]'") from error
    client = MlflowClient(tracking_uri)
    if run_id is None:
        found = client.get_experiment_by_name(experiment)
        place = client.create_experiment(experiment) if found is None else found.experiment_id
        run_id = str(client.create_run(place).info.run_id)
    run: str = run_id
    for name, value in (settings or {}).items():
        client.log_param(run, name, value)

    def numbers(values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [entities.Metric(name, value, now, step) for name, value in values.items() if math.isfinite(value)]
        for first in range(0, len(metrics), MOST_METRICS):
            client.log_batch(run, metrics=metrics[first : first + MOST_METRICS])

    def picture(name: str, image: np.ndarray, step: int) -> None:
        client.log_image(run, np.uint8(np.rint(255 * image)), key=name, step=step)

    def close(failed: bool) -> None:
        client.set_terminated(run, "FAILED" if failed else "FINISHED")

    return Tracker(numbers, picture, close, pictures)


def _text(settings: Mapping[str, Any]) -> str:
    """Settings as TensorBoard's Markdown shows them: indented, and so as they are."""
    lines = json.dumps(dict(settings), indent=2, default=str).splitlines()
    return "\n".join(f"    {line}" for line in lines)
