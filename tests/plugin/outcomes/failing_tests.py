"""Tests that fail in each way, for those that look at what is shown."""

from __future__ import annotations

WAYS = """
import unittest

import pytest_bninvariants
from hypothesis import Phase, given, settings, strategies as st

calm = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[phase for phase in Phase if phase != Phase.explain],
)


@pytest.mark.frozen_bn
def test_marker(model):
    drift(model)


def test_fixture(model, frozen_bn):
    with frozen_bn(model):
        drift(model)


def test_plain(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


def step(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


def test_plain_in_a_function(model):
    step(model)


class TestOfUnittest(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    def test_marker(self):
        drift(self.model)

    def test_plain(self):
        with pytest_bninvariants.frozen_bn(self.model):
            drift(self.model)


class TestOfAsyncio(unittest.IsolatedAsyncioTestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    async def test_marker(self):
        drift(self.model)


@pytest.mark.asyncio
@pytest.mark.frozen_bn
async def test_asyncio(model):
    drift(model)


@pytest.mark.asyncio
async def test_asyncio_plain(model):
    with pytest_bninvariants.frozen_bn(model):
        drift(model)


@pytest.mark.frozen_bn
@calm
@given(size=st.integers(2, 9))
def test_given(kept, size):
    (drift if size > 5 else hold)(kept, size)


@calm
@given(size=st.integers(2, 9))
def test_given_plain(size):
    model = Net()
    with pytest_bninvariants.frozen_bn(model):
        (drift if size > 5 else hold)(model, size)


class TestOfUnittestWithExamples(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    @calm
    @given(size=st.integers(2, 9))
    def test_given(self, size):
        (drift if size > 5 else hold)(self.model, size)
"""

FAILURES = """
import unittest

import pytest_bninvariants


@pytest.mark.frozen_bn("bn9")
def test_gate_at_the_start(model):
    pass


@pytest.mark.frozen_bn
def test_gate_at_the_end(model):
    pass


def test_gate_in_a_block(model):
    with pytest_bninvariants.frozen_bn(model, "bn9"):
        pass


def test_gate_at_the_end_of_a_block(model, frozen):
    with frozen(model):
        pass


def test_never_entered(model, frozen):
    frozen(model)


def test_no_model(frozen):
    with frozen("bn1"):
        pass


@pytest.mark.frozen_bn
def test_own(model):
    drift(model)
    raise ValueError("own")


def test_own_in_a_block(model, frozen):
    with frozen(model):
        drift(model)
        raise ValueError("own")


@pytest.mark.frozen_bn
def test_own_under_a_module(model):
    model.register_forward_hook(lambda *_: 1 / 0)
    drift(model)


@pytest.mark.frozen_bn
def test_own_of_torch(model):
    model(batch()[:, :2])


@pytest.mark.frozen_bn
def test_own_of_a_batch_of_one(model):
    drift(model, 1)


@pytest.mark.frozen_bn
def test_own_with_a_cause(model):
    try:
        drift(model, 1)
    except ValueError as error:
        raise RuntimeError("own") from error


class TestOfUnittest(unittest.TestCase):
    def setUp(self):
        self.model = Net()

    @pytest.mark.frozen_bn
    def test_own(self):
        drift(self.model)
        self.assertEqual(1, 2)

    @pytest.mark.frozen_bn("bn9")
    def test_gate(self):
        drift(self.model)
"""
