"""A load of a module's own tensors is told from one of copies."""

from __future__ import annotations

import sys
from types import FunctionType

from torch import nn

from pytest_bninvariants.instrumentation.own_loads import OwnLoads


def test_a_tensor_that_is_loaded_from_itself_is_told_while_it_keeps_its_values() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    weight, bias = net[0].parameters()
    loads = OwnLoads([weight])
    loads.saw_load(net, net.state_dict(), sys._getframe())
    place = loads.place_of_last(weight, weight)
    assert place is not None
    assert (place.file, place.call) == (__file__, "Sequential.load_state_dict()")
    assert loads.place_of_last(weight, nn.Parameter(weight.detach().clone())) == place
    assert loads.place_of_last(bias, bias) is None  # nobody follows it
    weight.data.add_(1)
    assert loads.place_of_last(weight, weight) is None


def test_a_load_of_copies_or_of_what_is_no_tensor_is_none_of_its_own() -> None:
    net = nn.Linear(2, 2)
    loads = OwnLoads(net.parameters())
    copies = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for state in ({}, copies, {"weight": 1}, {"other": net.weight}):
        loads.saw_load(net, state, sys._getframe())
        assert loads.place_of_last(net.weight, net.weight) is None


def test_a_load_of_a_distributed_checkpoint_fills_a_models_own_tensors_first() -> None:
    net = nn.Linear(2, 2)
    loads = OwnLoads(net.parameters())

    def load() -> None:
        loads.saw_load(net, net.state_dict(), sys._getframe())

    space = {**globals(), "__name__": "torch.distributed.checkpoint.state_dict"}
    FunctionType(load.__code__, space, closure=load.__closure__)()
    assert loads.place_of_last(net.weight, net.weight) is None
    loads.saw_load(net, net.state_dict(), None)
    assert loads._loads.keys() == {id(net.weight), id(net.bias)}
