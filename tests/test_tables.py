"""Tables: what is not observed counts nowhere, and each group of columns has its own record."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import jaxvae
from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    DiscretizedLogistic,
    Heterogeneous,
    LogNormal,
    Masked,
    NegativeBinomial,
    Poisson,
    StudentT,
    UnitInterval,
)
from jaxvae.keys import example_keys
from jaxvae.networks import TableEncoder
from jaxvae.types import Column

B, NAN = 4, jnp.nan
OBSERVED = jnp.array([[1, 1, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]], bool)


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# name: a record over [4, 3], and values of its kind
RECORDS = {
    "gaussian": (DiagGaussian(draw(0, B, 3), jnp.float32(-1.0)), draw(1, B, 3)),
    "student t": (StudentT(draw(0, B, 3), draw(1, 3), draw(2, B, 1)), draw(3, B, 3)),
    "log-normal": (LogNormal(draw(0, B, 3), jnp.float32(0.3)), jnp.exp(draw(1, B, 3))),
    "bernoulli": (Bernoulli(draw(0, B, 3)), jnp.float32(draw(1, B, 3) > 0)),
    "counts": (NegativeBinomial(draw(0, B, 3), draw(1, 3)), jnp.rint(3 * jnp.exp(draw(2, B, 3)))),
    "integers": (Poisson(draw(0, B, 3)), jnp.arange(12, dtype=jnp.uint8).reshape(B, 3)),
    "categories": (Categorical(draw(0, B, 3, 5)), jnp.arange(12).reshape(B, 3) % 5),
    "pixels": (UnitInterval(DiscretizedLogistic(draw(0, B, 3), jnp.float32(-1.0))), jnp.full((B, 3), 0.2)),
}


def column(record, j):
    """The record of one column of it."""

    def take(parameter):
        return parameter[..., j : j + 1] if jnp.shape(parameter)[-1:] == (3,) else parameter

    if isinstance(record, Categorical):
        return Categorical(record.logits[:, j : j + 1])
    return jax.tree.map(take, record)


@jax.jit
def log_prob(record, x):
    return record.log_prob(x)


@pytest.mark.parametrize(("record", "x"), RECORDS.values(), ids=RECORDS)
def test_a_masked_record_sums_the_observed_elements(record, x):
    of_each = jnp.stack([log_prob(column(record, j), x[:, j : j + 1]) for j in range(3)], axis=1)
    hidden = jnp.where(OBSERVED, x, NAN if jnp.issubdtype(x.dtype, jnp.floating) else 100)
    floating = jax.tree.map(lambda a: a.astype(jnp.float32), record)
    gradient = jax.jit(jax.grad(lambda record: Masked(record, OBSERVED).log_prob(hidden).sum()))(floating)
    of_example = log_prob(Masked(record, OBSERVED), hidden)
    np.testing.assert_allclose(of_example, jnp.where(OBSERVED, of_each, 0).sum(axis=1), rtol=1e-5)
    assert of_example[2] == 0
    chex.assert_tree_all_finite(gradient)
    assert not jax.tree.leaves(gradient)[0][2].any()  # nor does what is hidden move a parameter
    np.testing.assert_allclose(log_prob(Masked(record, jnp.array(True)), x), log_prob(record, x), rtol=1e-5)


def test_a_masked_record_draws_and_means_what_the_record_does(key):
    record = RECORDS["counts"][0]
    masked = Masked(record, OBSERVED)
    np.testing.assert_array_equal(masked.sample(key=key), record.sample(key=key))
    np.testing.assert_array_equal(masked.mean, record.mean)
    np.testing.assert_array_equal(masked.mode(), record.mode())


def test_a_mask_of_another_kind_is_refused():
    record, x = RECORDS["gaussian"]
    with pytest.raises(TypeError, match="observed must be bool, true where a value counts, got float32"):
        Masked(record, jnp.ones((B, 3))).log_prob(x)
    with pytest.raises(ValueError, match=r"observed must broadcast to x \(4, 3\), got \(4,\)"):
        Masked(record, OBSERVED[:, 0]).log_prob(x)
    with pytest.raises(
        ValueError, match=r"a parameter of DiagGaussian must broadcast to x \(4, 3\), got \(2, 3\): the"
    ):
        Masked(DiagGaussian(draw(0, 2, 3), jnp.float32(0.0)), OBSERVED).log_prob(x)


COLUMNS = ((4, 0), (1,), (5,), (2,), (3,))


def table_record(output):
    """The record that a decoder's output [B, 9] stands for."""
    mean, location, log_rate, logits, of_yes = jnp.split(output, (2, 3, 4, 8), axis=1)
    records = (
        *(DiagGaussian(mean, 0.5), LogNormal(location, jnp.float32(-1.0)), Poisson(log_rate)),
        *(Categorical(logits[:, None]), Bernoulli(of_yes)),
    )
    return Heterogeneous(records, COLUMNS)


OUTPUT = draw(5, B, 9)
TABLE = jnp.float32(
    [[0.1, 2.0, 3, 1, -0.4, 7], [-1.0, 0.1, 0, 0, 0.3, 0], [0.7, 1.0, 2, 1, 3.0, 1], [0.0, 5.0, 1, 0, -2.0, 2]]
)


def test_each_group_of_columns_has_its_record():
    record = table_record(OUTPUT)
    gaussian, log_normal, poisson, categorical, bernoulli = record.records
    expected = jnp.stack(
        [
            log_prob(column_of(gaussian, 1), TABLE[:, 0:1]),
            log_prob(log_normal, TABLE[:, 1:2]),
            log_prob(categorical, TABLE[:, 2:3].astype(jnp.int32)),
            log_prob(bernoulli, TABLE[:, 3:4]),
            log_prob(column_of(gaussian, 0), TABLE[:, 4:5]),
            log_prob(poisson, TABLE[:, 5:6]),
        ],
        axis=1,
    )
    np.testing.assert_allclose(jax.jit(lambda record, x: record.elementwise(x))(record, TABLE), expected, rtol=1e-5)
    np.testing.assert_allclose(log_prob(record, TABLE), expected.sum(axis=1), rtol=1e-5)
    observed = draw(3, B, 6) > 0
    hidden = jnp.where(observed, TABLE, NAN)
    nats = log_prob(Masked(record, observed), hidden)
    np.testing.assert_allclose(nats, jnp.where(observed, expected, 0).sum(axis=1), rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda output: Masked(table_record(output), observed).log_prob(hidden).sum()))
    chex.assert_tree_all_finite(gradient(OUTPUT))
    inner = (Masked(gaussian, observed[:, jnp.array(COLUMNS[0])]), *record.records[1:])
    others = jnp.where(observed.at[:, jnp.array([1, 2, 3, 5])].set(True), expected, 0).sum(axis=1)
    np.testing.assert_allclose(log_prob(Heterogeneous(inner, COLUMNS), TABLE), others, rtol=1e-5)


def column_of(gaussian, j):
    return DiagGaussian(gaussian.mean[:, j : j + 1], gaussian.log_var)


def test_a_table_is_put_together_in_its_order(key):
    record = table_record(OUTPUT)
    means = record.mean
    for table, part in ((means, lambda r: r.mean), (record.mode(), lambda r: r.mode())):
        assert table.shape == (B, 6)
        assert table.dtype == jnp.float32
        for group, each in zip(COLUMNS, record.records, strict=True):
            values = part(each)
            if table is means and isinstance(each, Categorical):  # of 0 .. V-1, as the table's x is
                values = jax.nn.softmax(each.logits) @ jnp.arange(each.logits.shape[-1], dtype=jnp.float32)
            np.testing.assert_allclose(table[:, jnp.array(group)], values, rtol=1e-5)
    drawn = jax.jit(lambda record: record.sample(key=key))(record)
    np.testing.assert_array_equal(np.isin(drawn[:, 2], range(4)) & np.isin(drawn[:, 3], (0, 1)), True)
    assert np.isfinite(log_prob(record, drawn)).all()


def test_groups_and_examples_draw_their_own_noise(key):
    zeros = DiagGaussian(jnp.zeros((6, 1)), jnp.float32(0.0))
    record, keys = Heterogeneous((zeros, zeros), ((1,), (0,))), example_keys(key, jnp.arange(6))
    together = record.sample(key=keys)
    assert len(np.unique(together)) == 12
    cut = jax.tree.map(lambda a: a[2:4] if a.ndim else a, record)
    np.testing.assert_array_equal(cut.sample(key=keys[2:4]), together[2:4])
    assert len(np.unique(record.sample(key=key))) == 12


def test_a_table_of_integers_is_read_as_its_records_need():
    record = Heterogeneous(
        (Poisson(draw(0, B, 1)), Categorical(draw(1, B, 2, 3)), Bernoulli(draw(2, B, 1))), ((3,), (0, 2), (1,))
    )
    table = jnp.uint8([[0, 1, 2, 200], [1, 0, 1, 3], [2, 1, 0, 0], [0, 0, 0, 17]])
    expected = log_prob(record, table.astype(jnp.float32))
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(log_prob(record, table), expected)
    outside = log_prob(record, jnp.float32([[3, 1, 2, 0], [-1, 0, 1, 3], [NAN, 1, 0, 0], [0, 0, 0, 17]]))
    np.testing.assert_array_equal(jnp.isnan(outside), [True, True, True, False])


def test_columns_that_do_not_fit_are_refused():
    one = Poisson(jnp.zeros((B, 1)))
    with pytest.raises(ValueError, match=r"columns must be each of 0 \.\. 1 once, got \(\(0,\), \(0,\)\)"):
        Heterogeneous((one, one), [[0], [0]])
    with pytest.raises(ValueError, match=r"columns must be each of 0 \.\. 1 once, got \(\(0,\), \(2,\)\)"):
        Heterogeneous((one, one), [[0], [2]])
    with pytest.raises(ValueError, match="there must be a record for each group, got 1 for 2 groups"):
        Heterogeneous((one,), [[0], [1]])
    with pytest.raises(TypeError, match=r"columns must be an integer, got \[0\.0\]"):
        Heterogeneous((one,), [[0.0]])
    record = Heterogeneous((one, one), [[0], [1]])
    with pytest.raises(ValueError, match=r"x must be \[B, 2\], got \(4, 3\)"):
        record.log_prob(jnp.zeros((B, 3)))
    with pytest.raises(TypeError, match="x must be integer or floating, got bool"):
        record.log_prob(jnp.zeros((B, 2), bool))


def test_a_vae_of_a_table_is_trained_like_any_other(key):
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (8,)), jaxvae.MLPDecoder((9,), (8,)), table_record)
    params = jax.jit(model.init)(key, TABLE)
    batch = {"x": TABLE, "index": jnp.arange(B)}
    loss = jax.jit(jax.value_and_grad(partial(jaxvae.vae_loss, model, num_samples=2), has_aux=True))
    chex.assert_tree_all_finite(loss(params, (), batch, key=key, step=0))


class Told(nn.Module):
    """An encoder that says in training that it is."""

    @nn.compact
    def __call__(self, x, train):
        mean = nn.Dense(2)(x)
        return mean, jnp.full_like(mean, float(train))


def test_the_encoder_of_a_table_is_told_of_training(key):
    """Dropout in it never dropped anything, and batch statistics never moved."""
    model = jaxvae.VAE(TableEncoder((Column("a", "real"),) * 3, Told()), jaxvae.MLPDecoder((3,)), latent_dim=2)
    x = jnp.ones((4, 3))
    params = jax.jit(model.init)(key, x)
    for rngs, told in (({}, 0), ({"dropout": key}, 1)):
        assert (model.apply(params, x, method="encode", rngs=rngs).log_var == told).all()


class Ball(NamedTuple):
    """All elements at once: exp(-|x - mean|), which no sum over elements is."""

    mean: jax.Array

    def log_prob(self, x):
        return -jnp.linalg.norm(x - self.mean, axis=1)


class OfEach(Ball):
    def elementwise(self, x):
        return -jnp.abs(x - self.mean)


class Shifted(DiagGaussian):
    def log_prob(self, x):
        return super().log_prob(x) + 1


def test_a_record_whose_elements_may_depend_on_each_other_is_refused():
    """Each element asked for by itself would give another density, and nothing would say so."""
    x, observed = jnp.ones((2, 3)), jnp.array([[True, False, True]] * 2)
    for record in (Ball(jnp.zeros((2, 3))), Shifted(jnp.zeros((2, 3)), jnp.zeros((2, 3)))):
        with pytest.raises(TypeError, match=f"elements of a {type(record).__name__} are independent .*elementwise"):
            Masked(record, observed).log_prob(x)
    np.testing.assert_array_equal(Masked(OfEach(jnp.zeros((2, 3))), observed).log_prob(x), [-2, -2])
