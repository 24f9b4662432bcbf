"""experiments.diffusion, small, from the command line: of pixels, and of the latents of a run of experiments.vae."""

import dataclasses
import re

import numpy as np
import pytest
from commands import result_of, run
from test_bad_input import COUNTS, FINITE, NAN, POSITIVE

from experiments import diffusion, vae
from jaxvae import checkpoint
from jaxvae.keys import seed_key

SMALL = ("--smoke", "--channels", 4, "--heads", 0, "--embedding", 8)


@pytest.mark.slow
def test_digits_are_measured_drawn_and_loaded(tmp_path):
    result, _ = result_of(diffusion.main, tmp_path, "digits", *SMALL, "--class-conditional", "--guidance", 2)
    test = result["test"]
    parts = test["distortion"] + test["prior_rate"] + test["diffusion_rate"]
    assert test["negative_elbo"] == pytest.approx(parts, rel=1e-4)
    assert test["bits_per_dim"] == pytest.approx(test["negative_elbo"] / 64 / np.log(2), rel=1e-5)
    assert test["negative_elbo_standard_error"] > 0
    assert {name for name in test if name.startswith("read_d")} == {"read_ddim_2", "read_ddpm_4"}
    assert 0 <= test["read_as_condition_ddim_2"] <= 1
    for picture in ("samples", "denoising", "few_steps", "learning_curves"):
        assert (tmp_path / f"{picture}.png").stat().st_size > 1000
    model, params, _, settings = checkpoint.load(tmp_path, diffusion.make_model)
    assert (model.shape, model.levels, model.num_classes, settings.ema) == ((8, 8, 1), 17, 10, 0.999)
    assert "network" in params["params"]
    drawn = diffusion.draw(tmp_path, 110, key=seed_key(3))
    assert drawn.shape == (110, 8, 8, 1)
    assert set(np.unique(np.rint(16 * drawn))) <= set(range(17))
    np.testing.assert_array_equal(diffusion.draw(tmp_path, 5, key=seed_key(3)), drawn[:5])


@pytest.mark.slow
def test_latents_of_a_vae_get_another_prior_and_the_same_distortion(tmp_path):
    small = ("digits", "--network", "mlp", "--hidden", 16, "--latent-dim", 3, "--smoke")
    assert run(vae.main, *small, "--out", tmp_path / "vae").code == 0
    options = ("--smoke", "--width", 16, "--blocks", 1, "--embedding", 8, "--out", tmp_path / "prior")
    done = run(diffusion.main, "latents", tmp_path / "vae", *options)
    assert done.code == 0, done.said
    result, _ = result_of(diffusion.main, tmp_path / "prior", "latents", tmp_path / "vae", *options[:-2], "--resume")
    test = result["test"]
    assert test["distortion_normal"] == pytest.approx(test["distortion_diffusion"], rel=1e-5)
    for name in ("normal", "diffusion"):
        total = test[f"rate_{name}"] + test[f"distortion_{name}"]
        assert test[f"negative_elbo_{name}"] == pytest.approx(total, rel=1e-4)
    for picture in ("samples", "denoising", "few_steps", "samples_of_the_first_prior"):
        assert (tmp_path / "prior" / f"{picture}.png").stat().st_size > 1000
    model, *_ = checkpoint.load(tmp_path / "prior", diffusion.make_model)
    assert model.prior.diffusion.shape == (3,)
    drawn = diffusion.draw(tmp_path / "prior", 3, key=seed_key(3))
    assert drawn.shape == (3, 8, 8, 1)
    assert np.abs(drawn - vae.draw(tmp_path / "vae", 3, key=seed_key(3))).max() > 1e-3


GOOD = diffusion.PRESETS["digits"][1]
OPTIONS = [
    *((name, 0, COUNTS) for name in ("epochs", "batch_size", "blocks", "width", "embedding", "evaluate_every")),
    *((name, 0, COUNTS) for name in ("bound_samples", "steps", "classifier_steps", "samples")),
    *((name, value, f"{FINITE} {value}") for name in ("guidance", "heads") for value in (-1, NAN)),
    *(("learning_rate", value, f"{POSITIVE} {value}") for value in (0.0, NAN)),
    *(
        (name, value, f"must lie in [0, 1), got {value}")
        for name in ("condition_dropout", "ema")
        for value in (1.0, NAN)
    ),
    ("channels", (8, 0), "must be at least 1, got (8, 0)"),
    ("log_snr_max", NAN, "must be finite, got nan"),
    ("log_snr_max", -20.0, "must be above log_snr_min, got -20.0 and -10.0"),
    ("log_snr_min", float("inf"), "must be finite, got inf"),
    ("seed", -1, "must lie in 0 .. 2**32 - 1, got -1"),
]


def test_every_numeric_option_is_checked():
    for option, value, said in OPTIONS:
        with pytest.raises(ValueError, match=re.escape(f"{option} {said}")):
            dataclasses.replace(GOOD, **{option: value})
    numeric = {name for name, value in vars(GOOD).items() if isinstance(value, int | float) and type(value) is not bool}
    assert "log_snr_max" not in numeric  # None: it depends on the levels
    assert numeric <= {option for option, *_ in OPTIONS}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("latents",), "latents needs the run directory of a VAE: latents RUN"),
        (("latents", "no-such-run"), "no run in"),
        (("digits", "--guidance", 2), "guidance 2.0 needs --class-conditional"),
        (
            ("digits", "--guidance", 2, "--class-conditional", "--condition-dropout", 0),
            "guidance 2.0 needs what the model says without its condition",
        ),
        (("digits", "--run", "."), "--run belongs to latents, got the preset digits"),
        (("latents", "--class-conditional"), "latents are modelled without classes, by the bound"),
        (("digits", "--batch-size", 5000), "a batch of 5000 is larger than the split of"),
        (("digit",), "did you mean 'digits'?"),
    ],
)
def test_a_wrong_option_is_one_line_and_leaves_nothing_behind(arguments, said, tmp_path):
    done = run(diffusion.main, *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "run").exists()
