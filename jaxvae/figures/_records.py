"""Internal to `jaxvae.figures`: the lines of `metrics.jsonl`, as curves."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvae.figures._page import COLORS

SPLITS = {
    "train": {"color": COLORS[0], "linestyle": "-", "marker": "o"},
    "validation": {"color": COLORS[4], "linestyle": "-.", "marker": "^"},
    "test": {"color": COLORS[6], "linestyle": "--", "marker": "s"},
}


def curve(records: Sequence[Mapping[str, Any]], split: str, name: str, *, along: str) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of one split's quantity, without the missing and not finite."""
    points = [(record[along], record.get(split, {}).get(name, math.nan)) for record in records]
    places, values = np.array(points, np.float64).reshape(-1, 2).T
    kept = np.isfinite(values)
    return places[kept], values[kept]
