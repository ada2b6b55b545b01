"""The benchmark of `accumulates` runs, and tells apart what adds up."""

from __future__ import annotations

import pytest

pytest.importorskip("torchvision")
pytest.importorskip("timm")


def test_what_adds_up_is_far_below_the_bound_and_what_does_not_far_above() -> None:
    from tests.benchmarks.accuracy.accumulating import rows

    for _, _, mixes, middle, most in rows(("resnet18", "mlp", "scalar"), seeds=1):
        assert middle > 1e4 if mixes else most < 0.1
