"""The line of a run's header: what versions judge, on which devices, and whether it is audited."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from pytest_bninvariants.plugin.options import Settings


def header_line(settings: Settings) -> str:
    """Return the line; it reads versions without importing torch."""
    devices = ", ".join(settings.run.devices)
    ours, torch = versions().values()
    audit = settings.bn_audit or "off"
    return f"bn-invariants {ours}, torch {torch}, devices {devices}, audit {audit}"


def versions() -> dict[str, str]:
    """Return the versions of what judges, by name."""
    return {name: _version_of(name) for name in ("pytest-bninvariants", "torch")}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # it is on the path, and was not installed
        return "of unknown version"
