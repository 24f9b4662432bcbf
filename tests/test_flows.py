"""Flows against the determinants of their Jacobians, integrals on a grid, and the Gaussian that they begin as."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from variants import SHAPE, batch

import jaxvae
from jaxvae.distributions import DiagGaussian, FullGaussian, StandardNormal
from jaxvae.flows import (
    AffineCoupling,
    Autoregressive,
    FlowPosterior,
    FullCovariance,
    Planar,
    SplineCoupling,
    Sylvester,
)
from jaxvae.keys import example_keys
from jaxvae.networks.masked import hidden_degrees
from jaxvae.priors import FlowPrior

B, D, C = 5, 4, 3
X, CONTEXT = (np.float32(np.random.default_rng(seed).normal(size=(B, size))) for seed, size in ((0, D), (1, C)))
BIJECTIONS = {
    "planar": Planar(),
    "sylvester": Sylvester(),
    "sylvester of two units": Sylvester(2),
    "triangular sylvester": Sylvester(orthogonal=False, reverse=True),
    "autoregressive": Autoregressive((8, 8)),
    "autoregressive, gated": Autoregressive((8,), reverse=True, gated=True),
    "affine coupling": AffineCoupling((8,)),
    "spline coupling": SplineCoupling((8,), reverse=True),
}
every_bijection = pytest.mark.parametrize("name", BIJECTIONS)
with_and_without = pytest.mark.parametrize(
    "context", [pytest.param((), id="alone", marks=pytest.mark.slow), pytest.param((CONTEXT,), id="of a context")]
)


def moved(params, seed=3, scale=0.5):
    """Parameters away from where they start."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + jnp.asarray(rng.normal(size=leaf.shape, scale=scale)) for leaf in leaves])


@every_bijection
@with_and_without
def test_the_determinant_is_that_of_the_jacobian_and_the_inverse_undoes_it(name, context, x64):
    bijection = BIJECTIONS[name]
    x, *context = (jnp.asarray(each, x64) for each in (X, *context))
    start = jax.jit(bijection.init)(jax.random.key(0), x, *context)

    @jax.jit
    def both(params):
        y, log_det = bijection.apply(params, x, *context)
        of_one = lambda x, *own: bijection.apply(params, x[None], *(each[None] for each in own))[0][0]  # noqa: E731
        jacobian = jax.vmap(jax.jacfwd(of_one))(x, *context)
        back = bijection.apply(params, y, *context, method="inverse") if hasattr(bijection, "inverse") else None
        return y, log_det, jacobian, back

    y, *_ = both(start)
    if name != "autoregressive, gated":
        np.testing.assert_allclose(y, X, atol=1e-6)  # it begins as the identity
    y, log_det, jacobian, back = both(moved(start))
    assert np.abs(y - X).max() > 0.1
    sign, expected = np.linalg.slogdet(jacobian)
    assert (sign == 1).all()
    np.testing.assert_allclose(log_det, expected, atol=1e-5)
    if back is not None:
        np.testing.assert_allclose(back[0], X, atol=1e-5)
        np.testing.assert_allclose(back[1], -log_det, atol=1e-5)


def test_an_autoregressive_value_depends_on_earlier_ones_alone():
    """The mask is not off by one: value i is scaled and shifted by those before it, all of them, and by the context."""
    for reverse in (False, True):
        bijection = Autoregressive((12, 12), reverse=reverse)
        params = moved(jax.jit(bijection.init)(jax.random.key(0), X, CONTEXT), scale=1.0)
        y = lambda x, c, p=params, b=bijection: b.apply(p, x[None], c[None])[0][0]  # noqa: E731
        of_x, of_context = jax.jit(jax.vmap(jax.jacfwd(y, argnums=(0, 1))))(X, CONTEXT)
        depends = np.any(of_x, axis=0)  # at some x: rectified units see nothing at others
        np.testing.assert_array_equal(depends[::-1, ::-1] if reverse else depends, np.tri(D, dtype=bool))
        assert np.any(of_context, axis=0).all()  # the first value too


def test_hidden_layers_that_are_narrower_than_x_see_all_of_it():
    """The last value is told all the others, by few units; not the first few of them alone."""
    x, bijection = jnp.float32(np.random.default_rng(0).normal(size=(1, 12))), Autoregressive((3,))
    params = jax.tree.map(lambda leaf: jnp.abs(leaf) + 1, bijection.init(jax.random.key(0), x))
    depends = jax.jacfwd(lambda x: bijection.apply(params, x)[0])(jnp.abs(x))[0, :, 0] != 0
    assert depends[-1].all()
    np.testing.assert_array_equal(depends, depends & np.tri(12, dtype=bool))
    assert hidden_degrees(5, 3).tolist() == [0, 1, 2, 0, 1]


def test_an_autoregressive_flow_is_undone_in_the_wider_of_the_types(x64):
    """Float32 values and float64 parameters: what float64 mode makes of a model's draws."""
    bijection = Autoregressive((4,))
    params = moved(bijection.init(jax.random.key(0), X))
    assert params["params"]["kernel_0"].dtype == x64
    y, _ = bijection.apply(params, X)
    back, _ = bijection.apply(params, y.astype(jnp.float32), method="inverse")
    assert back.dtype == x64
    np.testing.assert_allclose(back, X, atol=1e-5)


@pytest.mark.parametrize("units", [1, 3, D])
def test_a_sylvester_flow_turns_by_householder_reflections(units, x64):
    """One after the other, in NumPy; a normal of no length reflects nothing."""
    params = moved(Sylvester(units).init(jax.random.key(0), X), scale=1.0)["params"]
    params["reflections"] = params["reflections"].at[:, : D if units > 1 else 0].set(0)
    own = {name: np.asarray(value)[0] for name, value in params.items()}
    q = np.eye(D, units)
    for normal in own["reflections"].reshape(units, D):
        length = np.linalg.norm(normal)
        q = q - 2 * np.outer(normal, normal @ q) / length**2 if length else q

    def triangular(name):
        matrix = np.diag(np.tanh(own[f"{name}_diagonal"]))
        matrix[np.triu_indices(units, 1)] = own[name]
        return matrix

    y, _ = Sylvester(units).apply({"params": params}, X)
    bend = np.tanh(X @ q @ triangular("inner").T + own["offset"])
    np.testing.assert_allclose(y, X + bend @ triangular("outer").T @ q.T, rtol=1e-9)
    for dtype, tolerance in ((jnp.float32, 1e-5), (jnp.bfloat16, 0.1)):  # parameters from a file, say
        narrow = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        np.testing.assert_allclose(Sylvester(units).apply({"params": narrow}, X)[0], y, atol=tolerance)


@pytest.mark.parametrize("name", ["sylvester", "spline coupling"])
def test_a_flows_density_integrates_to_one(name, x64):
    """On a grid: of what is drawn by the density that is drawn with it, of a prior by its own."""
    points = np.linspace(-9, 9, 401)
    grid = np.stack(np.meshgrid(points, points), axis=-1).reshape(-1, 2)
    params = moved(jax.jit(BIJECTIONS[name].init)(jax.random.key(0), grid[:1]), scale=0.2)
    y, log_det = jax.jit(BIJECTIONS[name].apply)(params, grid)
    # The base's mass, seen through the change of variables: det is positive and the cells do not overlap.
    density = np.exp(np.asarray(StandardNormal().log_prob(y) + log_det))
    assert density.sum() * (points[1] - points[0]) ** 2 == pytest.approx(1, abs=2e-3)


def test_a_full_gaussian_is_scipys(key):
    rng = np.random.default_rng(0)
    mean, factor = rng.normal(size=(B, D)), np.tril(rng.normal(size=(B, D, D)))
    factor[:, range(D), range(D)] = np.exp(rng.normal(size=(B, D)))
    above = factor + np.triu(rng.normal(size=(D, D)), 1)  # is not looked at
    record = FullGaussian(jnp.float32(mean), jnp.float32(above))
    expected = [stats.multivariate_normal(m, f @ f.T).logpdf(x) for m, f, x in zip(mean, factor, X, strict=True)]
    np.testing.assert_allclose(jax.jit(FullGaussian.log_prob)(record, jnp.float32(X)), expected, rtol=1e-4)
    draws = np.asarray(jax.vmap(lambda key: record.sample(key=key))(jax.random.split(key, 20_000)), np.float64)
    np.testing.assert_allclose(draws.mean(axis=0), mean, atol=0.15)
    covariance = np.einsum("sbi,sbj->bij", draws - mean, draws - mean) / len(draws)
    np.testing.assert_allclose(covariance, factor @ factor.transpose(0, 2, 1), atol=0.5, rtol=0.05)


# In a VAE


def couplings():
    """New ones: a module that two parts have is one module, with one set of parameters."""
    return AffineCoupling((8,)), SplineCoupling((8,), reverse=True)


POSTERIORS = {
    "autoregressive": FlowPosterior((Autoregressive((8,)), Autoregressive((8,), reverse=True))),
    "planar": FlowPosterior((Planar(), Planar())),
    "full covariance": FullCovariance(),
    "couplings": FlowPosterior(couplings()),
}


def model_of(posterior=DiagGaussian, prior=StandardNormal()):  # noqa: B008
    encoder = jaxvae.MLPEncoder(D, (16,), context_dim=None if posterior is DiagGaussian else C)
    return jaxvae.VAE(encoder, jaxvae.MLPDecoder(SHAPE, (16,)), posterior=posterior, prior=prior)


def init(model):
    return jax.jit(model.init)(jax.random.key(0), batch(1)["x"])


def losses_of(model, params, key):
    """-ELBO by the sampled rate, and the bound of three samples."""
    sampled = partial(jaxvae.objectives.sampled_vae_loss, model)
    bound = partial(jaxvae.iwae_loss, model, num_samples=3)
    run = lambda params: [loss(params, (), batch(B), key=key, step=0)[0] for loss in (sampled, bound)]  # noqa: E731
    return jax.jit(run)(params)


@pytest.mark.parametrize(
    "name", [*(pytest.param(each, marks=pytest.mark.slow) for each in POSTERIORS if each != "couplings"), "couplings"]
)
def test_an_untrained_flow_is_the_gaussian_and_its_loss_the_gaussians(name, key):
    model = model_of(POSTERIORS[name], FlowPrior(couplings(), D))
    params = init(model)
    plain = {"params": {part: params["params"][part] for part in ("encoder", "decoder")}}
    np.testing.assert_allclose(losses_of(model, params, key), losses_of(model_of(), plain, key), rtol=1e-5)


def test_a_flow_reports_the_density_of_what_it_draws(key):
    """For keys of the batch and of each example; the inverse finds the density that the draw came with."""
    model = model_of(POSTERIORS["autoregressive"])
    params = moved(init(model), scale=0.1)

    @jax.jit
    def draw(key):
        posterior = model.apply(params, batch(B)["x"], method="encode")
        z, log_prob = posterior.sample_and_log_prob(key=key)
        return z, log_prob, posterior.log_prob(z), posterior.sample(key=key)

    for each in (key, example_keys(key, jnp.arange(B))):
        z, drawn, asked, again = draw(each)
        np.testing.assert_allclose(asked, drawn, rtol=1e-4)
        np.testing.assert_array_equal(z, again)
    assert len({float(value) for value in z[:, 0]}) == B


def test_a_flow_prior_is_drawn_from_what_it_scores(key):
    """Its samples, sent the other way, are standard normal."""
    prior = FlowPrior(couplings(), 2)
    params = moved(jax.jit(prior.init)(key))
    record = prior.apply(params)

    @jax.jit
    def draw():
        samples = record.sample(20_000, key=key)
        noise, log_det = record.chain.apply(record.variables, samples, method="forward")
        return samples, noise, record.log_prob(samples), StandardNormal().log_prob(noise) + log_det

    samples, noise, scored, expected = draw()
    np.testing.assert_allclose(scored, expected, rtol=1e-5)
    for column in np.asarray(noise, np.float64).T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert stats.kstest(np.asarray(samples[:, 0], np.float64), "norm").pvalue < 1e-6  # where the prior is not
    assert record.mean.shape == (1, 2)


def test_a_flow_trains_and_goes_beyond_the_gaussian(key):
    """A posterior that no diagonal Gaussian is: an exact one of two correlated latents, by reverse KL."""
    precision = np.array([[2.0, 1.6], [1.6, 2.0]])
    gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    full = FlowPosterior((Autoregressive((8,)), Autoregressive((8,), reverse=True)))
    zeros = jnp.zeros((1, 2))

    def divergence(posterior, parameters, key):
        """KL(q || N(0, precision⁻¹)) from 256 draws."""
        mean, log_var, params = parameters
        record = posterior(mean, log_var) if params is None else posterior.apply(params, mean, log_var)
        many = jax.vmap(lambda key: record_draw(record, key))(jax.random.split(key, 256))
        z, log_q = many[0][:, 0], many[1][:, 0]
        log_p = -0.5 * jnp.einsum("si,ij,sj->s", z, precision, z) + 0.5 * np.linalg.slogdet(precision)[1]
        return (log_q - log_p + np.log(2 * np.pi)).mean()

    def fitted(posterior, params):
        start = (zeros, zeros, params)

        def step(parameters, key):
            gradient = jax.grad(partial(divergence, posterior))(parameters, key)
            return jax.tree.map(lambda p, g: p - 0.05 * g, parameters, gradient), None

        end, _ = jax.lax.scan(step, start, jax.random.split(key, 400))
        return jax.vmap(partial(divergence, posterior, end))(jax.random.split(jax.random.key(9), 50)).mean()

    diagonal, flow = jax.jit(lambda: (fitted(DiagGaussian, None), fitted(full, full.init(key, zeros, zeros))))()
    assert diagonal == pytest.approx(gap, abs=0.01)  # what no diagonal one gets below
    assert flow < 0.01


def record_draw(record, key):
    if hasattr(record, "sample_and_log_prob"):
        return record.sample_and_log_prob(key=key)
    z = record.sample(key=key)
    return z, record.log_prob(z)


# What cannot be


def test_what_does_not_fit_is_refused(key):
    with pytest.raises(ValueError, match=r"x \[B, D\], at least one number, got \(5, 2, 2\)"):
        Planar().init(key, X.reshape(5, 2, 2))
    with pytest.raises(ValueError, match=r"the context must be \(5, C\), one row for each example, got \(4, 3\)"):
        Planar().init(key, X, CONTEXT[:4])
    with pytest.raises(ValueError, match=r"takes one context .*, got 2: concatenate them"):
        Planar().init(key, X, CONTEXT, CONTEXT)
    with pytest.raises(ValueError, match="units must be at most D = 4, and D in a triangular flow, got 5"):
        Sylvester(5).init(key, X)
    with pytest.raises(ValueError, match="a coupling needs two values at least, got D = 1"):
        AffineCoupling().init(key, X[:, :1])
    with pytest.raises(ValueError, match="hidden must hold at least one width"):
        Autoregressive(())
    with pytest.raises(ValueError, match="bound must be a positive number, got -1"):
        SplineCoupling(bound=-1)
    with pytest.raises(ValueError, match="num_bins must be at least 2, got 1"):
        SplineCoupling(num_bins=1)
    with pytest.raises(ValueError, match=r"num_bins must be below 1000, as a bin has 0\.001 at least, got 1000"):
        SplineCoupling(num_bins=1000)


def test_what_a_planar_flow_cannot_do_says_so(key):
    prior = FlowPrior((Planar(),), D)
    record = prior.apply(jax.jit(prior.init)(key))
    assert jax.eval_shape(record.log_prob, X).shape == (B,)
    with pytest.raises(TypeError, match=r"a Planar has no inverse: .* as a prior nothing can be drawn"):
        record.sample(3, key=key)
    model = model_of(POSTERIORS["planar"])
    bound = partial(jaxvae.iwae_loss, model, num_samples=2, doubly_reparameterized=True)
    with pytest.raises(TypeError, match="a Planar has no inverse"):
        jax.eval_shape(partial(bound, step=0), init(model), (), batch(B), key=key)


@pytest.mark.parametrize("name", BIJECTIONS)
@pytest.mark.parametrize("dtype", ["int32", "bool", "float16"])
def test_what_is_narrow_is_not_rounded_on_the_way_out(name, dtype, key):
    """A coupling put its values back into the type of x: of integers what was changed lost its fraction."""
    bijection = BIJECTIONS[name]
    x = jnp.asarray(np.arange(B * D).reshape(B, D) % 3).astype(dtype)
    params = bijection.init(key, X, method="forward")
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    y, log_det = bijection.apply(params, x, method="forward")
    expected = bijection.apply(params, x.astype(jnp.float32), method="forward")
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(log_det, expected[1], rtol=1e-5, atol=1e-6)
