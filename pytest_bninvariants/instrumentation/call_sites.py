"""Find the user's line that set a mode or called a module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from torch import Tensor, nn

from pytest_bninvariants.frames import PACKAGE, callers, place_of
from pytest_bninvariants.verdict import Place


def place_of_mode_call(frame: FrameType | None, module: nn.Module, training: bool) -> Place | None:
    """Find the user's line that set a module's mode.

    Args:
        frame: the frame that assigns `module.training`.
        module: the module.
        training: the value that is assigned.

    Returns:
        The innermost line of the user's own code outside `train` and `eval` methods. Its call is
        the outermost of these methods, or the assignment; its tool is the library function in
        between, if there is one.
    """
    call = f"{type(module).__name__}.training = {training}"
    while frame is not None and frame.f_code.co_name == "__setattr__":
        frame = frame.f_back
    while frame is not None and frame.f_code.co_name in ("train", "eval"):
        variables = frame.f_locals
        owner = variables["self"] if "self" in variables else _receiver(frame)
        if not isinstance(owner, nn.Module):
            break
        mode = "" if frame.f_code.co_name == "eval" else _mode_argument(frame, training)
        call = f"{type(owner).__name__}.{frame.f_code.co_name}({mode})"
        frame = frame.f_back
    return place_of(frame, call)


def _mode_argument(frame: FrameType, training: bool) -> object:
    """Return the mode that a `train` method was called with.

    An override may put a part in another mode. Where it takes the mode in a way of its own, the
    mode that it set has to do.
    """
    names = frame.f_code.co_varnames[1 : frame.f_code.co_argcount]
    mode = frame.f_locals.get(names[0]) if names else None
    return mode if isinstance(mode, bool) else training


def place_of_grad_call(frame: FrameType | None, tensor: Tensor, requires: bool) -> Place | None:
    """Find the user's line that set a parameter's `requires_grad`, of a module or of its own.

    Args:
        frame: the frame that sets it.
        tensor: the parameter.
        requires: the value that it is set to.
    """
    call = f"{type(tensor).__name__}.requires_grad = {requires}"
    while frame is not None and frame.f_code.co_name == "requires_grad_":
        owner = frame.f_locals.get("self")
        if not isinstance(owner, nn.Module):
            break
        call = f"{type(owner).__name__}.requires_grad_({requires})"
        frame = frame.f_back
    return place_of(frame, call)


def _receiver(frame: FrameType) -> object:
    """Return the object whose method a frame runs, whatever the method calls `self`.

    Return None if the frame runs a function, whose first argument may be a module, too.
    """
    name, first = frame.f_code.co_name, frame.f_locals.get(next(iter(frame.f_code.co_varnames), ""))
    methods = (vars(base).get(name) for base in type(first).__mro__)
    is_method = any(getattr(method, "__code__", None) is frame.f_code for method in methods)
    return first if is_method else None


def place_of_outermost_call(frame: FrameType | None) -> Place | None:
    """Find the user's line that called the outermost module that runs now.

    Its call goes through this package's wrapper of `Module._call_impl`.
    """
    outermost, call = frame, "a forward"
    while frame is not None:
        module = frame.f_locals.get("self") if frame.f_code.co_name == "_call_impl" else None
        if isinstance(module, nn.Module) and frame.f_code.co_filename.startswith(PACKAGE):
            outermost, call = frame.f_back, f"{type(module).__name__}.forward()"
        frame = frame.f_back
    return place_of(outermost, call)


def running_modules(frame: FrameType | None) -> Iterator[nn.Module]:
    """Yield the modules whose forward runs now, the innermost first, as far as frames tell."""
    for each in callers(frame):
        if each.f_code.co_name in ("_call_impl", "forward"):
            module = each.f_locals.get("self")
            if isinstance(module, nn.Module):
                yield module


def runs_in_checkpoint_without_gradients(frame: FrameType | None) -> bool:
    """Tell whether a frame runs in a reentrant checkpoint that none of its inputs gives gradients.

    Such a checkpoint runs its forward under no_grad(), and is in the graph by its inputs alone.
    """
    for each in callers(frame):
        module = str(each.f_globals.get("__name__"))
        if each.f_code.co_name == "forward" and module.endswith(("checkpoint", "checkpointing")):
            context = each.f_locals.get("ctx")
            if context is not None and "run_function" in each.f_locals:
                return not any(getattr(context, "needs_input_grad", (True,)))
    return False


@dataclass(slots=True)
class ModeHistory:
    """What was seen of a layer's modes.

    Args:
        flipped: whether it was in eval and then put in training mode.
        put_in_training: the line that put it in training mode: the last one that flipped it, or the
            first one if none did.
    """

    flipped: bool = False
    put_in_training: Place | None = None

    def saw_training_set(self, module: nn.Module, frame: FrameType, *, restores: bool) -> None:
        """Note that the layer is being put in training mode.

        Args:
            module: the layer, still in its old mode.
            frame: the frame that does it.
            restores: whether it only goes back to the mode that it had when the step began.
        """
        flips = not module.training
        self.flipped |= flips
        if (flips or self.put_in_training is None) and not restores:
            self.put_in_training = place_of_mode_call(frame, module, True)
