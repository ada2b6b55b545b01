"""Read and write the attributes that an object holds itself, in its dict and in slots."""

from __future__ import annotations

from types import MemberDescriptorType

_ABSENT = object()


def has_attributes(value: object) -> bool:
    """Tell whether an object has a dict, or a class with slots."""
    return hasattr(value, "__dict__") or any("__slots__" in vars(b) for b in type(value).__mro__)


def attributes_of(value: object) -> dict[str, object]:
    """Return an object's own attributes by name; nothing for an object without a dict or slots."""
    slots = ((name, _read(slot, value)) for name, slot in _slots(type(value)).items())
    own = {name: held for name, held in slots if held is not _ABSENT}
    return own | getattr(value, "__dict__", {})


def write_attributes(value: object, attributes: dict[str, object]) -> None:
    """Give an object just these attributes, past its class's own `__setattr__`."""
    own, slots = getattr(value, "__dict__", {}), _slots(type(value))
    for name in attributes_of(value).keys() - attributes.keys():
        if name in slots:
            object.__delattr__(value, name)
        else:
            del own[name]
    for name, held in attributes.items():
        if name in slots:
            object.__setattr__(value, name, held)
        else:
            own[name] = held


def _slots(kind: type) -> dict[str, MemberDescriptorType]:
    """Return the slots of a class and of its bases, by the names that code in them uses."""
    return {
        name: member
        for base in reversed(kind.__mro__)
        if "__slots__" in vars(base)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }


def _read(slot: MemberDescriptorType, value: object) -> object:
    try:
        return slot.__get__(value, type(value))
    except AttributeError:  # nothing was assigned to it
        return _ABSENT
