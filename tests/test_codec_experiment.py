"""The codec of pictures: a run's point on the curve, and what JPEG and WebP make of the same images."""

import json

import numpy as np
import pytest
from commands import result_of, run

from experiments import codec, prior, vq_vae
from jaxvae import figures

pytest.importorskip("constriction")


def test_a_sheet_holds_all_images_and_a_format_of_high_quality_is_near_them():
    images = np.random.default_rng(0).random((5, 8, 8, 1)).astype(np.float32).repeat(2, axis=1).repeat(2, axis=2)
    sheet = codec.on_a_sheet(images)
    assert sheet.shape == (32, 48, 1)
    np.testing.assert_array_equal(sheet[16:, 16:32], images[4])
    np.testing.assert_array_equal(sheet[16:, 32:], 0)
    for curve in codec.of_formats(images).values():
        sizes, ratios = ([point[name] for point in curve] for name in ("bits_per_pixel", "psnr"))
        assert sizes == sorted(sizes)
        assert ratios[0] < 25 < 30 < ratios[-1]
    assert codec.of_formats(images.repeat(3, axis=3))["JPEG"][0]["bits_per_pixel"] > 0
    assert codec.psnr(images, images + 0.1) == pytest.approx(20, abs=1e-4)
    curve = [{"bits_per_pixel": 1.0, "psnr": 20.0}, {"bits_per_pixel": 2.0, "psnr": 30.0}]
    assert codec.at_equal_bits(curve, 1.5) == "25.00"
    assert codec.at_equal_bits(curve, 0.5) == "takes 1.000 at least"


def test_runs_of_one_name_are_told_apart_and_one_run_twice_is_refused(tmp_path):
    typed = [tmp_path / "a" / "prior", tmp_path / "b" / "prior"]
    assert codec.names_of(typed, typed) == list(map(str, typed))
    assert codec.names_of([*typed[:1], tmp_path / "c"], [*typed[:1], tmp_path / "c"]) == ["prior", "c"]
    refused = run(codec.main, tmp_path, tmp_path / "a" / "..")
    assert refused.code == 2
    assert "a run is named twice" in refused.said


@pytest.mark.slow
def test_the_program_measures_a_prior_over_the_codes_of_a_tokeniser(tmp_path):
    result_of(vq_vae.main, tmp_path / "vq", "digits", "--smoke")
    result_of(prior.main, tmp_path / "prior", "codes", "--run", tmp_path / "vq", "--smoke")
    done = run(codec.main, tmp_path / "prior", "--images", 40, "--picture-format", "svg")
    assert done.code == 0, done.said
    written = json.loads((tmp_path / "prior" / "codec.json").read_text())
    point = written["runs"]["prior"]
    assert point["bits_per_pixel"] == pytest.approx(point["prior_bits_per_pixel"], rel=0.3)  # a header of a few bytes
    assert written["images"] == 40
    assert (tmp_path / "prior" / "codec.svg").exists()
    refused = run(codec.main, tmp_path / "vq")
    assert refused.code == 2
    assert "is no run of experiments.prior" in refused.said


def test_curves_of_codecs_are_drawn_and_what_is_none_is_refused(tmp_path):
    path = figures.codec_curves(tmp_path / "codec.png", {"ours": [(0.5, 20.0), (1.0, 25.0)]}, title="a codec")
    assert path.exists()
    with pytest.raises(ValueError, match=r"ours must be \[M, 2\], bits a pixel above zero"):
        figures.codec_curves(path, {"ours": [(0.0, 20.0)]})
    with pytest.raises(ValueError, match="there is no curve"):
        figures.codec_curves(path, {})
