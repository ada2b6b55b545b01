"""Command line and ini -> one frozen Settings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pytest_bninvariants.devices import resolve

SETTINGS = pytest.StashKey["Settings"]()


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What this run was asked for.

    Args:
        devices: names of the torch devices that `bn_device` takes on, all of them present.
        bn_layer_types: names of types that count as BN layers.
    """

    devices: tuple[str, ...] = ("cpu",)
    bn_layer_types: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: pytest.Config) -> Settings:
        """Read the command line, then the ini file.

        Raises:
            pytest.UsageError: a value is malformed, or a device is not there.
        """
        given = config.getoption("bn_device")
        devices = given or config.getini("bn_device")
        types = tuple(config.getini("bn_layer_types"))
        for name in types:
            if not all(part.isidentifier() for part in name.replace(":", ".").split(".")):
                raise pytest.UsageError(
                    f"bn_layer_types: {name!r} is no name of a class; "
                    "give 'Class', 'package.module.Class' or 'package.module:Class'"
                )
        try:
            resolved = (
                resolve(devices, "--bn-device" if given else "bn_device") if devices else ("cpu",)
            )
        except ValueError as error:
            raise pytest.UsageError(str(error)) from None
        return cls(devices=resolved, bn_layer_types=types)


def add_options(parser: pytest.Parser) -> None:
    """Declare the options; their defaults are None, so that ini can speak."""
    group = parser.getgroup("bninvariants", "frozen BatchNorm and other training invariants")
    group.addoption(
        "--bn-device",
        action="append",
        default=None,
        metavar="DEVICE",
        help="run tests that use the `bn_device` fixture on DEVICE: cpu (the default), cuda, "
        "cuda:N, mps, xpu, auto (the best there is) or all (each kind there is); repeatable",
    )
    parser.addini(
        "bn_device", "devices for the `bn_device` fixture, as --bn-device", type="args", default=[]
    )
    parser.addini(
        "bn_layer_types",
        "types that count as BN layers besides those that are recognised: "
        "Class, package.module.Class or package.module:Class",
        type="args",
        default=[],
    )
