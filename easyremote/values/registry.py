"""Types of users that travel as plain data, by a name that both sides chose.

Theory. A dataclass or an enumeration is plain data with a name. If the name on the wire were an
import path, a peer could make us import; so it is a key into this table, which only the receiving
program fills.

Rules of this file. 1) Nothing from the wire is imported or called: instances are built without
`__init__` or `__post_init__`, field by field. 2) One name, one type.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, TypeVar

from ..wire.cbor import check_value
from ..wire.errors import CodecError

T = TypeVar("T", bound=type)

NAME_MAX = 256

_type_by_name: dict[str, type[Any]] = {}
_name_by_type: dict[type[Any], str] = {}


def register_type(cls: T, name: str | None = None) -> T:
    """Let instances of a dataclass or an enumeration travel as plain data. Usable as a decorator.

    Both sides register their own class under the same name. Without it, instances travel as
    pickles, where the receiver takes them.

    Args:
        cls: A dataclass or a subclass of `enum.Enum`.
        name: What it is called on the wire; the class's own qualified name if left out.

    Returns:
        The class itself.

    Raises:
        TypeError: It is neither a dataclass nor an enumeration.
        ValueError: Another class has this name.

    >>> import dataclasses
    >>> @register_type
    ... @dataclasses.dataclass
    ... class Reading:
    ...     sensor: str
    ...     value: float
    """
    if not isinstance(cls, type) or not _is_registrable(cls):
        raise TypeError(f"{cls!r} is neither a dataclass nor an Enum: only those can be registered")
    name = cls.__qualname__ if name is None else name
    if not 0 < len(name) <= NAME_MAX:
        raise ValueError(f"a name has 1 to {NAME_MAX} characters")
    known = _type_by_name.get(name)
    if known is not None and known is not cls and not _same_source(known, cls):
        raise ValueError(
            f"{name!r} is already the name of {known.__module__}.{known.__qualname__}: "
            "pass another one as name="
        )
    if known is not None:
        _name_by_type.pop(known, None)
    previous = _name_by_type.get(cls)
    if previous is not None:
        del _type_by_name[previous]
    _type_by_name[name] = cls
    _name_by_type[cls] = name
    return cls


def _is_registrable(cls: type[Any]) -> bool:
    return dataclasses.is_dataclass(cls) or _is_enum(cls)


def _is_enum(cls: type[Any]) -> bool:
    return issubclass(cls, enum.Enum)


def _same_source(one: type[Any], other: type[Any]) -> bool:
    """Whether a class was defined again: a notebook cell that ran twice."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def name_of(cls: type[Any]) -> str | None:
    """Return the name under which `cls` is registered, if it is."""
    return _name_by_type.get(cls)


def _type_of(name: Any) -> type[Any]:
    cls = _type_by_name.get(name) if type(name) is str else None
    if cls is None:
        raise CodecError(
            f"no type is registered as {str(name)[:NAME_MAX]!r} here: "
            "call easyremote.register_type on both sides"
        )
    return cls


def enum_fields(member: enum.Enum, name: str) -> list[Any]:
    """Return a member of a registered enumeration as plain fields."""
    return [name, member.value if isinstance(member, enum.Flag) else member.name]


def build_enum(fields: Any) -> enum.Enum:
    """Return the member that the fields name.

    Raises:
        CodecError: There is none.
    """
    name, member = _pair(fields)
    cls = _type_of(name)
    if not _is_enum(cls):
        raise CodecError(f"{name!r} is not an enumeration here")
    found: Any
    if issubclass(cls, enum.Flag) and type(member) is int:
        try:
            found = cls(member)
        except ValueError:
            found = None
    else:
        found = cls.__members__.get(member) if type(member) is str else None
    if found is None:
        raise CodecError(f"{name!r} has no member {str(member)[:NAME_MAX]!r} here")
    assert isinstance(found, enum.Enum)
    return found


def field_values(instance: Any) -> dict[str, Any]:
    """Return the fields of a dataclass instance that are set, by name."""
    names = [field.name for field in dataclasses.fields(instance)]
    return {name: getattr(instance, name) for name in names if hasattr(instance, name)}


def build_dataclass(fields: Any) -> Any:
    """Return an instance of a registered dataclass, built without its `__init__`.

    A field that the sender does not know gets its default.

    Raises:
        CodecError: The type is not registered, or it has no such fields.
    """
    name, values = _pair(fields)
    cls = _type_of(name)
    if not dataclasses.is_dataclass(cls) or type(values) is not dict:
        raise CodecError(f"{name!r} is not a dataclass here")
    check_value(values)
    known = {field.name: field for field in dataclasses.fields(cls)}
    for unknown in values:
        if unknown not in known:
            raise CodecError(f"{name!r} has no field {str(unknown)[:NAME_MAX]!r} here")
    try:
        instance = object.__new__(cls)
        for field in known.values():
            if field.name in values:
                object.__setattr__(instance, field.name, values[field.name])
            elif field.default is not dataclasses.MISSING:
                object.__setattr__(instance, field.name, field.default)
            elif field.default_factory is not dataclasses.MISSING:
                object.__setattr__(instance, field.name, field.default_factory())
    except (TypeError, AttributeError) as error:
        raise CodecError(f"{name!r} cannot be built: {error}") from None
    return instance


def _pair(fields: Any) -> tuple[Any, Any]:
    if type(fields) is not list or len(fields) != 2:
        raise CodecError("a value of a registered type has two fields")
    return fields[0], fields[1]
