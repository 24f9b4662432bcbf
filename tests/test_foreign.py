"""The losses belong to everyone: two steps of training from Flax NNX and from Equinox, with nothing else of ours."""

import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxvae import losses
from jaxvae.losses import bernoulli_nll, gaussian_kl

X = jax.random.bernoulli(jax.random.key(0), 0.3, (16, 12)).astype(jnp.float32)


def negative_elbo(encode, decode, key):
    mean, log_var = jnp.split(encode(X), 2, axis=-1)
    latent = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
    return (bernoulli_nll(decode(latent), X) + gaussian_kl(mean, log_var)).mean()


def test_flax_nnx(key):
    class Autoencoder(nnx.Module):
        def __init__(self, rngs):
            self.encoder = nnx.Linear(12, 4, rngs=rngs)
            self.decoder = nnx.Linear(2, 12, rngs=rngs)

    model = Autoencoder(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda m: negative_elbo(m.encoder, m.decoder, key))(model)
        optimizer.update(model, grads)
        return value

    first, second = step(model, optimizer), step(model, optimizer)
    assert second < first


def test_equinox(key):
    encoder, decoder = eqx.nn.Linear(12, 4, key=key), eqx.nn.Linear(2, 12, key=key)
    optimizer = optax.adam(1e-2)
    opt_state = optimizer.init((encoder, decoder))

    @eqx.filter_jit
    def step(model, opt_state):
        def value(model):
            return negative_elbo(jax.vmap(model[0]), jax.vmap(model[1]), key)

        value, grads = eqx.filter_value_and_grad(value)(model)
        updates, opt_state = optimizer.update(grads, opt_state)
        return eqx.apply_updates(model, updates), opt_state, value

    model, opt_state, first = step((encoder, decoder), opt_state)
    _, _, second = step(model, opt_state)
    assert second < first


def test_the_losses_need_only_jax(tmp_path):
    """Their folder can be copied out of the package and used as it is."""
    shutil.copytree(Path(losses.__file__).parent, tmp_path / "jaxvae" / "losses")
    (tmp_path / "jaxvae" / "__init__.py").touch()
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['flax', 'optax']))\n"
        "import jax.numpy as jnp\n"
        "from jaxvae import losses\n"
        "print(losses.__file__)\n"
        "print(losses.gaussian_kl(jnp.ones((1, 3)), jnp.zeros((1, 3))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "jaxvae" / "losses" / "__init__.py"), "[1.5]"]
