"""The networks of top-down hierarchies: any size, nothing across the batch, options that change no number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats
from variants import SHAPE, batch

import jaxvae
from jaxvae.models import top_down_vae
from jaxvae.networks import BottomUp, Rung, Stage, StateDecoder
from jaxvae.networks.top_down import Body


@pytest.mark.parametrize(
    ("shape", "stages"),
    [
        ((7, 2), [Stage(4, (1,), 2), Stage(4, (2,), 1), Stage(4, (3,))]),
        ((5, 6, 1), [Stage(4, (), 1), Stage(4, (1, 2), 2), Stage(4, (3,), 2)]),
        ((3, 4, 5, 1), [Stage(4, (1,), 2), Stage(4, (2,), 2)]),
        ((9,), [Stage(8, (4,)), Stage(4, (2,))]),
        ((3, 3), [Stage(8, (4, 2))]),
    ],
)
def test_any_shape_of_x_comes_back_at_its_size(shape, stages):
    model = top_down_vae(shape, stages, blocks=0, bottleneck=2)
    x = jnp.ones((2, *shape)) / 2
    outputs, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
    assert outputs.mean.shape == (2, *shape)


@pytest.mark.parametrize("normalization", [None, partial(nn.GroupNorm, num_groups=2)])
def test_examples_do_not_see_each_other(normalization, key):
    model = top_down_vae(SHAPE, [Stage(4, (1,), 2), Stage(4, (2,))], normalization=normalization)
    x = batch(3)["x"]
    params = jax.jit(model.init)(key, x)
    apply = jax.jit(lambda x: model.apply(params, x).mean)
    np.testing.assert_allclose(apply(x)[:1], apply(x[:1]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("windows", "radius"), [((3, 1), 1), ((3, 3), 2), ((1, 3, 3, 1), 2), ((5,), 2)])
def test_a_block_sees_what_its_windows_say(windows, radius, key):
    body = Body(4, 2, windows=windows)
    x = jax.random.normal(key, (1, 9, 3))
    params = body.init(key, x)
    seen = jax.jacobian(lambda x: body.apply(params, x)[0, 4].sum())(x)[0]
    np.testing.assert_array_equal(np.flatnonzero(np.abs(seen).max(axis=1)), np.arange(4 - radius, 5 + radius))
    # The normalisation's scale and offset, and weights and offsets of each layer: 3 channels to 4, to 2.
    ins, outs = (3, *(4,) * (len(windows) - 1)), (*(4,) * (len(windows) - 1), 2)
    sizes = [window * features + 1 for window, features in zip(windows, ins, strict=True)]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 6 + np.dot(sizes, outs)


@pytest.mark.parametrize(
    ("state", "shape", "shrink", "kernels"),
    [
        ((5,), (3, 2), None, {"grow": (5, 4), "output": (4, 6)}),
        ((4, 5), (7, 2), 2, {"grow": (4, 5, 4), "output": (3, 4, 2)}),
        ((3, 3, 5), (3, 3, 1, 2), 1, {"grow": (3, 3, 5, 4), "output": (3, 3, 4, 2)}),
    ],
)
def test_a_layer_at_the_size_of_x(state, shape, shrink, kernels, key):
    made = StateDecoder(shape, shrink, hidden=4)
    outputs, params = made.init_with_output(key, jnp.ones((2, *state)))
    assert outputs.shape == (2, *shape)
    assert {name: layer["kernel"].shape for name, layer in params["params"].items() if "kernel" in layer} == kernels
    no_bend = StateDecoder(shape, shrink, hidden=4, activation=lambda x: x, normalization=None)
    doubled = [no_bend.apply({"params": params["params"]}, scale * jnp.ones((1, *state))) for scale in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(doubled[2] - doubled[1], doubled[1] - doubled[0], rtol=1e-4, atol=1e-6)


def test_rungs_take_the_windows_of_their_model(key):
    model = top_down_vae(SHAPE, [Stage(8, (2,), 2), Stage(8, (2,))], bottleneck=4, windows=[1, 3, 3, 1])
    params = jax.jit(model.init)(key, batch(1)["x"])["params"]
    kernels = {name: layer["kernel"].shape for name, layer in params["rungs_0"]["after_0"].items() if "kernel" in layer}
    assert kernels == {"Dense_0": (8, 2), "Conv_0": (3, 3, 2, 2), "Conv_1": (3, 3, 2, 2), "output": (2, 8)}


@pytest.mark.slow
def test_checkpointed_activations_are_the_same_model(key):
    stages = [Stage(4, (1,), 2), Stage(4, (2,))]
    plain, checkpointed = (top_down_vae(SHAPE, stages, checkpoint=each) for each in (False, True))
    params = jax.jit(plain.init)(key, batch(1)["x"])

    def gradient(model):
        loss = partial(jaxvae.vae_loss, model, model_state=(), batch=batch(3), key=key, step=0)
        return jax.jit(jax.grad(lambda params: loss(params)[0]))(params)

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), gradient(plain), gradient(checkpointed))


def test_an_unconditional_rung_knows_nothing_of_those_above(key):
    """The variational ladder autoencoder: every prior is N(0, I), every posterior sees x alone."""
    model = top_down_vae(SHAPE, [Stage(8, (2,)), Stage(8, (3,))], conditional=False)
    x = batch(2)["x"]
    params = jax.jit(model.init)(key, x)
    first, second = (model.apply(params, x, key=jax.random.key(i), method="encode") for i in (1, 2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), first, second)
    _, log_prior = model.apply(params, x, tuple(q.mean[None] for q in first), method="log_joint")
    standard = sum(stats.norm.logpdf(q.mean).reshape(2, -1).sum(axis=1) for q in first)
    np.testing.assert_allclose(log_prior[0], standard, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: top_down_vae(SHAPE, []), ValueError, "last stage must have a group"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (2,)), Stage(8, ())]), ValueError, "last stage must have a group"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (2,)), Stage(8, (2,), 2)]), ValueError, "stands above one without"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (0,))]), ValueError, "latents must be at least 1"),
        (lambda: top_down_vae(SHAPE, [(8,)]), TypeError, r"stages must be of jaxvae.networks.Stage"),
        (lambda: top_down_vae(SHAPE, [Stage(8, 2)]), TypeError, r"such as Stage\(24, \(1, 1\), 2\), got Stage"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (1,), 0)]), ValueError, "shrink must be at least 1"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (1,))], blocks=-1), ValueError, "blocks must be at least 0"),
        (lambda: top_down_vae((0,), [Stage(8, (1,))]), ValueError, "shape must be at least 1"),
        (
            lambda: top_down_vae(SHAPE, [Stage(8, (1,))], normalization=partial(nn.BatchNorm, momentum=0.9)),
            ValueError,
            "normalization must look at one example alone",
        ),
        (lambda: Rung(0, 4), ValueError, "latent must be at least 1"),
        (lambda: Rung(2, 4, bottleneck=0), ValueError, "bottleneck must be at least 1"),
        (lambda: Rung(2, 4, windows=(3, 2)), ValueError, r"windows must be odd, one for each layer .*, got \(3, 2\)"),
        (lambda: BottomUp([Stage(4, (1,))], windows=()), ValueError, "windows must be odd, one for each layer"),
        (lambda: BottomUp([Stage(4, (1,))], windows=(3, -1)), ValueError, "windows must be at least 1"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (1,))], windows=3), TypeError, "windows must be a sequence of integers"),
        (lambda: StateDecoder((0,)), ValueError, "output_shape must be at least 1"),
        (lambda: top_down_vae(SHAPE, [Stage(8, (1,))], output_width=-1), ValueError, "output_width must be at least 0"),
        (lambda: BottomUp([Stage(4, (1,))], blocks=-1), ValueError, "blocks must be at least 0"),
    ],
)
def test_sizes_that_do_not_fit(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_x_without_positions_under_a_stage_that_has_them():
    with pytest.raises(ValueError, match=r"needs x \[B, \*positions, C\], got \(2, 9\)"):
        top_down_vae((9,), [Stage(8, (1,), 2)]).init(jax.random.key(0), jnp.ones((2, 9)))
