"""Sets of other libraries: examples by number, as dictionaries, pairs, or x alone."""

import numpy as np
import pytest
from PIL import Image

from jaxvae import data

RNG = np.random.default_rng(0)


class Source:
    """No list, as a `datasets.Dataset` and a `grain` source are none."""

    def __init__(self, examples):
        self.examples = examples

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        return self.examples[index]


def picture(size=(4, 6), mode="RGB", seed=0):
    """Of (width, height)."""
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode=None)


def test_pictures_with_labels_are_read_as_a_folder_of_them_would_be(tmp_path):
    pictures = [picture(seed=i) for i in range(5)]
    for i, each in enumerate(pictures):
        each.save(tmp_path / f"{i}.png")
    source = Source([{"img": each, "label": i % 2} for i, each in enumerate(pictures)])
    seen = []
    dataset = data.from_source("cifar", source, progress=lambda done, total: seen.append((done, total)))
    expected = data.folder(tmp_path)
    np.testing.assert_array_equal(dataset.x, expected.x)
    assert (dataset.domain, dataset.prepare) == (expected.domain, expected.prepare)
    assert dataset.label.tolist() == [0, 1, 0, 1, 0]
    assert seen[-1] == (5, 5)
    small = data.from_source("cifar", source, size=3, fit="pad", colour="grey")
    np.testing.assert_array_equal(small.x, data.folder(tmp_path, size=3, fit="pad", colour="grey").x)


def test_dictionaries_pairs_and_arrays_alone():
    x, label = RNG.random((6, 3)).astype(np.float32), [3, 1, 2, 0, 0, 1]
    for source in (
        Source([{"x": row, "target": k, "name": "?"} for row, k in zip(x, label, strict=True)]),
        list(zip(x, label, strict=True)),
        [(row.tolist(), np.int64(k)) for row, k in zip(x, label, strict=True)],
    ):
        dataset = data.from_source("mine", source, domain="real")
        np.testing.assert_allclose(dataset.x, x)
        assert dataset.label.tolist() == label
    alone = data.from_source("mine", list(x))
    np.testing.assert_array_equal(alone.x, x)
    assert alone.label is None
    other = data.from_source("mine", [{"a": row, "b": k} for row, k in zip(x, label, strict=True)], x="a", label="b")
    assert other.label.tolist() == label
    sound = data.from_source("sound", [{"audio": {"array": row, "sampling_rate": 8000}} for row in x], domain="real")
    np.testing.assert_array_equal(sound.x, x)


def test_a_label_that_is_no_integer_is_left_out_unless_it_is_asked_for():
    examples = [{"x": row, "label": "cat"} for row in RNG.random((3, 2))]
    assert data.from_source("mine", examples).label is None
    with pytest.raises(TypeError, match="label of example 0 is 'cat': labels are integers"):
        data.from_source("mine", examples, label="label")


@pytest.mark.parametrize(
    ("source", "options", "error", "text"),
    [
        (iter([1]), {}, TypeError, "gives its examples by number and has a length, and a list_iterator does not"),
        ([], {}, ValueError, "the source has no examples"),
        ([{"text": "a"}], {}, ValueError, "examples have no x, only 'text': pass x="),
        ([{"x": [1.0]}], {"x": "y"}, ValueError, "examples have no x 'y', only 'x': pass x="),
        ([{"x": [1.0]}], {"label": "y"}, ValueError, "examples have no label 'y', only 'x': pass label="),
        ([([1.0], 2)], {"x": 2}, ValueError, "tuples of 2: x must be a place in them, got 2"),
        ([[1.0]], {"x": "x"}, ValueError, "no dictionaries and no tuples, so there is no x 'x'"),
        ([[1.0], [1.0, 2.0]], {}, ValueError, r"x of example 1 has shape \(2,\), and that of example 0 \(1,\)"),
        ([{"x": "a"}], {}, TypeError, "x of example 0"),
        ([[1.0]], {"size": 3}, ValueError, "size and colour are for pictures of Pillow, and x is a list"),
        ([picture(), picture((5, 6))], {}, ValueError, "picture 1 is 6×5, and picture 0 6×4: pass size="),
        ([picture(mode="L"), picture()], {}, ValueError, "picture 1 has colours, and picture 0 has none"),
        ([picture(), [1.0]], {}, TypeError, "x of example 1 is a list, and that of example 0 a picture"),
        ([picture()], {"fit": "stretch"}, ValueError, "fit must be one of 'crop', 'pad', 'resize', got 'stretch'"),
    ],
)
def test_what_cannot_be_read_says_why(source, options, error, text):
    with pytest.raises(error, match=text):
        data.from_source("mine", source, **options)


def test_pictures_are_turned_as_their_camera_says(tmp_path):
    lying = picture((6, 4))
    exif = lying.getexif()
    exif[0x0112] = 6  # its top is at the right
    lying.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        own = data.from_source("mine", [opened])
    np.testing.assert_array_equal(own.x, data.folder(tmp_path).x)
    assert own.x.shape == (1, 6, 4, 3)


@pytest.mark.parametrize("pixels", [np.float32([[0, 0.5], [1, 0.2]]), np.int32([[0, 90], [255, 3]])])
def test_pictures_whose_white_nobody_knows_are_refused(pixels):
    with pytest.raises(ValueError, match=r"picture 0 is of mode '[FI]', whose white nobody knows: pass numpy\.asarray"):
        data.from_source("mine", [Image.fromarray(pixels)])


def test_sounds_keep_their_sample_rate_which_must_be_one():
    def sounds(*rates):
        return [{"audio": {"array": RNG.uniform(-1, 1, 8), "sampling_rate": rate}} for rate in rates]

    assert data.from_source("mine", sounds(8000, 8000), domain="real").rate == 8000
    assert data.from_source("mine", [np.zeros(3)]).rate is None
    with pytest.raises(ValueError, match="examples 0 and 2 have 8000 and 16000 samples a second: bring them to one"):
        data.from_source("mine", sounds(8000, 8000, 16000), domain="real")


@pytest.mark.parametrize(
    ("source", "options", "error", "said"),
    [
        ({"train": [1, 2]}, {}, TypeError, "a dict has none of number 0: pass one part of it"),
        ({"x": np.zeros((2, 3))}, {}, TypeError, "arrays by from_arrays"),
        ([{"x": np.zeros(3)}, {"y": np.zeros(3)}], {}, ValueError, "example 1 has no 'x', which example 0 has"),
        ([[np.zeros(3), 1], [np.ones(3), 0]], {}, ValueError, "x of example 0 must be an array, and its rows differ"),
        ([{"x": [0.0], "label": 1}, {"x": [1.0], "label": None}], {}, TypeError, "label of example 1 is None: labels"),
        ([{"x": [0.0], "label": 1}, {"x": [1.0], "label": 1.5}], {}, TypeError, "label of example 1 is 1.5: labels"),
    ],
)
def test_what_is_no_source_is_named(source, options, error, said):
    with pytest.raises(error, match=said):
        data.from_source("mine", source, **options)
