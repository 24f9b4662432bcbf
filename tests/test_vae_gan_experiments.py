"""experiments.vae_gan and experiments.modes: a GAN, and a discriminator beside a VAE or a VQ-VAE."""

import numpy as np
import pytest
from commands import result_of, run

from experiments import modes, vae_gan
from jaxvae.keys import seed_key

FILES = ("config.json", "metrics.jsonl", "result.json", "samples.png")


@pytest.mark.slow
def test_a_conditional_gan_draws_by_class_and_is_read(tmp_path):
    small = ("digits", "--smoke", "--model", "gan", "--class-conditional")
    result, said = result_of(vae_gan.main, tmp_path / "gan", *small)
    assert {"read", "read_as_the_label", "sample_sharpness_ratio", "discriminator", "r1"} <= result["test"].keys()
    assert all((tmp_path / "gan" / name).stat().st_size for name in FILES)
    assert "step" in result
    drawn = vae_gan.draw(tmp_path / "gan", 120, key=seed_key(2))
    assert drawn.shape == (120, 8, 8, 1)
    np.testing.assert_array_equal(drawn[:5], vae_gan.draw(tmp_path / "gan", 5, key=seed_key(2)))
    again, said = result_of(vae_gan.main, tmp_path / "gan", *small, "--resume")
    assert again["test"] == result["test"]
    assert "resumed at step 4" in said


@pytest.mark.slow
def test_a_gan_of_styles_mixes_them_in_a_picture(tmp_path):
    small = ("digits", "--smoke", "--model", "gan", "--generator", "style")
    result, _ = result_of(vae_gan.main, tmp_path / "run", *small)
    assert {"read", "generator", "r1"} <= result["test"].keys()
    assert all((tmp_path / "run" / name).stat().st_size for name in (*FILES, "style_mixing.png"))
    drawn = vae_gan.draw(tmp_path / "run", 120, key=seed_key(2))
    np.testing.assert_array_equal(drawn[:5], vae_gan.draw(tmp_path / "run", 5, key=seed_key(2)))


@pytest.mark.slow
def test_a_vae_gan_is_measured_beside_the_plain_vae(tmp_path):
    small = ("digits", "--smoke", "--model", "vae-gan")
    result, _ = result_of(vae_gan.main, tmp_path / "run", *small)
    test = result["test"]
    blurred, own = test["sharpness_ratio_vae"], test["sharpness_ratio"]
    assert test["gap_closed"] == pytest.approx(1 - abs(1 - own) / abs(1 - blurred))
    assert test["negative_elbo_vae"] == pytest.approx(test["rate_vae"] + test["distortion_vae"], rel=1e-5)
    assert {"read", "read_vae", "squared_error", "squared_error_vae"} <= test.keys()
    assert vae_gan.draw(tmp_path / "run", 3, key=seed_key(2)).shape == (3, 8, 8, 1)
    assert vae_gan.draw(tmp_path / "run" / "vae", 3, key=seed_key(2)).shape == (3, 8, 8, 1)
    for name in (*FILES, "reconstructions.png", "learning_curves.png", "vae/result.json"):
        assert (tmp_path / "run" / name).stat().st_size, name


@pytest.mark.slow
@pytest.mark.parametrize("model", ["wgan-gp", "vae-dis", "vq-gan"])
def test_the_other_models_run_too(model, tmp_path):
    result, _ = result_of(vae_gan.main, tmp_path / "run", "digits", "--smoke", "--model", model)
    assert all(np.isfinite(value) for value in result["test"].values())
    if model == "vq-gan":
        with pytest.raises(ValueError, match="a VQ-VAE, which draws nothing by itself"):
            vae_gan.draw(tmp_path / "run", 3, key=seed_key(2))
    if model != "wgan-gp":
        assert (tmp_path / "run" / "reconstructions.png").stat().st_size


def test_modes_are_counted_where_samples_are():
    mixture = modes.MIXTURES["ring"]
    test = modes.coverage(modes.draw(mixture, 20_000, 0).astype(float), mixture)
    assert test["modes_covered"] == test["modes"] == 8
    assert test["samples_at_a_mode"] == pytest.approx(1 - np.exp(-4.5), abs=2e-3)  # within 3σ in the plane
    assert test["modes_kl"] < 1e-3
    two = np.concatenate([mixture.centres[[0] * 990], mixture.centres[[3] * 10]])  # the second has 8 % of its share
    one = modes.coverage(two, mixture)
    assert one["modes_covered"] == 1
    share = np.array([0.99, 0.01])
    assert one["modes_kl"] == pytest.approx((share * np.log(8 * share)).sum())
    nowhere = modes.coverage(np.zeros((50, 2)), mixture)
    assert nowhere["modes_covered"] == nowhere["samples_at_a_mode"] == 0
    assert nowhere["modes_kl"] == pytest.approx(np.log(8))
    assert len(modes.MIXTURES["grid"].centres) == 25


def test_a_picture_shows_up_as_up():
    picture = modes.density(np.array([[0.0, 2.0]] * 9), 2.5)
    assert picture[: modes.CELLS // 2].sum() == 1
    assert picture.shape == (modes.CELLS, modes.CELLS, 1)


def test_modes_run_and_draw(tmp_path):
    result, _ = result_of(modes.main, tmp_path / "run", "grid", "--smoke")
    assert result["test"]["modes"] == 25
    assert (tmp_path / "run" / "modes.png").stat().st_size


@pytest.mark.parametrize("option", [("--class-conditional",), ("--generator", "style")])
def test_classes_and_styles_belong_to_generators(option, tmp_path):
    done = run(vae_gan.main, "digits", *option, "--out", tmp_path / "run")
    assert done.code == 2
    name = option[0][2:].replace("-", "_")
    assert f"{name} belongs to --model gan and wgan-gp, got vae-gan" in done.said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_wgan_gp_covers_the_ring(seed, tmp_path):
    result, _ = result_of(modes.main, tmp_path / "run", "ring", "--epochs", 40, "--seed", seed)
    assert result["test"]["modes_covered"] == 8
    assert result["test"]["samples_at_a_mode"] > 0.6
