"""Report names in `bn_layer_types` that match no type, once for the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pytest_bninvariants.errors import GateError
from pytest_bninvariants.plugin.markers import MARKERS, guard_marks
from pytest_bninvariants.plugin.options import raise_usage_error
from pytest_bninvariants.selection import bn_layer_types

_KEY = "bn_unknown_layer_types"


def register_layer_types(config: pytest.Config, names: tuple[str, ...], *, audits: bool) -> None:
    """Make a session report names that match no type.

    Args:
        config: the session's configuration.
        names: the names in `bn_layer_types`.
        audits: whether every test is audited.
    """
    config.pluginmanager.register(_LayerTypeHooks(names, audits), "bn-layer-types")


class _LayerTypeHooks:
    """The hooks that check the names in one session."""

    def __init__(self, names: tuple[str, ...], audits: bool) -> None:
        self._names, self._audits = names, audits
        self._unknown: list[set[str]] = []

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        if not (self._audits or any(map(_has_guard, items))):
            return  # nothing needs the types, nor torch
        try:
            bn_layer_types.require_importable(self._names)
        except GateError as error:
            raise_usage_error(config, "bn_layer_types", str(error))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not bn_layer_types.were_used():
            return
        unknown = bn_layer_types.find_undefined(self._names)
        output = getattr(session.config, "workeroutput", None)
        if output is None:
            self._unknown.append(unknown)
        else:
            output[_KEY] = [*unknown]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        output = getattr(node, "workeroutput", {})
        if _KEY in output:
            self._unknown.append(set(output[_KEY]))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._lines():
            terminalreporter.write_line(line)

    def _lines(self) -> Iterator[str]:
        unknown = set.intersection(*self._unknown) if self._unknown else set()
        for name in self._names:
            if name in unknown:
                yield (
                    f"bn_layer_types: this run has no torch.nn.Module named {name!r}, so the "
                    "entry matched no layer"
                )


def _has_guard(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return bool(guard_marks(item)) or not MARKERS.keys().isdisjoint(fixtures)
