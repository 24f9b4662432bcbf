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
        (lambda: StateDecoder((0,)), ValueError, "output_shape must be at least 1"),
        (lambda: BottomUp([Stage(4, (1,))], blocks=-1), ValueError, "blocks must be at least 0"),
    ],
)
def test_sizes_that_do_not_fit(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_x_without_positions_under_a_stage_that_has_them():
    with pytest.raises(ValueError, match=r"needs x \[B, \*positions, C\], got \(2, 9\)"):
        top_down_vae((9,), [Stage(8, (1,), 2)]).init(jax.random.key(0), jnp.ones((2, 9)))
