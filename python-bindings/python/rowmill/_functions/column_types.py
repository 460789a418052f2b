"""Types of columns, of names, annotations and classes with fields; and which types a parameter's annotation takes."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_NAMES = {
    "bool": pa.bool_(), "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float32": pa.float32(), "float64": pa.float64(), "string": pa.string(), "binary": pa.binary(),
    "date": pa.date32(),
}  # fmt: skip


def type_of(said: Any) -> pa.DataType:
    """An Arrow type of a pyarrow type, the name of a logical type, or a Python type.

    Raises TypeError where it says nothing that a column could be.
    """
    import datetime
    import types
    import typing

    if isinstance(said, pa.DataType):
        return said
    if isinstance(said, str):
        return _named_type(said)
    plain_types = {
        bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), bytes: pa.binary(),
        datetime.datetime: pa.timestamp("us"), datetime.date: pa.date32(), datetime.time: pa.time64("us"),
        datetime.timedelta: pa.duration("us"),
    }  # fmt: skip
    if isinstance(said, type) and said in plain_types:
        return plain_types[said]
    origin, inner = typing.get_origin(said), typing.get_args(said)
    if origin in (typing.Union, types.UnionType):
        some = [one for one in inner if one is not type(None)]
        if len(some) == 1:
            return type_of(some[0])
    if origin is typing.Annotated:
        for extra in inner[1:]:
            if isinstance(extra, (str, pa.DataType)):
                return type_of(extra)
        return type_of(inner[0])
    if origin in (list, tuple) and inner and inner[-1:] != ():
        return pa.list_(type_of(inner[0]))
    fields = fields_of(said)
    if fields is not None:
        return pa.struct([(name, type_of(kind)) for name, kind in fields.items()])
    raise TypeError(f"{said} is no type of a column; say `returns=` with a name such as \"int64\" or \"list<string>\"")


def _named_type(text: str) -> pa.DataType:
    text = text.strip()
    if text in _NAMES:
        return _NAMES[text]
    head, _, rest = text.partition("(")
    parts = [part.strip() for part in rest.rstrip(")").split(",")] if rest else []
    if head == "decimal" and len(parts) == 2:
        return pa.decimal128(int(parts[0]), int(parts[1]))
    if head == "timestamp" and parts:
        return pa.timestamp(parts[0], parts[1] if len(parts) > 1 else None)
    if head == "time" and parts:
        return pa.time32(parts[0]) if parts[0] in ("s", "ms") else pa.time64(parts[0])
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(_named_type(text[5:-1]))
    if text.startswith("struct<") and text.endswith(">"):
        fields, depth, start, body = [], 0, 0, text[7:-1] + ","
        for at, letter in enumerate(body):
            depth += (letter in "<(") - (letter in ">)")
            if letter == "," and depth == 0:
                name, _, kind = body[start:at].partition(":")
                fields.append((name.strip(), _named_type(kind)))
                start = at + 1
        return pa.struct(fields)
    raise TypeError(f"`{text}` is no logical type; write int64, string, decimal(12, 2), timestamp(us), list<string> ...")


def shown(kind: pa.DataType) -> str:
    """A type as this package names it: `float64` where pyarrow says `double`."""
    import re

    names = {"double": "float64", "float": "float32", "halffloat": "float16", "date32[day]": "date"}
    return re.sub(r"date32\[day\]|\b(double|float|halffloat)\b", lambda found: names[found.group()], str(kind))


def fields_of(said: Any) -> dict[str, Any] | None:
    """Names and types of a TypedDict, a dataclass or a NamedTuple; None where it is none."""
    import dataclasses
    import typing

    if not isinstance(said, type):
        return None
    if dataclasses.is_dataclass(said) or hasattr(said, "__total__") or (issubclass(said, tuple) and hasattr(said, "_fields")):
        return typing.get_type_hints(said)
    return None


def schema_of(returns: Any) -> pa.Schema:
    """The columns that `returns` says: a pyarrow schema, `{"name": type}`, or a class with fields."""
    if isinstance(returns, pa.Schema):
        return returns
    if hasattr(returns, "__arrow_c_schema__") and not isinstance(returns, pa.DataType):
        return pa.schema(returns)
    fields = returns if isinstance(returns, dict) else fields_of(returns)
    if fields is None:
        raise TypeError("say the columns: returns={\"name\": \"type\"}")
    return pa.schema([pa.field(name, type_of(kind)) for name, kind in fields.items()])


def accepts(hint: Any) -> tuple[str, ...] | None:
    """Logical types that a parameter of this annotation can be given; None where it does not say."""
    import datetime
    import decimal
    import types
    import typing

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        parts = [accepts(one) for one in inner if one is not type(None)]
        return None if None in parts or not parts else tuple(word for part in parts if part for word in part)
    if origin is typing.Annotated:
        return accepts(inner[0])
    plain: dict[Any, tuple[str, ...]] = {
        bool: ("bool",), int: ("int", "uint"), float: ("float", "int", "uint"), str: ("string",), bytes: ("binary",),
        datetime.datetime: ("timestamp",), datetime.date: ("date",), datetime.time: ("time(",),
        decimal.Decimal: ("decimal",), list: ("list",), dict: ("struct", "map"),
    }  # fmt: skip
    try:
        return plain.get(origin or hint)
    except TypeError:
        return None
