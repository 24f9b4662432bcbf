"""What numbers stand for: a run refuses sets whose numbers look like those of its training and mean something else."""

from functools import partial

import jax
import numpy as np
import pandas as pd
import pytest

import jaxvae
from jaxvae import data
from jaxvae.models import table_vae

RNG = np.random.default_rng(0)
quietly = partial(jaxvae.train, progress=False, epochs=1)


def table(count, offset=0.0, sky=("clear", "cloud", "rain")):
    rows = np.arange(count)
    degrees = offset + RNG.normal(0, 3, count)
    return pd.DataFrame({"degrees": degrees, "visits": rows % 4, "sky": np.array(sky)[rows % len(sky)]})


ROWS = table(90, offset=100)
TABLE = data.from_table(ROWS)


@pytest.fixture(scope="module")
def of_table():
    return quietly(table_vae(TABLE.domain.columns, 2, (8,)), TABLE)


@pytest.fixture(scope="module")
def of_labels():
    body = jaxvae.Conditioned(jaxvae.MLPEncoder(2, (8,))), jaxvae.Conditioned(jaxvae.MLPDecoder((3,), (8,)))
    return quietly(jaxvae.CVAE(*body, embed=jaxvae.LabelEmbedding(3)), animals("ant", "bee", "cat"))


def animals(*names, label=None):
    x = np.tile(np.linspace(0, 1, 30, dtype=np.float32)[:, None], 3)
    label = np.arange(30) % 3 if label is None else label
    return data.Dataset(
        "animals", {"x": x, "label": label}, data.make_prepare(), data.Domain("unit interval"), (), names
    )


def test_a_table_that_was_standardised_by_itself_is_refused(of_table):
    test = table(20)
    own, known = data.from_table(test), data.from_table(test, columns=TABLE.domain.columns)
    assert np.isfinite(of_table.evaluate(known, num_samples=2)["nll"])
    for use in (of_table.encode, of_table.evaluate):
        with pytest.raises(ValueError, match=r"another domain, .* than the training data, .*: read it by from_table\("):
            use(own)
    with pytest.raises(ValueError, match="another domain"):
        quietly(of_table.model, TABLE, validation=own)


def test_categories_of_other_places_are_refused(of_table):
    other = data.from_table(table(20, sky=("cloud", "rain")))
    with pytest.raises(ValueError, match="another domain"):
        of_table.reconstruct(other)


def test_a_frame_is_read_in_the_units_and_the_order_of_the_training(of_table):
    expected = of_table.encode(data.from_table(ROWS[:5], columns=TABLE.domain.columns))
    np.testing.assert_array_equal(of_table.encode(ROWS[:5]), expected)
    np.testing.assert_array_equal(of_table.encode(ROWS[:5][["sky", "degrees", "visits"]].assign(more=1)), expected)
    numbers = data.from_table(ROWS.drop(columns="sky"))
    run = quietly(table_vae(numbers.domain.columns, 2, (8,)), numbers)
    np.testing.assert_array_equal(run.encode(ROWS[["degrees", "visits"]]), run.encode(numbers))
    with pytest.raises(ValueError, match="has no column 'visits'"):
        run.encode(ROWS[["degrees"]])


def test_sets_of_counts_or_categories_are_no_sets_of_pixels():
    x = RNG.random((30, 3)).astype(np.float32)
    run = quietly(jaxvae.VAE(jaxvae.MLPEncoder(2, (8,)), jaxvae.MLPDecoder((3,), (8,))), data.from_arrays("grey", x))
    for options in ({"domain": "counts"}, {"domain": "categories", "levels": 9}):
        with pytest.raises(ValueError, match=r"'other' is of another domain, .*, than the training data"):
            run.evaluate(data.from_arrays("other", np.arange(9).reshape(3, 3), **options))
    pixels = data.from_arrays("pixels", np.uint8([[0, 51, 255]]))
    np.testing.assert_allclose(run.encode(pixels), run.encode(np.float32([[0, 0.2, 1]])), rtol=1e-6)


def test_sound_of_another_rate_is_refused():
    def sound(rate):
        arrays = {"x": RNG.uniform(-1, 1, (20, 8, 1)).astype(np.float32)}
        return data.Dataset("sound", arrays, data.make_prepare(), data.Domain("real"), rate=rate)

    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (8,)), jaxvae.MLPDecoder((8, 1), (8,)), jaxvae.SharedScale())
    run = quietly(model, sound(8000))
    assert len(run.encode(sound(8000))) == len(run.encode(sound(None))) == 20
    with pytest.raises(ValueError, match="'sound' has 16000 samples a second, and the training data 8000"):
        run.encode(sound(16000))


def test_labels_that_stand_for_something_else_are_refused(of_labels):
    dogs = animals("bee", "cat", label=np.arange(30) % 2)
    with pytest.raises(ValueError, match=r"stand for \('bee', 'cat'\), and .* for \('ant', 'bee', 'cat'\): pass"):
        of_labels.evaluate(dogs)
    for same in (animals("ant", "bee", label=np.arange(30) % 2), animals()):
        assert np.isfinite(of_labels.evaluate(same, num_samples=2)["nll"])


def test_labels_outside_are_named_where_they_are_given(of_labels):
    from_one = animals(label=1 + np.arange(30) % 3)
    said = r"label\[2\] is 3, outside 0 \.\. 2: labels count from 0, so pass label - 1"
    for use in (of_labels.encode, of_labels.evaluate, partial(quietly, of_labels.model)):
        with pytest.raises(ValueError, match=said):
            use(from_one)


def test_as_many_conditions_are_given_as_samples_are_drawn(of_labels, of_table):
    assert of_labels.sample(3, condition=[0, 1, 2]).shape == (3, 3)
    for condition in ([0], [0, 1, 2, 0], 1):
        with pytest.raises(ValueError, match=r"condition must be \[3, \.\.\.\], one for each sample, got \("):
            of_labels.sample(3, condition=condition)
    with pytest.raises(ValueError, match="condition must fit 32 bits, got 1099511627776"):
        of_labels.sample(1, condition=np.array([2**40]))
    with pytest.raises(TypeError, match="a VAE takes no condition: leave it out"):
        of_table.sample(2, condition=[0, 1])


def test_conditions_reach_jax_as_they_are_or_not_at_all():
    x, wide = np.zeros((2, 3)), np.array([2**40, 1])
    for order in (">i4", ">f8", "<u2"):
        own = data.from_arrays("mine", x, condition=np.array([7, 1], order))
        assert own.prepared(2, key=jax.random.key(0))["condition"].tolist() == [7, 1]
    with pytest.raises(ValueError, match="condition must fit 32 bits, got 1099511627776"):
        data.from_arrays("mine", x, condition=wide)
    with pytest.raises(ValueError, match="x must fit 32 bits, got 1099511627776"):
        data.Dataset("mine", {"x": wide[:, None]}, data.make_prepare(counts=True), data.Domain("counts"))
    with pytest.raises(ValueError, match=r"condition\[1\] has nan, which is not finite"):
        data.from_arrays("mine", x, condition=[[0.0], [np.nan]])
    with pytest.raises(ValueError, match=r"condition\[0\] has 1e\+300, which is too large for 32 bits"):
        data.from_arrays("mine", x, condition=[1e300, 1])
