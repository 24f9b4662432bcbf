"""experiments.image_to_image: its pairs, its measures and, small, the whole from the command line."""

from types import SimpleNamespace

import numpy as np
import pytest
from commands import result_of, run

from experiments import image_to_image
from jaxvae.keys import seed_key


def test_sprites_are_drawn_once_each_and_their_outlines_lie_within_them():
    config = SimpleNamespace(data="sprites", images=40, seed=0)
    train, test = image_to_image.load(config)
    assert (train.x.shape, test.x.shape) == ((40, 32, 32, 1), (4, 32, 32, 1))
    batch = train.prepared(40, key=seed_key(0))
    x, outline = np.asarray(batch["x"]), np.asarray(batch["condition"])
    assert set(np.unique(x)) == set(np.unique(outline)) == {0, 1}
    assert (outline <= x).all()
    area, drawn = x.sum(axis=(1, 2, 3)), outline.sum(axis=(1, 2, 3))
    assert ((drawn > 0) & (drawn < area)).all()
    again, _ = image_to_image.load(config)
    np.testing.assert_array_equal(train.x, again.x)


@pytest.mark.slow
def test_both_networks_are_measured_on_held_out_pairs(tmp_path):
    result, _ = result_of(image_to_image.main, tmp_path, "digits", "--smoke")
    assert list(result["by_objective"]) == ["absolute error alone", "with a discriminator"]
    for measured in result["by_objective"].values():
        assert 0 < measured["absolute_error"] < 1
        assert 0 <= measured["intersection_over_union"] <= 1
    assert result["test"] == result["by_objective"]["with a discriminator"]
    assert (tmp_path / "translations.png").stat().st_size > 1000
    assert (tmp_path / "absolute" / "result.json").exists()
    alone, _ = result_of(image_to_image.main, tmp_path / "b", "digits", "--smoke", "--adversarial-weight", 0)
    assert alone["test"] == pytest.approx(result["by_objective"]["absolute error alone"], rel=1e-5)


def test_an_unknown_set_is_refused_by_name():
    done = run(image_to_image.main, "digits", "--smoke", "--data", "no-such-set")
    assert done.code == 2
    assert "no-such-set" in done.said
