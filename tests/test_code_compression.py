"""Codes as a file: the same codes again, and as long as their prior says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import PixelCNN, TransformerPrior
from jaxvae.evaluation import compress_codes, decompress_codes

pytest.importorskip("constriction")
K, SHAPE = 7, (3, 4)
MODEL = PixelCNN(K, SHAPE, channels=8, layers=2, num_classes=3)


@pytest.fixture(scope="module")
def params():
    made = MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE), jnp.int32), jnp.zeros(1, jnp.int32))
    return jax.tree.map(lambda leaf: 2 * leaf, made)


@pytest.fixture(scope="module")
def codes(params):
    label = np.arange(300, dtype=np.int32) % 3
    return np.asarray(MODEL.sample(params, 300, key=jax.random.key(1), label=jnp.asarray(label))), label


def test_codes_come_back_and_take_the_bits_that_their_prior_says(params, codes):
    values, label = codes
    done = []
    file = compress_codes(MODEL, params, values, label, batch_size=128, progress=lambda *at: done.append(at))
    nats = -np.asarray(MODEL.apply(params, values, label, method="log_prob"), np.float64).sum()
    assert len(file) * 8 == pytest.approx(nats / np.log(2), rel=0.005, abs=8 * 80)
    assert nats / np.log(2) < 0.95 * values.size * np.log2(K)
    np.testing.assert_array_equal(decompress_codes(MODEL, params, file, label), values)
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_the_type_of_the_integers_does_not_matter_and_one_array_is_enough(params, codes):
    values, label = codes
    one = compress_codes(MODEL, params, values[:1].astype(np.uint8), label[:1])
    np.testing.assert_array_equal(decompress_codes(MODEL, params, one, label[:1]), values[:1])


@pytest.mark.parametrize("books", [pytest.param("flat", marks=pytest.mark.slow), "delay"])
def test_several_codes_a_position_come_back_in_the_order_in_which_they_are_said(books):
    model = TransformerPrior((5, 3), (4,), width=8, layers=1, heads=2, books=books)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4, 2), jnp.int32))
    params = jax.tree.map(lambda leaf: 4 * leaf, params)
    values = np.array(model.sample(params, 20, key=jax.random.key(1)))
    file = compress_codes(model, params, values)
    np.testing.assert_array_equal(decompress_codes(model, params, file), values)
    values[1, 2, 1] = 4
    with pytest.raises(ValueError, match="the model says that code 4 is never there: its book has fewer values"):
        compress_codes(model, params, values)


def test_what_is_no_file_or_a_damaged_one_is_refused(params, codes):
    values, label = codes
    file = compress_codes(MODEL, params, values[:4], label[:4])
    for wrong in (b"", b"PK" + file, file[: len(file) // 4]):
        with pytest.raises(ValueError, match=r"these bytes are not of jaxvae|damaged or cut off"):
            decompress_codes(MODEL, params, wrong, label[:4])
    damaged = bytearray(file)
    damaged[-3] ^= 1
    with pytest.raises(ValueError, match="the file is damaged or cut off"):
        decompress_codes(MODEL, params, bytes(damaged), label[:4])
    for bad, error, message in (
        (values[:4] + K, ValueError, r"code \d+ is outside 0 .. 6"),
        (values[:4] + np.int64(2**32), ValueError, r"code 429496\d+ is outside 0 .. 6"),
        (values[:0], ValueError, r"indices must be \[N, \*shape\]"),
        (values[:4] * 1.0, TypeError, "indices must be integers, got float64"),
    ):
        with pytest.raises(error, match=message):
            compress_codes(MODEL, params, bad, label[:4])


def test_another_model_or_condition_is_noticed(params, codes):
    values, label = codes
    file = compress_codes(MODEL, params, values[:8], label[:8])
    others = jax.tree.map(lambda leaf: leaf * 1.01, params), label[:8]
    for other, given in (others, (params, label[1:9])):
        with pytest.raises(ValueError, match=r"other codes came out than went in: the model, its parameters, the cond"):
            decompress_codes(MODEL, other, file, given)


def test_a_condition_of_another_number_is_refused(params, codes):
    values, label = codes
    file = compress_codes(MODEL, params, values[:4], label[:4])
    for given in (label[:1], label[:5], np.int32(1)):
        with pytest.raises(ValueError, match=r"a condition must be \(4, ...\), one for each array of codes, got \("):
            compress_codes(MODEL, params, values[:4], given)
        with pytest.raises(ValueError, match=r"a condition must be \(4, ...\)"):
            decompress_codes(MODEL, params, file, given)
