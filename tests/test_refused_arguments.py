"""What `jaxvae.train` is given by mistake is refused by name, before anything is trained."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest
from test_run import IMAGES, MINE, quietly, vae


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "digits"}, r"a data set is a jaxvae\.data\.Dataset, such as .*, got 'digits'"),
        ({"dataset": IMAGES}, r"a data set is a jaxvae\.data\.Dataset, such as .*, got array"),
        ({"validation": IMAGES}, "validation must be a share of the data set, .*, got array"),
        ({"validation": None}, "validation must be a share of the data set, .* 0 for none, .*, got None"),
        ({"validation": True}, "validation must be a share of the data set, .*, got True"),
        ({"optimizer": 1e-3}, r"optimizer must be one of optax, such as optax\.adam\(1e-3\), got 0\.001"),
        ({"optimizer": optax.adam}, "optimizer must be one of optax, .*, got <function adam"),
        ({"loss": "elbo"}, r"loss must be a function, such as jaxvae\.iwae_loss, got 'elbo'"),
        ({"seed": None}, "seed must be an integer, got None"),
    ],
)
def test_what_is_of_another_kind_than_its_argument_is_refused(options, message):
    with pytest.raises(TypeError, match=message):
        quietly(vae(), **{"dataset": MINE} | options)


@dataclasses.dataclass
class Meanless:
    logits: jax.Array

    def log_prob(self, x):
        return -jnp.abs(x - self.logits).sum(axis=(1, 2, 3))


def test_a_likelihood_without_a_mean_is_named():
    with pytest.raises(TypeError, match="Meanless has no `mean`: a posterior or a likelihood needs its means"):
        quietly(vae(likelihood=Meanless), MINE)


@pytest.mark.parametrize("of", [lambda record: record.logits, lambda record: record], ids=["a field", "itself"])
def test_an_error_within_a_mean_is_shown_as_it_is(of):
    class Miswritten(Meanless):
        @property
        def mean(self):
            return of(self).misspelt

    with pytest.raises(AttributeError, match="misspelt"):
        quietly(vae(likelihood=Miswritten), MINE)
