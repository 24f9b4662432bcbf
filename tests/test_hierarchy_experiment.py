"""The experiment with top-down hierarchies."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from commands import result_of, run

from experiments import hierarchy


def test_bad_options():
    for options, said in (
        (("digits", "--widths", 8), "every stage needs a width, a shrink, groups and latents"),
        (("digits", "--ema", 1.0), "ema must lie in [0, 1)"),
        (("digits", "--b2", 1.0), "b2 must lie in [0, 1), got 1.0"),
        (("digits", "--free-bits", -1), "free_bits must be a finite number, zero or more"),
        (("digits", "--skip-above", 0), "skip_above must be a positive number"),
        (("digits", "--nll-images", 0), "nll_images must be at least 1"),
        (("digits", "--balanced", "--beta-warmup", 0), "groups are balanced while beta grows"),
        (("digits", "--flat"), "a flat model has one latent and no stages"),
        (("flat", "--windows", 3, 3), "a flat model has no rungs, which windows would be of"),
        (("digits", "--windows", 3, 2), "windows must be odd, one for each layer of a block, got (3, 2)"),
        (("digits", "--output-width", -1), "output_width must be a finite number, zero or more, got -1"),
        (("digits", "--num-labels", 55), "num_labels must be a multiple of 10 classes"),
        (("digits", "--num-labels", 5000), "num_labels must be a multiple of 10 classes, at most"),
    ):
        done = run(hierarchy.main, *options)
        assert done.code == 2
        assert said in done.said


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--posterior", "merged", "--balanced"), ("--no-conditional",)])
def test_digits_keep_both_rungs(tmp_path, options):
    out = tmp_path / "run"
    done = run(hierarchy.main, "digits", "--epochs", 60, "--evaluate-every", 20, "--out", out, *options)
    assert done.code == 0, done.said
    result = json.loads((out / "result.json").read_text())
    test = result["test"]
    rates = [test["rate_z1"], test["rate_z2"]]
    assert test["rate"] == pytest.approx(sum(rates), rel=1e-4)
    assert test["negative_elbo"] == pytest.approx(test["rate"] + test["distortion"], rel=1e-5)
    assert min(rates) > 0.4
    assert test["nll"] < test["negative_elbo"] < 30
    assert test["accuracy_z2"] > 0.2
    for name in ("samples_0.7", "samples_1.0", "rungs", "reconstructions", "group_rates", "learning_curves"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "name"), [("flat", "mnist"), ("mnist", "mnist"), ("ladder", "mnist"), ("cifar10", "cifar10")]
)
def test_the_other_presets_run(tmp_path, preset, name):
    if not (Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / name).is_dir():
        pytest.skip(f"needs {name} prepared for tensorflow-datasets in TFDS_DATA_DIR")
    result, _ = result_of(hierarchy.main, tmp_path / "run", preset, "--smoke")
    assert np.isfinite(result["test"]["nll"])
