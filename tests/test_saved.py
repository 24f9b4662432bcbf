"""What a run is made of is seen to come back before it is written: nothing is saved that cannot be loaded."""

import collections
import dataclasses
import enum
import functools
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae import data
from jaxvae._recipe import described
from jaxvae._saved import describe, write
from jaxvae.run import Run
from tests.test_recipe import body, there_and_back


class Mode(enum.Enum):
    COLD = 1


def objective(*anything, **more):
    return jaxvae.vae_loss(*anything, **more)


def twice(function):
    @functools.wraps(function)
    def doubled(*anything, **more):
        return 2 * function(*anything, **more)

    return doubled


class Slotted:
    __slots__ = ("kept",)


class Extended(Slotted):
    def __init__(self):
        self.kept, self.more = 1, 2


class Trainer:
    def objective(self):
        return 1


class Mapped(dict):
    pass


@dataclasses.dataclass
class Doubled:
    value: float

    def __post_init__(self):
        self.value *= 2


@dataclasses.dataclass
class Consumed:
    value: dataclasses.InitVar[float]


LOST = {
    "a method of an object": lambda: Trainer().objective,
    r"wraps .*test_saved\.objective": lambda: twice(objective),
    "cannot be made again": lambda: Mapped(a=1),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "is an Extended": Extended,
    "a constructor changes": lambda: Doubled(1.0),
    "missing 1 required": lambda: Consumed(1.0),
    "masked": lambda: np.ma.masked_array([1.0, 2.0], [False, True]),
    "longdouble": lambda: np.longdouble(1),
}


@pytest.mark.parametrize("reason", LOST)
def test_what_would_come_back_as_another_is_refused(reason):
    with pytest.raises(TypeError, match=reason):
        described(LOST[reason](), "value")


def test_members_precisions_types_of_numpy_and_compiled_functions_come_back():
    assert there_and_back(Mode.COLD, parts=[Mode]) is Mode.COLD
    assert there_and_back(jax.lax.Precision.HIGHEST) is jax.lax.Precision.HIGHEST
    assert there_and_back((np.float32, np.bool_)) == (np.float32, np.bool_)
    assert there_and_back(jax.jit(objective), parts=[objective]) is objective


class Statistics(NamedTuple):
    mean: jax.Array


def run_of(params, model_state=()):
    model = jaxvae.VAE(*body())
    kept = data.from_arrays("mine", np.zeros((2, 8, 8, 1), np.uint8), levels=2)
    return Run(model, params, model_state, functools.partial(jaxvae.vae_loss, model), kept, [], 0)


def test_a_state_of_ones_own_comes_back_and_is_asked_for(tmp_path):
    write(run_of({"a": jnp.ones(2)}, {"mine": Statistics(jnp.arange(3.0))}), tmp_path)
    assert jaxvae.load(tmp_path, parts=[Statistics]).model_state["mine"].mean.tolist() == [0, 1, 2]
    with pytest.raises(TypeError, match=r"parts=\[Statistics\]"):
        jaxvae.load(tmp_path)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, "two arrays"),
        ({"a": jnp.zeros(2, jnp.int4)}, "a is int4"),
        ({"noise": jax.random.key(0)}, r"noise is an array of key<fry>"),
        ({"a": np.ma.masked_array(np.float32([1, 2]), [0, 1])}, "a is a masked array"),
        ({"__metadata__": jnp.ones(2)}, "an array called __metadata__"),
    ],
)
def test_parameters_that_no_file_holds_are_refused_before_training(params, reason):
    with pytest.raises((TypeError, ValueError), match=reason):
        describe(run_of(params))


def test_float64_that_is_read_as_float32_is_told(tmp_path):
    params = {"a": np.float64([1 / 3]), "b": np.ones(1, np.float32)}
    write(run_of(params), tmp_path)
    with pytest.warns(UserWarning, match=r"with a in float64, which is read as float32: .*jax_enable_x64") as told:
        assert jaxvae.load(tmp_path).params["a"] == np.float32(1 / 3)
    assert [each.filename for each in told] == [__file__]
    with jax.enable_x64(True):
        assert jaxvae.load(tmp_path).params["a"] == 1 / 3


def test_evaluations_that_are_not_finite_are_saved_as_json_and_come_back(tmp_path):
    run = dataclasses.replace(run_of({"a": jnp.ones(1)}), history=[{"step": 3, "train": {"loss": np.inf, "rate": 1.5}}])
    write(run, tmp_path)
    (record,) = json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)
    assert record == {"step": 3, "train": {"loss": None, "rate": 1.5}}
    (record,) = jaxvae.load(tmp_path).history
    assert record["step"] == 3
    np.testing.assert_array_equal(list(record["train"].values()), [np.nan, 1.5])


def test_a_number_among_the_parameters_has_the_type_that_jax_gives_it(tmp_path):
    write(run_of({"a": 1.5, "b": True}), tmp_path)
    params = jaxvae.load(tmp_path).params
    assert {name: (each.dtype, each.item()) for name, each in params.items()} == {"a": ("float32", 1.5), "b": (bool, 1)}
