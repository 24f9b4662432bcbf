"""The networks: what they compute, what they are told of training, what they refuse; that they hash and pickle."""

import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvae.networks import (
    Conditioned,
    ConvDecoder,
    ConvEncoder,
    GaussianHead,
    LabelEmbedding,
    MLPDecoder,
    MLPDiscriminator,
    MLPEncoder,
    NoiseEmbedding,
    PatchDiscriminator,
    PixelScale,
    ResidualDecoder,
    ResidualEncoder,
    SharedScale,
    Unconditioned,
    logistic_image,
)
from jaxvae.networks._run import run

SHAPE = (8, 8, 1)
X, Z = jnp.ones((2, *SHAPE)), jnp.ones((2, 3))


def ones_kernel(key, shape, dtype=jnp.float32):
    """An initialiser as a user would write it: a function of a module."""
    del key
    return jnp.ones(shape, dtype)


# What they compute


def test_parameters_are_those_of_earlier_runs(key):
    """Names and shapes by path, and the values of Flax's own initialisers from the same keys."""
    params = jax.jit(MLPEncoder(3, (4,)).init)(key, X)["params"]
    shapes = {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    assert shapes == {
        "['Dense_0']['bias']": (4,),
        "['Dense_0']['kernel']": (64, 4),
        "['head']['log_var']['bias']": (3,),
        "['head']['log_var']['kernel']": (4, 3),
        "['head']['mean']['bias']": (3,),
        "['head']['mean']['kernel']": (4, 3),
    }

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x.reshape(2, -1))

    expected = jax.jit(Plain().init)(key, X)["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], expected)
    convolutions = jax.eval_shape(ConvDecoder(SHAPE, (4, 8)).init, key, Z)["params"]
    assert set(convolutions) == {"Dense_0", "Dense_1", "ConvTranspose_0", "output"}
    residual = jax.eval_shape(ResidualEncoder(4, (8,), 1).init, key, X)["params"]
    assert set(residual) == {"Conv_0", "Conv_1", "Conv_2", "Conv_3", "output"}


def test_a_kernel_of_the_users_own_reaches_every_layer(key):
    params = MLPDecoder((2,), (4,), kernel_init=ones_kernel).init(key, Z)["params"]
    for layer in params.values():
        np.testing.assert_array_equal(layer["kernel"], np.ones_like(layer["kernel"]))


def test_the_residual_encoder_centres_its_input(key):
    """At the middle of [0, 1] and without biases every feature is zero; elsewhere none is."""
    encoder = ResidualEncoder(4, (8,), blocks=1, residual=4)
    grey = jnp.full((1, *SHAPE), 0.5)
    params, apply = jax.jit(encoder.init)(key, grey), jax.jit(encoder.apply)
    np.testing.assert_array_equal(apply(params, grey), np.zeros((1, 4, 4, 4)))
    assert np.abs(apply(params, grey - 0.5)).max() > 0.01


@pytest.mark.parametrize("spatial", [(8,), (8, 4), (4, 8, 4)])
def test_residual_networks_mirror_each_other_in_any_dimension(key, spatial):
    def output_of(network, x):
        return jax.eval_shape(network.init_with_output, key, x)[0]

    features = output_of(ResidualEncoder(5, (4, 6), 1, 4), jnp.ones((2, *spatial, 3)))
    assert features.shape == (2, *(n // 4 for n in spatial), 5)
    assert output_of(ResidualDecoder([3, 2], (4, 6), 1, 4), features).shape == (2, *spatial, 3, 2)
    assert output_of(ResidualDecoder(3, (4, 6), blocks=0), features).shape == (2, *spatial, 3)


@pytest.mark.parametrize("spatial", [(7,), (5, 6), pytest.param((3, 6, 5), marks=pytest.mark.slow)])
def test_residual_networks_take_signals_of_any_size(key, spatial):
    """They are those of signals with mid-grey beyond the end, whose output is cut off there."""
    padded = tuple(n + n % 2 for n in spatial)
    x = jnp.asarray(np.random.default_rng(0).random((2, *spatial, 3)), jnp.float32)
    beyond = jnp.pad(x, [(0, 0), *((0, n % 2) for n in spatial), (0, 0)], constant_values=0.5)
    encoder = ResidualEncoder(5, (6,), 1, 4)
    features, params = jax.jit(encoder.init_with_output)(key, x)
    assert features.shape == (2, *(n // 2 for n in padded), 5)
    np.testing.assert_allclose(jax.jit(encoder.apply)(params, beyond), features, rtol=1e-5, atol=1e-6)

    whole, decoder = ResidualDecoder([3, 2], (6,), 1, 4), ResidualDecoder([3, 2], (6,), 1, 4, spatial=spatial)
    expected, params = jax.jit(whole.init_with_output)(key, features)
    assert expected.shape == (2, *padded, 3, 2)
    inside = (slice(None), *map(slice, spatial))
    np.testing.assert_array_equal(jax.jit(decoder.apply)(params, features), expected[inside])
    sized = whole.clone(spatial=padded)  # a size that can be halved changes nothing
    np.testing.assert_array_equal(jax.jit(sized.apply)(params, features), expected)


@pytest.mark.parametrize("shape", [pytest.param((30, 45), marks=pytest.mark.slow), (12, 8), (7, 7), (1, 1)])
def test_convolutional_networks_take_images_of_any_size(key, shape):
    """The parameters are those of the next size that can be halved, the output is a corner of that size's."""
    channels = (4, 8, 4)
    padded = tuple(-(-n // 8) * 8 for n in shape)
    decoder, whole = ConvDecoder((*shape, 3, 2), channels), ConvDecoder((*padded, 3, 2), channels)
    params = jax.jit(whole.init)(key, Z)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(decoder.init)(key, Z), params)
    output, expected = jax.jit(decoder.apply)(params, Z), jax.jit(whole.apply)(params, Z)
    assert output.shape == (2, *shape, 3, 2)
    np.testing.assert_array_equal(output, expected[:, : shape[0], : shape[1]])

    encoder = ConvEncoder(3, channels)
    (mean, log_var), params = jax.jit(encoder.init_with_output)(key, jnp.ones((2, *shape, 3)))
    assert mean.shape == log_var.shape == (2, 3)
    same = jax.eval_shape(encoder.init, key, jnp.ones((2, *padded, 3)))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, same)


def test_an_odd_size_is_encoded_as_with_zeros_beyond_it(key):
    """At the bottom and on the right, where the decoder cuts off."""
    x = jnp.asarray(np.random.default_rng(0).random((2, 7, 5, 1)), jnp.float32)
    encoder = ConvEncoder(3, (4,))
    (mean, _), params = jax.jit(encoder.init_with_output)(key, x)
    beyond, _ = jax.jit(encoder.apply)(params, jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))
    np.testing.assert_allclose(beyond, mean, rtol=1e-5, atol=1e-6)


def test_conditions_are_joined_to_what_the_body_sees():
    vector, plane = jnp.arange(4.0).reshape(2, 2), jnp.ones((2, 8, 8, 2))
    flat = Conditioned(lambda joined: joined).apply({}, X, vector)
    np.testing.assert_array_equal(flat, np.concatenate([np.ones((2, 64)), vector], axis=1))
    channels = Conditioned(lambda joined: joined, as_channels=True)
    np.testing.assert_array_equal(channels.apply({}, X, vector)[:, 3, 5], [[1, 0, 1], [1, 2, 3]])
    np.testing.assert_array_equal(channels.apply({}, X, 7 * plane)[0, 3, 5], [1, 7, 7])
    np.testing.assert_array_equal(Unconditioned(lambda x: x).apply({}, X, vector), X)


@pytest.mark.parametrize("condition", [(4, 2), (1, 4), (1, 2)])
@pytest.mark.parametrize("as_channels", [True, False])
def test_conditions_of_another_number_than_the_inputs_are_refused(condition, as_channels):
    """A vector of one batch could be read as shorter ones of another."""
    joined = Conditioned(lambda joined: joined, as_channels=as_channels)
    with pytest.raises(ValueError, match=rf"expected 2 conditions \(2, ...\), got \({condition[0]}, {condition[1]}\)"):
        joined.apply({}, X, jnp.ones(condition))


@pytest.mark.parametrize("count", [1, 3])
def test_labels_of_another_number_than_the_examples_are_refused(key, count):
    for network in (MLPDiscriminator((3,), num_classes=2), PatchDiscriminator((3,), num_classes=2)):
        with pytest.raises(ValueError, match=rf"labels must be \(2,\), one for each example, got \({count},\)"):
            network.init(key, X, jnp.zeros(count, int))


@pytest.mark.parametrize("dtype", ["int32", "int8", "bfloat16", "float16"])
def test_how_noisy_it_is_may_be_of_any_type(key, dtype):
    """In an integer type the frequencies were zeros, and a network was told nothing of the noise."""
    embedding, log_snr = NoiseEmbedding(4), jnp.array([-10.0, 0.0, 3.0, 13.0])
    params = embedding.init(key, log_snr)
    found = embedding.apply(params, log_snr.astype(dtype))
    np.testing.assert_allclose(found, embedding.apply(params, log_snr), rtol=1e-5, atol=1e-6)


def test_sizes_of_narrow_integers_do_not_wrap_around(key):
    sizes = np.array([16, 16, 1], np.uint8)  # their product is 0 in their own type
    decoder = MLPDecoder(sizes)
    assert decoder == MLPDecoder((16, 16, 1))
    assert decoder.init_with_output(key, Z)[0].shape == (2, 16, 16, 1)


# Labels


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_labels_of_any_integer_type_mean_the_same(key, dtype, compiled):
    """Of 256 classes, or 128: their number does not fit the narrow type, where row 0 answered for every label."""
    count = 128 if dtype == "int8" else 256
    embedding = LabelEmbedding(count, 4)
    labels = np.arange(count)
    params = embedding.init(key, jnp.asarray(labels))
    apply = jax.jit(embedding.apply) if compiled else embedding.apply
    expected = params["params"]["vectors"]["embedding"]
    np.testing.assert_array_equal(apply(params, jnp.asarray(labels.astype(dtype))), expected)
    assert len(np.unique(np.asarray(expected), axis=0)) == count


@pytest.mark.parametrize(("dtype", "wrong"), [("int8", -1), ("uint8", 255), ("int32", 3), ("uint32", 2**32 - 1)])
def test_a_label_out_of_range_is_named_or_nan(key, dtype, wrong):
    embedding = LabelEmbedding(3, 4)
    params = embedding.init(key, jnp.zeros(1, int))
    labels = jnp.asarray(np.array([2, wrong, 0]).astype(dtype))
    with pytest.raises(ValueError, match=r"label -?\d+ at index 1 is outside 0 .. 2"):
        embedding.apply(params, labels)
    vectors = jax.jit(embedding.apply)(params, labels)
    np.testing.assert_array_equal(np.isnan(vectors).all(axis=1), [False, True, False])
    np.testing.assert_array_equal(vectors[::2], params["params"]["vectors"]["embedding"][jnp.array([2, 0])])


# Training mode


class Noisy(nn.Module):
    """Batch statistics and dropout, switched by the parameter that most Linen modules have."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x.reshape(len(x), -1))
        return nn.Dropout(0.5, deterministic=not train)(x)


def told(name):
    """A module, a function, a method and a partial that return the mode they are told by the parameter `name`."""
    scope = {"nn": nn}
    exec(
        f"class Module(nn.Module):\n    def __call__(self, x, {name}=None): return {name}\n"
        f"def function(x, *, {name}): return {name}\n"
        f"class Owner:\n    def method(self, x, {name}=None): return {name}\n"
        f"def three(scale, x, {name}=None): return {name}\n",
        scope,
    )
    return [scope["Module"](), scope["function"], scope["Owner"]().method, partial(scope["three"], 2.0)]


@pytest.mark.parametrize(("name", "in_training"), [("train", True), ("training", True), ("deterministic", False)])
def test_a_network_is_told_the_mode_by_the_name_it_asks_with(name, in_training):
    for network in told(name):
        for train in (True, False, True):
            assert run(network, 1.0, train=train) is (train == in_training)


def test_a_network_that_does_not_ask_is_not_told():
    def rest(x, **options):
        return x, options

    assert run(rest, 1, train=True) == (1, {})
    assert run(lambda x, trained=0: (x, trained), 1, train=True) == (1, 0)
    assert run(partial(lambda x, train: train, train="fixed"), 1, train=True) == "fixed"
    assert run(lambda x, train, /: train, 1, 2, train=True) == 2
    assert run(jnp.add, 1, 2, train=True) == 3
    assert run(max, 1, 2, train=True) == 2
    assert run(jax.jit(lambda x: x + 1), 1, train=True) == 2
    dense = nn.Dense(2).bind({"params": {"kernel": jnp.ones((1, 2)), "bias": jnp.ones(2)}})
    np.testing.assert_array_equal(run(dense, jnp.ones((1, 1)), train=True), [[2, 2]])


def test_a_network_of_fewer_or_more_arrays_is_named_with_the_way_out():
    takes = r"takes 1 array, and the model has 2 for it: .*jaxvae\.Conditioned"
    for network in (nn.Dense(2), lambda x: x, partial(lambda c, x: x, 1), lambda x, train: x):
        with pytest.raises(TypeError, match=takes):
            run(network, 1.0, 2.0, train=True)
    with pytest.raises(
        TypeError, match="<lambda> needs 2 arrays, and the model has 1 for it: give the batches the cond"
    ):
        run(lambda x, condition, key: x, 1.0, train=True)
    with pytest.raises(TypeError, match="Conditioned needs 2 arrays, and the model has 1 for it"):
        run(Conditioned(nn.Dense(2)), 1.0, train=True)
    assert run(lambda *arrays: len(arrays), 1.0, 2.0, 3.0, train=True) == 3
    assert run(lambda x, weight=1, /: weight, 1.0, train=True) == 1


@pytest.mark.parametrize("wrapper", [Conditioned, Unconditioned])
def test_bodies_train_where_there_is_a_dropout_key(key, wrapper):
    x, condition = jnp.asarray(np.random.default_rng(0).normal(2.0, 3.0, (64, 5)), jnp.float32), jnp.ones((64, 1))
    network = wrapper(Noisy())
    variables = network.init(key, x, condition)
    assert set(variables) == {"params", "batch_stats"}

    still, changed = network.apply(variables, x, condition, mutable=["batch_stats"])
    np.testing.assert_allclose(still[:, :5], x, rtol=1e-5)  # the statistics are those of N(0, 1) still
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], variables["batch_stats"])

    noisy, changed = network.apply(variables, x, condition, mutable=["batch_stats"], rngs={"dropout": key})
    mean = changed["batch_stats"]["body"]["norm"]["mean"][:5]
    np.testing.assert_allclose(mean, 0.1 * x.mean(axis=0), rtol=1e-5)
    standard = np.asarray((x - x.mean(axis=0, keepdims=True)) / x.std(axis=0, keepdims=True))
    dropped = np.asarray(noisy[:, :5] == 0)
    assert 0.35 < dropped.mean() < 0.65
    np.testing.assert_allclose(noisy[:, :5][~dropped], 2 * standard[~dropped], rtol=1e-3, atol=1e-4)


# Settings


MODULES = [
    MLPEncoder(3),
    MLPEncoder(3, [8, 4], nn.tanh, jnp.bfloat16, ones_kernel),
    MLPDecoder([4, 4, 1], [8], activation=nn.silu),
    ConvEncoder(3, [4, 8], activation=nn.gelu),
    ConvDecoder([8, 8, 1], [4, 8], activation=nn.elu),
    ResidualEncoder(4, [4, 8]),
    ResidualDecoder([3, 2], [4, 8]),
    GaussianHead(3),
    LabelEmbedding(10),
    Conditioned(MLPEncoder(3)),
    Conditioned(ConvEncoder(3), as_channels=True),
    Unconditioned(MLPDecoder((4,))),
    SharedScale(initial=-1.0),
    PixelScale(logistic_image),
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)
def test_modules_hash_pickle_and_are_static_arguments(module):
    again = pickle.loads(pickle.dumps(module))
    assert again == module
    assert hash(again) == hash(module)
    traced = []
    sized = jax.jit(lambda module, x: traced.append(module) or x, static_argnums=0)
    sized(module, 1.0)
    sized(again, 1.0)
    assert len(traced) == 1


def test_a_pickled_network_computes_the_same(key):
    network = MLPEncoder(3, [8, 4], nn.silu)
    params = network.init(key, X)
    again = pickle.loads(pickle.dumps(network))
    jax.tree.map(np.testing.assert_array_equal, again.apply(params, X), network.apply(params, X))
    jax.tree.map(np.testing.assert_array_equal, again.init(key, X), params)


def test_lists_are_as_good_as_tuples():
    assert MLPDecoder([2, 3], [8]) == MLPDecoder((2, 3), (8,))
    assert ConvEncoder(3, np.array([4, 8])).channels == (4, 8)
    assert ResidualDecoder([3, 2]).output_channels == (3, 2)


@pytest.mark.parametrize("function", [nn.relu, nn.tanh, nn.silu, nn.softplus, nn.gelu, nn.leaky_relu, nn.sigmoid])
def test_activations_pickle_as_themselves(function):
    assert pickle.loads(pickle.dumps(function)) is function


def test_a_compiled_function_without_a_name_still_does_not_pickle():
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        pickle.dumps(jax.jit(lambda x: x))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MLPEncoder(0), ValueError, "latent_dim must be at least 1, got 0"),
        (lambda: MLPEncoder(3, (8, 0)), ValueError, r"hidden must be at least 1, got \(8, 0\)"),
        (lambda: MLPEncoder(3, 8), TypeError, "hidden must be a sequence of integers, got 8"),
        (lambda: MLPEncoder(3, (8.0,)), TypeError, r"hidden must be an integer, got \(8.0,\)"),
        (lambda: MLPDecoder((8, 0)), ValueError, r"output_shape must be at least 1, got \(8, 0\)"),
        (lambda: MLPDecoder(8), TypeError, "output_shape must be a sequence of integers, got 8"),
        (lambda: ConvEncoder(3, hidden=0), ValueError, "hidden must be at least 1, got 0"),
        (lambda: ConvDecoder((8,), (4,)), ValueError, r"output_shape must be \(H, W, ...\), got \(8,\)"),
        (lambda: ConvDecoder(SHAPE, ()), ValueError, "channels must hold at least one"),
        (lambda: ResidualEncoder(0), ValueError, "features must be at least 1, got 0"),
        (lambda: ResidualEncoder(3, ()), ValueError, "channels must hold at least one"),
        (lambda: ResidualEncoder(3, blocks=-1), ValueError, "blocks must be at least 0, got -1"),
        (lambda: ResidualDecoder(0), ValueError, "output_channels must be at least 1, got 0"),
        (lambda: ResidualDecoder(3, residual=0), ValueError, "residual must be at least 1, got 0"),
        (lambda: LabelEmbedding(0), ValueError, "num_classes must be at least 1, got 0"),
        (lambda: ResidualDecoder(3, spatial=(8, 0)), ValueError, r"spatial must be at least 1, got \(8, 0\)"),
        (lambda: ResidualDecoder(3, spatial=8), TypeError, "spatial must be a sequence of integers, got 8"),
    ],
)
def test_impossible_sizes_are_refused_where_they_are_given(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("network", "arguments", "error", "message"),
    [
        (MLPEncoder(3), (X[:0],), ValueError, r"expected \(batch, ...\), got \(0, 8, 8, 1\), which holds nothing"),
        (MLPDecoder((4,)), (Z[:0],), ValueError, r"got \(0, 3\), which holds nothing"),
        (ConvEncoder(3, (4,)), (X[:0],), ValueError, "which holds nothing"),
        (ConvDecoder(SHAPE, (4,)), (Z[:0],), ValueError, "which holds nothing"),
        (ResidualEncoder(3, (4,)), (X[:0],), ValueError, "which holds nothing"),
        (ResidualDecoder(3, (4,)), (X[:0],), ValueError, "which holds nothing"),
        (Conditioned(MLPEncoder(3)), (X[:0], Z[:0]), ValueError, "which holds nothing"),
        (
            ResidualDecoder(3, (4,), spatial=(5, 8)),
            (X[:, :4, :4],),
            ValueError,
            r"features of x of the size \(5, 8\) are \(3, 4\), got \(4, 4\)",
        ),
        (LabelEmbedding(3), (Z[:, 0],), TypeError, r"labels must be integers \(batch,\), got float32"),
        (LabelEmbedding(3), (jnp.ones((2, 1), int),), ValueError, r"labels must be integers \(batch,\), got \(2, 1\)"),
    ],
)
def test_arguments_that_do_not_fit_are_named(key, network, arguments, error, message):
    with pytest.raises(error, match=message):
        network.init(key, *arguments)
