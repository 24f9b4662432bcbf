"""Keys: refused when they are not, and independent of what surrounds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.keys import example_keys, sample_keys, seed_key


def bits(keys):
    return np.asarray(jax.random.key_data(keys))


def test_an_examples_key_depends_on_its_index_alone(key):
    together = bits(example_keys(key, jnp.array([5, 2, 9])))
    np.testing.assert_array_equal(together[1], bits(example_keys(key, jnp.array([2])))[0])
    np.testing.assert_array_equal(together[1], bits(jax.random.fold_in(key, 2)))
    assert len(np.unique(together, axis=0)) == 3


@pytest.mark.parametrize("shape", [(), (4,)])
def test_the_first_samples_are_the_same_for_every_number_of_them(key, shape):
    keys = key if shape == () else example_keys(key, jnp.arange(4))
    few, many = bits(sample_keys(keys, 3)), bits(sample_keys(keys, 7))
    assert many.shape == (7, *shape, 2)
    np.testing.assert_array_equal(many[:3], few)
    assert len(np.unique(many.reshape(-1, 2), axis=0)) == 7 * max(1, *shape, 1)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**40])
def test_a_seed_that_would_be_shortened_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed must lie in 0 \.\. 2\*\*32 - 1, got {seed}"):
        seed_key(seed)
    assert bits(seed_key(2**32 - 1)).tolist() != bits(seed_key(0)).tolist()


@pytest.mark.parametrize("seed", [None, 0.5, "0", True, np.arange(2)])
def test_a_seed_that_is_no_integer_is_refused(seed):
    with pytest.raises(TypeError, match="seed must be an integer, got"):
        seed_key(seed)
