"""The messages that head the sections of docs/faq.md are those that people meet."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_docs import ROOT

CASES = Path(__file__).with_name("faq_cases.py")
OF_OTHER_TESTS = {"finds no CUDA device"}


def test_each_message_of_the_faq_is_one_that_a_failing_test_gives(
    pytester: pytest.Pytester,
) -> None:
    page = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
    messages = set(re.findall(r"^## `([^`]+)`$", page, re.MULTILINE)) - OF_OTHER_TESTS
    pytester.makepyfile(CASES.read_text(encoding="utf-8"))
    said = " ".join(pytester.runpytest_inprocess().stdout.str().split())
    assert len(messages) >= 10
    assert {message for message in messages if message not in said} == set()
