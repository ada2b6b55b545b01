"""Tell whether anything ran during a step that could have changed what is watched."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from torch import nn

from pytest_bninvariants.selection.bn_layers import is_bn_layer
from pytest_bninvariants.selection.model_names import ModelNames
from pytest_bninvariants.selection.model_tree import ModelTree
from pytest_bninvariants.selection.selection_plan import Selection
from pytest_bninvariants.selection.walk import all_tensors, named_modules
from pytest_bninvariants.snapshot.addresses import address
from pytest_bninvariants.snapshot.tensor_bytes import version
from pytest_bninvariants.state_change.outside_modules import OutsideModules
from pytest_bninvariants.torch_internals import dynamo
from pytest_bninvariants.torch_internals.private_api import DisableTorchFunction, version_counter


class RunDetector:
    """Tell whether anything ran, as far as that can be seen.

    Args:
        model: the model.
        selection: what is watched in it.
        scripted: ids of the scripted modules in it, whose children run unseen.
        outside: the modules outside the model that share its memory.
    """

    def __init__(
        self, model: nn.Module, selection: Selection, scripted: set[int], outside: OutsideModules
    ) -> None:
        self._model = model
        self._selection = selection
        self._outside = outside
        modules = {id(module): module for module in selection.names.modules.values()}
        self._watched = {id(module) for module in selection.modules.values()}
        self._users = self._watched | _users_of_plain(modules.values(), selection)
        self._irrelevant = modules.keys() - self._users - scripted
        self._versions = _versions(selection.names)
        self.forward_ran = False
        """Whether a forward was seen that may have used what is watched."""
        self.optimizer_stepped = False
        """Whether an optimizer stepped that holds parameters of the model."""
        self.compiled_code_ran = not dynamo.sees_compiled_code()
        """Whether compiled code ran, whose forwards cannot be seen."""
        self.graph_replayed = False
        """Whether a device graph was replayed, such as a CUDA graph."""

    def saw_forward(self, module: nn.Module) -> None:
        """Note that a module is about to run; call this until `forward_ran`."""
        if id(module) in self._irrelevant:
            return
        self.forward_ran = (
            id(module) in self._users
            or any(id(each) in self._watched for _, each in named_modules(module))
            or any(address(tensor) in self._outside.memory for tensor in all_tensors(module))
        )

    def saw_step(self, held: set[int]) -> None:
        """Note that an optimizer is about to step.

        Args:
            held: ids of the parameters that it holds.
        """
        if not self.optimizer_stepped:
            own = {id(tensor) for tensor in all_tensors(self._model)}
            own |= set(map(id, self._selection.tensors.tensors))
            self.optimizer_stepped = not own.isdisjoint(held)

    @property
    def saw_use(self) -> bool:
        """Tell whether anything ran that may have used what is watched."""
        return self.forward_ran or self.compiled_code_ran

    def saw_anything(self) -> bool:
        """Tell whether anything ran that could have changed what is watched."""
        return (
            self.saw_use
            or self.optimizer_stepped
            or not ModelTree(self._model).matches(self._selection.tree)
            or _versions(self._selection.names) != self._versions
        )

    def was_written(self, key: str) -> bool:
        """Tell whether a tensor of the model is known to have been written, even with its value."""
        return key in self._written

    @cached_property
    def _written(self) -> set[str]:
        """Return the keys of tensors whose versions moved; only read this after the step."""
        names = self._selection.names
        pairs = zip(names.tensors, self._versions, _versions(names), strict=True)
        return {key for key, before, now in pairs if before != now}


def _versions(names: ModelNames) -> list[int | None]:
    """Return the tensors' versions: a move proves a write, its absence proves nothing."""
    tensors = names.tensors.tensors
    with DisableTorchFunction():  # otherwise lazy parameters raise
        try:
            return list(map(version_counter, tensors))
        except RuntimeError:  # inference tensors have no version
            return list(map(version, tensors))


def _users_of_plain(modules: Iterable[nn.Module], selection: Selection) -> set[int]:
    """Return the modules that may use tensors of watched modules without calling these.

    They are the parents of modules that are no BN layers, as `MultiheadAttention` uses its
    `out_proj`, and the layers of a Transformer: in eval their fast path uses all that is in them.
    https://docs.pytorch.org/docs/stable/generated/torch.nn.TransformerEncoderLayer.html
    """
    bn = set(map(id, selection.bn_layers.values()))
    plain = {id(m) for m in selection.modules.values() if id(m) not in bn and not is_bn_layer(m)}
    if not plain:
        return set()
    return {
        id(user)
        for user in modules
        if user._modules and not plain.isdisjoint(map(id, _used_by(user)))
    }


def _used_by(user: nn.Module) -> Iterable[nn.Module | None]:
    if isinstance(user, nn.TransformerEncoderLayer):
        return user.modules()
    return user._modules.values()
