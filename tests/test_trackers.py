"""Trackers: what they log at which step; TensorBoard's files are read back, the others' calls are seen by stand-ins."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

import jaxvae
from jaxvae import data, trackers
from jaxvae.training.fit import Progress

FIRST = Progress(5, 20, 0.5, {"loss": 3.0, "rate": 1.5}, None, 1.0, 1.0)
SECOND = Progress(10, 20, 1.0, {"loss": 2.0}, {"loss": 2.5, "odd": float("nan")}, 1.0, 1.0)
GREY = np.linspace(-0.5, 1, 12).reshape(3, 4, 1)


def picture(progress):
    return {"grey": GREY}


def events(folder):
    """(step, tag) -> value of every event in a folder."""
    from tensorboardX.event_file_writer import EventsWriter  # noqa: F401  the package is there
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:  # length, its checksum, the record, its checksum
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            for value in event.summary.value:
                found[event.step, value.tag] = value
            content = content[16 + length :]
    return found


def test_tensorboard_has_every_number_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX")
    with trackers.tensorboard(tmp_path, settings={"epochs": 2, "name": "<x>"}, pictures=picture) as board:
        board(FIRST)
        board(SECOND)
    found = events(tmp_path)
    numbers = {place: value.simple_value for place, value in found.items() if value.HasField("simple_value")}
    assert np.isnan(numbers.pop((10, "evaluation/odd")))
    assert numbers == {
        **{(5, "epoch"): 0.5, (5, "train/loss"): 3.0, (5, "train/rate"): 1.5},
        **{(10, "epoch"): 1.0, (10, "train/loss"): 2.0, (10, "evaluation/loss"): 2.5},
    }
    image = found[10, "grey"].image
    assert (image.height, image.width) == (3, 4)
    assert (5, "grey") not in found
    [text] = [value for (_, tag), value in found.items() if tag.startswith("settings")]
    assert b'    "epochs": 2,' in text.tensor.string_val[0]


def test_a_training_reports_to_several(tmp_path):
    pytest.importorskip("tensorboardX")
    seen = []
    x = np.random.default_rng(0).random((40, 6), np.float32)
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, hidden=(4,)), jaxvae.MLPDecoder((6,), hidden=(4,)))
    with trackers.tensorboard(tmp_path) as board:
        run = jaxvae.train(
            model,
            data.from_arrays("x", x),
            epochs=50,
            progress=False,
            report=trackers.together(board, seen.append, lambda progress: progress.step >= 2),
        )
    assert run.stopped == "report"
    numbers = {place: value.simple_value for place, value in events(tmp_path).items()}
    for progress in seen:
        assert numbers[progress.step, "train/loss"] == pytest.approx(progress.train["loss"], rel=1e-6)
    last = run.history[-1]
    assert numbers[last["step"], "evaluation/loss"] == pytest.approx(last["validation"]["loss"], rel=1e-6)


def test_weights_and_biases_is_told_the_same(monkeypatch):
    calls = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda exit_code: calls.append(f"ended with {exit_code}"),
    )
    library = ModuleType("wandb")
    library.init = lambda **options: calls.append(options) or run
    library.Image = lambda image: ("image", image.min(), image.max(), image.shape)
    monkeypatch.setitem(sys.modules, "wandb", library)
    with trackers.wandb("mine", settings={"epochs": 2}, pictures=picture, mode="offline") as tracker:
        tracker(FIRST)
        tracker(SECOND._replace(evaluation={"loss": 2.5}))
    assert calls == [
        {"project": "mine", "config": {"epochs": 2}, "mode": "offline"},
        (5, {"epoch": 0.5, "train/loss": 3.0, "train/rate": 1.5}),
        (10, {"epoch": 1.0, "train/loss": 2.0, "evaluation/loss": 2.5}),
        (10, {"grey": ("image", 0.0, 1.0, (3, 4, 1))}),
        "ended with 0",
    ]
    with pytest.raises(KeyError), trackers.wandb("mine") as tracker:  # noqa: PT012, it is what the run ends with
        tracker(FIRST)
        raise KeyError
    assert calls[-1] == "ended with 1"


@pytest.mark.parametrize("known", [None, "7"])
def test_mlflow_is_told_the_same(monkeypatch, known):
    calls = []

    class Client:
        def __init__(self, uri):
            calls.append(uri)

        def get_experiment_by_name(self, name):
            return None if known is None else SimpleNamespace(experiment_id=known)

        def create_experiment(self, name):
            return "1"

        def create_run(self, experiment):
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run of {experiment}"))

        def log_param(self, run, name, value):
            calls.append((run, name, value))

        def log_batch(self, run, metrics):
            calls.append((run, {(name, step): value for name, value, _, step in metrics}))

        def log_image(self, run, image, *, key, step):
            calls.append((run, key, step, image.dtype, int(image.max())))

        def set_terminated(self, run, status):
            calls.append((status, run))

    library = ModuleType("mlflow")
    library.MlflowClient = Client
    library.entities = SimpleNamespace(Metric=lambda *arguments: arguments)
    monkeypatch.setitem(sys.modules, "mlflow", library)
    with trackers.mlflow("mine", tracking_uri="sqlite://", settings={"epochs": 2}, pictures=picture) as tracker:
        tracker(SECOND)
    run = f"run of {known or 1}"
    assert calls == [
        "sqlite://",
        (run, "epochs", 2),
        (
            run,
            {("epoch", 10): 1.0, ("train/loss", 10): 2.0, ("evaluation/loss", 10): 2.5},
        ),  # NaN is none of its numbers
        (run, "grey", 10, np.uint8, 255),
        ("FINISHED", run),
    ]
    with pytest.raises(KeyError), trackers.mlflow("mine"):
        raise KeyError
    assert calls[-1] == ("FAILED", run)


@pytest.mark.parametrize(
    ("module", "call", "extra"),
    [
        ("tensorboardX", lambda: trackers.tensorboard("none"), "tensorboard"),
        ("wandb", lambda: trackers.wandb("mine"), "wandb"),
        ("mlflow", lambda: trackers.mlflow("mine"), "mlflow"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, module, call, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'jaxvae\[{extra}\]'"):
        call()


def test_pictures_of_another_shape_are_refused():
    tracker = trackers.Tracker(lambda *_: None, lambda *_: None, lambda _: None, lambda _: {"flat": np.zeros(3)})
    with pytest.raises(ValueError, match=r"the picture 'flat' must be \[H, W, 1 or 3\], got \(3,\)"):
        tracker(SECOND)
    tracker(FIRST)  # nothing was evaluated, so nothing is drawn


def test_the_end_is_asked_for_after_all_were_told():
    told = []
    report = trackers.together(lambda _: np.bool_(True), told.append, lambda _: None)
    assert report(FIRST) is True
    assert told == [FIRST]
    assert trackers.together(told.append)(SECOND) is False


def test_a_picture_of_bytes_is_refused_and_not_shown_white():
    shown = []
    tracker = trackers.Tracker(
        lambda values, step: None,
        lambda name, image, step: shown.append(image),
        lambda failed: None,
        lambda progress: {
            "grey": np.full((2, 2, 1), progress.epoch > 0, bool),
            "bytes": np.full((2, 2, 1), 3, np.uint8),
        },
    )
    with pytest.raises(TypeError, match=r"picture 'bytes' must be floating, in \[0, 1\], got uint8: divide it by 255"):
        tracker(SECOND)
    assert [image.dtype for image in shown] == [np.float32]
