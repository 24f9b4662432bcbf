"""The VQ-VAE: its objective against a float64 reference, its codes there and back, and quantisers of the user's own."""

import pickle
from dataclasses import dataclass
from functools import cache, partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxvae import VQVAE, EMACodebook, GradientCodebook, Grouped, ResidualDecoder, ResidualEncoder, losses
from jaxvae._whole_batch import on_share
from jaxvae.distributions import Bernoulli, DiagGaussian
from jaxvae.models.vq_vae import unit_gaussian
from jaxvae.objectives import vq_vae_loss
from jaxvae.training.state import init_train_state
from jaxvae.training.step import make_eval_step, make_train_step
from jaxvae.types import Quantized

B = 6
SHAPE = (8, 8, 1)
EMA = EMACodebook(8, restart_threshold=0.0)
GROUPS = Grouped(EMA, 2)
X = jax.random.uniform(jax.random.key(0), (20, *SHAPE))


@dataclass(frozen=True)
class Grid:
    """A quantiser of the user's own: rounds to multiples of a step, has neither parameters nor state."""

    step: float = 0.25
    num_codes: int = 9

    def init(self, dim, *, key, encoded=None):
        return {}, {}

    def __call__(self, params, state, encoded, *, mask=None):
        middle = self.num_codes // 2
        indices = jnp.clip(jnp.rint(encoded / self.step), -middle, middle).astype(jnp.int32) + middle
        vectors = (indices - middle) * self.step
        error = losses.commitment(encoded, vectors)
        return Quantized(vectors, indices, error, jnp.zeros_like(error), {"size": jnp.abs(vectors).mean()})

    def update(self, state, encoded, indices, *, mask=None, key):
        return state, {"range": indices.max() - indices.min()}

    def look_up(self, params, state, indices):
        return (indices - self.num_codes // 2) * self.step


def model_of(quantizer=EMA, likelihood=Bernoulli, **options):
    return VQVAE(
        ResidualEncoder(4, (8,), 1, 4, **options), ResidualDecoder(1, (8,), 1, 4, **options), quantizer, likelihood
    )


def batch(num):
    return {"x": X[:num], "index": jnp.arange(num, dtype=jnp.int32)}


# Compiled once for all tests of the same model; operation by operation they take longer to test.


@cache
def start(model, seeded=False):
    """From random codes, unless a test is about the seeding, which takes long to compile."""
    return jax.jit(partial(model.init_with_quantizer, X, seeded=seeded))(key=jax.random.key(1))


@cache
def loss_of(model, **options):
    return jax.jit(partial(vq_vae_loss, model, **options))


def step_of(model, key, num=B, params_and_state=None, **options):
    params, model_state = start(model) if params_and_state is None else params_and_state
    value, (state, metrics) = loss_of(model, **options)(params, model_state, batch(num), key=key, step=0)
    return params, model_state, value, state, metrics


@partial(jax.jit, static_argnums=0)
def encode(model, params, x):
    return model.apply({"params": params["params"]}, x, method="encode")


@partial(jax.jit, static_argnums=0)
def decode(model, params, vectors):
    return model.apply({"params": params["params"]}, vectors, method="decode").mean


encode_indices, decode_indices = (
    jax.jit(getattr(VQVAE, name), static_argnums=0) for name in ("encode_indices", "decode_indices")
)


@partial(jax.jit, static_argnums=0)
def updated(quantizer, state, encoded, indices, key):
    return quantizer.update(state, encoded, indices, key=key)


# What groups do is in tests/test_quantizers.py; a VQ-VAE does not look into its quantiser.
by_itself_or_in_groups = pytest.mark.parametrize(
    "group",
    [
        pytest.param(lambda quantizer: quantizer, id="by itself"),
        pytest.param(lambda quantizer: Grouped(quantizer, 2), id="in groups", marks=pytest.mark.slow),
    ],
)


# What it starts from


@pytest.mark.parametrize(
    ("quantizer", "params", "state"),
    [
        (EMA, {}, {"frequency": (8,), "moment": (8, 4)}),
        (GradientCodebook(8), {"codes": (8, 4)}, {}),
        (GROUPS, {}, {"frequency": (2, 8), "moment": (2, 8, 2)}),
        (Grouped(GradientCodebook(8), 4), {"codes": (4, 8, 1)}, {}),
        (Grid(), {}, {}),
    ],
    ids=["moving averages", "gradient", "groups", "groups by gradient", "of the user's own"],
)
def test_parameters_and_state_are_where_they_belong(quantizer, params, state):
    model = model_of(quantizer)
    start = partial(model.init_with_quantizer, X)
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(start, key=jax.random.key(1)))
    assert shapes[0].get("quantizer", {}) == params
    assert shapes[1] == ({"quantizer": state} if state else ())
    assert set(shapes[0]) == {"params"} | ({"quantizer"} if params else set())
    init = partial(init_train_state, start, optax.sgd(0.1))
    assert jax.tree.map(jnp.shape, jax.eval_shape(init, key=jax.random.key(0)).model_state) == shapes[1]
    again = pickle.loads(pickle.dumps(model))
    assert (again, hash(again)) == (model, hash(model))


def test_codes_start_at_what_the_fresh_encoder_makes_of_x():
    model = model_of()
    params, state = start(model, seeded=True)
    network_key, quantizer_key = jax.random.split(jax.random.key(1))
    encoded = encode(model, params, X)
    _, seeded = jax.jit(lambda encoded: EMA.init(4, key=quantizer_key, encoded=encoded))(encoded)
    np.testing.assert_allclose(state["quantizer"]["moment"], seeded["moment"], rtol=1e-4, atol=1e-7)
    codes, encoded = np.asarray(model.codes(params, state)), np.asarray(encoded)
    spread = np.square(codes[:, None] - encoded.reshape(1, -1, 4)).sum(-1)
    assert spread.min(axis=1).max() < 0.1 * spread.max()  # every code lies near a vector
    unseeded_params, unseeded = start(model)
    chex.assert_trees_all_close(unseeded_params, params, rtol=1e-5, atol=1e-7)
    assert np.square(model.codes(params, unseeded)).sum(1).mean() == pytest.approx(1, abs=0.5)  # N(0, I / D)
    chex.assert_trees_all_close(params, jax.jit(model.init)(network_key, X[:1]), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(unseeded["quantizer"]["moment"], EMA.init(4, key=quantizer_key)[1]["moment"], rtol=1e-6)


# The objective


def test_the_loss_equals_a_float64_reference(key):
    model = model_of()
    params, model_state, value, _, metrics = step_of(model, key, variance=0.1)
    x = X[:B]
    encoded = encode(model, params, x)
    codes = np.asarray(model.codes(params, model_state), np.float64)
    z = np.asarray(encoded, np.float64).reshape(-1, 4)
    indices = ((z[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
    quantized = codes[indices].reshape(encoded.shape)
    mean = decode(model, params, quantized.astype(np.float32))
    distortion = ((np.asarray(mean, np.float64) - np.asarray(x)) ** 2).mean() / 0.1
    commitment = ((np.asarray(encoded, np.float64) - quantized) ** 2).mean()
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(metrics["commitment"], commitment, rtol=1e-4)
    np.testing.assert_allclose(value, distortion + 0.25 * commitment, rtol=1e-5)
    share = np.bincount(indices, minlength=8) / len(indices)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(metrics["batch_perplexity"], np.exp(entropy), rtol=1e-5)


def test_the_distortion_in_nats_is_the_likelihoods(key):
    for likelihood in (Bernoulli, unit_gaussian):
        model = model_of(likelihood=likelihood)
        params, model_state, value, _, metrics = step_of(model, key, commitment_weight=2.0)
        indices = encode_indices(model, params, model_state, X[:B])
        nats = -decode_indices(model, params, model_state, indices).log_prob(X[:B]).mean()
        np.testing.assert_allclose(metrics["distortion"], nats, rtol=1e-5)
        np.testing.assert_allclose(value, nats + 2 * metrics["commitment"], rtol=1e-5)


@by_itself_or_in_groups
def test_an_entropy_weight_prefers_frequent_codes(group, key):
    def state_after(weight):
        model = model_of(group(EMACodebook(8, decay=0.5, restart_threshold=0.0, entropy_weight=weight)))
        params, model_state = start(model_of(group(EMA)))
        old = model_state["quantizer"]
        rising = jnp.linspace(0.01, 1.0, 8)
        frequency = jnp.broadcast_to(rising / rising.sum(), old["frequency"].shape)
        moment = old["moment"] * (frequency / old["frequency"])[..., None]  # the same vectors
        state = {"quantizer": {"frequency": frequency, "moment": moment}}
        return frequency, step_of(model, key, params_and_state=(params, state))[3]["quantizer"]

    for weight in (0.0, 1e3):
        frequency, after = state_after(weight)
        chosen = 2 * after["frequency"][..., -1] - frequency[..., -1]  # the share of positions that took the last
        if weight:
            np.testing.assert_allclose(chosen, np.ones_like(chosen), rtol=1e-5)
        else:
            assert np.all(chosen < 0.5)


@by_itself_or_in_groups
def test_the_state_is_the_quantisers_update_with_the_steps_key(group, key):
    quantizer = group(EMACodebook(8, decay=0.5, restart_threshold=0.9))
    model = model_of(quantizer)
    params, model_state, _, state, metrics = step_of(model, key)
    encoded = encode(model, params, X[:B])
    indices = encode_indices(model, params, model_state, X[:B])
    expected, expected_metrics = updated(quantizer, model_state["quantizer"], encoded, indices, key)
    chex.assert_trees_all_close(state, {"quantizer": expected}, rtol=1e-5, atol=1e-7)
    assert metrics["restarts"] == expected_metrics["restarts"] > 0
    other = step_of(model, jax.random.key(7))[3]
    assert np.abs(other["quantizer"]["moment"] - expected["moment"]).max() > 1e-3
    assert {leaf.dtype for leaf in jax.tree.leaves(metrics)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
def test_gradients_go_where_they_belong(key):
    """Distortion reaches both networks through the codes, commitment the encoder alone, the codebook loss the codes."""
    model = model_of()
    params, model_state = start(model)

    @jax.jit
    def gradient(params):
        """Its norms, without commitment and with much of it."""
        norms = []
        for weight in (0.0, 1000.0):
            loss = partial(vq_vae_loss, model, variance=0.1, commitment_weight=weight)
            grads = jax.grad(lambda p, loss=loss: loss(p, model_state, batch(B), key=key, step=0)[0])(params)["params"]
            norms.append({part: optax.tree.norm(grads[part]) for part in ("encoder", "decoder")})
        return norms

    through, heavy = jax.device_get(gradient(params))
    assert min(through.values()) > 0
    assert heavy["decoder"] == pytest.approx(through["decoder"], rel=1e-5)
    assert heavy["encoder"] > 2 * through["encoder"]

    learned = model_of(GradientCodebook(8))
    params, model_state = start(learned)
    loss = partial(vq_vae_loss, learned)
    grads = jax.jit(jax.grad(lambda p: loss(p, model_state, batch(B), key=key, step=0)[0]))(params)
    encoded = encode(learned, params, X[:B])
    indices = encode_indices(learned, params, model_state, X[:B])
    pull = jax.jit(jax.grad(lambda codes: losses.codebook_loss(encoded, codes[indices]).mean()))
    expected = pull(params["quantizer"]["codes"])
    np.testing.assert_allclose(grads["quantizer"]["codes"], expected, rtol=1e-5, atol=1e-7)
    assert np.any(expected)


# In evaluation, over devices


@pytest.mark.parametrize(
    "quantizer",
    [EMA, pytest.param(GROUPS, marks=pytest.mark.slow), GradientCodebook(8)],
    ids=["averages", "groups", "gradient"],
)
def test_evaluation_measures_each_example_by_itself_and_leaves_the_codebook_alone(quantizer, key):
    model = model_of(quantizer)
    params, model_state, value, _, whole = step_of(model, key, num=20, variance=0.1)
    evaluate = jax.jit(make_eval_step(partial(vq_vae_loss, model, variance=0.1)))
    weight = jnp.ones(20).at[3].set(0)
    sums, total = evaluate(params, model_state, batch(20) | {"weight": jnp.ones(20)}, key=key, step=jnp.int32(0))
    assert set(sums) == {"loss", "distortion", "commitment"}
    for name, summed in sums.items():
        np.testing.assert_allclose(summed / total, whole[name], rtol=1e-5)
    np.testing.assert_allclose(sums["loss"] / total, value, rtol=1e-5)
    without, total = evaluate(params, model_state, batch(20) | {"weight": weight}, key=key, step=jnp.int32(0))
    assert total == 19
    assert without["distortion"] < sums["distortion"]


def test_a_device_cannot_take_a_share_of_the_batch(key):
    model = model_of()
    params, model_state = start(model)
    with pytest.raises(ValueError, match="vq_vae_loss is not a mean over examples, so devices cannot take a share"):
        on_share(partial(vq_vae_loss, model))(params, model_state, batch(B), key=key, step=0)


# Codes


@pytest.mark.parametrize("quantizer", [EMA, GROUPS, GradientCodebook(8)], ids=["averages", "groups", "gradient"])
def test_indices_go_there_and_back(quantizer):
    model = model_of(quantizer)
    params, model_state = start(model)
    indices = encode_indices(model, params, model_state, X[:B])
    groups = (2,) if quantizer is GROUPS else ()
    assert (indices.dtype, indices.shape) == (jnp.int32, (B, 4, 4, *groups))
    codes = np.asarray(model.codes(params, model_state))
    assert codes.shape == ((2, 8, 2) if groups else (8, 4))
    encoded, indices = encode(model, params, X[:B]), np.asarray(indices)
    vectors = np.concatenate([codes[g][indices[..., g]] for g in range(2)], axis=-1) if groups else codes[indices]
    by_group = np.asarray(encoded).reshape(B, 4, 4, -1, 1, codes.shape[-1])
    nearest = np.square(by_group - codes.reshape(-1, 8, codes.shape[-1])).sum(-1).argmin(-1)
    np.testing.assert_array_equal(nearest.reshape(indices.shape), indices)
    decoded = decode_indices(model, params, model_state, indices).mean
    np.testing.assert_allclose(decoded, decode(model, params, vectors), rtol=1e-5)
    with pytest.raises(TypeError, match="indices must be integers, got float32"):
        model.decode_indices(params, model_state, indices.astype(jnp.float32))


@pytest.mark.slow
def test_every_integer_type_is_decoded_alike_and_one_out_of_range_is_an_error_or_nan():
    model = model_of(EMACodebook(256))
    params, model_state = start(model)
    indices = np.asarray(jax.random.randint(jax.random.key(0), (3, 4, 4), 0, 256))

    def decoded(values):
        return np.asarray(decode_indices(model, params, model_state, values).mean)

    for dtype in ("int8", "int16", "uint8", "uint16", "uint32"):
        fitting = indices % 128 if dtype == "int8" else indices
        np.testing.assert_allclose(decoded(fitting.astype(dtype)), decoded(fitting), rtol=1e-6)
    wrong = {"int8": -1, "int16": 256, "int32": 10**9, "uint16": 65_535, "uint32": 2**32 - 1}
    for dtype, value in wrong.items():
        values = np.zeros((3, 4, 4), dtype)
        values[1, 2, 3] = value
        np.testing.assert_array_equal(np.isnan(decoded(values)).any(axis=(1, 2, 3)), [False, True, False])
        with pytest.raises(ValueError, match=r"code -?\d+ at index 1, 2, 3 is outside 0 .. 255"):
            model.decode_indices(params, model_state, values)


# Networks and quantisers of every kind


@pytest.mark.parametrize(
    "shape", [(16, 3), *(pytest.param(one, marks=pytest.mark.slow) for one in ((8, 8, 1), (8, 4, 4, 2)))]
)
def test_sound_images_and_video(shape, key):
    """One, two and three dimensions through the same code."""
    model = VQVAE(ResidualEncoder(4, (8, 8), 1, 4), ResidualDecoder(shape[-1], (8, 8), 1, 4), GROUPS)
    x = {"x": jax.random.uniform(key, (B, *shape)), "index": jnp.arange(B)}

    @jax.jit
    def run(key):
        # The codes are seeded by vectors without their positions: once is enough, and it takes long to compile.
        params, state = model.init_with_quantizer(x["x"], key=key, seeded=len(shape) == 2)
        loss = partial(vq_vae_loss, model, variance=1 / 12)
        grads = jax.grad(lambda p: loss(p, state, x, key=key, step=0)[0])(params)
        return grads, model.encode_indices(params, state, x["x"])

    grads, indices = run(key)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert indices.shape == (B, *(size // 4 for size in shape[:-1]), 2)


def test_statistics_stay_float32_under_bfloat16(key):
    model = model_of(EMACodebook(8), likelihood=unit_gaussian, dtype=jnp.bfloat16)
    *_, value, state, metrics = step_of(model, key, variance=0.1)
    assert {leaf.dtype for leaf in jax.tree.leaves((value, state, metrics))} == {jnp.dtype(jnp.float32)}


def test_a_quantiser_of_the_users_own_trains_and_is_evaluated(key):
    model = model_of(Grid())
    loss_fn = partial(vq_vae_loss, model, variance=1 / 12)
    optimizer = optax.adam(1e-2)
    state = init_train_state(partial(model.init_with_quantizer, X), optimizer, key=key)
    assert state.model_state == ()
    step = jax.jit(make_train_step(loss_fn, optimizer))
    history = []
    for _ in range(40):
        state, metrics = step(state, batch(20))
        history.append(float(metrics["loss"]))
    assert set(metrics) == {"loss", "distortion", "commitment", "size", "range", "grad_norm"}
    assert int(state.step) == 40
    assert np.mean(history[-5:]) < 0.9 * history[0]
    evaluate = jax.jit(make_eval_step(loss_fn))
    held = batch(20) | {"weight": jnp.ones(20)}
    sums, total = evaluate(state.params, state.model_state, held, key=key, step=state.step)
    assert set(sums) == {"loss", "distortion", "commitment", "size"}  # what the update says needs the whole batch
    after = jax.jit(loss_fn)(state.params, (), batch(20), key=key, step=0)[1][1]
    np.testing.assert_allclose(sums["loss"] / total, after["loss"], rtol=1e-5)
    indices = encode_indices(model, state.params, (), X)
    assert indices.shape == (20, 4, 4, 4)
    mean = np.asarray(decode_indices(model, state.params, (), indices).mean)
    np.testing.assert_allclose(np.square(mean - np.asarray(X)).mean() * 12, after["distortion"], rtol=1e-5)
    with pytest.raises(TypeError, match=r"Grid has no method codes\(params, state\)"):
        model.codes(state.params, ())


def test_collections_of_the_networks_live_beside_the_quantisers_state(key):
    class Centred(nn.Module):
        """An encoder that counts its calls in training."""

        @nn.compact
        def __call__(self, x, train):
            calls = self.variable("calls", "count", jnp.zeros, ())
            if train and not self.is_initializing():
                calls.value += 1
            return nn.Dense(4)(x.reshape(len(x), -1)[:, None])

    model = VQVAE(Centred(), lambda z: jnp.broadcast_to(z.mean(axis=(1, 2))[:, None], (len(z), 64)), EMA)
    x = X.reshape(20, 64)
    params, state = jax.jit(model.init_with_quantizer)(x, key=key)
    assert set(state) == {"calls", "quantizer"}
    loss = jax.jit(partial(vq_vae_loss, model))
    _, (after, _) = loss(params, state, {"x": x, "index": jnp.arange(20)}, key=key, step=0)
    assert after["calls"]["encoder"]["count"] == 1
    assert np.abs(after["quantizer"]["frequency"] - state["quantizer"]["frequency"]).max() > 1e-4
    chex.assert_trees_all_equal_structs(after, state)


# What is refused


def short_log_prob(output):
    class Summed(DiagGaussian):
        def log_prob(self, x):
            return super().log_prob(x).sum()

    return Summed(output, jnp.zeros(()))


class Short(Grid):
    def __call__(self, params, state, encoded, *, mask=None):
        quantized = super().__call__(params, state, encoded, mask=mask)
        return quantized._replace(commitment=quantized.commitment.mean())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": 0.0}, "variance must be positive, got 0.0"),
        ({"variance": float("nan")}, "variance must be positive, got nan"),
        ({"commitment_weight": -1.0}, "commitment_weight must be a finite number, zero or more, got -1.0"),
        ({"commitment_weight": float("nan")}, "commitment_weight must be a finite number, zero or more, got nan"),
    ],
)
def test_impossible_weights_are_refused(options, message, key):
    with pytest.raises(ValueError, match=message):
        step_of(model_of(), key, **options)


RBG = jax.random.key(0, impl="rbg")
REFUSED = {
    "no quantiser": (
        lambda: model_of(8),
        TypeError,
        "quantizer must have the methods of .*Quantizer, got 8",
    ),
    "a class": (lambda: model_of(EMACodebook), TypeError, "quantizer must have the methods of"),
    "integers": (
        lambda: model_of().init_with_quantizer(jnp.zeros((2, *SHAPE), jnp.uint8), key=jax.random.key(0)),
        TypeError,
        "x must be floating, got uint8",
    ),
    "nothing": (
        lambda: model_of().init_with_quantizer(X[:0], key=jax.random.key(0)),
        ValueError,
        r"got \(0, 8, 8, 1\), which holds nothing",
    ),
    "another generator at the start": (
        lambda: model_of().init_with_quantizer(X, key=RBG),
        TypeError,
        "key must be a threefry key",
    ),
    "another generator": (lambda: step_of(model_of(), RBG), TypeError, "key must be a threefry key"),
    "no codes": (
        lambda: step_of(model_of(), jax.random.key(0), params_and_state=(start(model_of())[0], ())),
        ValueError,
        "EMACodebook has no codes without its state",
    ),
    "a likelihood that is summed": (
        lambda: step_of(model_of(likelihood=short_log_prob), jax.random.key(0)),
        ValueError,
        r"log_prob must be \(6,\), one number of nats for each example, got \(\)",
    ),
    "a commitment that is averaged": (
        lambda: step_of(model_of(Short()), jax.random.key(0)),
        ValueError,
        r"the quantiser's commitment must be \(6,\), one number for each example, got \(\)",
    ),
    "a decoder of another shape": (
        lambda: step_of(VQVAE(ResidualEncoder(4, (8,), 1, 4), ResidualDecoder(3, (8,), 1, 4), EMA), jax.random.key(0)),
        ValueError,
        r"expected x \(batch, 8, 8, 3\), got \(6, 8, 8, 1\)",
    ),
    "an encoder of pairs": (
        lambda: VQVAE(lambda x: (x, x), lambda z: z, EMA).apply({}, X, method="encode"),
        TypeError,
        r"the encoder must return vectors \[B, \*positions, D\], one floating array, got tuple",
    ),
    "an encoder of one number": (
        lambda: VQVAE(lambda x: x.mean(axis=(1, 2, 3)), lambda z: z, EMA).apply({}, X, method="encode"),
        ValueError,
        r"the encoder must return vectors \(20, \*positions, D\), got \(20,\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
