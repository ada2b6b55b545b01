"""An object's own attributes are read and written, in its dict and in slots."""

from __future__ import annotations

from typing import Any

from pytest_bninvariants.attributes import attributes_of, has_attributes, write_attributes


class Slotted:
    __slots__ = ("__own", "one", "two")

    def __init__(self) -> None:
        self.one, self.__own = 1, 2


class Both(Slotted):
    def __init__(self) -> None:
        super().__init__()
        self.more = 3


class Guarded:
    """A class that lets nobody set an attribute."""

    def __init__(self) -> None:
        object.__setattr__(self, "value", 1)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


def test_slots_that_hold_a_value_and_the_dict_are_read() -> None:
    assert attributes_of(Slotted()) == {"_Slotted__own": 2, "one": 1}
    assert attributes_of(Both()) == {"_Slotted__own": 2, "one": 1, "more": 3}
    assert attributes_of(object()) == {}


def test_an_object_without_a_dict_and_slots_has_no_attributes() -> None:
    assert has_attributes(Slotted())
    assert has_attributes(Both())
    assert not has_attributes(object())
    assert not has_attributes(1)


def test_attributes_are_put_back_and_new_ones_removed() -> None:
    both: Any = Both()
    kept = attributes_of(both)
    both.one, both.two, both.more, both.other = 9, 9, 9, 9
    write_attributes(both, kept)
    assert attributes_of(both) == kept
    del both.one
    write_attributes(both, kept)
    assert both.one == 1


def test_a_class_that_forbids_it_is_written_to_all_the_same() -> None:
    guarded: Any = Guarded()
    write_attributes(guarded, {"value": 2})
    assert guarded.value == 2
