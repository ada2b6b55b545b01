"""Layers that are saved, loaded or copied wrongly."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.batchnorm.laws.known_bad.bases import Composed
from tests.batchnorm.laws.known_bad.registry import breaks


@breaks("state_dict_keys")
class HidesItsCounter(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._non_persistent_buffers_set.add("num_batches_tracked")


@breaks("state_dict_round_trip")
class LoadsByRebinding(Composed):
    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        self.running_mean = state[prefix + "running_mean"]


@breaks("state_dict_versions")
class RefusesOldStates(Composed):
    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *args: Any) -> None:
        nn.Module._load_from_state_dict(self, state, prefix, *args)


@breaks("deepcopy", "copies_keep_momentum")
class CopiesForgetMomentum(Composed):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesForgetMomentum:
        other = CopiesForgetMomentum(self.num_features, self.eps, 0.1)
        other.load_state_dict(copy.deepcopy(self.state_dict(), memo))
        other.num_batches_tracked.zero_()
        return other.train(self.training)


@breaks("pickle")
class PicklesWithoutItsEps(Composed):
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "eps": 1e-5, "momentum": 0.2}


@breaks("state_dict_round_trip")
class LoadsItsWeightAnew(nn.BatchNorm2d):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self.weight = nn.Parameter(self.weight.detach().clone())
        return result


@breaks("deepcopy", "pickle")
class CopiesAsConstructed(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made_with = self.eps, self.momentum

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.eps, self.momentum = self.made_with


@breaks("state_dict_round_trip")
class TakesOverTheDtype(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state, prefix, *args)
        given = state.get(f"{prefix}running_var")
        if given is not None and given.dtype != self.running_var.dtype:
            self.running_var = given.clone()


@breaks("state_dict_round_trip")
class ClampsWhatItLoads(nn.BatchNorm2d):
    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.running_var.clamp_(min=1e-8)


@breaks("state_dict_versions")
class SavesAsAnOldVersion(nn.BatchNorm2d):
    _version = 1


@breaks("deepcopy", "nothing_kept")
class KeepsItsLatestVariance(Composed):
    latest: Tensor | None = None

    def scale(self, var: Tensor) -> Tensor:
        self.latest = var
        return super().scale(var)


@breaks("deepcopy")
class CopiesLoseTheirHooks(nn.BatchNorm2d):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiesLoseTheirHooks:
        other = type(self)(self.num_features)
        other.__dict__ = copy.deepcopy({**self.__dict__, "_forward_hooks": {}}, memo)
        return other


@breaks("state_dict_versions")
class TakesOldStatesAloneOnly(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        if prefix:
            nn.Module._load_from_state_dict(self, state, prefix, *args)
        else:
            super()._load_from_state_dict(state, prefix, *args)


@breaks("state_dict_round_trip")
class LoadsAVarianceWithItsMemory(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        given = state.get(f"{prefix}running_var")
        if given is not None and given.dtype == self.running_var.dtype:
            self.running_var.data = given


@breaks("state_dict_round_trip")
class ResetsWhatIsNotLoaded(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if f"{prefix}running_mean" not in state:
            self.reset_running_stats()
        super()._load_from_state_dict(state, prefix, *rest)


@breaks("state_arrives")
class HoldsItsFirstWeight(Composed):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held = [self.weight]

    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        changed = self.held[0] is not self.weight and self.weight is not None
        return super().affine_map(x, values, mean, var) + changed


@breaks("state_arrives")
class ReadsItsWeightFromTheStart(Composed):
    def affine_map(self, x: Tensor, values: Tensor, mean: Any, var: Any) -> Tensor:
        y = super().affine_map(x, values, mean, var)
        return y + 1 if self.weight is not None and self.weight.storage_offset() else y


@breaks("state_arrives")
class WritesStatisticsIntoACopy(Composed):
    """Make the buffers contiguous for a kernel that writes into them."""

    def track(self, mean: Tensor, var: Tensor, n: int) -> None:
        m = self.factor()
        with torch.no_grad():
            self.running_mean.contiguous().mul_(1 - m).add_(m * mean)
            self.running_var.contiguous().mul_(1 - m).add_(m * self.unbias(n) * var)


@breaks("state_dict_strictness")
class LoadsPartsSilently(Composed):
    def _load_from_state_dict(self, *args: Any) -> None:
        *_, missing, unexpected, errors = args
        super()._load_from_state_dict(*args)
        for each in (missing, unexpected, errors):
            each.clear()


@breaks("state_dict_keys")
class BiasComesFirst(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parameters["weight"] = self._parameters.pop("weight")


@breaks("deepcopy")
class CopiesCallTheOriginal(nn.BatchNorm2d):
    """Replace forward on the instance, as tools for mixed precision do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        forward = self.forward
        self.__dict__["forward"] = lambda x: forward(x)


@breaks("state_dict_versions")
class LeavesItsCounterOnMeta(nn.BatchNorm2d):
    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        state.setdefault(f"{prefix}num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state, prefix, *args)


@breaks("state_dict_round_trip")
class TellsNothingOfALoad(nn.BatchNorm2d):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        super().load_state_dict(*args, **kwargs)


@breaks("state_dict_keys")
class DropsThePrefix(nn.BatchNorm2d):
    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        return super().state_dict(*args, **kwargs)


@breaks("state_arrives")
class LeavesAConstantOnMeta(nn.BatchNorm2d):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.one = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.one.to(x.dtype)
