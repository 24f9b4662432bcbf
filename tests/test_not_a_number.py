"""What is NaN chooses nothing: where numbers become codes, values or draws, it is NaN still, or one that is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae import codebook, distributions, priors, quantizers
from jaxvae.evaluation._draws import draw_of
from jaxvae.models import PixelCNN, PixelCNNPP, PixelRNN, TransformerPrior
from jaxvae.models.pixel_vae import PixelByPixel

KEY, NAN = jax.random.key(0), jnp.nan
BAD = jnp.array([NAN, 0.5])  # of two examples the first
WORSE = jnp.full((2, 3), 0.5).at[0].set(NAN)
RECORDS = {
    "Bernoulli": distributions.Bernoulli(BAD[:, None]),
    "ContinuousBernoulli": distributions.ContinuousBernoulli(BAD[:, None]),
    "Poisson": distributions.Poisson(BAD[:, None]),
    "NegativeBinomial": distributions.NegativeBinomial(BAD[:, None], jnp.full((2, 1), -1.0)),
    "of no dispersion": distributions.NegativeBinomial(jnp.ones((2, 1)), BAD[:, None]),
    "ZeroInflatedPoisson": distributions.ZeroInflatedPoisson(jnp.ones((2, 1)), BAD[:, None]),
    "ZeroInflatedNegativeBinomial": distributions.ZeroInflatedNegativeBinomial(
        jnp.ones((2, 1)), jnp.ones((2, 1)), BAD[:, None]
    ),
    "OneHotCategorical": distributions.OneHotCategorical(WORSE[:, None]),
    "DiscretizedLogistic": distributions.DiscretizedLogistic(jnp.zeros((2, 1)), BAD[:, None]),
    "DiscretizedLogisticMixture": distributions.DiscretizedLogisticMixture(
        WORSE[:, None], jnp.zeros((2, 1, 3, 1)), jnp.zeros((2, 1, 3, 1)), jnp.zeros((2, 1, 3, 0))
    ),
    "a table": distributions.Heterogeneous([distributions.Categorical(WORSE[:, None])], [[0]]),
}


@pytest.mark.parametrize("name", RECORDS)
def test_draws_and_modes_of_parameters_that_are_nan_are_nan(name):
    record = RECORDS[name]
    for values in (record.sample(key=KEY), record.mode()):
        of_each = np.isnan(np.asarray(values)).reshape(2, -1)
        assert of_each[0].all()
        assert not of_each[1].any()


def test_a_categorical_value_of_nan_logits_is_none_of_the_values():
    record = distributions.Categorical(WORSE[:, None])
    np.testing.assert_array_equal(record.mode(), [[3], [0]])
    drawn = record.sample(key=KEY)
    assert drawn[0, 0] == 3
    assert drawn[1, 0] < 3
    np.testing.assert_array_equal(np.isnan(record.log_prob(drawn)), [True, False])
    np.testing.assert_array_equal(np.isnan(draw_of(record, jnp.float32, key=KEY)), [[True], [False]])


def test_a_mixture_of_nan_weights_draws_nan():
    record = distributions.Mixture(jnp.array([0.0, NAN]), jnp.zeros((2, 3)), jnp.zeros((2, 3)))
    assert np.isnan(record.sample(4, key=KEY)).all()
    module = priors.AutoregressiveCategorical(3, 4)
    params = jax.tree.map(lambda leaf: leaf * NAN, module.init(KEY))
    assert np.isnan(module.apply(params).sample(2, key=KEY)).all()


VECTORS = jnp.array([[[NAN, 0.0, 1.0, 2.0], [1.0, 2.0, 3.0, 4.0]], [[0.0, 1.0, 0.0, 0.0], [0.0, NAN, 0.0, 0.5]]])
QUANTIZERS = [
    jaxvae.EMACodebook(5),
    jaxvae.EMACodebook(5, cosine=True),
    jaxvae.EMACodebook(5, temperature=0.5),
    jaxvae.GradientCodebook(5),
    quantizers.SimVQ(5),
    quantizers.GumbelCodebook(5),
    quantizers.FiniteScalar((3, 4, 5, 2)),
    quantizers.FiniteScalar((3, 4, 5, 2), temperature=0.5),
    quantizers.LookupFree(4),
    quantizers.LookupFree(4, spherical=True, temperature=0.5),
    quantizers.Projected(quantizers.LookupFree(3), 3),
    quantizers.Residual(jaxvae.EMACodebook(5), 2),
    quantizers.Grouped(jaxvae.EMACodebook(5), 2),
]


@pytest.mark.parametrize("quantizer", QUANTIZERS, ids=repr)
def test_a_vector_that_is_nan_has_no_code(quantizer):
    params, state = quantizer.init(4, key=KEY)
    key = {"key": KEY} if getattr(quantizer, "needs_key", False) else {}
    quantized = quantizer(params, state, VECTORS, **key)
    bad = np.isnan(VECTORS).any(axis=-1)
    of_each = np.isnan(quantized.vectors)
    np.testing.assert_array_equal(of_each.any(axis=-1), bad)
    assert quantized.indices.dtype == jnp.int32
    none = np.asarray(quantized.indices) == np.asarray(quantizer.num_codes)
    np.testing.assert_array_equal(none.any(axis=-1) if none.ndim > bad.ndim else none, bad)
    with pytest.raises(ValueError, match=r"code [0-9]+ at index .* is outside 0"):
        quantizer.look_up(params, state, quantized.indices)
    looked_up = jax.jit(quantizer.look_up)(params, state, quantized.indices)
    np.testing.assert_array_equal(np.isnan(looked_up).any(axis=-1), bad)


@pytest.mark.parametrize("count", [4, 3000], ids=["one block", "several"])
@pytest.mark.parametrize("value", [NAN, jnp.inf, -jnp.inf])
def test_the_code_nearest_to_what_is_not_finite_is_none(value, count):
    codes = jax.random.normal(KEY, (700, 3))
    vectors = jnp.zeros((count, 3)).at[1, 2].set(value)
    for indices in (codebook.nearest(codes, vectors), codebook.draw(codes, vectors, temperature=1.0, key=KEY)):
        assert indices[1] == 700
        assert (np.delete(indices, 1) < 700).all()
    assert (codebook.nearest(codes.at[0, 0].set(value), vectors) == 700).all()


@pytest.mark.parametrize("means", [codebook.segment_means, codebook.one_hot_means])
def test_what_has_no_code_is_left_out_of_the_means(means):
    encoded, indices = jnp.array([[1.0], [3.0], [NAN]]), jnp.array([0, 1, 2])
    np.testing.assert_allclose(means(encoded, indices, 2).moment, [[1 / 3], [1.0]], rtol=1e-6)


MAPS = {
    "PixelCNN": PixelCNN(4, (3, 3), channels=4, layers=1),
    "PixelRNN": PixelRNN(4, (3, 3), channels=4, layers=1, first_kernel=3),
    "PixelCNNPP": PixelCNNPP((3, 3, 1), 4, channels=4, layers=1, components=2),
    "TransformerPrior": TransformerPrior(4, (3, 3), width=8, layers=1, heads=1),
    "of two books": TransformerPrior((4, 3), (3, 3), width=8, layers=1, heads=1),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_network_that_says_nan_draws_nothing(name):
    model = MAPS[name]
    shape = getattr(model, "values_shape", model.shape)
    params = jax.tree.map(lambda leaf: leaf * NAN, model.init(KEY, jnp.zeros((1, *shape), jnp.int32)))
    with pytest.raises(ValueError, match=r"nothing could be drawn at index 0, 0, 0.*: the network.s output is NaN"):
        model.sample(params, 2, key=KEY)
    drawn = jax.jit(lambda params: model.sample(params, 2, key=KEY))(params)
    assert (drawn.reshape(2, -1)[:, 0] == 4).all()


def test_the_mean_image_of_features_that_are_nan_is_nan():
    model = PixelCNN(4, (3, 3, 1), channels=4, layers=1, context=2)
    features = jnp.zeros((2, 3, 3, 2)).at[0].set(NAN)
    params = model.init(KEY, jnp.zeros((2, 3, 3, 1), jnp.int32), context=features)
    mean = jax.jit(lambda features: PixelByPixel(features, params, model, 2).mean)(features)
    of_each = np.isnan(mean).reshape(2, -1)
    assert of_each[0].all()
    assert not of_each[1].any()
