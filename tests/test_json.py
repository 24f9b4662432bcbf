"""What is written as JSON is JSON: a number that is not finite is null there, and NaN again where numbers are read."""

import json
import math
import types

import numpy as np
import pytest

from experiments.run import Run
from jaxvae._command.outputs import write_json
from jaxvae._directory import RunDirectory
from jaxvae._json import read_numbers, to_json, with_nan

MEASURED = {"step": 3, "train": {"loss": math.nan, "rates": [1.5, -math.inf, np.float64("nan")]}, "validation": 2.0}
WRITTEN = {"step": 3, "train": {"loss": None, "rates": [1.5, None, None]}, "validation": 2.0}


def strictly(text):
    """As other programs read it: without the names that Python has for what is not finite."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_is_not_finite_is_null_and_read_as_nan():
    assert strictly(to_json(MEASURED)) == WRITTEN
    read = with_nan(WRITTEN)
    assert read["step"] == 3
    assert read["validation"] == 2.0
    assert math.isnan(read["train"]["loss"])
    np.testing.assert_array_equal(read["train"]["rates"], [1.5, math.nan, math.nan])


def test_lines_of_metrics_are_json_and_come_back(tmp_path):
    settings = {"skip_above": math.inf}
    with RunDirectory(tmp_path, settings, resume=False, way_out="") as directory:
        assert strictly((tmp_path / "config.json").read_text()) == {"skip_above": None}
        directory.append(MEASURED)
        assert strictly((tmp_path / "metrics.jsonl").read_text()) == WRITTEN
        (record,) = directory.records()
        assert math.isnan(record["train"]["loss"])
        directory.restore(types.SimpleNamespace(step=3))  # which writes them again
        assert strictly((tmp_path / "metrics.jsonl").read_text()) == WRITTEN
        earlier = directory.earlier("train", "loss").values
        assert len(earlier) == 1
        assert math.isnan(earlier[0])
    with RunDirectory(tmp_path, settings, resume=True, way_out="") as directory:
        assert directory.resumed


def test_numbers_nested_too_deeply_are_refused(tmp_path):
    nested = '{"step": 3, "a": ' + 700 * "[" + 700 * "]" + "}"
    (tmp_path / "mine.json").write_text(nested)
    with pytest.raises(ValueError, match=r"mine\.json is damaged: it is nested too deeply"):
        read_numbers(tmp_path / "mine.json")
    with RunDirectory(tmp_path, {}, resume=False, way_out="") as directory:
        (tmp_path / "metrics.jsonl").write_text(nested + "\n")
        with pytest.raises(ValueError, match=r"line 1 of .*metrics\.jsonl is damaged: it is nested too deeply"):
            directory.records()


def test_results_are_json(tmp_path):
    assert strictly(write_json(tmp_path / "mine.json", MEASURED).read_text()) == WRITTEN
    assert math.isnan(read_numbers(tmp_path / "mine.json")["train"]["loss"])
    run = object.__new__(Run)
    run.directory, run.settings, run._began = tmp_path, {"preset": "mine"}, 0.0
    run.checkpointer, run.records = types.SimpleNamespace(close=lambda: None), list
    run.finish({"test": {"nll": math.nan}}, list)
    assert strictly((tmp_path / "result.json").read_text())["test"] == {"nll": None}
