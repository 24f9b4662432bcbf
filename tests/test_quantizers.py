"""The quantisers: against `jaxvae.codebook` by hand, groups against each by itself, masks against shorter batches."""

import pickle
from dataclasses import dataclass
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae import codebook, losses
from jaxvae.quantizers import EMACodebook, GradientCodebook, Grouped
from jaxvae.types import Quantized, Quantizer

K, D = 8, 6
# The narrowest of either sign and the widest; those between are slow.
INTEGERS = (
    *("int8", "uint8", "uint32"),
    *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("int16", "int32", "uint16")),
)


# Compiled once for all tests of the same quantiser; operation by operation they take longer to test.
initialise = jax.jit(
    lambda quantizer, *arguments, **options: quantizer.init(*arguments, **options), static_argnums=(0, 1)
)
update = jax.jit(lambda quantizer, *arguments, **options: quantizer.update(*arguments, **options), static_argnums=0)
look_up = jax.jit(lambda quantizer, *arguments: quantizer.look_up(*arguments), static_argnums=0)


@dataclass(frozen=True)
class Grid:
    """A quantiser of the user's own: rounds to multiples of a step, has neither parameters nor state."""

    step: float = 0.5
    levels: int = 65

    @property
    def num_codes(self):
        return self.levels

    def init(self, dim, *, key, encoded=None):
        return {}, {}

    def __call__(self, params, state, encoded, *, mask=None):
        mask = jnp.ones(encoded.shape[:-1], bool) if mask is None else mask
        level = jnp.clip(jnp.rint(encoded[..., 0] / self.step) + self.levels // 2, 0, self.levels - 1)
        indices = level.astype(jnp.int32)
        vectors = jnp.rint(encoded / self.step) * self.step
        error = jnp.square(encoded - jax.lax.stop_gradient(vectors)).mean(axis=-1)
        by_example = jnp.where(mask, error, 0).reshape(len(encoded), -1)
        commitment = by_example.sum(axis=1) / jnp.maximum(mask.reshape(len(mask), -1).sum(axis=1), 1)
        return Quantized(vectors, indices, commitment, jnp.zeros_like(commitment), {"size": jnp.abs(vectors).mean()})

    def update(self, state, encoded, indices, *, mask=None, key):
        return state, {}

    def look_up(self, params, state, indices):
        return ((indices - self.levels // 2) * self.step)[..., None].astype(jnp.float32)


EMA = EMACodebook(K, decay=0.5, restart_threshold=0.9)
KINDS = {
    "moving averages": EMA,
    "with an entropy weight": EMACodebook(K, decay=0.5, restart_threshold=0.9, entropy_weight=0.3),
    "gradient": GradientCodebook(K),
    "groups": Grouped(EMA, 2),
    "groups by gradient": Grouped(GradientCodebook(K), 3),
    "groups of groups": Grouped(Grouped(EMA, 2), 3),
    "of the user's own": Grouped(Grid(), 2),
}
by_kind = pytest.mark.parametrize(
    "quantizer",
    [
        pytest.param(each, id=name, marks=[pytest.mark.slow] * (name in ("groups by gradient", "groups of groups")))
        for name, each in KINDS.items()
    ],
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def start(quantizer, dim=D):
    """Parameters and state, with uneven frequencies where there are any."""
    params, state = initialise(quantizer, dim, key=jax.random.key(5))
    if not jax.tree.leaves(state):
        return params, state
    shape = state["frequency"].shape
    frequency = jnp.asarray(np.random.default_rng(0).dirichlet(np.ones(K), size=shape[:-1]), jnp.float32)
    moment = np.asarray(state["moment"]) * K * np.asarray(frequency)[..., None]
    return params, {"frequency": frequency, "moment": jnp.asarray(moment)}


@partial(jax.jit, static_argnums=0)
def run(quantizer, params, state, encoded, mask=None, *, key):
    """What a step takes from a quantiser: its output, its next state, all metrics, and the gradients."""

    def loss(params, encoded):
        quantized = quantizer(params, state, encoded, mask=mask)
        return (quantized.commitment + quantized.loss).sum(), quantized

    grads, quantized = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, encoded)
    state_after, metrics = quantizer.update(state, encoded, quantized.indices, mask=mask, key=key)
    return quantized, state_after, metrics, grads


# What each says


def test_moving_averages_are_those_of_the_codebook_and_restarts_come_after(key):
    _, state = start(EMA)
    encoded = normal(1, 4, 3, 5, D)
    quantized, after, metrics, _ = run(EMA, {}, state, encoded, key=key)
    averages = codebook.CodebookState(**state)
    codes = codebook.vectors(averages)
    indices = codebook.nearest(codes, encoded)
    np.testing.assert_array_equal(quantized.indices, indices)
    assert quantized.indices.dtype == jnp.int32
    np.testing.assert_allclose(quantized.vectors, codes[indices], rtol=1e-6)
    np.testing.assert_allclose(quantized.commitment, losses.commitment(encoded, codes[indices]), rtol=1e-5)
    np.testing.assert_array_equal(quantized.loss, np.zeros(4))
    moved = codebook.ema_update(averages, encoded, indices, decay=0.5)
    dead = codebook.dead_codes(moved, threshold=0.9)
    expected = codebook.restart_dead_codes(moved, encoded, key=key, threshold=0.9)
    chex.assert_trees_all_close(after, expected._asdict(), rtol=1e-5, atol=1e-7)
    assert metrics["restarts"] == dead > 0
    share = np.bincount(np.ravel(indices), minlength=K) / indices.size
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(metrics["batch_perplexity"], np.exp(entropy), rtol=1e-5)

    never = EMACodebook(K, decay=0.5, restart_threshold=0.0)
    after, metrics = update(never, state, encoded, indices, key=key)
    chex.assert_trees_all_close(after, moved._asdict(), rtol=1e-5, atol=1e-7)
    assert metrics["restarts"] == 0


def test_an_entropy_weight_adds_the_cost_of_rare_codes():
    _, state = start(EMA)
    encoded = normal(1, 50, D)
    averages = codebook.CodebookState(**state)
    costs = codebook.code_costs(averages, 0.3)
    expected = codebook.nearest(codebook.vectors(averages), encoded, costs)
    indices = KINDS["with an entropy weight"]({}, state, encoded).indices
    np.testing.assert_array_equal(indices, expected)
    assert (indices != EMA({}, state, encoded).indices).any()


def test_codes_by_gradient_move_by_the_codebook_loss_alone(key):
    quantizer = GradientCodebook(K)
    params, state = start(quantizer)
    encoded = normal(1, 4, 3, D)
    quantized, after, metrics, (of_codes, of_encoded) = run(quantizer, params, state, encoded, key=key)
    assert (after, set(metrics)) == ({}, {"batch_perplexity"})

    def codebook_loss(codes):
        return losses.codebook_loss(encoded, codes[quantized.indices]).sum()

    np.testing.assert_allclose(of_codes["codes"], jax.grad(codebook_loss)(params["codes"]), rtol=1e-5, atol=1e-7)
    assert np.any(of_codes["codes"])
    np.testing.assert_allclose(of_encoded, 2 * (encoded - quantized.vectors) / 18, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(quantized.loss, quantized.commitment, rtol=1e-6)


@pytest.mark.parametrize("quantizer", [EMA, GradientCodebook(K)], ids=["moving averages", "gradient"])
def test_codes_start_at_random_or_spread_over_what_the_encoder_makes(quantizer, key):
    params, state = quantizer.init(D, key=key)
    expected = codebook.init_codebook(K, D, key=key)
    np.testing.assert_allclose(quantizer.codes(params, state), codebook.vectors(expected), rtol=1e-6)
    encoded = normal(3, 5, 4, D) + 7
    params, state = initialise(quantizer, D, key=key, encoded=encoded)
    expected = codebook.seed_codebook(encoded.reshape(-1, D), K, key=key)
    np.testing.assert_allclose(quantizer.codes(params, state), codebook.vectors(expected), rtol=1e-5)
    leaves = jax.tree.leaves((params, state))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert not any(leaf.weak_type for leaf in leaves)


@by_kind
def test_a_quantiser_is_a_record_of_the_protocol(quantizer):
    assert isinstance(quantizer, Quantizer)
    assert pickle.loads(pickle.dumps(quantizer)) == quantizer
    assert hash(quantizer) == hash(pickle.loads(pickle.dumps(quantizer)))
    params, state = quantizer.init(D, key=jax.random.key(0))
    assert type(params) is type(state) is dict


# Groups


@pytest.mark.parametrize("name", ["moving averages", "gradient", "with an entropy weight"])
def test_each_group_does_what_its_quantiser_does_by_itself(name, key):
    each, groups = KINDS[name], 3
    quantizer = Grouped(each, groups)
    params, state = start(quantizer, dim=3 * D)
    encoded = normal(1, 5, 4, 3 * D)
    quantized, after, metrics, grads = run(quantizer, params, state, encoded, key=key)
    assert quantizer.num_codes == (K, K, K)
    assert quantized.indices.shape == (5, 4, 3)
    keys = jax.random.split(key, groups)
    separate = [
        run(each, *jax.tree.map(lambda leaf: leaf[g], (params, state)), encoded[..., D * g : D * (g + 1)], key=keys[g])  # noqa: B023
        for g in range(groups)
    ]
    for g, (own, own_after, _, own_grads) in enumerate(separate):
        np.testing.assert_array_equal(quantized.indices[..., g], own.indices)
        np.testing.assert_allclose(quantized.vectors[..., D * g : D * (g + 1)], own.vectors, rtol=1e-6)
        chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[g], after), own_after, rtol=1e-5, atol=1e-7)  # noqa: B023
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf: groups * leaf[g], grads[0]),  # noqa: B023
            own_grads[0],
            rtol=1e-5,
            atol=1e-7,
        )
    for field in ("commitment", "loss"):
        expected = np.mean([getattr(own, field) for own, *_ in separate], axis=0)
        np.testing.assert_allclose(getattr(quantized, field), expected, rtol=1e-5)
    np.testing.assert_allclose(quantized.vectors, quantizer.look_up(params, state, quantized.indices), rtol=1e-6)
    np.testing.assert_array_equal(quantizer.codes(params, state)[1], codes_of_group(each, params, state, 1))
    perplexity = np.mean([metrics["batch_perplexity"] for _, _, metrics, _ in separate])
    np.testing.assert_allclose(metrics["batch_perplexity"], perplexity, rtol=1e-5)


def codes_of_group(each, params, state, group):
    return each.codes(*jax.tree.map(lambda leaf: leaf[group], (params, state)))


def test_restarts_are_counted_over_all_groups(key):
    """Of the first group one code is dead, of the second three, of the third none."""
    quantizer = Grouped(EMACodebook(K, decay=0.99, restart_threshold=0.1), 3)
    dead = np.array([1, 3, 0])
    frequency = np.stack([np.where(np.arange(K) < n, 1e-3, 1 / K) for n in dead]).astype(np.float32)
    state = {"frequency": jnp.asarray(frequency), "moment": normal(2, 3, K, 2) * frequency[..., None]}
    indices = jnp.full((40, 3), K - 1)
    after, metrics = update(quantizer, state, normal(1, 40, 6), indices, key=key)
    assert metrics["restarts"] == dead.sum()
    for group, count in enumerate(dead):
        np.testing.assert_allclose(after["frequency"][group, :count], 1 / K, rtol=1e-6)
        assert (after["frequency"][group, count:-1] < 1 / K).all()


def test_groups_draw_independently_of_each_other(key):
    """Groups that see the same vectors in the same state restart at different ones, and start differently."""
    half, groups = normal(1, 64, 3), 4
    encoded = jnp.tile(half, groups)
    quantizer = Grouped(EMACodebook(K, restart_threshold=0.9), groups)
    state = {"frequency": jnp.full((groups, K), 1e-4), "moment": jnp.full((groups, K, 3), 1e-4)}
    after, metrics = update(quantizer, state, encoded, jnp.full((64, groups), K), key=key)
    assert metrics["restarts"] == K * groups
    restarted = np.asarray(quantizer.codes({}, after))
    positions = np.abs(restarted[:, :, None] - np.asarray(half)).max(axis=-1).argmin(axis=-1)  # [G, K]
    np.testing.assert_allclose(np.asarray(half)[positions], restarted, rtol=1e-5)
    for codes in (
        restarted,
        *(quantizer.codes(*initialise(quantizer, 12, key=key, encoded=e)) for e in (None, encoded)),
    ):
        assert len({np.asarray(each).tobytes() for each in codes}) == groups
    # Eight of 64 each: two groups would share one position on average, not eight.
    shared = [len(set(positions[a]) & set(positions[b])) for a in range(groups) for b in range(a)]
    assert max(shared) < 6
    again, _ = update(quantizer, state, encoded, jnp.full((64, groups), K), key=jax.random.key(1))
    assert np.abs(quantizer.codes({}, again) - restarted).max() > 0.1


# Masks


@by_kind
def test_examples_behind_a_mask_count_nowhere(quantizer, key):
    """The batch is as the shorter one in everything, restarts too, whatever lies behind the mask."""
    params, state = start(quantizer)
    encoded = normal(1, 7, 4, D)
    short, short_state, short_metrics, short_grads = run(quantizer, params, state, encoded[:5], key=key)
    mask = jnp.arange(7)[:, None] < jnp.full(4, 5)[None]
    for behind in (jnp.nan, 1e6):
        filled = encoded.at[5:].set(behind)
        long, long_state, long_metrics, long_grads = run(quantizer, params, state, filled, mask, key=key)
        long_metrics = {name: value for name, value in long_metrics.items() if name != "size"}
        np.testing.assert_array_equal(long.indices[:5], short.indices)
        np.testing.assert_allclose(long.vectors[:5], short.vectors, rtol=1e-6)
        for field in ("commitment", "loss"):
            np.testing.assert_allclose(getattr(long, field)[:5], getattr(short, field), rtol=1e-5)
        chex.assert_trees_all_close(long_state, short_state, rtol=1e-5, atol=1e-7)
        chex.assert_trees_all_close(long_metrics, short_metrics, rtol=1e-5)
        if quantizer is not KINDS["of the user's own"]:  # which does not promise it of what it was not written for
            np.testing.assert_array_equal(long.commitment[5:], 0)
            chex.assert_trees_all_close(long_grads[0], short_grads[0], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(long_grads[1][:5], short_grads[1], rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(long_grads[1][5:], 0)


@pytest.mark.parametrize("name", ["moving averages", "gradient", "groups"])
def test_positions_behind_a_mask_count_nowhere(name, key):
    """Sequences of different lengths, against those vectors alone that count; each example's mean is its own."""
    quantizer = KINDS[name]
    params, state = start(quantizer)
    encoded, lengths = normal(1, 5, 9, D), np.array([9, 1, 4, 0, 6])
    mask = np.arange(9) < lengths[:, None]
    quantized, after, metrics, _ = run(quantizer, params, state, encoded, jnp.asarray(mask), key=key)
    flat, short_after, short_metrics, _ = run(quantizer, params, state, encoded[mask], key=key)
    of_each = np.split(np.asarray(flat.commitment), np.cumsum(lengths)[:-1])
    expected = [part.mean() if part.size else 0 for part in of_each]
    np.testing.assert_allclose(quantized.commitment, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["batch_perplexity"], short_metrics["batch_perplexity"], rtol=1e-5)
    if state:
        np.testing.assert_allclose(after["frequency"], short_after["frequency"], rtol=1e-5)
        assert metrics["restarts"] == short_metrics["restarts"] > 0


def test_codes_restart_only_at_what_counts_and_wait_where_that_is_too_little(key):
    state = {"frequency": jnp.full(K, 1e-4), "moment": jnp.zeros((K, D))}
    encoded, mask = normal(1, 20, D), jnp.zeros(20, bool).at[jnp.array([3, 7, 12])].set(True)
    after, metrics = update(EMA, state, encoded, jnp.full(20, K), mask=mask, key=key)
    assert metrics["restarts"] == K
    restarted = np.flatnonzero(np.isclose(after["frequency"], 1 / K))
    np.testing.assert_array_equal(restarted, [0, 1, 2])
    codes = np.asarray(EMA.codes({}, after))[restarted]
    order = np.abs(codes[:, None] - np.asarray(encoded)).max(axis=-1).argmin(axis=1)
    assert sorted(order) == [3, 7, 12]


@by_kind
def test_a_batch_behind_a_mask_as_a_whole_changes_nothing(quantizer, key):
    params, state = start(quantizer)
    encoded = jnp.full((3, 2, D), jnp.nan)
    quantized, after, metrics, _ = run(quantizer, params, state, encoded, jnp.zeros((3, 2), bool), key=key)
    chex.assert_trees_all_equal(after, state)
    np.testing.assert_array_equal(quantized.commitment, np.zeros(3))
    np.testing.assert_array_equal(quantized.loss, np.zeros(3))
    assert metrics.get("batch_perplexity", 0) == 0


# Integers of every width


@pytest.mark.parametrize("dtype", INTEGERS)
def test_indices_of_every_type_find_their_vectors(dtype):
    wide = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, size=(5, 4, 2), endpoint=True) % 256
    indices = jnp.asarray(wide, dtype)
    for quantizer in (EMACodebook(256), GradientCodebook(256), Grouped(EMACodebook(256), 2)):
        params, state = initialise(quantizer, 6, key=jax.random.key(0))
        codes = np.asarray(quantizer.codes(params, state))
        if codes.ndim == 3:
            expected = np.concatenate([codes[g][wide[..., g]] for g in range(2)], axis=-1)
        else:
            expected = codes[wide]
        for looked_up in (quantizer.look_up(params, state, indices), look_up(quantizer, params, state, indices)):
            np.testing.assert_allclose(looked_up, expected, rtol=1e-6)


@pytest.mark.parametrize("wrong", [np.int64(2**32 + 1), np.int64(-(2**32)), np.uint32(2**32 - 1), np.uint64(2**63)])
def test_an_index_that_does_not_fit_is_an_error_and_wraps_around_nowhere(wrong):
    quantizer, indices = GradientCodebook(4), np.array([[0, 0], [wrong, 0]], wrong.dtype)
    params, _ = quantizer.init(4, key=jax.random.key(0))
    with pytest.raises(ValueError, match=rf"indices must lie in -2147483648 .. 2147483647 \(int32\), got {wrong}"):
        quantizer.look_up(params, {}, indices)


def test_64_bit_indices_of_either_kind_find_their_vectors(x64):
    quantizer = GradientCodebook(4)
    params, _ = quantizer.init(4, key=jax.random.key(0))
    for dtype in (np.int64, np.uint64):
        np.testing.assert_array_equal(
            quantizer.look_up(params, {}, np.array([3, 0], dtype)), params["codes"][jnp.array([3, 0])]
        )
    with pytest.raises(ValueError, match=rf"code {2**32 + 1} at index 0 is outside 0 .. 3"):
        quantizer.look_up(params, {}, np.array([2**32 + 1]))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.slow
def test_an_index_out_of_range_is_an_error_or_nan(dtype):
    each, groups = GradientCodebook(100), Grouped(GradientCodebook(100), 2)
    params, _ = each.init(4, key=jax.random.key(0))
    of_groups, _ = groups.init(4, key=jax.random.key(0))
    for wrong in {100, 127, int(np.iinfo(dtype).max), int(np.iinfo(dtype).min)} - {0}:
        indices = jnp.zeros((3, 2), dtype).at[1, 1].set(np.array(wrong, dtype))
        vectors = look_up(each, params, {}, indices)
        np.testing.assert_array_equal(np.isnan(vectors).all(axis=-1), [[False] * 2, [False, True], [False] * 2])
        vectors = look_up(groups, of_groups, {}, indices)
        np.testing.assert_array_equal(np.isnan(vectors), [[False] * 4, [False, False, True, True], [False] * 4])
        with pytest.raises(ValueError, match=r"code -?\d+ at index 1, 1 is outside 0 .. 99"):
            each.look_up(params, {}, indices)
        with pytest.raises(ValueError, match=r"code -?\d+ at index 1 is outside 0 .. 99"):
            groups.look_up(of_groups, {}, indices)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("quantizer", [EMACodebook(256), GradientCodebook(256)], ids=["moving averages", "gradient"])
@pytest.mark.slow
def test_an_update_takes_indices_of_every_type(quantizer, dtype, key):
    _, state = quantizer.init(D, key=key)
    encoded, indices = normal(1, 30, D), jnp.asarray(np.arange(30) % 100 + 28 * (dtype != "int8"), jnp.int32)
    for mask in (None, jnp.arange(30) < 20):
        expected = update(quantizer, state, encoded, indices, mask=mask, key=key)
        narrow = update(quantizer, state, encoded, indices.astype(dtype), mask=mask, key=key)
        chex.assert_trees_all_equal(narrow, expected)


# What is refused

_, STATE = EMA.init(D, key=jax.random.key(0))
PARAMS, _ = GradientCodebook(K).init(D, key=jax.random.key(0))
ENCODED = jnp.zeros((4, 3, D))
INDICES = jnp.zeros((4, 3), jnp.int32)
RBG = jax.random.key(0, impl="rbg")
two = Grouped(EMA, 2)
update_of = partial(EMA.update, STATE, ENCODED, INDICES, key=jax.random.key(0))
REFUSED = {
    "one code": (lambda: EMACodebook(1), ValueError, "num_codes must be at least 2, got 1"),
    "one code by gradient": (lambda: GradientCodebook(1), ValueError, "num_codes must be at least 2, got 1"),
    "codes, a fraction": (lambda: EMACodebook(8.0), TypeError, "num_codes must be an integer, got 8.0"),
    "decay": (lambda: EMACodebook(K, decay=float("nan")), ValueError, "decay must lie between 0 and 1, got nan"),
    "decay 1": (lambda: EMACodebook(K, decay=1.0), ValueError, "decay must lie between 0 and 1, got 1.0"),
    "threshold": (
        lambda: EMACodebook(K, restart_threshold=1.0),
        ValueError,
        r"restart_threshold must lie in \[0, 1\), a fraction of the uniform share, got 1.0",
    ),
    "entropy": (
        lambda: EMACodebook(K, entropy_weight=float("nan")),
        ValueError,
        "entropy_weight must be a finite number, zero or more, got nan",
    ),
    "no groups": (lambda: Grouped(EMA, 0), ValueError, "groups must be at least 1, got 0"),
    "no quantiser": (lambda: Grouped(8, 2), TypeError, "quantizer must have the methods of jaxvae.types.Quantizer"),
    "a class": (lambda: Grouped(EMACodebook, 2), TypeError, "quantizer must have the methods of"),
    "another generator": (lambda: EMA.init(D, key=RBG), TypeError, "key must be a threefry key"),
    "another generator's update": (lambda: update_of(key=RBG), TypeError, "key must be a threefry key"),
    "another generator's groups": (lambda: two.init(D, key=RBG), TypeError, "key must be a threefry key"),
    "no key": (lambda: update_of(key=0), TypeError, "key must come from jax.random.key, got 0"),
    "dim": (lambda: EMA.init(0, key=jax.random.key(0)), ValueError, "dim must be at least 1, got 0"),
    "odd dim": (lambda: two.init(5, key=jax.random.key(0)), ValueError, r"2 groups need vectors \[..., D\] with D"),
    "seeds of another size": (
        lambda: EMA.init(4, key=jax.random.key(0), encoded=ENCODED),
        ValueError,
        r"encoded must be \[..., 4\] to seed codes of 4 dimensions, got \(4, 3, 6\)",
    ),
    "vectors of another size": (
        lambda: EMA({}, STATE, ENCODED[..., :4]),
        ValueError,
        r"encoded must be \[B, ..., 6\] for codes of 6 dimensions, got \(4, 3, 4\)",
    ),
    "one vector": (lambda: EMA({}, STATE, ENCODED[0, 0]), ValueError, r"encoded must be \[B, ..., 6\]"),
    "nothing": (lambda: EMA({}, STATE, ENCODED[:0]), ValueError, r"got \(0, 3, 6\), which holds nothing"),
    "integers": (lambda: EMA({}, STATE, ENCODED.astype(int)), TypeError, "encoded must be floating, got int32"),
    "no state": (lambda: EMA({}, {}, ENCODED), ValueError, r"EMACodebook has no codes without its state, .* got \[\]"),
    "an old state": (lambda: EMA({}, (), ENCODED), ValueError, "EMACodebook has no codes without .* got tuple"),
    "no parameters": (
        lambda: GradientCodebook(K)({}, {}, ENCODED),
        ValueError,
        "GradientCodebook has no codes without",
    ),
    "another number of codes": (
        lambda: EMACodebook(K + 1)({}, STATE, ENCODED),
        ValueError,
        r"a codebook of num_codes=9 needs codes \(9, D\), got \(8, 6\)",
    ),
    "another number by gradient": (
        lambda: GradientCodebook(K + 1)(PARAMS, {}, ENCODED),
        ValueError,
        "a codebook of num_codes=9 needs codes",
    ),
    "groups' state": (lambda: two({}, STATE, ENCODED), ValueError, "state of 2 groups have a leading axis of 2, got a"),
    "a mask of numbers": (lambda: EMA({}, STATE, ENCODED, mask=INDICES), TypeError, "mask must be bool, .* got int32"),
    "a mask of another shape": (
        lambda: update_of(mask=jnp.ones(4, bool)),
        ValueError,
        r"mask must be \(4, 3\) for encoded \(4, 3, 6\), got \(4,\)",
    ),
    "floating indices": (lambda: EMA.look_up({}, STATE, ENCODED), TypeError, "indices must be integers, got float32"),
    "indices of one group": (
        lambda: two.look_up(*two.init(D, key=jax.random.key(0)), INDICES),
        ValueError,
        r"indices must be \[..., 2\], one for each group, got \(4, 3\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


@by_kind
def test_a_batch_of_one_vector_is_a_batch(quantizer, key):
    params, state = start(quantizer)
    quantized, after, metrics, _ = run(quantizer, params, state, normal(1, 1, D), key=key)
    assert quantized.vectors.shape == (1, D)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((quantized, after, metrics)))
