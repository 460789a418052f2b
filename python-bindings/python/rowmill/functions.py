"""Every function that SQL knows, by its name: `functions.lower(col("name"))`, `functions.sum(col("x"))`.

Arguments that are no expressions are constants; a column is written `col("x")`. `dir(functions)` lists them all.
"""

from __future__ import annotations

from typing import Any

from . import _native
from ._expr import Expr, _literal, _native_of, _sort_keys


def count(expr: Expr | None = None) -> Expr:
    """How many rows there are, or how many values of `expr` are not null."""
    return Expr(_native.call("count", [_literal(1) if expr is None else _native_of(expr)]))


def call(name: str, *arguments: Any, distinct: bool = False, order_by: Any = ()) -> Expr:
    """A call of the function `name`: scalar, aggregate or window."""
    keys = _sort_keys(order_by if isinstance(order_by, (list, tuple)) else [order_by])
    return Expr(_native.call(name, [_native_of(argument) for argument in arguments], distinct, keys))


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    if not any(name in names for names in _native.function_names()):
        import difflib

        known = [one for names in _native.function_names() for one in names]
        near = difflib.get_close_matches(name, known, 1)
        raise AttributeError(f"there is no function `{name}`" + (f"; did you mean `{near[0]}`?" if near else ""))

    def function(*arguments: Any, distinct: bool = False, order_by: Any = ()) -> Expr:
        return call(name, *arguments, distinct=distinct, order_by=order_by)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"The SQL function `{name}`."
    return function


def __dir__() -> list[str]:
    return sorted({"call", "count", *(one for names in _native.function_names() for one in names)})
