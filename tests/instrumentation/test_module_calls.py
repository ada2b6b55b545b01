"""Calls of modules and modes that are set are heard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.instrumentation.recorder import Recorder, recording


def test_forwards_are_heard_from_the_outside_in(net: Any, batch: Tensor) -> None:
    with recording() as recorder:
        net(batch)
    inside = [net, net.backbone, net.backbone.conv, net.backbone.bn, net.neck, net.head]
    assert recorder.events("forward") == inside


def test_modes_that_are_set_and_cleared_are_heard(net: Any) -> None:
    with recording() as recorder:
        net.neck.train()
        net.neck.eval()
        net.neck.training = True
        net.neck.train(False)
    assert recorder.events("training") == [net.neck, net.neck]
    assert recorder.events("eval") == [net.neck, net.neck]


def test_a_layers_forward_is_heard_with_its_input_what_it_normalises_and_its_end(net: Any) -> None:
    x = torch.ones(2, 3, 1)
    with recording() as recorder:
        net.neck.train()(x)
        with pytest.raises(RuntimeError):
            net.neck(torch.ones(2, 4, 1))
    assert [each is x for each in recorder.events("layer")] == [True, False]
    assert recorder.events("values")[0] is x
    assert recorder.events("ended") == [net.neck]
    assert recorder.events("raised") == [net.neck]


def test_what_all_ignore_nobody_hears_of(net: Any, batch: Tensor) -> None:
    class Deaf(Recorder):
        def ignores(self, module: nn.Module) -> bool:
            return module is not net.neck

    with recording(Deaf()) as deaf:
        net(batch)
        assert deaf.events("forward") == [net.neck]
        with recording() as recorder:
            net(batch)
    assert recorder.events("forward")[0] is net


def test_a_bn_layer_that_no_observer_wants_is_not_listened_to(net: Any, batch: Tensor) -> None:
    class Choosy(Recorder):
        def observes_layer(self, layer: nn.Module) -> bool:
            return layer is net.neck

    with recording(Choosy()) as recorder:
        net.train()(batch)
    assert recorder.events("ended") == [net.neck]
    assert recorder.events("forward")[1:3] == [net.backbone, net.backbone.conv]
