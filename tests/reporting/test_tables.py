"""Tables line up, and nothing in a cell breaks them."""

from __future__ import annotations

from pytest_bninvariants.reporting.tables import html_table, text_table


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert text_table(["a", "b"], [["long", "x"], ["y", "z"]]) == [
        "  a     b",
        "  long  x",
        "  y     z",
    ]


def test_a_first_cell_that_is_too_long_stands_alone() -> None:
    name = "layer" * 10
    assert text_table(["a", "b"], [[name, "x"]]) == [
        f"  {'a':36}  b",
        f"  {name}",
        f"  {'':36}  x",
    ]


def test_control_characters_are_escaped_in_both() -> None:
    assert text_table(["a"], [["x\x1b[0m"]])[1] == "  x\\x1b[0m"
    assert "\x1b" not in html_table(["a"], [["\x1b"]])


def test_markup_in_a_cell_is_text() -> None:
    assert html_table(["a"], [["<script>"]]) == (
        "<table><tr><th>a</th></tr><tr><td>&lt;script&gt;</td></tr></table>"
    )
