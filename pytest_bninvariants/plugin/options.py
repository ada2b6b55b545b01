"""Read the command line and the ini file into one frozen Settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from pytest_bninvariants.audit_rules import RuleChoice, choose_rules
from pytest_bninvariants.option_values import DTYPES, EFFORTS, count_cases
from pytest_bninvariants.ranks.environment import launched_world
from pytest_bninvariants.run_config import RunConfig, Trace

TRACES = ("rerun", "same-run")
PICTURES = ("broken", "all")
AUDITS = ("report", "fail")
_UNITS = {"": 1, **{f"{u}B": 1000**n for n, u in enumerate(("", "K", "M", "G", "T"))}}
_UNITS |= {f"{u}iB": 1024**n for n, u in enumerate(("K", "M", "G", "T"), 1)}
SETTINGS = pytest.StashKey["Settings"]()
_RERUNNERS = ("rerunfailures", "flaky")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line and the ini file say; the command line wins.

    Args:
        run: the part that the engine reads.
        bn_audit: `report` or `fail`; None: no audit.
        bn_audit_rules: the rules that an audit goes by.
        bn_audit_xfails: the file of findings that an audit expects.
        bn_audit_write_xfails: the file to write that expects what this run finds.
        bn_impls: layers that the conformance kit checks; empty: torch's own.
        bn_laws: patterns of laws; empty: all.
        bn_dtypes: names of dtypes; empty: each law's own.
        bn_xfails: the file of expected failures.
        bn_examples: how many cases each law is checked on.
        bn_report: the folder that a report is written to; None: none is.
        bn_list: list what guarded tests watch, and run none.
        bn_trace: which run is traced, one of `TRACES`; None: no run.
    """

    run: RunConfig
    bn_audit: str | None
    bn_audit_rules: RuleChoice
    bn_audit_xfails: str | None
    bn_audit_write_xfails: str | None
    bn_impls: tuple[str, ...]
    bn_laws: tuple[str, ...]
    bn_dtypes: tuple[str, ...]
    bn_xfails: str | None
    bn_examples: int
    bn_report: Path | None
    bn_list: bool
    bn_trace: str | None

    @property
    def kit_options(self) -> tuple[str, ...]:
        """Return the options in use that choose what the conformance kit checks."""
        options = {
            "--bn-impl": self.bn_impls,
            "--bn-laws": self.bn_laws,
            "--bn-dtype": self.bn_dtypes,
            "--bn-xfails": self.bn_xfails,
        }
        return tuple(option for option, value in options.items() if value)


def parse_settings(config: pytest.Config) -> Settings:
    """Read the command line and the ini file.

    Raises:
        pytest.UsageError: if a value is malformed, or a device is absent.
    """
    option, ini = config.getoption, config.getini
    bn_trace = _read_trace(config)
    return Settings(
        run=RunConfig(
            devices=_read_devices(option("bn_device"), ini("bn_device")),
            bn_layer_types=_read_layer_types(ini("bn_layer_types")),
            snapshot_budget=_read_bytes("bn_snapshot_budget", ini("bn_snapshot_budget")),
            trace=Trace() if bn_trace else None,
            traces=bool(bn_trace),
            histories=_read_histories(config),
        ),
        bn_audit=_read_audit(config),
        bn_audit_rules=_read_audit_rules(
            _split_names("--bn-audit-rules", option("bn_audit_rules")), ini("bn_audit_rules")
        ),
        bn_audit_xfails=_read_file_name("--bn-audit-xfails", option("bn_audit_xfails")),
        bn_audit_write_xfails=_read_file_name(
            "--bn-audit-write-xfails", option("bn_audit_write_xfails")
        ),
        bn_impls=tuple(option("bn_impl") or ()),
        bn_laws=_split_names("--bn-laws", option("bn_laws")),
        bn_dtypes=_read_dtypes(option("bn_dtype")),
        bn_xfails=_read_file_name("--bn-xfails", option("bn_xfails")),
        bn_examples=_read_examples(option("bn_examples")),
        bn_report=_read_folder(config),
        bn_list=option("bn_list"),
        bn_trace=bn_trace,
    )


def _read_devices(given: list[str] | None, by_ini: list[str]) -> tuple[str, ...]:
    names, option = (given, "--bn-device") if given else (by_ini, "bn_device")
    if not names:
        return ("cpu",)
    from pytest_bninvariants.devices import resolve_devices

    try:
        return resolve_devices(names, option)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def _read_layer_types(names: list[str]) -> tuple[str, ...]:
    for name in names:
        if not all(part.isidentifier() for part in name.replace(":", ".").split(".")):
            raise pytest.UsageError(
                f"bn_layer_types: {name!r} is not the name of a class; "
                "give 'Class', 'package.module.Class' or 'package.module:Class'"
            )
    return tuple(names)


def _read_audit(config: pytest.Config) -> str | None:
    given, by_ini = config.getoption("bn_audit"), config.getini("bn_audit") or None
    option, value = ("bn_audit", by_ini) if given is None else ("--bn-audit", given)
    mode = _one_of(AUDITS, option, value)
    for further in ("rules", "xfails", "write_xfails"):
        if mode is None and config.getoption(f"bn_audit_{further}") is not None:
            name = f"--bn-audit-{further.replace('_', '-')}"
            raise pytest.UsageError(f"{name} is for an audit: give --bn-audit too")
    return mode


def _read_audit_rules(given: Sequence[str], by_ini: Sequence[str]) -> RuleChoice:
    option = "--bn-audit-rules" if given else "bn_audit_rules"
    try:
        return choose_rules(given or by_ini)
    except ValueError as error:
        raise pytest.UsageError(f"{option}: {error}") from None


def _one_of(words: Sequence[str], option: str, given: str | None) -> str | None:
    if given in (None, *words):
        return given
    raise pytest.UsageError(f"{option}={given}: expected {' or '.join(words)}")


def _split_names(option: str, given: list[str] | None) -> tuple[str, ...]:
    """Return the names in comma-separated texts; an empty text is an error, and not `all`."""
    split: list[str] = []
    for each in given or ():
        names = [name.strip() for name in each.split(",") if name.strip()]
        if not names:
            raise pytest.UsageError(f"{option}={each} is empty: give a name, or leave it out")
        split += names
    return tuple(split)


def _read_file_name(option: str, given: str | None) -> str | None:
    if given == "":
        raise pytest.UsageError(f"{option}= is empty: give a file, or leave it out")
    return given


def _read_folder(config: pytest.Config) -> Path | None:
    given = _read_file_name("--bn-report", config.getoption("bn_report"))
    folder = None if given is None else config.invocation_params.dir / given
    if folder is not None and folder.exists() and not folder.is_dir():
        raise pytest.UsageError(f"--bn-report={given} is a file; give a folder")
    return folder


def _read_histories(config: pytest.Config) -> Literal["none", "broken", "all"]:
    given = config.getoption("bn_report_pictures")
    if config.getoption("bn_report") is None:
        if given is not None:
            raise pytest.UsageError("--bn-report-pictures is for a report: give --bn-report=DIR")
        return "none"
    if given not in (None, *PICTURES):
        raise pytest.UsageError(f"--bn-report-pictures={given}: expected {' or '.join(PICTURES)}")
    return "all" if given == "all" else "broken"


def _read_dtypes(given: list[str] | None) -> tuple[str, ...]:
    names = _split_names("--bn-dtype", given)
    for name in names:
        if name not in DTYPES:
            raise pytest.UsageError(f"--bn-dtype={name}: unknown; accepted: {', '.join(DTYPES)}")
    return names


def _read_examples(given: str | None) -> int:
    if given is None:
        return EFFORTS["default"]
    try:
        return count_cases("--bn-examples=", int(given) if given.isdecimal() else given)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def _read_bytes(key: str, given: str) -> int | None:
    if not given:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-zA-Z]*)", given)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        raise pytest.UsageError(
            f"{key}={given}: expected a number of bytes, or a number with one of "
            f"{', '.join(unit for unit in _UNITS if unit)}, such as 512MB"
        )
    return int(float(match[1]) * units[match[2].lower()])


def _read_trace(config: pytest.Config) -> str | None:
    given = _one_of(TRACES, "--bn-trace", config.getoption("bn_trace"))
    debugging = config.getoption("usepdb", False) or config.getoption("trace", False)
    # one stop at a failure is enough, and a rank that runs again would do so without the others
    return "same-run" if given and (debugging or launched_world()) else given


def may_run_again(config: pytest.Config) -> bool:
    """Tell whether a plugin is loaded that may run a test again."""
    return any(map(config.pluginmanager.hasplugin, _RERUNNERS))


def raise_usage_error(config: pytest.Config, option: str, message: str) -> None:
    """Fail a run after its collection because of an option.

    In an xdist worker a UsageError would be a crash, so the worker reports the error instead.

    Args:
        config: the run's configuration.
        option: the name of the option.
        message: what is wrong with it.

    Raises:
        pytest.UsageError: except in a worker.
    """
    if not hasattr(config, "workerinput"):
        raise pytest.UsageError(message)
    report = pytest.CollectReport(option, "failed", message, [])
    config.hook.pytest_collectreport(report=report)
