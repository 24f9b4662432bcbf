"""One call to train, and what a run can be asked, saved and loaded."""

import dataclasses
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx, traverse_util

import jaxvae
from jaxvae import data, evaluation
from jaxvae.training.fit import NonFiniteError

SHAPE, N, D = (4, 4, 1), 120, 2
ANGLE = np.linspace(0, 2 * np.pi, N)
BLOBS = 1 / (1 + np.exp(-3 * np.sin(ANGLE[:, None] + np.linspace(0, 4, 16))))
IMAGES = (255 * BLOBS).astype(np.uint8).reshape(N, *SHAPE)
LABELS = (np.pi < ANGLE).astype(int)
MINE = data.from_arrays("mine", IMAGES, LABELS, levels=256)
REAL = data.from_arrays("real", BLOBS * 4 - 2, domain="real")
quietly = partial(jaxvae.train, progress=False)


def body():
    return jaxvae.MLPEncoder(D, hidden=(16,)), jaxvae.MLPDecoder(SHAPE, hidden=(16,))


def vae(**options):
    return jaxvae.VAE(*body(), **options)


def conditional():
    embed = jaxvae.LabelEmbedding(2)
    encoder, decoder = body()
    return jaxvae.CVAE(jaxvae.Conditioned(encoder), jaxvae.Conditioned(decoder), embed=embed)


def quantised():
    encoder = jaxvae.ResidualEncoder(4, channels=(8,), blocks=0, window=2)
    return jaxvae.VQVAE(encoder, jaxvae.ResidualDecoder((1,), channels=(8,), blocks=0, window=2), jaxvae.EMACodebook(8))


@pytest.fixture(scope="module")
def run():
    return quietly(vae(), MINE, epochs=6, seed=3, optimizer=optax.adam(0.02), batch_size=32)


def test_the_history_has_every_epoch_and_the_best_state_comes_back(run):
    assert [record["epoch"] for record in run.history] == [1, 2, 3, 4, 5, 6]
    values = [record["validation"]["loss"] for record in run.history]
    assert run.step == run.history[int(np.argmin(values))]["step"]
    _, held = data.split_validation(MINE, 0.1, seed=3)
    best = run.history[int(np.argmin(values))]["validation"]
    assert run.evaluate(held, num_samples=2)["rate"] == pytest.approx(best["rate"], rel=1e-5)  # it draws nothing
    assert min(values) < values[0] - 0.2
    assert run.stopped is None


def test_it_is_what_the_parts_do_by_hand():
    model, optimizer = vae(), optax.adam(1e-2)
    by_call = quietly(model, MINE, epochs=2, seed=7, optimizer=optimizer, batch_size=30, validation=0)
    step = jaxvae.make_train_step(partial(jaxvae.vae_loss, model), optimizer, prepare=MINE.prepare)
    state = jaxvae.init_train_state(
        lambda *, key: (model.init(key, jnp.zeros((1, *SHAPE))), ()), optimizer, key=jax.random.key(7)
    )
    feed = data.Resident(MINE, data.Order(N, 30, epochs=2, seed=7))
    state, _ = jaxvae.fit(state, jaxvae.make_train_epoch(step), feed)
    chex.assert_trees_all_equal(by_call.params, state.params)
    assert (by_call.step, len(by_call.history)) == (8, 1)  # nothing to evaluate on but the end


def test_the_best_state_is_not_the_last():
    """A learning rate that ruins the second half: what comes back is from before."""
    schedule = optax.piecewise_constant_schedule(0.02, {12: 300.0})
    trained = quietly(vae(), MINE, epochs=6, optimizer=optax.adam(schedule), batch_size=32)
    values = [record["validation"]["loss"] for record in trained.history]
    assert trained.step == trained.history[int(np.argmin(values))]["step"] < trained.history[-1]["step"]
    assert values[-1] > min(values) + 1


def test_how_likely_a_set_is(run):
    measured = run.evaluate(MINE, num_samples=64)
    assert set(measured) >= {"loss", "negative_elbo", "rate", "distortion", "nll", "nll_standard_error"}
    assert measured["nll"] < measured["negative_elbo"]
    assert 0 < measured["nll_standard_error"] < 0.2
    assert measured == run.evaluate(MINE, num_samples=64)
    assert measured["nll"] != run.evaluate(MINE, num_samples=64, seed=1)["nll"]


def test_how_likely_each_example_is(run):
    measured = run.evaluate(MINE, num_samples=64)
    each = run.log_likelihood(IMAGES, num_samples=64)
    assert each.log_prob.shape == (N,)
    assert each.nll == measured["nll"]
    assert each.nll_standard_error == measured["nll_standard_error"]
    first = run.log_likelihood(MINE.take(slice(5)), num_samples=64)
    np.testing.assert_allclose(first.log_prob, each.log_prob[:5], rtol=1e-6)


def test_whole_rows_are_judged_by_a_model_of_holes():
    """An encoder that was shown a mask needs one of rows without holes too."""
    pd = pytest.importorskip("pandas")
    near = np.random.default_rng(0).normal((0.0, 1.0), size=(200, 2))
    table = pd.DataFrame(near, columns=["a", "b"])
    table.loc[::5, "b"] = np.nan
    rows = data.from_table(table, name="rows")
    model = jaxvae.models.table_vae(rows.domain.columns, latent_dim=1, hidden=(16,))
    run = quietly(model, rows, epochs=2)
    whole = pd.DataFrame({"a": [0.0, 3.0], "b": [1.0, 40.0]})
    usual, odd = run.log_likelihood(whole).log_prob
    assert odd < usual - 10
    read = data.from_table(whole, name="new", columns=rows.domain.columns)
    np.testing.assert_array_equal(run.log_likelihood(read).log_prob, [usual, odd])


@pytest.mark.parametrize("make", [quantised, lambda: jaxvae.Autoencoder(*body())])
def test_what_has_no_prior_is_not_likely(make, run):
    model = make()
    with pytest.raises(TypeError, match=f"{type(model).__name__} has no latents under a prior"):
        dataclasses.replace(run, model=model).log_likelihood(MINE)


def test_a_run_is_named_without_its_arrays(run):
    assert "Array(" not in repr(run)
    assert "step=" in repr(run)


def test_codes_reconstructions_samples_and_what_lies_between(run):
    x = jnp.asarray(IMAGES / 255, jnp.float32)
    posterior = run.model.apply(run.variables, x, method="encode")
    np.testing.assert_allclose(run.encode(IMAGES), posterior.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(run.encode(MINE), run.encode(IMAGES))
    np.testing.assert_allclose(
        run.reconstruct(IMAGES[:3]),
        run.model.apply(run.variables, posterior.mean[:3], method="decode").mean,
        rtol=1e-5,
        atol=1e-6,
    )
    assert run.sample(5).shape == (5, *SHAPE)
    assert (run.sample(5) != run.sample(5, seed=1)).any()
    between = run.interpolate(IMAGES[:2], IMAGES[60:62], num=5)
    assert between.shape == (2, 5, *SHAPE)
    np.testing.assert_allclose(between[:, 0], run.reconstruct(IMAGES[:2]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(between[:, -1], run.reconstruct(IMAGES[60:62]), rtol=1e-4, atol=1e-5)
    middle = run.encode(IMAGES[[0, 60]]).mean(axis=0)
    decoded = run.model.apply(run.variables, middle[None], method="decode").mean[0]
    np.testing.assert_allclose(between[0, 2], decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [*(pytest.param(each, marks=pytest.mark.slow) for each in (vae, conditional)), quantised]
)
def test_a_run_is_saved_and_loaded_to_the_bit(make, tmp_path):
    trained = quietly(make(), MINE, epochs=2, batch_size=60)
    if make is vae:  # narrow parameters too, which NumPy's files do not know
        trained = type(trained)(**vars(trained) | {"params": jax.tree.map(jnp.bfloat16, trained.params)})
    place = trained.save(tmp_path / "run")
    again = jaxvae.load(place)
    chex.assert_trees_all_equal((again.params, again.model_state), (trained.params, trained.model_state))
    chex.assert_trees_all_equal_dtypes(again.params, trained.params)
    assert (again.history, again.step, again.stopped) == (trained.history, trained.step, trained.stopped)
    np.testing.assert_array_equal(again.encode(MINE), trained.encode(MINE))
    np.testing.assert_array_equal(again.reconstruct(MINE), trained.reconstruct(MINE))
    assert again.evaluate(MINE, num_samples=2) == trained.evaluate(MINE, num_samples=2)
    with pytest.raises(FileExistsError, match="holds something already: choose another directory"):
        trained.save(place)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_other_programs_read_the_weights(tmp_path, dtype):
    safetensors = pytest.importorskip("safetensors.flax")
    trained = quietly(quantised(), MINE, epochs=1, batch_size=60)
    trained = type(trained)(**vars(trained) | {"params": jax.tree.map(lambda leaf: leaf.astype(dtype), trained.params)})
    saved = safetensors.load_file(trained.save(tmp_path / "run") / "weights.safetensors")
    expected = {}
    for prefix, tree in (("", trained.params), ("model_state/", trained.model_state)):
        expected |= {prefix + "/".join(path): leaf for path, leaf in traverse_util.flatten_dict(tree).items()}
    assert {"params/encoder/Conv_0/kernel", "model_state/quantizer/moment"} <= set(saved)
    chex.assert_trees_all_equal(saved, expected)
    chex.assert_trees_all_equal_dtypes(saved, expected)
    if dtype == "float32":
        by_numpy = pytest.importorskip("safetensors.numpy").load_file(tmp_path / "run" / "weights.safetensors")
        chex.assert_trees_all_equal(by_numpy, jax.device_get(expected))


def test_without_safetensors_a_run_is_saved_all_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    place = run.save(tmp_path / "run")
    names = {"data.safetensors", "history.json", "run.json", "weights.safetensors"}
    assert {path.name for path in place.iterdir()} == names
    chex.assert_trees_all_equal(jaxvae.load(place).params, run.params)


class Own(nn.Module):
    """An encoder of the user's own."""

    latent_dim: int = D

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(8)(x.reshape(len(x), -1))
        return nn.Dense(self.latent_dim)(hidden), nn.Dense(self.latent_dim)(hidden)


class Halved:
    """An object of the user's own, no dataclass."""

    def __init__(self, by):
        self.by = by

    def __call__(self, batch, *, key):
        del key
        return batch | {"x": batch["x"] / self.by}


def own_loss(model, params, model_state, batch, *, key, step):
    return jaxvae.vae_loss(model, params, model_state, batch, key=key, step=step)


def test_parts_of_the_users_own_are_handed_over_and_never_imported(tmp_path):
    model = jaxvae.VAE(Own(), body()[1])
    mine = MINE.with_prepare(Halved(np.float32(510)))
    trained = quietly(model, mine, epochs=1, loss=own_loss)
    place = trained.save(tmp_path / "run")
    with pytest.raises(TypeError, match=r"not jaxvae's: .*test_run\.Halved, .*\.Own, .*\.own_loss\. .*parts="):
        jaxvae.load(place)
    with pytest.raises(TypeError, match=r"not jaxvae's: \S*test_run\.own_loss\. No file makes .*parts=\[own_loss\]"):
        jaxvae.load(place, parts=[Own, Halved])
    with pytest.raises(TypeError, match="parts must be classes and functions, got 3"):
        jaxvae.load(place, parts=[3])
    again = jaxvae.load(place, parts=[Own, own_loss, Halved])
    assert again.model == model
    assert again.dataset.prepare.by == 510
    np.testing.assert_array_equal(again.sample(3), trained.sample(3))
    assert again.evaluate(mine, num_samples=2) == trained.evaluate(mine, num_samples=2)


class TwoLinear(nnx.Module):
    latent_dim = D

    def __init__(self, rngs):
        self.mean, self.log_var = nnx.Linear(16, D, rngs=rngs), nnx.Linear(16, D, rngs=rngs)

    def __call__(self, x):
        return self.mean(x), self.log_var(x)


def flat(batch, *, key):
    del key
    return batch | {"x": batch["x"].reshape(-1, 16) / 255}


def test_a_model_that_no_file_describes_is_handed_over(tmp_path):
    model = jaxvae.VAE(TwoLinear(nnx.Rngs(0)), jaxvae.MLPDecoder((16,), hidden=(4,)))
    trained = quietly(model, MINE.with_prepare(flat), epochs=1)
    place = trained.save(tmp_path / "run")
    with pytest.raises(TypeError, match=r"needs its model, .*\(model\.encoder\.held is .*\.TwoLinear, an NNX module"):
        jaxvae.load(place)
    again = jaxvae.load(place, model=model, parts=[flat])
    assert again.objective.args == (model,)
    np.testing.assert_array_equal(again.sample(3), trained.sample(3))


def test_a_module_that_is_met_twice_stays_one(run, tmp_path):
    shared = jaxvae.MLPEncoder(D, hidden=(4,))
    twice = nn.Sequential([shared, shared, jnp.tanh])
    again = jaxvae.load(dataclasses.replace(run, model=twice).save(tmp_path / "run")).model
    assert again.layers[0] is again.layers[1]
    assert again.layers[2] is jnp.tanh


def test_what_the_parts_hold_comes_back_as_it_was(run, tmp_path):
    held = {
        "numbers": (1, True, 0.1, float("inf"), np.float32(0.1), np.int64(2**40), jnp.bfloat16, np.dtype("int8")),
        "text": ["a", np.str_("b"), None, {(1, 2): "c"}],
        "arrays": {"host": np.arange(3, dtype=np.int16), "device": jnp.array([1, 2], jnp.bfloat16)},
    }
    objective = partial(jaxvae.vae_loss, run.model, **held)
    again = jaxvae.load(dataclasses.replace(run, objective=objective).save(tmp_path / "run")).objective
    assert again.func is jaxvae.vae_loss
    arrays = again.keywords.pop("arrays")
    assert again.keywords == {name: held[name] for name in ("numbers", "text")}
    assert [type(each) for each in again.keywords["numbers"]] == [type(each) for each in held["numbers"]]
    assert [type(each) for each in again.keywords["text"]] == [str, np.str_, type(None), dict]
    chex.assert_trees_all_equal(arrays, held["arrays"])
    assert isinstance(arrays["host"], np.ndarray)
    assert isinstance(arrays["device"], jax.Array)


def test_a_run_of_an_earlier_version_is_refused_unread(tmp_path):
    (tmp_path / "run.pickle").write_bytes(b"cos\nsystem\n(S'touch harmed'\ntR.")
    with pytest.raises(ValueError, match=r"saved as Python objects \(run\.pickle\), which are no longer read"):
        jaxvae.load(tmp_path)


def test_a_conditional_model_is_given_the_labels():
    trained = quietly(conditional(), MINE, epochs=2, optimizer=optax.adam(0.02))
    assert trained.sample(2, condition=[0, 1]).shape == (2, *SHAPE)
    assert trained.encode(MINE).shape == (N, D)
    with pytest.raises(TypeError, match=r"draws given a condition: pass condition \[3, ...\]"):
        trained.sample(3)
    with pytest.raises(TypeError, match="needs the conditions too: pass a data set that has them"):
        trained.encode(IMAGES)


def test_a_quantised_model_has_indices_and_the_errors_unit_is_the_variance():
    trained = quietly(quantised(), MINE, epochs=4, optimizer=optax.adam(0.01))
    indices = trained.encode(IMAGES)
    assert (indices.shape, indices.dtype) == ((N, 2, 2), np.int32)
    error = np.square(trained.reconstruct(IMAGES) - IMAGES / 255).mean() / (IMAGES / 255).var()
    assert trained.evaluate(MINE)["distortion"] == pytest.approx(error, rel=0.05)  # of the training examples' variance
    with pytest.raises(TypeError, match="are indices: there is nothing between them"):
        trained.interpolate(IMAGES[:1], IMAGES[1:2])
    with pytest.raises(TypeError, match="VQVAE has no prior to draw from: train a PixelCNN"):
        trained.sample(3)


def test_other_objectives_and_one_that_needs_the_whole_batch():
    importance = quietly(vae(), MINE, epochs=1, loss=partial(jaxvae.iwae_loss, num_samples=3))
    assert "iwae_bound" not in importance.history[0]["validation"]
    assert importance.history[0]["validation"]["loss"] < importance.history[0]["validation"]["negative_elbo"]
    total = quietly(vae(), MINE, epochs=1, loss=partial(jaxvae.tc_vae_loss, num_examples=N))
    assert "total_correlation" in total.history[0]["train"]
    assert total.history[0]["validation"]["loss"] == total.history[0]["validation"]["negative_elbo"]


@pytest.mark.slow
def test_data_of_other_kinds():
    trained = quietly(
        vae(likelihood=jaxvae.SharedScale()), data.from_arrays("x", REAL.x.reshape(N, *SHAPE), domain="real")
    )
    assert trained.reconstruct(REAL.x.reshape(N, *SHAPE)).min() < -0.5
    auto = quietly(jaxvae.Autoencoder(jaxvae.MLPDecoder((D,)), body()[1]), MINE, epochs=1)
    assert auto.encode(MINE).shape == (N, D)
    assert set(auto.evaluate(MINE)) == {"loss", "distortion"}
    with pytest.raises(TypeError, match=r"Autoencoder has no prior to draw from$"):
        auto.sample(1)


def test_training_ends_when_nothing_gets_better_or_someone_says_so(capsys):
    bad = quietly(vae(), MINE, epochs=50, optimizer=optax.sgd(0.0), patience=2)
    assert (bad.stopped, len(bad.history)) == ("early stopping", 3)
    seen = []

    def enough(progress):
        seen.append(progress.run().reconstruct(MINE.take(slice(3))))  # by the average, as the run that is returned
        return np.bool_(progress.step >= 1)  # as comparisons of NumPy's numbers are

    ended = jaxvae.train(vae(), MINE, epochs=50, ema=0.9, report=enough)
    assert (ended.stopped, len(seen)) == ("report", 1)
    np.testing.assert_array_equal(seen[0], ended.reconstruct(MINE.take(slice(3))))
    assert "train" in capsys.readouterr().out  # lines, where the output is no terminal
    validated = quietly(vae(), MINE, epochs=1, validation=MINE.take(slice(10)))
    assert len(validated.history) == 1


def test_what_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match="'real' holds real numbers, and a Bernoulli likelihood is for x in"):
        quietly(vae(), data.from_arrays("real", REAL.x.reshape(N, *SHAPE), domain="real"))
    counts = data.from_arrays("counts", IMAGES.astype(int), domain="counts")
    with pytest.raises(ValueError, match="'counts' holds counts, and a Bernoulli"):
        quietly(vae(), counts)
    with pytest.raises(ValueError, match="has neither a condition nor labels, and the model is conditional"):
        quietly(conditional(), data.from_arrays("mine", IMAGES, levels=256))
    semi = jaxvae.SemiSupervisedVAE(conditional(), jaxvae.MLPDecoder((2,)))
    with pytest.raises(TypeError, match="no objective that suits every SemiSupervisedVAE: pass loss="):
        quietly(semi, MINE)
    with pytest.raises(ValueError, match=r"0\.1 of 3 examples leaves none .*: pass validation=0, or a number"):
        quietly(vae(), MINE.take(slice(3)))
    with pytest.raises(ValueError, match=r"patience=2 counts epochs .*, and there is none: leave it"):
        quietly(vae(), MINE, validation=0, patience=2)
    with pytest.raises(ValueError, match="is larger than the split"):
        quietly(vae(), MINE, batch_size=1000)
    with pytest.raises(ValueError, match=r"expected x \('N', 4, 4, 1\), got \(120, 16\)"):
        run.encode(IMAGES.reshape(N, 16))
    with pytest.raises(ValueError, match="start and end must be as many, got 1 and 2"):
        run.interpolate(IMAGES[:1], IMAGES[:2])
    with pytest.raises(FileNotFoundError, match=r"no run in .*: .*run\.json does not exist"):
        jaxvae.load(tmp_path)
    unsaved = type(run)(**vars(run) | {"objective": lambda: None})
    with pytest.raises(TypeError, match=r"the run cannot be saved: objective is .*<lambda>, which goes by no name"):
        unsaved.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_that_is_not_finite_says_so():
    with pytest.raises(NonFiniteError, match="not finite at step"):
        quietly(vae(), MINE, epochs=2, optimizer=optax.sgd(1e30))


def test_what_x_may_have_been_is_drawn_from_a_part_or_a_function_of_it(run):
    mask = np.arange(4)[:, None, None] >= np.zeros(SHAPE) + 2
    part, options = evaluation.Visible(mask), {"method": evaluation.Importance(20), "num_draws": 3}
    drawn = run.invert(IMAGES[:5], part, seed=4, **options)
    other = np.where(mask, IMAGES[:5], 255)  # nobody looks at what is hidden
    jax.tree.map(np.testing.assert_array_equal, run.invert(MINE.take(slice(5)), part, seed=4, **options), drawn)
    jax.tree.map(np.testing.assert_array_equal, run.invert(other, part, seed=4, **options), drawn)
    x = np.float32(IMAGES[:5] / 255)
    parts = (run.model, run.params, run.model_state, {"x": x, "index": np.arange(5)}, np.arange(5)[None], part)
    by_hand = evaluation.invert(*parts, key=jax.random.key(4), **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), by_hand, drawn)
    halves = evaluation.Linear(lambda x: x[:, :2] - x[:, 2:], 0.1, of_mean=True)
    of_halves = run.invert(np.asarray(halves(x)), halves, **options)
    assert of_halves.draws.shape == (5, 3, *SHAPE)
    off = np.abs(np.asarray(halves(of_halves.mean)) - halves(x)).mean()
    assert off < 0.8 * np.abs(np.asarray(halves(x)) - halves(run.sample(5))).mean()
    with pytest.raises(ValueError, match=r"y must be \(5, 2, 4, 1\), as A x is, got \(5, 4\)"):
        run.invert(np.zeros((5, 4), np.float32), halves, **options)
    with pytest.raises(ValueError, match=r"mask must be \(4, 4, 1\), as one x is, got \(4, 4\)"):
        run.invert(IMAGES[:5], evaluation.Visible(mask[..., 0]), **options)
