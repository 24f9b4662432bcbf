"""Captions of sprites: what the five factors are called, sentences drawn from a small grammar, words as tokens."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

# What each value of a factor is called; the first word is the plain one.
WORDS: dict[str, tuple[tuple[str, ...], ...]] = {
    "shape": (("square",), ("ellipse", "oval"), ("heart",)),
    "scale": (("small", "little"), ("medium", "middle-sized"), ("large", "big")),
    "turn": (("straight", "level"), ("turned", "tilted")),
    "x": (("left",), ("centre",), ("right",)),
    "y": (("top", "upper"), ("middle",), ("bottom", "lower")),
}
LEFT_OUT = 0.1  # how often a caption does not speak of a factor
GLUE = ("a", "an", "and", "at", "it", "is", "something", "the")
VOCABULARY = tuple(sorted({*GLUE, *(word for values in WORDS.values() for words in values for word in words)}))
LENGTH = 12  # words of a caption, at most
PADDING = len(VOCABULARY)
SIZES = tuple(len(values) for values in WORDS.values())


def caption(values: Mapping[str, int], rng: np.random.Generator) -> str:
    """A sentence about these factors, of those that are given: synonyms and order are drawn.

    >>> caption({"shape": 2, "scale": 0, "x": 0, "y": 0}, np.random.default_rng(1))
    'at the upper left a small heart'
    """
    said = {name: str(rng.choice(WORDS[name][value])) for name, value in values.items()}
    shape = said.get("shape", "something")
    adjectives = [said[str(name)] for name in rng.permutation(["scale", "turn"]) if str(name) in said]
    place = [said[name] for name in ("y", "x") if str(name) in said]
    place = ["at", "the", *place] if place else []
    article = [] if shape == "something" else ["a"]
    form = rng.integers(3)
    if form == 0:
        words = [*article, *adjectives, shape, *place] if article else [shape, *adjectives, *place]
    elif form == 1:
        words = [*place, *article, *adjectives, shape] if article else [*place, shape, *adjectives]
    else:
        words = [*article, shape, *place, *(["it", "is", *" and ".join(adjectives).split()] if adjectives else [])]
    return re.sub(r"\ba (?=[aeiou])", "an ", " ".join(words))


def captions(factors: np.ndarray, seed: int, left_out: float = 0.0) -> list[str]:
    """A sentence about each row of factors [N, 5]; each factor is left out with this probability, never all."""
    rng = np.random.default_rng(seed)
    there = rng.random(factors.shape) >= left_out
    there[:, 0] |= ~there.any(axis=1)
    return [
        caption({name: int(row[i]) for i, name in enumerate(WORDS) if given[i]}, rng)
        for row, given in zip(factors, there, strict=True)
    ]


def tokens(sentences: Sequence[str]) -> np.ndarray:
    """Sentences as tokens [N, LENGTH] int32, padded.

    Raises:
      ValueError: a sentence is empty or too long, or has a word that no caption has; it is named, and the words that
        there are.
    """
    rows = np.full((len(sentences), LENGTH), PADDING, np.int32)
    for row, sentence in zip(rows, sentences, strict=True):
        words = re.findall(r"[\w-]+", sentence.lower())
        if unknown := [word for word in words if word not in VOCABULARY]:
            raise ValueError(f"the caption {sentence!r} has {unknown[0]!r}; the words are {', '.join(VOCABULARY)}")
        if not 0 < len(words) <= LENGTH:
            raise ValueError(f"a caption has 1 to {LENGTH} words, got {len(words)} in {sentence!r}")
        row[: len(words)] = [VOCABULARY.index(word) for word in words]
    return rows


def held_out(share: float, seed: int) -> np.ndarray:
    """Which combinations of the factors are kept from training, bool of the shape `SIZES`.

    Every pair of values of two factors stays in some other combination, so that each word and each two words are seen.
    """
    rng = np.random.default_rng(seed)
    kept = np.ones(SIZES, bool)
    for flat in rng.permutation(kept.size):
        if (~kept).sum() >= share * kept.size:
            break
        trial = kept.copy()
        trial.flat[flat] = False
        axes = range(len(SIZES))
        others = [tuple(k for k in axes if k not in (i, j)) for i in axes for j in range(i)]
        if all(trial.sum(axis=rest).all() for rest in others):
            kept = trial
    return ~kept
