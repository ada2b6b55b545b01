"""The page of `--bn-report`: what was guarded, what broke, what the audit and the kit found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_bninvariants.diagnosis.wording import counted
from pytest_bninvariants.drift_history import DriftHistory
from pytest_bninvariants.reporting.page.document import document, history_section, table
from pytest_bninvariants.reporting.page.law_chart import law_chart
from pytest_bninvariants.reporting.page.markup import Markup, element
from pytest_bninvariants.reporting.verdict_data import verdict_from_data
from pytest_bninvariants.reporting.verdict_html import as_html

_PICTURES_SIZE = 3_000_000  # characters; the page must open in a second
_OPEN = 3

Data = Mapping[str, Any]


def run_report(report: Data) -> str:
    """Return the page.

    Args:
        report: what report.json holds; docs/report.md has its keys.
    """
    tests = report["tests"]
    broken = [(test["test"], each) for test in tests for each in test["failures"]]
    asked = [
        (test["test"], each)
        for test in tests
        for each in test["verdicts"]
        if each["verdict"]["history"] and not _is_among(each, test["failures"])
    ]
    held = [(test["test"], each["verdict"]) for test in tests for each in test["verdicts"]]
    held = [(test, verdict) for test, verdict in held if verdict["holds"]]
    pictures = _Pictures()
    audited = [test for test in tests if test["audit"] is not None]
    return document(
        "BatchNorm invariants",
        _subtitle(report["versions"]),
        _counts(broken, held, audited, report["laws"]),
        *_broken(broken, pictures),
        *_asked_for(asked, pictures),
        *_audited(audited),
        *_laws(report["laws"]),
        *_held(held),
    )


def _is_among(found: Data, failures: Sequence[Data]) -> bool:
    return any(found["verdict"] == each["verdict"] for each in failures)


def _subtitle(versions: Data) -> Markup:
    text = ", ".join(f"{name} {number}" for name, number in versions.items())
    return element("p", text, class_="soft")


def _counts(
    broken: Sequence[object], held: Sequence[object], audited: Sequence[Data], laws: Sequence[Data]
) -> Markup:
    guards = "guard" if len(held) == 1 else "guards"
    items = [
        _count(len(broken), "broken", "bad" if broken else "good"),
        _count(len(held), f"{guards} held", "good"),
    ]
    if audited:
        findings = sum(len(test["audit"]["findings"]) for test in audited)
        noun = "finding" if findings == 1 else "findings"
        what = f"audit {noun} in {counted(len(audited), 'audited test')}"
        items.append(_count(findings, what, "bad" if findings else "good"))
    if laws:
        good = sum(law["held"] for law in laws)
        what = f"of {counted(len(laws), 'check')} of laws held"
        items.append(_count(good, what, "good" if good == len(laws) else "bad"))
    return element("ul", *items, class_="counts")


def _count(number: int, what: str, kind: str) -> Markup:
    return element("li", element("b", str(number)), what, class_=kind)


class _Pictures:
    """Draw histories, until they take too much of the page."""

    def __init__(self) -> None:
        self._left = _PICTURES_SIZE

    def of(self, verdict: Data) -> Iterator[Markup]:
        """Yield the pictures of a verdict's history, or say that there is no room for them."""
        if verdict["history"] is None:
            return
        drawn = history_section(DriftHistory.from_dict(verdict["history"]))
        if len(drawn) <= self._left:
            self._left -= len(drawn)
            yield drawn
        else:
            text = "The page has no room for more pictures; report.json has the numbers of all."
            yield element("p", text, class_="soft")


def _broken(broken: Sequence[tuple[str, Data]], pictures: _Pictures) -> Iterator[Markup]:
    if broken:
        yield element("h2", "What broke")
    for place, (test, found) in enumerate(broken):
        verdict = verdict_from_data(found["verdict"])
        yield element(
            "details",
            _summary(test, found),
            Markup(as_html(verdict)),
            *pictures.of(found["verdict"]),
            class_="bad",
            open=place < _OPEN,
        )


def _summary(test: str, found: Data) -> Markup:
    """Return the line that stands for a broken guard while it is closed."""
    ranks = ", ".join(map(str, found["ranks"]))
    where = f", on rank {ranks}" if ranks else ""
    headline = f" {found['verdict']['headline']}{where}"
    return element("summary", element("code", test), headline)


def _asked_for(asked: Sequence[tuple[str, Data]], pictures: _Pictures) -> Iterator[Markup]:
    if asked:
        yield element("h2", "What held, with pictures")
    for test, found in asked:
        summary = element("summary", element("code", test), f" {found['verdict']['guard']}")
        yield element("details", summary, *pictures.of(found["verdict"]))


def _audited(audited: Sequence[Data]) -> Iterator[Markup]:
    if not audited:
        return
    yield element("h2", "The audit")
    rows: dict[tuple[str, ...], list[str]] = {}
    for test in audited:
        for finding in test["audit"]["findings"]:
            for cause in finding["verdict"]["causes"]:
                layers = ", ".join(layer or "the model" for layer in cause["layers"])
                model, marker = finding["verdict"]["model"], finding["marker"]
                key = finding["rule"], model, layers, cause["why"], marker
                rows.setdefault(key, []).append(test["test"])
    if not rows:
        yield element("p", f"Nothing was found in {counted(len(audited), 'test')}.", class_="soft")
        return
    yield table(
        ("rule", "model", "layers", "why", "marker", "tests"),
        [(*key, ", ".join(tests)) for key, tests in rows.items()],
        "audit",
    )


def _laws(laws: Sequence[Data]) -> Iterator[Markup]:
    if not laws:
        return
    yield element("h2", "Laws of BatchNorm: the largest error over its bound")
    yield law_chart(laws)
    broken = [law for law in laws if not law["held"]]
    if broken:
        yield table(
            ("broken law", "layer", "dtype", "device"),
            [(law["law"], law["layer"], law["dtype"], law["device"]) for law in broken],
            "laws",
        )


def _held(held: Sequence[tuple[str, Data]]) -> Iterator[Markup]:
    if not held:
        return
    yield element("h2", "What held")
    rows = [
        (test, verdict["guard"], verdict["model"], _watched(verdict), "; ".join(_hazards(verdict)))
        for test, verdict in held
    ]
    yield table(("test", "guard", "model", "watched", "also"), rows, "held")


def _watched(verdict: Data) -> str:
    layers = counted(verdict["layers"], verdict["noun"])
    tensors = verdict["tensors"]
    return layers if tensors is None else f"{layers}, {counted(tensors, 'tensor')}"


def _hazards(verdict: Data) -> Iterator[str]:
    for hazard in verdict["hazards"]:
        yield f"{hazard['name'] or 'the model'}: {hazard['text']}"
