"""Data, drawn or from scikit-learn, tensorflow-datasets, your own arrays, files or pictures, and how training reads it.

`load` decodes a set once and keeps it as memory-mapped arrays: later runs start at once, without tensorflow-datasets.
An `Order` says which examples a step takes, `Resident` and `Streamed` hand them to the epoch program, and the set's
`prepare` turns them into what a model sees there.
"""

from jaxvae.data import moving_sprites, pairs, quadrants, speech, sprites
from jaxvae.data.dataset import Dataset, from_arrays, make_prepare, split_validation
from jaxvae.data.domain import Domain, check_domain, check_labels
from jaxvae.data.feeds import (
    READERS,
    RESIDENT_STEPS,
    STREAM_ABOVE_BYTES,
    STREAMED_BYTES,
    Resident,
    Streamed,
    evaluation_feed,
)
from jaxvae.data.files import folder, from_file
from jaxvae.data.order import Order
from jaxvae.data.sets import load
from jaxvae.data.sources import from_source
from jaxvae.data.tables import from_table, to_frame

__all__ = [
    "READERS",
    "RESIDENT_STEPS",
    "STREAMED_BYTES",
    "STREAM_ABOVE_BYTES",
    "Dataset",
    "Domain",
    "Order",
    "Resident",
    "Streamed",
    "check_domain",
    "check_labels",
    "evaluation_feed",
    "folder",
    "from_arrays",
    "from_file",
    "from_source",
    "from_table",
    "load",
    "make_prepare",
    "moving_sprites",
    "pairs",
    "quadrants",
    "speech",
    "split_validation",
    "sprites",
    "to_frame",
]
