"""Missing entries: what models see of them, the bound of MIWAE, and what is drawn for them, against closed forms."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae import data, evaluation
from jaxvae.distributions import Categorical, DiagGaussian, Heterogeneous, Masked
from jaxvae.objectives import cvae_prior_log_weights, linear_vae_loss, vae_log_weights

N, D, K = 40, 5, 2
WEIGHTS = np.random.default_rng(0).normal(size=(K, D)).astype(np.float32)
OFFSET = np.float32([1.0, -2.0, 0.5, 3.0, 0.0])
LOG_VAR = -0.8


def linear_gaussian():
    """x = z W + b + noise, z ~ N(0, I); its posterior is a wide guess that knows nothing of x."""
    return jaxvae.VAE(
        lambda x: (jnp.zeros((len(x), K)), jnp.zeros((len(x), K))),
        lambda z: z @ WEIGHTS + OFFSET[None],
        partial(DiagGaussian, log_var=LOG_VAR),
    )


@cache
def table():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(N, K)) @ WEIGHTS + OFFSET + np.exp(LOG_VAR / 2) * rng.normal(size=(N, D))
    observed = rng.random((N, D)) > 0.4
    observed[0], observed[1] = True, False  # of one example everything is there, of one nothing
    return x, observed


def covariance():
    return WEIGHTS.T.astype(float) @ WEIGHTS + np.exp(LOG_VAR) * np.eye(D)


def exact_log_p():
    x, observed = table()
    return np.array(
        [
            stats.multivariate_normal.logpdf(row[seen], OFFSET[seen], covariance()[np.ix_(seen, seen)])
            if seen.any()
            else 0.0
            for row, seen in zip(x, observed, strict=True)
        ]
    )


def exact_conditional():
    """The mean and the standard deviation of each missing entry given the observed ones, [N, D] each."""
    x, observed = table()
    means, deviations, total = x.copy(), np.zeros((N, D)), covariance()
    for i, seen in enumerate(observed):
        gone = ~seen
        gain = total[np.ix_(gone, seen)] @ np.linalg.inv(total[np.ix_(seen, seen)])
        means[i, gone] = OFFSET[gone] + gain @ (x[i, seen] - OFFSET[seen])
        deviations[i, gone] = np.sqrt(np.diag(total[np.ix_(gone, gone)] - gain @ total[np.ix_(seen, gone)]))
    return means, deviations


def feed_of(x, observed):
    dataset = data.from_arrays("table", x, domain="real", observed=observed)
    return data.evaluation_feed(dataset, 16)


def test_the_bound_grows_to_the_exact_likelihood_of_what_is_observed(key):
    x, observed = table()
    examples = {"x": jnp.float32(np.where(observed, x, 0)), "observed": jnp.asarray(observed), "index": jnp.arange(N)}
    exact, model, bounds = -exact_log_p().mean(), linear_gaussian(), []
    for num_samples in (1, 10, 100, 5000):
        loss = jax.jit(partial(jaxvae.iwae_loss, model, step=0, num_samples=num_samples))
        bounds.append(float(loss({}, (), examples, key=key)[0]))
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[0] - 1 > bounds[2] - 0.02 > exact
    estimate = evaluation.log_likelihood(model, {}, (), *feed_of(x, observed), key=key, num_samples=5000)
    off = (estimate.log_prob - exact_log_p())[2:] / estimate.standard_error[2:]
    assert np.abs(off).max() < 5
    assert estimate.log_prob[1] == pytest.approx(0, abs=1e-5)  # nothing is observed
    assert bounds[3] == pytest.approx(exact, abs=5 * estimate.nll_standard_error + 0.01)


def test_what_is_drawn_is_the_conditional_distribution(key):
    x, observed = table()
    filled = evaluation.impute(
        *(linear_gaussian(), {}, (), *feed_of(x, observed)), key=key, num_samples=2000, num_draws=200
    )
    means, deviations = exact_conditional()
    missing, sure = ~observed, filled.effective_samples > 50
    assert sure.sum() > 30
    np.testing.assert_allclose(filled.mean[observed], x[observed], rtol=1e-6)
    assert (filled.std[observed] == 0).all()
    assert (filled.standard_error[observed] == 0).all()
    chosen = missing & sure[:, None]
    off = (filled.mean - means)[chosen] / filled.standard_error[chosen]
    assert np.abs(off).max() < 5
    assert np.square(off).mean() == pytest.approx(1, abs=0.6)  # the Monte Carlo error is what it says
    np.testing.assert_allclose(filled.std[chosen], deviations[chosen], rtol=0.25)
    assert filled.effective_samples[1] == pytest.approx(2000, rel=1e-4)  # the prior is the posterior there
    # Whole draws: those of an example follow its weights, and their distribution is the right one.
    of_draws = np.where(chosen, (filled.draws.mean(axis=1) - means) / np.where(missing, deviations, 1), np.nan)
    assert np.nanmean(np.square(of_draws)) < 0.03  # 1/200 of the draws and less than 1/50 of the samples
    assert filled.draws.shape == (N, 200, D)
    assert (np.ptp(filled.draws, axis=1)[observed] == 0).all()
    standard = ((filled.draws - means[:, None]) / np.where(missing, deviations, 1)[:, None])[1]
    for column in range(D):
        assert stats.kstest(standard[:, column], "norm").pvalue > 1e-3
    correlation = np.corrcoef(filled.draws[1].T)
    deviation = np.sqrt(np.diag(covariance()))
    np.testing.assert_allclose(correlation, covariance() / np.outer(deviation, deviation), atol=0.25)


def test_an_example_is_filled_alike_in_any_batch(key):
    x, observed = table()
    dataset = data.from_arrays("table", x, domain="real", observed=observed)
    one, other = (
        evaluation.impute(
            linear_gaussian(), {}, (), *data.evaluation_feed(dataset, size), key=key, num_samples=20, num_draws=3
        )
        for size in (7, 40)
    )
    for each, same in zip(one, other, strict=True):
        np.testing.assert_allclose(each, same, rtol=1e-4, atol=1e-5)


def model_and_holes():
    examples = batch(6)
    observed = np.random.default_rng(3).random(examples["x"].shape) > 0.3
    model = jaxvae.VAE(*mlp())
    params = jax.jit(model.init)(jax.random.key(0), examples["x"], observed=jnp.asarray(observed))
    return model, params, examples | {"observed": jnp.asarray(observed)}


OBJECTIVES = {
    "vae": jaxvae.vae_loss,
    "beta": partial(jaxvae.beta_vae_loss, free_bits=0.1),
    "iwae": partial(jaxvae.iwae_loss, num_samples=3),
    "doubly": partial(jaxvae.iwae_loss, num_samples=3, doubly_reparameterized=True),
    "total correlation": partial(jaxvae.tc_vae_loss, num_examples=10),
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_what_stands_in_place_of_missing_entries_changes_nothing(objective, key):
    model, params, examples = model_and_holes()
    loss = jax.jit(jax.value_and_grad(partial(objective, model, step=0), has_aux=True))
    results = []
    for filling in (0.0, 0.9, jnp.nan):
        x = jnp.where(examples["observed"], examples["x"], filling)
        (value, (_, metrics)), gradient = loss(params, (), examples | {"x": x}, key=key)
        results.append((value, metrics, gradient))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, other, results[0])
    hidden = examples | {"observed": examples["observed"].at[2, 3, 4].set(False)}
    if bool(examples["observed"][2, 3, 4]):
        assert loss(params, (), hidden, key=key)[0][0] != results[0][0]


def test_the_encoder_sees_zeros_and_the_mask():
    seen = []

    def encoder(x):
        seen.append(x)
        return jnp.zeros((len(x), 2)), jnp.zeros((len(x), 2))

    model = jaxvae.VAE(encoder, lambda z: jnp.zeros((len(z), 3)))
    x, observed = jnp.float32([[0.5, 7.0, 0.25]]), jnp.array([[True, False, True]])
    model.apply({}, x, observed=observed, method="encode")
    np.testing.assert_array_equal(seen[0], [[0.5, 0, 0.25, 1, 0, 1]])


def test_without_holes_the_distortion_is_the_likelihoods_own(key):
    model, params, examples = model_and_holes()
    whole = examples | {"observed": jnp.ones_like(examples["observed"])}
    log_weights = jax.jit(partial(vae_log_weights, model, num_samples=2))(params, (), whole, key=key)

    def by_hand(params, examples, *, key):
        observed = examples["observed"]
        keys = jaxvae.keys.example_keys(key, examples["index"])
        z, log_q = model.apply(params, examples["x"], key=keys, num_samples=2, observed=observed, method="propose")
        log_x = model.apply(params, examples["x"], z, method="log_likelihood")  # without a mask
        return log_x + jax.vmap(jaxvae.StandardNormal(3).log_prob)(z) - log_q

    np.testing.assert_allclose(log_weights, jax.jit(by_hand)(params, whole, key=key), rtol=1e-5)


def test_conditional_models_take_holes_too(key):
    model = jaxvae.CVAE(
        jaxvae.Conditioned(jaxvae.MLPEncoder(2, (8,))),
        jaxvae.Conditioned(jaxvae.MLPDecoder(SHAPE, (8,))),
        embed=jaxvae.LabelEmbedding(3),
    )
    examples = batch(6) | {"condition": jnp.arange(6) % 3}
    examples["observed"] = examples["x"] > 0.2
    params = jax.jit(model.init)(key, examples["x"], examples["condition"], observed=examples["observed"])
    for function in (partial(jaxvae.cvae_loss, step=0), partial(cvae_prior_log_weights, num_samples=2)):
        value = jax.jit(partial(function, model))
        one, other = (
            jax.tree.leaves(value(params, (), examples | {"x": examples["x"] + extra * ~examples["observed"]}, key=key))
            for extra in (0.0, 0.5)
        )
        np.testing.assert_array_equal(one[0], other[0])


def test_objectives_and_models_without_a_form_for_them_refuse_them(key):
    examples = batch(6) | {"observed": jnp.ones((6, *SHAPE), bool), "label": jnp.arange(6) % 3}
    quantised = jaxvae.VQVAE(jaxvae.ConvEncoder(4, (4,)), jaxvae.ConvDecoder(SHAPE, (4,)), jaxvae.EMACodebook(8))
    for loss, model, error, text in (
        (jaxvae.vq_vae_loss, quantised, ValueError, "which vq_vae_loss would read as values"),
        (jaxvae.autoencoder_loss, jaxvae.Autoencoder(*mlp()), TypeError, "Autoencoder.terms has no argument observed"),
        (linear_vae_loss, None, ValueError, "which linear_vae_loss would read"),
        (
            partial(jaxvae.pixel_cnn_loss, field="x"),
            jaxvae.PixelCNN(2, SHAPE[:2], channels=4, layers=1),
            ValueError,
            "which code_prior_loss would",
        ),
    ):
        with pytest.raises(error, match=text):
            loss(model, {}, (), examples, key=key, step=0)
    labelled = {name: examples[name] for name in ("x", "label", "index")}
    for missing in (examples, {**labelled, "labelled": examples}):
        with pytest.raises(ValueError, match="which semi_supervised_loss would read"):
            jaxvae.semi_supervised_loss(None, {}, (), missing, key=key, step=0, classification_weight=1.0)


def test_a_mask_that_does_not_fit_is_refused(key):
    model, params, examples = model_and_holes()
    for observed, error, text in (
        (jnp.ones((6, *SHAPE)), TypeError, "observed must be bool, true where a value counts, got float32"),
        (jnp.ones((6, 8, 8), bool), ValueError, r"observed must be \(6, 8, 8, 1\), as x is, got \(6, 8, 8\)"),
    ):
        with pytest.raises(error, match=text):
            jax.eval_shape(
                partial(jaxvae.vae_loss, model, step=0), params, (), examples | {"observed": observed}, key=key
            )
    source, indices = data.evaluation_feed(data.from_arrays("whole", np.zeros((4, 2)), domain="real"), 4)
    with pytest.raises(ValueError, match="nothing says which entries are missing"):
        evaluation.impute(linear_gaussian(), {}, (), source, indices, key=key)
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        evaluation.impute(linear_gaussian(), {}, (), source, indices, key=key, num_samples=1)


def test_a_set_finds_its_holes_or_is_told_of_them():
    x = np.float32([[1.0, np.nan, 3.0], [4.0, 5.0, np.nan]])
    with pytest.warns(UserWarning, match="2 of the 6 entries of x are NaN and count as missing"):
        found = data.from_arrays("mine", x, domain="real")
    told = data.from_arrays("mine", x, domain="real", observed=~np.isnan(x))
    for dataset in (found, told):
        np.testing.assert_array_equal(dataset.arrays["observed"], [[True, False, True], [True, True, False]])
        np.testing.assert_array_equal(dataset.x, [[1, 0, 3], [4, 5, 0]])
    levels = data.from_arrays("mine", np.array([[3, -99], [1, 2]]), levels=4, observed=[[True, False], [True, True]])
    np.testing.assert_array_equal(levels.x, [[3, 0], [1, 2]])
    for observed, error, text in (
        (np.ones((2, 3)), TypeError, "observed must be bool, true where an entry of x is there, got float64"),
        (np.ones((2, 2), bool), ValueError, r"observed must be \(2, 3\), as x is, got \(2, 2\)"),
        (np.zeros((2, 3), bool), ValueError, "nothing of x is observed"),
        (np.ones((2, 3), bool), ValueError, r"x\[0\] has nan, which is not finite"),
    ):
        with pytest.raises(error, match=text):
            data.from_arrays("mine", x, domain="real", observed=observed)


@pytest.mark.slow
def test_a_table_with_holes_is_trained_measured_and_filled_in_one_call_each(tmp_path):
    x, observed = table()
    dataset = data.from_arrays("table", np.tile(x, (8, 1)), domain="real", observed=np.tile(observed, (8, 1)))
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (16,)), jaxvae.MLPDecoder((D,), (16,)), jaxvae.SharedScale())
    options = {"epochs": 30, "seed": 0, "batch_size": 32, "progress": False, "optimizer": optax.adam(1e-2)}
    run = jaxvae.train(model, dataset, loss=partial(jaxvae.iwae_loss, num_samples=5), **options)
    measured = run.evaluate(dataset.take(slice(N)), num_samples=50)
    assert measured["nll"] < -exact_log_p().mean() + 1.5
    run.save(tmp_path / "run")
    run = jaxvae.load(tmp_path / "run")
    holed = np.where(observed, x, np.nan)
    filled = run.impute(holed, num_samples=200, num_draws=4)
    missing = ~observed
    error, of_the_mean = (
        np.sqrt(np.square((guess - x)[missing]).mean()) for guess in (filled.mean, np.broadcast_to(OFFSET, x.shape))
    )
    assert error < 0.9 * of_the_mean
    assert filled.draws.shape == (N, 4, D)
    assert run.encode(holed).shape == (N, 2)
    assert run.reconstruct(holed).shape == (N, D)
    whole = dataclasses.replace(dataset.take(slice(N)), arrays={"x": dataset.x[:N]})
    np.testing.assert_array_equal(run.encode(whole), run.encode(whole.x))  # everything is observed
    plain = jaxvae.train(model, whole, epochs=1, validation=0, progress=False)
    np.testing.assert_array_equal(plain.encode(whole), plain.encode(whole.x))
    with pytest.raises(ValueError, match="'table' has missing entries, and the training data have none"):
        plain.evaluate(dataset)
    with pytest.raises(ValueError, match="'table' does not say which entries are observed"):
        run.impute(whole)


def test_a_numpy_mask_is_refused_and_not_dropped():
    x, observed = table()
    dataset = data.from_arrays("table", x, domain="real", observed=observed)
    run = jaxvae.train(linear_gaussian_with_parameters(), dataset, epochs=1, validation=0, progress=False)
    with pytest.raises(TypeError, match="x is a masked array, and its mask would be ignored"):
        run.impute(np.ma.masked_array(x, ~observed))
    with pytest.raises(TypeError, match="observed is a masked array"):
        data.from_arrays("table", x, domain="real", observed=np.ma.masked_array(observed, ~observed))


def linear_gaussian_with_parameters():
    return jaxvae.VAE(jaxvae.MLPEncoder(2, (4,)), jaxvae.MLPDecoder((D,), (4,)), jaxvae.SharedScale())


def test_a_validation_set_is_made_like_the_training_data():
    x, observed = table()
    holed = data.from_arrays("holed", x, domain="real", observed=observed)
    whole = data.from_arrays("whole", x, domain="real")
    options = {"epochs": 1, "progress": False}
    run = jaxvae.train(linear_gaussian_with_parameters(), holed, validation=whole, **options)
    assert np.isfinite(run.history[-1]["validation"]["loss"])
    with pytest.raises(ValueError, match="'holed' has missing entries, and the training data have none"):
        jaxvae.train(linear_gaussian_with_parameters(), whole, validation=holed, **options)


@pytest.mark.parametrize("wrap", [lambda record: record, lambda record: Masked(record, jnp.ones((), bool))])
def test_categories_are_filled_in_the_units_of_x(wrap, key):
    """Intensities where x is one variable's levels; codes in a table of mixed columns."""
    logits = np.log(np.float32([0.1, 0.2, 0.7]))
    prior_alone = lambda x: (jnp.zeros((len(x), 1)), jnp.zeros((len(x), 1)))  # noqa: E731
    levels = jaxvae.VAE(prior_alone, lambda z: jnp.broadcast_to(logits, (len(z), 2, 3)), lambda o: wrap(Categorical(o)))
    mixed = jaxvae.VAE(
        prior_alone,
        lambda z: jnp.broadcast_to(logits, (len(z), 1, 3)),
        lambda o: wrap(Heterogeneous([Categorical(o), DiagGaussian(jnp.full((len(o), 1), 7.0), -2.0)], [[0], [1]])),
    )
    observed = np.array([[True, False], [False, True]])
    deviation = np.sqrt(0.2 + 4 * 0.7 - 1.6**2)
    for model, x, mean, std in (
        (levels, np.array([[1.0, 0.0], [0.0, 0.5]]), 0.8, deviation / 2),
        (mixed, np.array([[2.0, 0.0], [0.0, 7.5]]), 1.6, deviation),
    ):
        feed = data.evaluation_feed(data.from_arrays("x", x, domain="real", observed=observed), 2)
        filled = evaluation.impute(model, {}, (), *feed, key=key, num_samples=2000, num_draws=300)
        assert filled.mean[1, 0] == pytest.approx(mean, abs=1e-4)
        assert filled.std[1, 0] == pytest.approx(std, rel=0.1)
        assert filled.draws[1, :, 0].mean() == pytest.approx(mean, abs=5 * std / np.sqrt(300))
        assert filled.mean[0, 0] == x[0, 0]


def test_where_no_sample_has_a_weight_nothing_is_drawn(key):
    """An observed NaN: its own example is filled with NaN, and not with draws of the latent 0; in float64 mode too."""
    model = jaxvae.VAE(lambda x: (x[:, :1] * 0, x[:, :1] * 0), lambda z: jnp.repeat(z, 2, axis=1))
    source = {"x": jnp.float32([[jnp.nan, 0], [1, 0]]), "index": jnp.arange(2)}
    source["observed"] = jnp.array([[True, False]] * 2)
    with jax.enable_x64(True):
        filled = evaluation.impute(model, {}, (), source, jnp.arange(2)[None], key=key, num_samples=4, num_draws=3)
    np.testing.assert_array_equal(np.isnan(filled.draws).all(axis=(1, 2)), [True, False])
    np.testing.assert_array_equal(np.isnan(filled.effective_samples), [True, False])
    assert np.isnan(filled.mean[0]).all()
    assert np.isfinite(filled.draws[1]).all()


def test_a_narrow_model_is_summed_in_float32(key):
    """Two thousand samples of one half: in bfloat16 a sum stops growing at 256."""
    model = jaxvae.VAE(
        lambda x: (jnp.zeros((len(x), 1), jnp.bfloat16), jnp.zeros((len(x), 1), jnp.bfloat16)),
        lambda z: jnp.zeros((len(z), 2), jnp.bfloat16),
    )
    dataset = data.from_arrays("x", np.ones((1, 2)), observed=np.array([[True, False]]))  # a batch of one
    feed = data.evaluation_feed(dataset, 1)
    narrow = lambda batch, *, key: batch | {"x": batch["x"].astype(jnp.bfloat16)}  # noqa: E731
    filled = evaluation.impute(model, {}, (), *feed, key=key, num_samples=2000, prepare=narrow)
    assert filled.std[0, 1] == pytest.approx(0.5, abs=0.02)
    assert filled.effective_samples[0] == pytest.approx(2000, rel=1e-3)
