"""Parts that look alike in a file: each comes back as it was, or is refused."""

import dataclasses
import enum
import functools
import json

import numpy as np
import pytest
from flax import linen as nn

from jaxvae._names import UnknownPartError
from jaxvae._recipe import Parts, Rebuilder, described


def again(value):
    recipe, describer = described(value, "value")
    return Rebuilder(describer.arrays, Parts(describer.parts)).rebuild(json.loads(json.dumps(recipe)))


class Weighted:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, *, weights=None, args=()):
        return [float(each[0]) for each in (self.weights, weights, *args)]


class Key:
    def __init__(self, number):
        self.number = number

    def __repr__(self):
        return "key"

    def __hash__(self):
        return self.number

    def __eq__(self, other):
        return self.number == other.number


def collect(*args, **keywords):
    return args, keywords


class Block(nn.Module):
    features: int = 1


class Held:
    def __init__(self, block):
        self.block = block

    def __call__(self, block):
        return self.block, block


def test_modules_of_one_name_stay_apart():
    one, two = Block(1), Block(2)
    bound, first, second = again((functools.partial(Held(one), block=two), one, two))
    assert bound.func.block is first
    assert bound.keywords["block"] is second
    assert [first.features, second.features] == [1, 2]


def test_a_module_in_an_argument_and_a_keyword_is_one():
    block = Block(3)
    bound = again(functools.partial(collect, block, block=block))
    assert bound.args[0] is bound.keywords["block"]
    assert bound.args[0].features == 3


@dataclasses.dataclass
class Scale:
    factor: float = 1.0
    learned: float = dataclasses.field(default=2.0, init=False)

    def __post_init__(self):
        self.table = np.array([self.factor])

    @functools.cached_property
    def double(self):
        return 2 * self.factor


def test_what_a_record_keeps_beside_its_arguments_is_not_lost():
    plain, learned, table, extra = (Scale(3.0) for _ in range(4))
    assert plain.double == 6
    assert again(plain).double == 6
    learned.learned = 7.0
    table.table = np.array([4.0])
    extra.offset = 1.0
    for scale in (learned, table, extra):
        with pytest.raises(UnknownPartError, match="made again from what it holds, is another"):
            again(scale)


class Infinite(float, enum.Enum):
    ALL = float("inf")


class Float(float):
    pass


def test_a_kind_of_number_or_array_is_not_taken_for_its_base():
    assert again(Infinite.ALL) is Infinite.ALL
    for value in (Float("inf"), np.ones(2).view(np.recarray), np.dtype(">f4")):
        with pytest.raises(UnknownPartError):
            again(value)


class Base:
    scale = 1

    @classmethod
    def loss(cls):
        return cls.scale


class Derived(Base):
    scale = 2


def test_a_method_of_a_class_that_another_class_made_is_refused():
    assert again(Base.loss)() == 1
    with pytest.raises(UnknownPartError, match=r"Derived.loss, which goes by the name Base.loss: make it a function"):
        again(Derived.loss)
