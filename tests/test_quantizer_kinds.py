"""Every quantiser against what all promise, and each against its own oracle."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats
from variants import SHAPE, VARIANTS, batch

from jaxvae import VQVAE, codebook, losses, make_eval_step, vq_vae_loss
from jaxvae.objectives.quantized import _of_positions
from jaxvae.quantizers import (
    EMACodebook,
    FiniteScalar,
    GradientCodebook,
    Grouped,
    GumbelCodebook,
    LookupFree,
    Projected,
    Residual,
    SimVQ,
)
from jaxvae.quantizers._parts import call, encoded_of

D = 4
KINDS = {
    "cosine": EMACodebook(8, cosine=True, restart_threshold=0.5),
    "partly frozen": EMACodebook(8, frozen=3, decay=0.5, restart_threshold=0.9),
    "rotation": GradientCodebook(8, cosine=True, estimator="rotation"),
    "gradient, partly frozen": GradientCodebook(8, frozen=5, estimator="rotation"),
    "sim": SimVQ(8),
    "gumbel": GumbelCodebook(8, 0.7, kl_weight=0.3),
    "finite scalar": FiniteScalar((5, 4, 3, 2)),
    "projected": Projected(FiniteScalar((8, 5)), 2),
    "projected codebook": Projected(EMACodebook(8), 3),
    "lookup-free": LookupFree(D, inverse_temperature=2.0),
    "spherical": LookupFree(D, spherical=True, inverse_temperature=2.0, estimator="rotation"),
    "residual": Residual(EMACodebook(6, restart_threshold=0.5), 3),
    "residual, finite scalar": Residual(FiniteScalar((5, 3, 3, 5), squash="clip"), 2, shrink=0.5),
    "groups of residual": Grouped(Residual(GradientCodebook(6), 2), 2),
    "residual of groups": Residual(Grouped(GradientCodebook(6), 2), 2),
}
SLOW = {
    *("cosine", "rotation", "gradient, partly frozen", "projected codebook", "residual of groups"),
    *("groups of residual", "residual, finite scalar", "spherical"),
}
by_kind = pytest.mark.parametrize(
    "quantizer",
    [pytest.param(each, id=name, marks=[pytest.mark.slow] * (name in SLOW)) for name, each in KINDS.items()],
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@partial(jax.jit, static_argnums=0)
def start(quantizer, encoded):
    return quantizer.init(D, key=jax.random.key(5), encoded=encoded)


@partial(jax.jit, static_argnums=0)
def run(quantizer, params, state, encoded, mask=None):
    """What a step takes of it, and what it looks up; gradients are of a loss that reads all parts."""

    def loss(params, encoded):
        quantized = quantizer(params, state, encoded, mask=mask)
        counted = quantized.latent if mask is None else jnp.where(mask[..., None], quantized.latent, 0)
        weights = jnp.cos(jnp.arange(encoded[0].size)).reshape(1, *encoded.shape[1:])  # any that are not all alike
        read = (counted.astype(jnp.float32) * weights).sum()
        return (quantized.commitment + quantized.loss).sum() + read, quantized

    grads, quantized = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, encoded)
    after, metrics = quantizer.update(
        state, encoded_of(quantized, encoded), quantized.indices, mask=mask, key=jax.random.key(7)
    )
    return quantized, after, metrics, grads, quantizer.look_up(params, state, quantized.indices)


# What all promise


@by_kind
def test_vectors_are_those_of_the_indices_and_padding_counts_nowhere(quantizer):
    """Also with fewer vectors to start from than there are codes, and with one position of one example."""
    encoded = normal(1, 5, 3, D)
    params, state = start(quantizer, encoded.reshape(-1, D)[:7] + 0.3)
    short = run(quantizer, params, state, encoded)
    quantized, after, metrics, grads, looked_up = short
    np.testing.assert_allclose(looked_up, quantized.vectors, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(quantized.latent, quantized.vectors, rtol=1e-6, atol=1e-6)
    counts = quantizer.num_codes if isinstance(quantizer.num_codes, tuple) else (quantizer.num_codes,)
    indices = np.asarray(quantized.indices).reshape(5, 3, -1)
    assert indices.shape[-1] == len(counts)
    assert ((indices >= 0) & (indices < np.array(counts))).all()
    assert quantized.indices.dtype == jnp.int32
    assert quantized.commitment.shape == quantized.loss.shape == (5,)
    listed = quantizer.codes(params, state)
    if len(counts) == 1:
        np.testing.assert_allclose(listed[quantized.indices], quantized.vectors, rtol=1e-6, atol=1e-6)
    assert (np.abs(grads[1]).max(axis=(0, 1)) > 0).all()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads[0]))

    padded = jnp.full((7, 3, D), jnp.nan).at[:5].set(encoded)
    mask = jnp.broadcast_to(jnp.arange(7)[:, None] < 5, (7, 3))
    long, long_after, long_metrics, long_grads, _ = run(quantizer, params, state, padded, mask)
    np.testing.assert_array_equal(long.indices[:5], quantized.indices)
    for field in ("commitment", "loss"):
        np.testing.assert_allclose(getattr(long, field)[:5], getattr(quantized, field), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(getattr(long, field)[5:], 0)
    chex.assert_trees_all_close(long_after, after, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(long_metrics, metrics, rtol=1e-5)
    chex.assert_trees_all_close(long_grads[0], grads[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(long_grads[1][:5], grads[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(long_grads[1][5:], 0)

    one = jax.eval_shape(partial(quantizer, params, state), encoded[:1, :1])
    assert one.vectors.shape == (1, 1, D)


@by_kind
@pytest.mark.slow
def test_a_network_of_half_precision_changes_no_choice(quantizer):
    encoded = normal(1, 5, 3, D).astype(jnp.bfloat16)
    params, state = start(quantizer, encoded.astype(jnp.float32).reshape(-1, D))
    half, after, _, _, _ = run(quantizer, params, state, encoded)
    assert half.latent.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(after))
    single = run(quantizer, params, state, encoded.astype(jnp.float32))[0]
    if not isinstance(quantizer, Residual | Grouped):  # whose rests are rounded
        np.testing.assert_array_equal(half.indices, single.indices)
    np.testing.assert_allclose(half.latent.astype(jnp.float32), half.vectors, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", KINDS)
def test_parameters_state_and_vectors_are_float32_and_indices_int32_in_float64_arithmetic_too(name, x64):
    quantizer, key = KINDS[name], jax.random.key(0)

    def step(encoded, mask):
        params, state = quantizer.init(D, key=key, encoded=encoded)
        quantized = quantizer(params, state, encoded, mask=mask)
        after, _ = quantizer.update(state, encoded_of(quantized, encoded), quantized.indices, mask=mask, key=key)
        return params, state, quantized, after

    for dtype in (jnp.float32, x64):
        shapes = jax.ShapeDtypeStruct((5, 3, D), dtype), jax.ShapeDtypeStruct((5, 3), bool)
        params, state, quantized, after = jax.eval_shape(step, *shapes)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((params, state)))
        assert quantized.vectors.dtype == jnp.float32
        assert quantized.indices.dtype == jnp.int32
        assert quantized.latent.dtype == dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


@pytest.mark.parametrize(
    "quantizer",
    [
        EMACodebook(5, temperature=0.7),
        pytest.param(GradientCodebook(5, temperature=0.7, cosine=True), marks=pytest.mark.slow),
        pytest.param(SimVQ(5, temperature=0.7), marks=pytest.mark.slow),
        FiniteScalar((3, 4), squash="clip", temperature=0.5),
        LookupFree(2, temperature=1.5),
        pytest.param(LookupFree(2, spherical=True, temperature=1.5), marks=pytest.mark.slow),
    ],
    ids=lambda quantizer: type(quantizer).__name__,
)
def test_draws_follow_the_distances_and_belong_to_the_example(quantizer):
    """p(k|z) ∝ exp(-‖z - e‖² / T) by enumeration; without a key the nearest."""
    vector, draws = jnp.array([0.3, -0.2]), 20_000
    params, state = quantizer.init(2, key=jax.random.key(3))
    assert quantizer.needs_key
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(draws))
    drawn = jax.jit(partial(quantizer, params, state))(jnp.tile(vector, (draws, 1)), key=keys)
    codes = np.asarray(quantizer.codes(params, state), np.float64)
    seen = np.asarray(drawn.encoded[0] if drawn.encoded is not None else vector, np.float64)
    distances = np.square(seen - codes).sum(axis=1)
    expected = np.exp(-distances / quantizer.temperature)
    expected /= expected.sum()
    counts = np.bincount(drawn.indices, minlength=len(codes))
    assert (np.square(counts - draws * expected) / (draws * expected)).sum() < 30  # chi-squared of at most 11
    again = quantizer(params, state, vector[None], key=keys[17:18])
    assert again.indices[0] == drawn.indices[17]
    assert quantizer(params, state, vector[None]).indices[0] == distances.argmin()


def test_frozen_codes_do_not_move_and_do_not_restart():
    encoded = normal(1, 40, 3, D)
    for quantizer in (KINDS["partly frozen"], EMACodebook(8, frozen=8, restart_threshold=0.9)):
        params, state = start(quantizer, encoded)
        state = {"frequency": jnp.full(8, 1e-4), "moment": 1e-4 * quantizer.codes(params, state)}
        _, after, metrics, _, _ = run(quantizer, params, state, encoded + 5)
        before, moved = quantizer.codes(params, state), quantizer.codes(params, after)
        np.testing.assert_array_equal(moved[: quantizer.frozen], before[: quantizer.frozen])
        assert (np.abs(moved - before)[quantizer.frozen :].max(axis=1) > 0.5).all()
        assert metrics["restarts"] <= 8 - quantizer.frozen
    params, state = GradientCodebook(8, frozen=8).init(D, key=jax.random.key(0))
    assert params == {}
    assert state["frozen"].shape == (8, D)


# How the gradient passes


def test_the_rotation_trick_is_the_rotation_and_scaling_that_takes_the_vector_to_its_code(x64):
    rng = np.random.default_rng(0)
    encoded, code = rng.normal(size=(2, 3)), rng.normal(size=(2, 3))
    value, pull = jax.vjp(codebook.rotation_trick, jnp.asarray(encoded), jnp.asarray(code))
    np.testing.assert_array_equal(value, code)
    for i in range(2):
        e, q = (v / np.linalg.norm(v) for v in (encoded[i], code[i]))
        w = (e + q) / np.linalg.norm(e + q)
        turn = np.eye(3) - 2 * np.outer(w, w) + 2 * np.outer(q, e)
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        scaled = turn * np.linalg.norm(code[i]) / np.linalg.norm(encoded[i])
        np.testing.assert_allclose(scaled @ encoded[i], code[i], rtol=1e-12)
        for j in range(3):
            seed = np.zeros((2, 3))
            seed[i, j] = 1
            to_encoded, to_code = pull(jnp.asarray(seed))
            np.testing.assert_allclose(to_encoded[i], scaled[j], rtol=1e-5)
            np.testing.assert_array_equal(to_code, 0)


@pytest.mark.parametrize(
    ("vector", "code"), [([0.0, 0.0], [1.0, 0.0]), ([1.0, 0.0], [0.0, 0.0]), ([1.0, 2.0], [-2.0, -4.0])]
)
def test_where_there_is_no_rotation_the_gradient_goes_straight_through(vector, code):
    vector, code = jnp.array([vector]), jnp.array([code])
    value, pull = jax.vjp(lambda e: codebook.rotation_trick(e, code), vector)
    np.testing.assert_array_equal(value, code)
    np.testing.assert_array_equal(pull(jnp.array([[0.3, -0.7]]))[0], np.float32([[0.3, -0.7]]))


# Each against its oracle


@pytest.mark.parametrize("levels", [(8, 5, 4), pytest.param((2, 3), marks=pytest.mark.slow), (7,)])
def test_finite_scalar_levels_are_the_published_ones_and_indices_a_bijection(levels):
    quantizer = FiniteScalar(levels)
    params, state = quantizer.init(len(levels), key=jax.random.key(0))
    codes = np.asarray(quantizer.codes(params, state))
    assert len(codes) == quantizer.num_codes == np.prod(levels) == len(np.unique(codes, axis=0))
    for dim, count in enumerate(levels):
        half = count // 2
        np.testing.assert_allclose(np.unique(codes[:, dim]), (np.arange(count) - half) / half, rtol=1e-6)
    encoded = np.concatenate(
        [normal(0, 200, len(levels)) * 2, np.full((1, len(levels)), 1e6), np.full((1, len(levels)), -1e6)]
    )
    counts = np.array(levels)
    half = (counts - 1) * (1 + 1e-3) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    bounded = half * np.tanh(encoded.astype(np.float64) + np.arctanh(offset / half)) - offset
    clear = np.abs(bounded - np.floor(bounded) - 0.5).min(axis=1) > 1e-4
    quantized = quantizer(params, state, jnp.asarray(encoded))
    np.testing.assert_allclose(
        np.asarray(quantized.vectors)[clear], (np.round(bounded) / (counts // 2))[clear], rtol=1e-6
    )
    np.testing.assert_array_equal(codes[quantized.indices], quantized.vectors)
    grad = jax.grad(lambda e: quantizer(params, state, e).latent.sum())(jnp.asarray(encoded[:5]))
    slope = half * (1 - np.square(np.tanh(encoded[:5] + np.arctanh(offset / half)))) / (counts // 2)
    np.testing.assert_allclose(grad, slope, rtol=2e-4, atol=1e-5)
    clipped = FiniteScalar(levels, squash="clip")
    np.testing.assert_array_equal(clipped(params, state, jnp.asarray(codes)).vectors, codes)


def test_the_entropy_of_lookup_free_codes_is_that_of_their_enumeration(x64):
    """H(p(c|z)) over all 2^D codes, and Σ h(p̄), which bounds H(mean p) from above and meets it where bits are one."""
    for spherical in (False, True):
        quantizer = LookupFree(3, spherical=spherical, entropy_weight=0.7, diversity=0.4, inverse_temperature=1.3)
        encoded = np.asarray(normal(3, 4, 2, 3), np.float64)
        quantized = quantizer({}, {}, jnp.asarray(encoded))
        codes = np.asarray(quantizer.codes({}, {}), np.float64)
        seen = encoded / np.linalg.norm(encoded, axis=-1, keepdims=True) if spherical else encoded
        logits = -1.3 * np.square(seen[..., None, :] - codes).sum(axis=-1)
        p = np.exp(logits)
        p /= p.sum(axis=-1, keepdims=True)
        entropy = -(p * np.log(p)).sum(axis=-1).mean(axis=1)
        np.testing.assert_allclose(quantized.metrics["bit_entropy"], entropy.mean(), rtol=1e-5)
        ones = np.stack([p[..., codes[:, d] > 0].sum(axis=-1).mean() for d in range(3)])
        evenness = -(ones * np.log(ones) + (1 - ones) * np.log(1 - ones)).sum()
        np.testing.assert_allclose(quantized.loss, 0.7 * (entropy - 0.4 * evenness), rtol=1e-4)
        mean = p.mean(axis=(0, 1))
        assert -(mean * np.log(mean)).sum() <= evenness + 1e-12
        nearest = np.square(seen[..., None, :] - codes).sum(axis=-1).argmin(axis=-1)
        np.testing.assert_array_equal(quantized.indices, nearest)
        np.testing.assert_allclose(quantized.commitment, np.square(seen - codes[nearest]).mean(axis=(1, 2)), rtol=1e-5)


def test_bits_that_all_vectors_share_have_a_gradient():
    """Where p̄ is 0 or 1 in float32 the entropy's slope is infinite: the gradient in closed form, in float64."""
    for spherical, far in ((False, -3.0), (False, 3.0), (True, 5.0)):
        quantizer = LookupFree(3, spherical=spherical, entropy_weight=0.7, diversity=0.4)
        encoded = normal(3, 4, 2, 3) * 0.02 + jnp.array([[[0, far, 0]]])
        scale = 4 * quantizer.inverse_temperature / np.sqrt(3 if spherical else 1)
        norm = np.linalg.norm(np.float64(encoded), axis=-1, keepdims=True) if spherical else 1.0
        unit = np.float64(encoded) / norm
        sigmoid = special.expit(scale * unit)
        mean = sigmoid.mean(axis=(0, 1)).clip(1e-300, 1 - 1e-16)
        slope = -scale * unit / 2 - 0.4 * (np.log1p(-mean) - np.log(mean)) / 2
        expected = 0.7 * scale * sigmoid * (1 - sigmoid) * slope
        if spherical:
            expected = (expected - unit * (unit * expected).sum(axis=-1, keepdims=True)) / norm
        grad = jax.grad(lambda z: quantizer({}, {}, z).loss.sum())(encoded)  # noqa: B023
        np.testing.assert_allclose(grad, expected, rtol=2e-3, atol=1e-4)
        assert np.abs(grad).max() > 1


def test_residual_vectors_and_rest_make_the_whole_and_the_first_levels_can_be_read_alone():
    quantizer = Residual(GradientCodebook(6), 3)
    encoded = normal(1, 5, 2, D)
    params, state = start(quantizer, encoded + 0.5)
    quantized, _, _, grads, _ = run(quantizer, params, state, encoded)
    rests = np.split(np.asarray(quantized.encoded), 3, axis=-1)
    codes = np.asarray(params["codes"])
    total, commitment = np.zeros((5, 2, D), np.float32), 0
    for level in range(3):
        np.testing.assert_allclose(rests[level], encoded - total, rtol=1e-5, atol=1e-6)
        distance = np.square(rests[level][..., None, :] - codes[level]).sum(axis=-1)
        np.testing.assert_array_equal(quantized.indices[..., level], distance.argmin(axis=-1))
        commitment += distance.min(axis=-1).mean(axis=1) / D / 3
        total = total + codes[level][distance.argmin(axis=-1)]
        read = quantizer.look_up(params, state, quantized.indices[..., : level + 1])
        np.testing.assert_allclose(read, total, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quantized.commitment, commitment, rtol=1e-5)

    def read(encoded):
        return quantizer(params, state, encoded).latent.sum()

    np.testing.assert_allclose(jax.grad(read)(encoded), 1.0)  # once, not once for each level
    for level in range(3):  # each book is moved by its own loss, and by no other level's commitment
        expected = np.zeros((6, D))
        chosen = np.asarray(quantized.indices[..., level])
        np.add.at(expected, chosen, 2 * (codes[level][chosen] - rests[level]) / (2 * D) / 3)
        np.testing.assert_allclose(grads[0]["codes"][level], expected, rtol=1e-4, atol=1e-5)


def test_residual_books_in_orthogonal_subspaces_are_groups():
    params, _ = Grouped(GradientCodebook(5), 2).init(D, key=jax.random.key(0))
    codes = params["codes"]
    apart = jnp.stack([jnp.pad(codes[0], ((0, 0), (0, 2))), jnp.pad(codes[1], ((0, 0), (2, 0)))])
    encoded = normal(2, 6, 3, D)
    grouped = Grouped(GradientCodebook(5), 2)(params, {}, encoded)
    residual = Residual(GradientCodebook(5), 2)({"codes": apart}, {}, encoded)
    np.testing.assert_array_equal(residual.indices, grouped.indices)
    np.testing.assert_allclose(residual.vectors, grouped.vectors, rtol=1e-6)


@pytest.mark.slow
def test_halving_levels_leave_no_more_than_the_last():
    depth = 6
    quantizer = Residual(LookupFree(1, entropy_weight=0.0), depth, shrink=0.5)
    encoded = jnp.linspace(-2, 2, 101)[:, None]  # codes ±1, ±½, ... : twice the books ±2⁻ⁱ on [-1, 1]
    left = jnp.abs(encoded - quantizer({}, {}, encoded).vectors)
    assert left.max() <= 2.0 ** -(depth - 1) + 1e-6
    assert left.max() > 2.0 ** -(depth - 1) - 0.02


def test_dropout_leaves_out_the_finest_levels_evenly_and_they_learn_nothing():
    quantizer, num = Residual(EMACodebook(6, decay=0.5, restart_threshold=0.0), 3, dropout=0.6), 3000
    encoded = normal(1, num, 2, D)
    params, state = start(quantizer, encoded[:20])
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(num))
    quantized = jax.jit(partial(call, quantizer))(params, state, encoded, key=keys)
    indices = np.asarray(quantized.indices)
    used = indices >= 0
    assert (used[:, 0] == used[:, 1]).all()  # an example's levels, not a position's
    assert (used[..., :-1] | ~used[..., 1:]).all()
    shares = np.bincount(used[:, 0].sum(axis=-1), minlength=4) / num
    np.testing.assert_allclose(shares, [0, 0.2, 0.2, 0.6], atol=0.03)
    np.testing.assert_allclose(
        quantizer.look_up(params, state, quantized.indices), quantized.vectors, rtol=1e-5, atol=1e-6
    )
    after, _ = quantizer.update(state, quantized.encoded, quantized.indices, key=jax.random.key(1))
    rests = np.split(np.asarray(quantized.encoded), 3, axis=-1)
    for level in range(3):
        own = jax.tree.map(lambda leaf: leaf[level], state)  # noqa: B023
        expected = codebook.ema_update(
            codebook.CodebookState(**own),
            rests[level][used[..., level]],
            indices[..., level][used[..., level]],
            decay=0.5,
        )
        np.testing.assert_allclose(after["frequency"][level], expected.frequency, rtol=1e-4, atol=1e-6)
    whole = quantizer(params, state, encoded[:5])
    assert (whole.indices >= 0).all()
    codes = quantizer.codes(params, state)
    squares = [np.square(rests[m] - codes[m][indices[..., m]]).mean(axis=(1, 2)) for m in range(3)]
    paid = np.where(used[:, 0], np.stack(squares, axis=1), 0).sum(axis=1) / used[:, 0].sum(axis=1)
    np.testing.assert_allclose(quantized.commitment, paid, rtol=1e-4, atol=1e-7)


def test_how_many_levels_are_used_says_nothing_of_the_codes_that_are_drawn():
    quantizer, num = Residual(GradientCodebook(2, temperature=1.0), 2, dropout=1.0), 4000
    params, _ = Residual(GradientCodebook(2), 2).init(1, key=jax.random.key(0))
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(num))
    drawn = jax.jit(partial(quantizer, params, {}))(jnp.zeros((num, 1)), key=keys).indices
    table = np.zeros((2, 2))
    np.add.at(table, (np.asarray(drawn[:, 0]), np.asarray(drawn[:, 1] >= 0, int)), 1)
    assert stats.chi2_contingency(table).pvalue > 1e-3


def test_sim_codes_under_the_identity_are_plain_ones_and_their_map_gets_the_codes_gradient():
    encoded = normal(1, 5, 3, D)
    params, state = start(SimVQ(8), encoded)
    plain = GradientCodebook(8)
    np.testing.assert_array_equal(params["map"], np.eye(D))
    expected, _, _, expected_grads, _ = run(plain, {"codes": state["codes"]}, {}, encoded)
    quantized, after, _, grads, _ = run(SimVQ(8), params, state, encoded)
    chex.assert_trees_all_close(quantized, expected, rtol=1e-6)
    np.testing.assert_allclose(grads[0]["map"], state["codes"].T @ expected_grads[0]["codes"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal(after, state)


def test_cosine_codes_and_vectors_are_compared_by_direction():
    quantizer = EMACodebook(8, cosine=True)
    encoded = normal(1, 5, 3, D)
    params, state = quantizer.init(D, key=jax.random.key(0))
    codes = quantizer.codes(params, state)
    np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-6)
    unit = encoded / np.linalg.norm(encoded, axis=-1, keepdims=True)
    quantized = quantizer(params, state, encoded)
    np.testing.assert_array_equal(quantized.indices, (unit @ codes.T).argmax(axis=-1))
    np.testing.assert_allclose(quantized.commitment, losses.commitment(unit, codes[quantized.indices]), rtol=1e-5)
    np.testing.assert_array_equal(quantizer(params, state, 1e3 * encoded).indices, quantized.indices)
    assert np.isfinite(quantizer(params, state, jnp.zeros((1, D))).latent).all()


def test_projected_by_the_identity_is_the_quantiser_itself():
    encoded = normal(1, 5, 3, D)
    inner = GradientCodebook(8)
    own, _ = start(inner, encoded)
    eye = {"kernel": jnp.eye(D), "bias": jnp.zeros(D)}
    params = {"down": eye, "up": eye, "quantizer": own}
    expected, _, _, expected_grads, _ = run(inner, own, {}, encoded)
    quantized, _, _, grads, _ = run(Projected(inner, D), params, {}, encoded)
    np.testing.assert_array_equal(quantized.indices, expected.indices)
    np.testing.assert_allclose(quantized.vectors, expected.vectors, rtol=1e-6)
    np.testing.assert_allclose(grads[1], expected_grads[1], rtol=1e-5)
    np.testing.assert_allclose(grads[0]["quantizer"]["codes"], expected_grads[0]["codes"], rtol=1e-5)


def test_codes_too_many_to_count_one_by_one_are_counted_all_the_same():
    """Perplexity by sorting, of 2^20 codes, against NumPy's."""
    quantizer = LookupFree(20)
    indices = np.random.default_rng(0).zipf(1.5, size=(40, 5)) % 2**20
    mask = np.random.default_rng(1).random((40, 5)) < 0.7
    for counts in (None, mask):
        _, metrics = quantizer.update(
            {},
            jnp.zeros((40, 5, 20)),
            jnp.asarray(indices, jnp.int32),
            mask=None if counts is None else jnp.asarray(counts),
            key=jax.random.key(0),
        )
        _, each = np.unique(indices if counts is None else indices[counts], return_counts=True)
        share = each / each.sum()
        np.testing.assert_allclose(metrics["batch_perplexity"], np.exp(-(share * np.log(share)).sum()), rtol=1e-5)


# In the objective


class Pointwise(nn.Module):
    """A network that sees one position at a time."""

    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(x)


@pytest.mark.parametrize("variance", [pytest.param(None, marks=pytest.mark.slow), 0.5])
@pytest.mark.parametrize(
    "quantizer", [KINDS["residual"], pytest.param(Grouped(KINDS["partly frozen"], 2), marks=pytest.mark.slow)]
)
def test_a_batch_of_padded_sequences_is_the_one_of_the_short_ones(quantizer, variance):
    """Loss, gradient, state and metrics; what stands in the padding is nobody's business."""
    model = VQVAE(Pointwise(D), Pointwise(3), quantizer)
    x = normal(1, 5, 4, 3)
    params, state = model.init_with_quantizer(x, key=jax.random.key(0))
    loss_fn = jax.jit(jax.value_and_grad(partial(vq_vae_loss, model, variance=variance), has_aux=True))
    own = {"index": jnp.arange(5)}
    expected = loss_fn(params, state, {"x": x, **own}, key=jax.random.key(1), step=0)
    padded = jnp.concatenate([x, jnp.full((5, 3, 3), jnp.nan)], axis=1)
    mask = jnp.broadcast_to(jnp.arange(7) < 4, (5, 7))
    masked = {"x": padded, "mask": mask, **own}
    chex.assert_trees_all_close(
        loss_fn(params, state, masked, key=jax.random.key(1), step=0), expected, rtol=1e-5, atol=1e-6
    )
    with pytest.raises(ValueError, match=r"mask must be \(5, 7\) for x \(5, 7, 3\), got \(5, 4\)"):
        vq_vae_loss(model, params, state, masked | {"mask": mask[:, :4]}, key=jax.random.key(1), step=0)


def test_a_mask_counts_the_codes_of_which_any_position_is_there():
    mask = jnp.array([[True, True, True, False, False, False], [True, False, False, False, False, False]])
    np.testing.assert_array_equal(_of_positions(mask, (2, 3)), [[True, True, False], [True, False, False]])
    with pytest.raises(ValueError, match=r"must divide into the positions of the codes \(2, 4\)"):
        _of_positions(mask, (2, 4))


def test_what_draws_in_training_draws_by_the_examples_index_and_not_in_evaluation():
    model = VQVAE(Pointwise(D), Pointwise(3), Residual(GradientCodebook(6, temperature=2.0), 2, dropout=0.5))
    x = jnp.tile(normal(1, 1, 4, 3), (6, 1, 1))
    params, state = model.init_with_quantizer(normal(2, 40, 3), key=jax.random.key(0))
    loss_fn = partial(vq_vae_loss, model)

    def losses_of(index):
        """The losses of alike examples, each by itself."""
        each = jax.vmap(
            lambda x, i: loss_fn(params, state, {"x": x[None], "index": i[None]}, key=jax.random.key(1), step=0)[0]
        )
        return np.asarray(jax.jit(each)(x, jnp.array(index)))

    first = losses_of([0, 1, 2, 3, 4, 5])
    assert len(set(first)) > 3
    np.testing.assert_array_equal(losses_of([5, 4, 3, 2, 1, 0]), first[::-1])
    evaluate = jax.jit(make_eval_step(loss_fn))
    examples = {"x": x, "index": jnp.arange(6), "weight": jnp.ones(6)}
    one, other = (evaluate(params, state, examples, key=jax.random.key(seed), step=0) for seed in (1, 2))
    chex.assert_trees_all_equal(one, other)


def test_sizes_of_narrow_integers_do_not_wrap_around():
    """In their own types all of these numbers of codes are 0."""
    assert FiniteScalar(np.array([8, 8, 8, 5, 5], np.int8)) == FiniteScalar((8, 8, 8, 5, 5))
    assert FiniteScalar(np.array([8, 8, 8, 5, 5], np.int8)).num_codes == 12_800
    assert LookupFree(np.int8(10)).num_codes == 1024
    with pytest.raises(ValueError, match="more go into Grouped"):
        FiniteScalar(np.array([2] * 64))


REFUSED = {
    "an estimator that is none": (
        lambda: EMACodebook(8, estimator="gumbel"),
        "estimator must be one of straight-through, rotation",
    ),
    "a negative temperature": (
        lambda: SimVQ(8, temperature=-1.0),
        "temperature must be a finite number, zero or more, got -1.0",
    ),
    "a temperature of NaN": (
        lambda: FiniteScalar((3,), temperature=float("nan")),
        "temperature must be a finite number",
    ),
    "more frozen than there are": (lambda: GradientCodebook(8, frozen=9), "frozen must be num_codes=8 at most, got 9"),
    "a negative number frozen": (lambda: EMACodebook(8, frozen=-1), "frozen must be at least 0, got -1"),
    "one level": (lambda: FiniteScalar((8, 1)), "levels must be at least 2"),
    "no levels": (lambda: FiniteScalar(()), r"levels must make 2 to 2\*\*31 - 1 codes"),
    "too many levels": (lambda: FiniteScalar((2,) * 31), r"levels must make 2 to 2\*\*31 - 1 codes"),
    "another squash": (lambda: FiniteScalar((8,), squash="sigmoid"), "squash must be tanh or clip, got 'sigmoid'"),
    "levels of another size": (
        lambda: FiniteScalar((8, 5)).init(4, key=jax.random.key(0)),
        r"need vectors \[..., 2\], got 4: wrap it, Projected\(FiniteScalar\(\(8, 5\)\), 2\)",
    ),
    "no bits": (lambda: LookupFree(0), "bits must be at least 1"),
    "too many bits": (lambda: LookupFree(31), "bits must be 30 at most, got 31; more go into Grouped"),
    "bits of another size": (lambda: LookupFree(3).init(4, key=jax.random.key(0)), "3 bits need vectors"),
    "a negative weight": (lambda: LookupFree(3, diversity=-1.0), "diversity must be a finite number, zero or more"),
    "no inverse temperature": (lambda: LookupFree(3, inverse_temperature=0.0), "inverse_temperature must be positive"),
    "no depth": (lambda: Residual(SimVQ(8), 0), "depth must be at least 1, got 0"),
    "dropout beyond one": (lambda: Residual(SimVQ(8), 2, dropout=1.5), "dropout must be a probability"),
    "no shrinking": (lambda: Residual(SimVQ(8), 2, shrink=0.0), "shrink must be positive and finite"),
    "no dimensions": (lambda: Projected(SimVQ(8), 0), "dim must be at least 1, got 0"),
    "no maps": (
        lambda: Projected(SimVQ(8), 2)({}, {}, jnp.zeros((1, 4))),
        "Projected has no maps without its parameters",
    ),
    "no map": (
        lambda: SimVQ(8)({}, {"codes": jnp.zeros((8, 4))}, jnp.zeros((1, 4))),
        "SimVQ has no codes without its parameters",
    ),
    "indices of too many levels": (
        lambda: Residual(LookupFree(2), 2).look_up({}, {}, jnp.zeros((1, 3), jnp.int32)),
        r"indices must be \[..., 2\], or of fewer levels of 1, got \(1, 3\)",
    ),
    "an index that is none": (
        lambda: LookupFree(2).look_up({}, {}, jnp.array([4])),
        "code 4 at index 0 is outside 0 .. 3",
    ),
    "too many codes to list": (lambda: LookupFree(25).codes({}, {}), "33554432 codes are too many to list"),
    "rests that are none": (
        lambda: Residual(LookupFree(3), 2).update(
            {}, jnp.zeros((4, 3)), jnp.zeros((4, 2), jnp.int32), key=jax.random.key(0)
        ),
        r"encoded must be the rests of 2 levels, \[B, ..., 2 D\]",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_quantizer_is_refused():
    for wrapper in (partial(Residual, depth=2), partial(Projected, dim=2)):
        with pytest.raises(TypeError, match=r"quantizer must have the methods of jaxvae.types.Quantizer"):
            wrapper(8)


# Against vector-quantize-pytorch 1.32.0, whose figures for these vectors are written here

THEIRS = np.float32(2 * np.sin(1.7 * np.arange(30)).reshape(2, 5, 3))
FSQ = [[76, 152, 121, 86, 23], [38, 152, 128, 84, 15]]
LFQ = [[2, 3, 1, 4, 4], [6, 3, 1, 5, 4]]
LFQ_ENTROPY = 0.9163  # of .05 times the vectors at inverse temperature 10, in training
RVQ = [[[5, 3, 5], [4, 0, 2], [3, 0, 0], [0, 5, 3], [0, 2, 5]], [[5, 3, 5], [5, 0, 0], [4, 5, 3], [2, 3, 3], [0, 2, 5]]]
RVQ_VECTORS = [[-1.122543, 1.301449, -0.611706], [-2.071516, 0.780027, 1.032088]]


def test_indices_are_those_of_vector_quantize_pytorch():
    fsq = FiniteScalar((8, 5, 4))({}, {}, jnp.asarray(THEIRS))
    np.testing.assert_array_equal(fsq.indices, FSQ)
    lfq = LookupFree(3, inverse_temperature=10.0, entropy_weight=1.0)
    np.testing.assert_array_equal(lfq({}, {}, jnp.asarray(THEIRS)).indices, LFQ)
    near = lfq({}, {}, 0.05 * jnp.asarray(THEIRS))
    np.testing.assert_allclose(near.metrics["bit_entropy"], LFQ_ENTROPY, rtol=1e-4)
    books = np.cos(2.3 * np.arange(54)).reshape(3, 6, 3) * np.array([1.5, 0.75, 0.375])[:, None, None]
    params = {"codes": jnp.asarray(books, jnp.float32)}
    residual = Residual(GradientCodebook(6), 3)(params, {}, jnp.asarray(THEIRS))
    np.testing.assert_array_equal(residual.indices, RVQ)
    np.testing.assert_allclose(residual.vectors[0, :2], RVQ_VECTORS, atol=1e-6)


@pytest.mark.parametrize("name", [name for name, each in VARIANTS.items() if not isinstance(each.model, VQVAE)])
def test_padding_is_refused_where_it_would_be_read_as_values(name):
    variant = VARIANTS[name]
    params, model_state = jax.eval_shape(variant.init, key=jax.random.key(0))
    padded = batch(2) | {"mask": jnp.ones((2, *SHAPE[:-1]), bool)}
    error, message = ValueError, r"the batch has padding \(batch\['mask'\]\)"
    if variant.levels:  # `code_prior_loss` hands a mask on to who takes one
        error, message = TypeError, "log_prob has no argument mask to be told of them"
    with pytest.raises(error, match=message):
        jax.eval_shape(
            lambda params, model_state: variant.loss_fn(params, model_state, padded, key=jax.random.key(0), step=0),
            *(params, model_state),
        )
