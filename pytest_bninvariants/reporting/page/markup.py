"""Write elements of HTML and SVG; nothing in a text or an attribute is taken for markup."""

from __future__ import annotations

from pytest_bninvariants.reporting.lines import escape_html


class Markup(str):
    """A piece of finished markup; any other string is text, and is escaped."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element.

    Args:
        tag: its name.
        children: markup, or text.
        attributes: its attributes; an underscore at the end, as in `class_`, is left out, others
            become hyphens. One that is None is left out, and one that is True has no value.
    """
    written = [f" {_name(key)}{_value(value)}" for key, value in attributes.items() if _is(value)]
    inner = "".join(map(markup_of, children))
    return Markup(f"<{tag}{''.join(written)}>{inner}</{tag}>")


def markup_of(child: str) -> str:
    """Return a child as markup: text is escaped, and its control characters are shown."""
    return child if isinstance(child, Markup) else escape_html(child)


def joined(*children: str) -> Markup:
    """Return several children as one piece of markup."""
    return Markup("".join(map(markup_of, children)))


def number(value: float) -> str:
    """Return a coordinate, to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _is(value: object) -> bool:
    return value is not None and value is not False


def _value(value: object) -> str:
    if value is True:
        return ""
    text = number(value) if isinstance(value, float) else str(value)
    return f'="{markup_of(text)}"'
