"""Expressions over columns."""

from __future__ import annotations

import datetime as _dt
import decimal as _decimal
from collections.abc import Iterable
from typing import Any, Union

from . import _native

IntoExpr = Union["Expr", str, int, float, bool, bytes, None, _dt.date, _dt.datetime, _dt.timedelta, _decimal.Decimal]


def col(name: str) -> Expr:
    """The column `name`, exactly as it is written."""
    if not isinstance(name, str):
        raise TypeError(f"col() takes the name of a column, not {type(name).__name__}")
    return Expr(_native.column(name))


def lit(value: Any, type: str | None = None) -> Expr:
    """A constant; with `type`, of that logical type, such as `"int32"` or `"decimal(12, 2)"`."""
    return Expr(_literal(value, type))


def _literal(value: Any, type: str | None = None) -> _native.Expression:
    if isinstance(value, Expr):
        raise TypeError("lit() takes a plain value, this is an expression already")
    if isinstance(value, _dt.datetime):
        if value.tzinfo is not None:
            text = value.astimezone(_dt.timezone.utc).replace(tzinfo=None).isoformat(sep="T")
            return _native.literal(text + "Z", type or "timestamp(us, UTC)")
        return _native.literal(value.isoformat(sep="T"), type or "timestamp(us)")
    if isinstance(value, _dt.date):
        return _native.literal(value.isoformat(), type or "date")
    if isinstance(value, _dt.time):
        return _native.literal(value.isoformat(), type or "time(us)")
    if isinstance(value, _dt.timedelta):
        text = f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
        return _native.call("arrow_cast", [_native.literal(text), _native.literal("Interval(MonthDayNano)")])
    if isinstance(value, _decimal.Decimal):
        if type is None:
            sign, digits, exponent = value.as_tuple()
            if not isinstance(exponent, int):
                raise ValueError(f"{value} is no decimal number")
            scale = max(-exponent, 0)
            type = f"decimal({max(len(digits) + max(exponent, 0), scale, 1)}, {scale})"
        return _native.literal(str(value), type)
    if isinstance(value, (list, tuple)):
        return _native.call("make_array", [_literal(item, type) for item in value])
    item = getattr(value, "item", None)
    if item is not None and not isinstance(value, (int, float, str, bytes)):
        # A scalar of numpy's.
        return _literal(item(), type)
    return _native.literal(value, type)


def _native_of(value: Any) -> _native.Expression:
    """An operand: an expression as it is, anything else a constant."""
    if isinstance(value, Expr):
        return value._native
    if isinstance(value, When):
        return value._expr()._native
    return _literal(value)


def _column_or_expr(value: Any) -> Expr:
    """Where columns are expected a text is a column's name."""
    if isinstance(value, str):
        return col(value)
    if isinstance(value, Expr):
        return value
    if isinstance(value, When):
        return value._expr()
    return lit(value)


def _flat(values: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple)):
            flat.extend(value)
        else:
            flat.append(value)
    return flat


class Expr:
    """An expression over columns: `col("price") * 2`, `col("name").like("A%")`, `col("x").sum()`.

    Operators work as in SQL: nulls stay null, `&`, `|` and `~` are the logical ones, and a comparison with `==` makes
    an expression rather than an answer.
    """

    __slots__ = ("_native",)

    def __init__(self, native: _native.Expression) -> None:
        self._native = native

    def __repr__(self) -> str:
        return f"<Expr {self._native}>"

    def __bool__(self) -> bool:
        raise TypeError("an expression is neither true nor false; use & and | instead of `and` and `or`, ~ for `not`")

    def _binary(self, symbol: str, other: Any, swapped: bool = False) -> Expr:
        left, right = self._native, _native_of(other)
        if swapped:
            left, right = right, left
        return Expr(left.binary(symbol, right))

    def __eq__(self, other: Any) -> Expr:  # type: ignore[override]
        return self._binary("==", other)

    def __ne__(self, other: Any) -> Expr:  # type: ignore[override]
        return self._binary("!=", other)

    __hash__ = None  # type: ignore[assignment]

    def __lt__(self, other: Any) -> Expr:
        return self._binary("<", other)

    def __le__(self, other: Any) -> Expr:
        return self._binary("<=", other)

    def __gt__(self, other: Any) -> Expr:
        return self._binary(">", other)

    def __ge__(self, other: Any) -> Expr:
        return self._binary(">=", other)

    def __add__(self, other: Any) -> Expr:
        return self._binary("+", other)

    def __radd__(self, other: Any) -> Expr:
        return self._binary("+", other, swapped=True)

    def __sub__(self, other: Any) -> Expr:
        return self._binary("-", other)

    def __rsub__(self, other: Any) -> Expr:
        return self._binary("-", other, swapped=True)

    def __mul__(self, other: Any) -> Expr:
        return self._binary("*", other)

    def __rmul__(self, other: Any) -> Expr:
        return self._binary("*", other, swapped=True)

    def __truediv__(self, other: Any) -> Expr:
        return self._binary("/", other)

    def __rtruediv__(self, other: Any) -> Expr:
        return self._binary("/", other, swapped=True)

    def __mod__(self, other: Any) -> Expr:
        return self._binary("%", other)

    def __rmod__(self, other: Any) -> Expr:
        return self._binary("%", other, swapped=True)

    def __pow__(self, other: Any) -> Expr:
        return _call("power", self, other)

    def __and__(self, other: Any) -> Expr:
        return self._binary("&", other)

    def __rand__(self, other: Any) -> Expr:
        return self._binary("&", other, swapped=True)

    def __or__(self, other: Any) -> Expr:
        return self._binary("|", other)

    def __ror__(self, other: Any) -> Expr:
        return self._binary("|", other, swapped=True)

    def __invert__(self) -> Expr:
        return Expr(self._native.not_())

    def __neg__(self) -> Expr:
        return Expr(self._native.negative())

    def __getitem__(self, key: int | str) -> Expr:
        """An element of a list (from 0) or a field of a struct."""
        if isinstance(key, str):
            return _call("get_field", self, key)
        return _call("array_element", self, key + 1 if key >= 0 else key)

    def alias(self, name: str) -> Expr:
        """The same under another name."""
        return Expr(self._native.alias(name))

    def name(self) -> str:
        """The name of the column that it makes."""
        return self._native.name()

    def cast(self, type: str, strict: bool = True) -> Expr:
        """As another logical type, such as `"int64"`, `"decimal(12, 2)"` or `"timestamp(us, UTC)"`. What cannot be
        converted is an error, or null where `strict` is false."""
        return Expr(self._native.cast(type, not strict))

    def is_null(self) -> Expr:
        """Whether it is null."""
        return Expr(self._native.is_null())

    def is_not_null(self) -> Expr:
        """Whether it is not null."""
        return Expr(self._native.is_not_null())

    def fill_null(self, value: Any) -> Expr:
        """`value` where it is null."""
        return _call("coalesce", self, value)

    def between(self, low: Any, high: Any) -> Expr:
        """Whether it lies between `low` and `high`, both included."""
        return Expr(self._native.between(_native_of(low), _native_of(high)))

    def is_in(self, values: Iterable[Any]) -> Expr:
        """Whether it is one of `values`."""
        return Expr(self._native.in_list([_native_of(value) for value in values]))

    def like(self, pattern: str) -> Expr:
        """Whether it fits an SQL pattern, in which `%` is any text and `_` any character."""
        return Expr(self._native.like(pattern, False))

    def ilike(self, pattern: str) -> Expr:
        """As :meth:`like`, whatever the case."""
        return Expr(self._native.like(pattern, True))

    def matches(self, pattern: str) -> Expr:
        """Whether a regular expression matches somewhere in it."""
        return self._binary("~", pattern)

    def contains(self, text: str) -> Expr:
        """Whether it holds `text`."""
        return _call("contains", self, text)

    def starts_with(self, text: str) -> Expr:
        """Whether it begins with `text`."""
        return _call("starts_with", self, text)

    def ends_with(self, text: str) -> Expr:
        """Whether it ends with `text`."""
        return _call("ends_with", self, text)

    def lower(self) -> Expr:
        """In lower case."""
        return _call("lower", self)

    def upper(self) -> Expr:
        """In upper case."""
        return _call("upper", self)

    def length(self) -> Expr:
        """Characters of a text."""
        return _call("character_length", self)

    def abs(self) -> Expr:
        """Without its sign."""
        return _call("abs", self)

    def round(self, digits: int = 0) -> Expr:
        """Rounded to so many digits."""
        return _call("round", self, digits)

    def part(self, unit: str) -> Expr:
        """A part of a date or a timestamp: `"year"`, `"month"`, `"day"`, `"hour"`, `"dow"` ..."""
        return Expr(_native.call("date_part", [_literal(unit), self._native]))

    def trunc(self, unit: str) -> Expr:
        """A timestamp cut to the beginning of its `"year"`, `"month"`, `"day"`, `"hour"` ..."""
        return Expr(_native.call("date_trunc", [_literal(unit), self._native]))

    # Aggregates.

    def sum(self) -> Expr:
        """The sum."""
        return _call("sum", self)

    def mean(self) -> Expr:
        """The mean."""
        return _call("avg", self)

    avg = mean

    def min(self) -> Expr:
        """The least value."""
        return _call("min", self)

    def max(self) -> Expr:
        """The greatest value."""
        return _call("max", self)

    def count(self) -> Expr:
        """How many values are not null."""
        return _call("count", self)

    def n_unique(self) -> Expr:
        """How many different values there are."""
        return Expr(_native.call("count", [self._native], distinct=True))

    def median(self) -> Expr:
        """The median."""
        return _call("median", self)

    def std(self) -> Expr:
        """The standard deviation of a sample."""
        return _call("stddev", self)

    def var(self) -> Expr:
        """The variance of a sample."""
        return _call("var", self)

    def first(self, *order_by: Any) -> Expr:
        """The first value in the order of `order_by`."""
        return Expr(_native.call("first_value", [self._native], order_by=_sort_keys(order_by)))

    def last(self, *order_by: Any) -> Expr:
        """The last value in the order of `order_by`."""
        return Expr(_native.call("last_value", [self._native], order_by=_sort_keys(order_by)))

    def to_list(self, *order_by: Any) -> Expr:
        """All values of a group as a list."""
        return Expr(_native.call("array_agg", [self._native], order_by=_sort_keys(order_by)))

    def filter(self, predicate: Expr) -> Expr:
        """An aggregate over the rows for which `predicate` holds."""
        return Expr(self._native.filter(_native_of(predicate)))

    def over(
        self,
        *partition_by: Any,
        order_by: Any = (),
        rows: tuple[int | None, int | None] | None = None,
        range: tuple[int | None, int | None] | None = None,
    ) -> Expr:
        """An aggregate or a window function over the rows that agree in `partition_by`, in the order of `order_by`.

        `rows=(-2, 0)` is the frame of this row and two before it; None is unbounded.
        """
        if rows is not None and range is not None:
            raise ValueError("a window has one frame: rows or range")
        frame = None
        if rows is not None:
            frame = ("rows", rows[0], rows[1])
        elif range is not None:
            frame = ("range", range[0], range[1])
        parts = [_column_or_expr(part)._native for part in _flat(partition_by)]
        return Expr(self._native.over(parts, _sort_keys(order_by if isinstance(order_by, (list, tuple)) else [order_by]), frame))

    # Order.

    def asc(self, nulls_first: bool = False) -> SortKey:
        """To sort by, the least first."""
        return SortKey(self._native.sort(True, nulls_first))

    def desc(self, nulls_first: bool = True) -> SortKey:
        """To sort by, the greatest first."""
        return SortKey(self._native.sort(False, nulls_first))


class SortKey:
    """An expression with a direction, from :meth:`Expr.asc` or :meth:`Expr.desc`."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.SortKey) -> None:
        self._native = native


def _sort_keys(keys: Iterable[Any], descending: bool | list[bool] = False) -> list[_native.SortKey]:
    flat = _flat(keys)
    flags = descending if isinstance(descending, (list, tuple)) else [descending] * len(flat)
    if len(flags) != len(flat):
        raise ValueError(f"{len(flat)} columns to sort by and {len(flags)} directions")
    made = []
    for key, down in zip(flat, flags):
        if isinstance(key, SortKey):
            made.append(key._native)
        else:
            expr = _column_or_expr(key)
            made.append((expr.desc() if down else expr.asc())._native)
    return made


def _call(name: str, *arguments: Any) -> Expr:
    return Expr(_native.call(name, [_native_of(argument) for argument in arguments]))


class When:
    """What :func:`when` began; it ends with :meth:`otherwise`, or without it, where the rest is null."""

    __slots__ = ("_branches", "_condition")

    def __init__(self, branches: list[tuple[Any, Any]], condition: Expr | None) -> None:
        self._branches = branches
        self._condition = condition

    def then(self, value: Any) -> When:
        """The value where the condition before holds."""
        if self._condition is None:
            raise TypeError("then() follows when()")
        return When([*self._branches, (self._condition, value)], None)

    def when(self, condition: Expr) -> When:
        """Another condition, for rows to which none before applied."""
        if self._condition is not None:
            raise TypeError("then() follows when()")
        return When(self._branches, condition)

    def otherwise(self, value: Any) -> Expr:
        """The value of all other rows."""
        return self._expr(value)

    def alias(self, name: str) -> Expr:
        """Null for all other rows, under this name."""
        return self._expr().alias(name)

    def _expr(self, otherwise: Any = None) -> Expr:
        if self._condition is not None:
            raise TypeError("then() follows when()")
        branches = [(_native_of(when), _native_of(then)) for when, then in self._branches]
        return Expr(_native.case(branches, None if otherwise is None else _native_of(otherwise)))


def when(condition: Expr) -> When:
    """`when(col("x") > 0).then("up").when(col("x") < 0).then("down").otherwise("flat")`"""
    return When([], condition)
