"""Declare the options and the ini keys; their defaults are None, so that the ini file can speak."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

import pytest

from pytest_bninvariants.audit_rules import AUDIT_RULES
from pytest_bninvariants.option_values import DTYPES
from pytest_bninvariants.plugin.options import AUDITS, TRACES

_KIT = "of `--pyargs pytest_bninvariants.conformance`: "


def add_options(parser: pytest.Parser, arguments: Iterable[str]) -> None:
    """Declare the options and the ini keys.

    Args:
        parser: pytest's parser.
        arguments: the command line.
    """
    group = parser.getgroup("bninvariants", "frozen BatchNorm and other training invariants")
    _add_guard_options(group, arguments)
    _add_audit_options(group, arguments)
    _add_report_options(group)
    _add_kit_options(group)
    _add_ini_keys(parser)


def _add_guard_options(group: pytest.OptionGroup, arguments: Iterable[str]) -> None:
    group.addoption(
        "--bn-device",
        action="append",
        default=None,
        metavar="DEVICE",
        help=(
            "run tests that use the `bn_device` fixture on DEVICE: cpu (the default), cuda, or "
            "any other kind of device that torch has, alone or with a number such as cuda:1, or "
            "auto (the best available) or all (every kind available); repeatable"
        ),
    )
    group.addoption(
        *_spellings("--bn-trace", TRACES, arguments),
        action=_WordAction,
        nargs=0,
        const=TRACES[0],
        default=None,
        dest="bn_trace",
        help=(
            "name the operator and the line that wrote to what changed: rerun a test that broke a "
            "guard under tracing (`rerun`, the default), or trace every run (`same-run`)"
        ),
    )
    group.addoption(
        "--bn-list",
        action="store_true",
        help="list what each guarded test watches and how that is set, without running the tests",
    )


def _add_audit_options(group: pytest.OptionGroup, arguments: Iterable[str]) -> None:
    group.addoption(
        *_spellings("--bn-audit", AUDITS, arguments),
        action=_WordAction,
        nargs=0,
        const=AUDITS[0],
        default=None,
        dest="bn_audit",
        help="audit every test: report, in the summary, frozen BN layers whose statistics move "
        "(the default), or fail the tests in which they do",
    )
    group.addoption(
        "--bn-audit-rules",
        action="append",
        default=None,
        metavar="RULES",
        help=(
            "which audit rules to apply, repeatable or comma-separated: NAME or all (only these), "
            f"+NAME (add), -NAME (drop); names: {', '.join(AUDIT_RULES)}"
        ),
    )
    group.addoption(
        "--bn-audit-xfails",
        default=None,
        metavar="FILE",
        help=(
            "a file of expected audit findings, one a line: 'TEST[RULE-MODEL-LAYER]: REASON'; the "
            "run fails if one is no longer found"
        ),
    )
    group.addoption(
        "--bn-audit-write-xfails",
        default=None,
        metavar="FILE",
        help="write a file for --bn-audit-xfails that expects what this run finds",
    )


def _add_report_options(group: pytest.OptionGroup) -> None:
    group.addoption(
        "--bn-report",
        default=None,
        metavar="DIR",
        help=(
            "write a report of what was guarded, audited and checked to DIR: index.html, with "
            "pictures of what broke, report.json and gl-code-quality.json"
        ),
    )
    group.addoption(
        "--bn-report-pictures",
        default=None,
        metavar="WHICH",
        help="which guards get pictures in the report: broken (the default) or all",
    )


def _add_kit_options(group: pytest.OptionGroup) -> None:
    group.addoption(
        "--bn-impl",
        action="append",
        default=None,
        metavar="MODULE:CLASS",
        help=(
            f"{_KIT}a layer to check against the laws of BatchNorm, with further arguments as "
            "'MODULE:CLASS(name=literal)', and its rank as @0d to @3d or @nd; repeatable; default: "
            "torch's BatchNorm1d, 2d and 3d"
        ),
    )
    group.addoption(
        "--bn-laws",
        action="append",
        default=None,
        metavar="PATTERN",
        help=f"{_KIT}which laws, by name or pattern, or `frozen`: those for layers with frozen "
        "statistics; repeatable",
    )
    group.addoption(
        "--bn-dtype",
        action="append",
        default=None,
        metavar="DTYPE",
        help=f"{_KIT}only inputs of this dtype: {', '.join(DTYPES)}; repeatable",
    )
    group.addoption(
        "--bn-xfails",
        default=None,
        metavar="FILE",
        help=f"{_KIT}a file of expected failures, one a line: 'ID-PATTERN: REASON'",
    )
    group.addoption(
        "--bn-examples",
        default=None,
        metavar="N",
        help=f"{_KIT}cases for each law: a number, quick (6), default (100) or thorough (2000)",
    )


def _add_ini_keys(parser: pytest.Parser) -> None:
    parser.addini(
        "bn_device", "devices for the `bn_device` fixture, as --bn-device", type="args", default=[]
    )
    parser.addini("bn_audit", "report or fail, as --bn-audit", default="")
    parser.addini(
        "bn_audit_rules", "the audit's rules, as --bn-audit-rules", type="args", default=[]
    )
    parser.addini(
        "bn_snapshot_budget",
        "memory that a guard may use for its snapshot, such as 512MB; above it, large tensors "
        "are kept as fingerprints; default: a quarter of what is free",
        default="",
    )
    parser.addini(
        "bn_layer_types",
        "types to treat as BN layers besides those recognised already: Class, "
        "package.module.Class or package.module:Class",
        type="args",
        default=[],
    )


class _WordAction(argparse.Action):
    """Read `--option` and `--option=WORD`, which are declared as separate option strings.

    An option with an optional value would take the next argument, such as a path, as its value.
    Without a word, the option means its `const`.
    """

    def __call__(self, parser: object, namespace: object, values: object, option: Any = "") -> None:
        _, equals, word = str(option).partition("=")
        setattr(namespace, self.dest, word if equals else self.const)


def _spellings(option: str, words: Iterable[str], arguments: Iterable[str]) -> list[str]:
    """Return the option strings of an option with its words, and with wrong ones that are given.

    argparse would say of a wrong word that it ignores it, and not what it could be.
    """
    given = [each for each in arguments if each.startswith(f"{option}=")]
    return list(dict.fromkeys([option, *(f"{option}={word}" for word in words), *given]))
