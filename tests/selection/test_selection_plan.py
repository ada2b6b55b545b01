from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from pytest_bninvariants import run_config
from pytest_bninvariants.errors import GateError
from pytest_bninvariants.selection import selection_plan
from pytest_bninvariants.selection.scope import Scope
from pytest_bninvariants.selection.select import select
from pytest_bninvariants.selection.selection_plan import Selection


@pytest.fixture(autouse=True)
def no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_plan, "_recent", ())


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))


class PlainNorm(Plain):
    pass


def a_model(**options: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2, **options)))


def found_anew(model: nn.Module, scope: Scope) -> Selection:
    before, selection_plan._recent = selection_plan._recent, ()
    selection = select(model, scope)
    selection_plan._recent = before
    return selection


def assert_same(one: Selection, other: Selection) -> None:
    assert one.names.modules == other.names.modules
    assert one.names.bare == other.names.bare
    for mine, yours in (
        (one.names.tensors, other.names.tensors),
        (one.tensors, other.tensors),
    ):
        assert list(mine) == list(yours)
        for key, watched in mine.items():
            assert watched[:3] == yours[key][:3]
            assert watched.tensor is yours[key].tensor
    assert list(one.bn_layers.items()) == list(other.bn_layers.items())
    assert list(one.modules.items()) == list(other.modules.items())
    assert one.bn_names == other.bn_names


@pytest.mark.parametrize(
    "scope",
    [
        Scope(),
        Scope(bn_only=True),
        Scope(modules=("1",), parameters=False),
        Scope(exclude=("1.0.bias", "0")),
    ],
    ids=str,
)
def test_a_plan_says_of_another_model_what_would_be_found(scope: Scope) -> None:
    select(a_model(), scope)
    other = a_model()
    by_plan = select(other, scope)
    assert len(selection_plan._recent) == 1
    assert_same(by_plan, found_anew(other, scope))


def test_a_plan_of_tied_modules_keeps_apart_those_that_are_not_tied() -> None:
    bn = nn.BatchNorm1d(2)
    select(nn.Sequential(bn, bn), Scope())
    apart = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2))
    selection = select(apart, Scope())
    assert len(selection_plan._recent) == 1
    assert selection.modules["0"] is apart[0]
    assert selection.modules["1"] is apart[1]


def test_wrappers_of_one_model_are_told_apart_as_before() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    select(Wrapper(a_model()), Scope())
    other = Wrapper(a_model())
    assert_same(select(other, Scope()), found_anew(other, Scope()))
    assert len(selection_plan._recent) == 1


def test_a_layer_without_statistics_has_a_plan_of_its_own() -> None:
    scope = Scope(bn_only=True)
    select(a_model(), scope)
    selection = select(a_model(track_running_stats=False), scope)
    assert list(selection.tensors) == ["1.0.weight", "1.0.bias"]


def test_another_type_under_the_same_names_has_a_plan_of_its_own() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), Plain())
    select(model, Scope(bn_only=True))
    with run_config.override(bn_layer_types=(PlainNorm.__name__,)):
        assert list(select(model, Scope(bn_only=True)).bn_layers) == ["0"]
        model[1] = PlainNorm()
        assert list(select(model, Scope(bn_only=True)).bn_layers) == ["0", "1"]
    assert list(select(model, Scope(bn_only=True)).bn_layers) == ["0"]


def test_a_plan_keeps_neither_a_model_nor_its_types_alive() -> None:
    class Own(nn.BatchNorm1d):
        pass

    model = nn.Sequential(Own(2))
    select(model, Scope())
    gone = weakref.ref(model), weakref.ref(Own)
    del model, Own
    gc.collect()
    assert [each() for each in gone] == [None, None]
    select(nn.Sequential(nn.BatchNorm1d(2)), Scope())
    assert len(selection_plan._recent) == 2


def test_a_plan_whose_type_is_gone_fits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(nn.BatchNorm1d):
        pass

    select(nn.Sequential(Own(2)), Scope())
    (plan,) = selection_plan._recent
    other = nn.Sequential(nn.BatchNorm1d(2))
    tree = select(other, Scope()).tree
    plan._type_ids = list(map(id, tree.types))  # as if the new type lay where the old one did
    assert plan.fits(Scope(), tree)
    del Own
    gc.collect()
    assert not plan.fits(Scope(), tree)


def test_what_finds_nothing_is_refused_each_time() -> None:
    for _ in range(2):
        with pytest.raises(GateError, match="'nowhere' matches nothing"):
            select(a_model(), Scope(modules=("nowhere",)))
    empty = nn.Sequential(nn.ReLU())
    select(empty, Scope(), complain=False)
    with pytest.raises(GateError, match="no parameter or buffer"):
        select(empty, Scope())


def test_only_the_latest_plans_are_kept() -> None:
    for width in range(1, 10):
        select(nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(width))), Scope())
    assert len(selection_plan._recent) == selection_plan._MOST_PLANS
