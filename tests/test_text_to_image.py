"""Captions say what the pictures show, held-out combinations are never shown, and the whole runs small."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from commands import result_of, run

from experiments import captions, text_to_image
from jaxvae import figures
from jaxvae.data import sprites


def factors(num, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(size, size=num) for size in captions.SIZES], axis=1)


def meaning(sentence):
    """The factors that a caption speaks of, read word by word."""
    found = {}
    for name, values in captions.WORDS.items():
        for value, words in enumerate(values):
            if set(words) & set(sentence.split()):
                assert name not in found
                found[name] = value
    return found


def test_a_caption_says_each_factor_once_and_what_it_leaves_out_not_at_all():
    chosen = factors(500)
    for sentence, row in zip(captions.captions(chosen, 0), chosen, strict=True):
        assert meaning(sentence) == dict(zip(captions.WORDS, row, strict=True))
    partial = captions.captions(chosen, 0, left_out=0.5)
    spoken = [meaning(sentence) for sentence in partial]
    for found, row in zip(spoken, chosen, strict=True):
        assert found
        assert found.items() <= dict(zip(captions.WORDS, row, strict=True)).items()
    assert 0.45 < np.mean([len(found) / 5 for found in spoken]) < 0.58
    assert len(set(captions.captions(chosen[:1].repeat(100, axis=0), 0))) > 20
    assert captions.captions(chosen, 0) == captions.captions(chosen, 0) != captions.captions(chosen, 1)
    assert not any(" a e" in f" {sentence}" or " a o" in f" {sentence}" for sentence in captions.captions(chosen, 0))


def test_words_are_tokens_with_padding_and_an_unknown_one_is_named():
    words = captions.tokens(["A small heart, at the top left!", "oval"])
    assert words.shape == (2, captions.LENGTH)
    assert [captions.VOCABULARY[i] for i in words[0, :7]] == ["a", "small", "heart", "at", "the", "top", "left"]
    np.testing.assert_array_equal(words[1, 1:], captions.PADDING)
    with pytest.raises(ValueError, match="the caption 'a red heart' has 'red'; the words are a, an, and, at,"):
        captions.tokens(["a red heart"])
    with pytest.raises(ValueError, match="a caption has 1 to 12 words, got 13"):
        captions.tokens(["a " * 13])
    with pytest.raises(ValueError, match="a caption has 1 to 12 words, got 0"):
        captions.tokens([" , "])


def test_every_two_words_are_shown_together_though_a_fifth_of_the_combinations_is_not():
    unseen = captions.held_out(0.2, 0)
    assert unseen.shape == captions.SIZES
    assert 0.19 < unseen.mean() < 0.21
    for i in range(5):
        for j in range(i):
            rest = tuple(k for k in range(5) if k not in (i, j))
            assert (~unseen).any(axis=rest).all()
    assert (captions.held_out(0.2, 1) != unseen).any()
    assert not captions.held_out(0.0, 0).any()
    assert captions.held_out(0.99, 0).mean() < 0.95  # it stops where a pair would be lost


def test_pictures_show_what_they_are_called():
    unseen = captions.held_out(0.2, 0)
    shown = text_to_image.pictures(300, ~unseen, seed=3)
    named = shown.arrays["named"]
    assert not unseen[tuple(named.T)].any()
    images = shown.x[..., 0] / 4.0
    mass = images.sum(axis=(1, 2))
    at = np.arange(text_to_image.SIZE)
    centre = {"x": (images.sum(axis=1) * at).sum(axis=1) / mass, "y": (images.sum(axis=2) * at).sum(axis=1) / mass}
    for axis, column in (("x", 3), ("y", 4)):
        thirds = [centre[axis][named[:, column] == value] for value in range(3)]
        assert thirds[0].max() < thirds[1].min()
        assert thirds[1].max() < thirds[2].min()
    for shape in range(3):
        sizes = [mass[(named[:, 0] == shape) & (named[:, 1] == value)] for value in range(3)]
        assert sizes[0].max() < sizes[1].min()
        assert sizes[1].max() < sizes[2].min()
    raw = text_to_image.raw_factors(named, np.random.default_rng(0))
    assert set(np.unique(raw[named[:, 2] == 0, 2] % 10)) == {0, 1, 9}
    assert set(np.unique(raw[named[:, 2] == 1, 2] % 10)) == {4, 5, 6}
    whole = np.asarray(sprites.render(jnp.asarray(raw[:2])))
    np.testing.assert_array_equal(
        text_to_image._rendered(raw[:2]), whole.reshape(2, 32, 2, 32, 2, 1).sum(axis=(2, 4)).astype(np.uint8)
    )


@pytest.mark.slow
def test_the_program_trains_three_models_and_draws_captions_of_a_finished_run(tmp_path):
    out = tmp_path / "run"
    result, _ = result_of(text_to_image.main, out, "sprites", "--smoke")
    for kind in ("seen", "held_out"):
        of_each = [result["test"][f"{name}_{kind}"] for name in captions.WORDS]
        assert np.mean(of_each) == pytest.approx(result["test"][f"drawn_right_{kind}"])
    assert (out / "captions.png").exists()
    assert not (out / "yours.png").exists()
    again = ("sprites", "--smoke", "--out", out, "--resume", "--caption")
    assert run(text_to_image.main, *again, "a big heart", "an oval").code == 0
    assert (out / "yours.png").exists()
    refused = run(text_to_image.main, *again, "a red heart")
    assert refused.code == 2
    assert "has 'red'; the words are" in refused.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--condition-dropout", 0), "guidance 2.0 needs what the model says without its condition"),
        (("--heads", 3), "heads must divide width"),
        (("--num-codes", 1), "num_values must be at least 2, got 1"),
    ],
)
def test_a_wrong_option_is_one_line_before_anything_is_trained(arguments, said, tmp_path):
    done = run(text_to_image.main, "sprites", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("share", "never"), [(0.2, "; the last 6 are of combinations that were never shown"), (0, "")])
def test_the_picture_of_captions_says_how_many_were_never_shown(share, never, monkeypatch):
    drawn = []
    monkeypatch.setattr(text_to_image, "save_captions", lambda *arguments: drawn.append(arguments))
    monkeypatch.setattr(figures, "learning_curves", lambda *_: None)
    place = SimpleNamespace(picture=lambda name: name, records=list)
    text_to_image.save_pictures(place, SimpleNamespace(held_out=share, seed=0, caption=()), None)
    [(_, _, sentences, title)] = drawn
    assert title == f"captions{never}"
    assert len(sentences) == len(text_to_image.EXAMPLES) + (6 if never else 0)


def test_captions_stand_above_their_pictures(tmp_path):
    images = np.zeros((5, 8, 8, 1), np.float32)
    path = figures.captioned(tmp_path / "captions.png", images, ["a long caption that needs several lines"] * 5)
    assert path.exists()
    with pytest.raises(ValueError, match="captions must be 5, one for each image, got 4"):
        figures.captioned(tmp_path / "captions.png", images, ["one"] * 4)
