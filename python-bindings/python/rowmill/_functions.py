"""What stands between a batch and a user's function: rows in, the function, rows out.

Used in the process of the query and in worker processes alike, so it needs pyarrow and nothing of Rowmill. An adapter
is called with a batch that holds the columns that the function reads, and answers with a batch of the declared columns.
Where not every row gives exactly one row, a first column `__row` says which row of the input each one belongs to.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

ROW = "__row"


class RowFailure(Exception):
    """A row failed and the step's policy says that the run fails with it; `__cause__` is what was raised."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def raised(error: BaseException) -> dict[str, Any]:
    """An exception for the ledger; frames of this machinery are left out of its traceback."""
    if isinstance(error, RowFailure) and error.__cause__ is None:
        return {"type": "TypeError", "message": str(error), "traceback": "", "retryable": False}
    frames = traceback.extract_tb(error.__traceback__)
    kept = [frame for frame in frames if os.path.basename(frame.filename) not in ("_worker.py", "_functions.py")]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept or list(frames))]
    lines += traceback.format_exception_only(type(error), error)
    try:
        message = str(error)
    except Exception:
        message = "(an exception that cannot be shown)"
    retryable = getattr(error, "retryable", None)
    said = retryable if isinstance(retryable, bool) else None
    return {"type": type(error).__name__, "message": message, "traceback": "".join(lines), "retryable": said}


# --- Columns as Python sees them -------------------------------------------------------------------------------------


def to_list(array: pa.Array) -> list[Any]:
    """A column as Python values, as fast as pyarrow and numpy allow."""
    kind = array.type
    types = pa.types
    try:
        if types.is_integer(kind) or types.is_float64(kind) or types.is_float32(kind):
            if array.null_count == 0:
                return array.to_numpy(zero_copy_only=True).tolist()
            values = array.fill_null(0).to_numpy(zero_copy_only=False).tolist()
            for at in array.is_null().to_numpy(zero_copy_only=False).nonzero()[0].tolist():
                values[at] = None
            return values
        if types.is_boolean(kind) and array.null_count == 0:
            return array.to_numpy(zero_copy_only=False).tolist()
        if types.is_string_view(kind):
            return array.cast(pa.large_string()).to_numpy(zero_copy_only=False).tolist()
        if types.is_string(kind) or types.is_large_string(kind):
            return array.to_numpy(zero_copy_only=False).tolist()
    except ImportError:
        # Without numpy it is slower, not different.
        pass
    return array.to_pylist()


def plain(array: pa.Array) -> pa.Array:
    """A column without the views that numpy, pandas and older functions of pyarrow do not know."""
    if pa.types.is_string_view(array.type):
        return array.cast(pa.string())
    if pa.types.is_binary_view(array.type):
        return array.cast(pa.binary())
    return array


def to_numpy(array: pa.Array) -> Any:
    """A column as a numpy array, without a copy where it has no nulls and is a number."""
    return plain(array).to_numpy(zero_copy_only=False)


def to_pandas(array: pa.Array) -> Any:
    """A column as a pandas series."""
    return plain(array).to_pandas()


def to_polars(array: pa.Array) -> Any:
    """A column as a Polars series."""
    import polars

    return polars.from_arrow(array)


FLAVORS: dict[str, Callable[[pa.Array], Any]] = {
    "arrow": lambda array: array,
    "numpy": to_numpy,
    "pandas": to_pandas,
    "polars": to_polars,
}


def column(value: Any, kind: pa.DataType, what: str) -> pa.Array:
    """What a function answered, as a column of the declared type."""
    if isinstance(value, pa.ChunkedArray):
        value = value.combine_chunks() if value.num_chunks != 1 else value.chunk(0)
    elif not isinstance(value, pa.Array):
        module = type(value).__module__.partition(".")[0]
        try:
            if module == "polars":
                value = value.to_arrow()
            elif module == "pandas":
                value = pa.Array.from_pandas(value, type=kind)
            elif module == "numpy" or hasattr(value, "__array__"):
                value = pa.array(value)
            else:
                value = pa.array(value, kind)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
            raise TypeError(f"`{what}` answered with what is no column of {kind}: {error}") from error
        if isinstance(value, pa.ChunkedArray):
            value = value.combine_chunks()
    if value.type == kind:
        return value
    try:
        return value.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"`{what}` answered with a column of {value.type}, not {kind}: {error}") from error


# --- Batch functions -------------------------------------------------------------------------------------------------


def table_as(batch: pa.RecordBatch, flavor: str) -> Any:
    """A batch as what a function over whole batches is given."""
    if flavor == "batch":
        return batch
    table = pa.Table.from_batches([batch])
    if flavor == "table":
        return table
    if flavor == "pandas":
        return table.to_pandas()
    if flavor == "polars":
        import polars

        return polars.from_arrow(table)
    return {name: to_numpy(array) for name, array in zip(batch.schema.names, batch.columns)}


def as_batch(answer: Any, schema: pa.Schema, what: str) -> pa.RecordBatch:
    """What a function over whole batches answered, as a batch of the declared columns."""
    if isinstance(answer, dict):
        columns = answer
    elif isinstance(answer, (pa.RecordBatch, pa.Table)):
        columns = dict(zip(answer.schema.names, answer.columns))
    elif hasattr(answer, "to_dict") and hasattr(answer, "columns"):
        columns = {name: answer[name] for name in answer.columns}
    else:
        raise TypeError(f"`{what}` answered with {type(answer).__name__}; a batch, a table, a frame or a dict is needed")
    if set(columns) != set(schema.names):
        raise TypeError(f"`{what}` answered with columns {sorted(columns)}, not {sorted(schema.names)}")
    made = [column(columns[field.name], field.type, what) for field in schema]
    return pa.RecordBatch.from_arrays(made, schema=schema)


class Batches:
    """A function over whole batches."""

    def __init__(self, function: Callable[..., Any], flavor: str, schema: pa.Schema, what: str) -> None:
        self.function, self.flavor, self.schema, self.what = function, flavor, schema, what

    def __call__(self, batch: Any) -> pa.RecordBatch:
        return as_batch(self.function(table_as(pa.record_batch(batch), self.flavor)), self.schema, self.what)


def batches_flavor(function: Callable[..., Any]) -> str:
    """What a function over whole batches wants, by the annotation of its first parameter."""
    hints = hints_of(function)
    named = [name for name in parameters_of(function) if name != "return"]
    hint = hints.get(named[0]) if named else None
    if hint is None or hint is inspect.Parameter.empty:
        return "batch"
    text = f"{getattr(hint, '__module__', '')}.{getattr(hint, '__qualname__', hint)}"
    if "Table" in text and "pyarrow" in text:
        return "table"
    if "pyarrow" in text or text.startswith("pa."):
        return "batch"
    if "pandas" in text:
        return "pandas"
    if "polars" in text:
        return "polars"
    if "dict" in text or "Mapping" in text:
        return "numpy"
    raise TypeError(
        f"a function over batches takes a pyarrow RecordBatch or Table, a pandas or Polars DataFrame, or a dict; "
        f"its parameter `{named[0]}` is {hint}"
    )


def batches_adapter(
    function: Callable[..., Any], returns: Any, given: pa.Schema, columns: list[str] | None
) -> tuple[Any, pa.Schema]:
    """The adapter of a function over whole batches, and the schema that it answers with."""
    if not callable(function):
        raise TypeError(f"map_batches() takes a function, not {type(function).__name__}")
    if isinstance(function, type):
        function = Warm(function)
    schema = given if returns is None and columns is None else None
    if schema is None:
        if returns is None:
            raise TypeError("say what the function answers with: returns={\"name\": \"type\"}")
        schema = schema_of(returns)
    what = getattr(function, "__name__", type(function).__name__)
    return Batches(function, batches_flavor(function), schema, what), schema


# --- Types -----------------------------------------------------------------------------------------------------------


def hints_of(function: Any) -> dict[str, Any]:
    """Annotations, resolved where that is possible."""
    import typing

    target = function.made if isinstance(function, Warm) else function
    if isinstance(target, type):
        target = target.__call__
    elif not (inspect.isfunction(target) or inspect.ismethod(target) or inspect.isbuiltin(target)):
        target = getattr(type(target), "__call__", target)
    target = inspect.unwrap(target)
    try:
        return typing.get_type_hints(target)
    except Exception:  # An annotation may name what is not there at run time; then only some are known.
        return dict(getattr(target, "__annotations__", {}))


def parameters_of(function: Any) -> dict[str, inspect.Parameter]:
    """Parameters that can be given by position, in order."""
    target = function.made if isinstance(function, Warm) else function
    if isinstance(target, type):
        found = dict(inspect.signature(target.__call__).parameters)
        found.pop(next(iter(found)), None)
    else:
        try:
            found = dict(inspect.signature(target).parameters)
        except (TypeError, ValueError):
            return {}
    return {
        name: parameter
        for name, parameter in found.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


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


_MODULES = {"pyarrow": "arrow", "numpy": "numpy", "pandas": "pandas", "polars": "polars"}
_SHORT = {"pa": "pyarrow", "np": "numpy", "pd": "pandas", "pl": "polars"}


def target_of(function: Any) -> Any:
    """The plain function behind a class, a partial, a wrapper or an object with `__call__`."""
    import functools

    target = function.made if isinstance(function, Warm) else function
    target = target.__call__ if isinstance(target, type) else target
    target = target.func if isinstance(target, functools.partial) else inspect.unwrap(target)
    if not (inspect.isfunction(target) or inspect.ismethod(target)) and not inspect.isbuiltin(target):
        target = getattr(type(target), "__call__", target)
    return target


def flavors_of(hints: dict[str, Any], parameters: Iterable[str]) -> dict[str, str]:
    """Parameters that are columns, and as what, by their annotations."""
    import typing

    flavors = {}
    for name in parameters:
        hint = hints.get(name)
        module = getattr(hint, "__module__", "") if isinstance(hint, type) or typing.get_origin(hint) else ""
        if isinstance(hint, str):
            module = _SHORT.get(hint.partition(".")[0], hint)
        flavor = _MODULES.get(module.partition(".")[0])
        if flavor is not None and not (flavor == "numpy" and isinstance(hint, type) and hint.__name__ != "ndarray"):
            flavors[name] = flavor
    return flavors


def kind_of(function: Any, batches: bool) -> str:
    """How a function is called; `batches` says that one that is called plainly is given columns."""
    target = target_of(function)
    if inspect.isasyncgenfunction(target):
        return "async_generator"
    if inspect.iscoroutinefunction(target):
        return "async"
    if inspect.isgeneratorfunction(target):
        return "generator"
    return "batch" if batches else "row"


def asked(function: Any, arguments: list[str], given: str | None, fan_out: bool, what: str) -> tuple[str, list[str]]:
    """What a workflow's text leaves to the function: how it is called, and as what it takes each argument.

    Raises TypeError where the text and the function do not fit together.
    """
    parameters = parameters_of(function)
    ordered = [name for name, of in parameters.items() if of.kind is not of.KEYWORD_ONLY]
    try:
        target = function.made.__call__ if isinstance(function, Warm) else function
        bare = [*inspect.signature(target).parameters.values()]
    except (TypeError, ValueError):
        bare = []
    open_ended = not bare or any(of.kind is of.VAR_POSITIONAL for of in bare)
    needed = [name for name, of in parameters.items() if of.default is of.empty]
    shown = f"`reads` gives it {len(arguments)} ({', '.join(arguments)})"
    if len(arguments) > len(ordered) and not open_ended:
        raise TypeError(f"`{what}` takes {len(ordered)} arguments, and {shown}")
    if len(needed) > len(arguments):
        raise TypeError(f"`{what}` needs {len(needed)} arguments ({', '.join(needed)}), and {shown}")
    named = flavors_of(hints_of(function), ordered)
    kind = kind_of(function, bool(named) if given is None else given != "values")
    if given in (None, "values"):
        flavors = [named.get(name, "arrow") for name in ordered[: len(arguments)]]
        flavors += ["arrow"] * (len(arguments) - len(flavors))
    else:
        flavors = [given] * len(arguments)
    if kind != "batch" and given not in (None, "values"):
        raise TypeError(f"`{what}` is called for each item, so it is given values, not columns (`given: {given}`)")
    if kind != "batch" and named and given is None:
        raise TypeError(f"`{what}` is called for each item, so it is given values, not {next(iter(named.values()))} columns")
    if kind.endswith("generator") and not fan_out:
        raise TypeError(f"`{what}` is a generator, which gives any number of rows for an item; say `fan_out: true`")
    if fan_out and not kind.endswith("generator"):
        raise TypeError(f"`{what}` gives one row for each item; `fan_out: true` is for generators")
    return kind, flavors


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


# --- Warm state ------------------------------------------------------------------------------------------------------


class Warm:
    """A class with `__call__`: made once in each process, when the first rows come."""

    def __init__(self, made: type, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None) -> None:
        self.made, self.arguments, self.options = made, arguments, options or {}
        self.__name__ = made.__name__
        self._process = 0
        self._instance: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> Any:
        return (self.made, self.arguments, self.options)

    def __setstate__(self, state: Any) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def instance(self) -> Any:
        """The instance of this process."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._instance = self.made(*self.arguments, **self.options)
                    self._process = os.getpid()
        return self._instance

    def __call__(self, *arguments: Any) -> Any:
        return self.instance()(*arguments)


# --- Rows ------------------------------------------------------------------------------------------------------------


class Policy:
    """What becomes of rows that fail."""

    def __init__(self, on_error: str = "fail", default: Any = None, retries: int = 0, repeatable: bool = False) -> None:
        self.on_error, self.default, self.retries, self.repeatable = on_error, default, retries, repeatable


class RowStep:
    """A function over rows, in any of its kinds, or over columns of a batch."""

    def __init__(
        self,
        function: Callable[..., Any],
        kind: str,
        what: str,
        schema: pa.Schema,
        flavors: list[str],
        many: bool | None,
        policy: Policy,
        in_flight: int = 256,
    ) -> None:
        self.function, self.kind, self.what, self.schema = function, kind, what, schema
        self.flavors, self.many, self.policy, self.in_flight = flavors, many, policy, in_flight
        #: Calls under way, of all threads of the process, by its id.
        self._gates: dict[int, Any] = {}
        #: Where failures go that do not end the call.
        self._failures: list[tuple[int, BaseException]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gates": {}, "_failures": []}

    def collect(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, list[tuple[int, BaseException]]]:
        """The rows that are ok, and the others with what was raised for them."""
        own = copy.copy(self)
        own.policy, own._failures = Policy("collect"), []
        return own(batch), own._failures

    def reply(self, batch: Any) -> tuple[Any, list[tuple[int, dict[str, Any], BaseException]], bool]:
        """As :meth:`collect`, for the native module: the rows that are ok, the failures as the ledger keeps them, and
        whether the group failed as a whole."""
        try:
            made, failures = self.collect(pa.record_batch(batch))
        except Exception as error:
            return None, [(0, raised(error), error)], True
        return made, [(row, raised(error), error) for row, error in failures], False

    def __call__(self, batch: Any) -> pa.RecordBatch:
        batch = pa.record_batch(batch)
        call = self.function.instance() if isinstance(self.function, Warm) else self.function
        if self.kind == "batch":
            return self._columns(call, batch)
        columns = [to_list(array) for array in batch.columns]
        if self.kind == "row":
            return self._rows(call, columns, batch.num_rows)
        if self.kind == "generator":
            return self._generated(call, columns, batch.num_rows)
        return self._awaited(call, columns, batch.num_rows)

    # Results to columns.

    def _answer(self, values: list[Any], rows: list[int] | None) -> pa.RecordBatch:
        try:
            columns = self._made(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
            if self.policy.on_error == "fail":
                raise self._wrong(values, rows, error) from error
            return self._answer(*self._sifted(values, rows, error))
        if rows is None:
            return pa.RecordBatch.from_arrays(columns, schema=self.schema)
        counted = pa.field(ROW, pa.uint32(), nullable=False)
        return pa.RecordBatch.from_arrays(
            [pa.array(rows, pa.uint32()), *columns], schema=pa.schema([counted, *self.schema])
        )

    def _made(self, values: list[Any]) -> list[pa.Array]:
        if not (self._has_fields(values) if self.many is None else self.many):
            return [pa.array(values, self.schema.field(0).type)]
        columns = []
        for at, field in enumerate(self.schema):
            name = field.name
            parts = [
                None if value is None
                else value[name] if isinstance(value, dict)
                else value[at] if isinstance(value, (tuple, list))
                else getattr(value, name)
                for value in values
            ]  # fmt: skip
            columns.append(pa.array(parts, field.type))
        return columns

    def _has_fields(self, values: list[Any]) -> bool:
        """Whether answers for one column come as mappings from its name."""
        first = next((value for value in values if value is not None), None)
        return isinstance(first, dict) and not pa.types.is_nested(self.schema.field(0).type)

    def _wrong(self, values: list[Any], rows: list[int] | None, error: Exception) -> Exception:
        """The same in words that name the first value that is not what was declared."""
        said = self.schema.field(0).type if not self.many else ", ".join(f"{f.name}: {f.type}" for f in self.schema)
        for at, value in enumerate(values):
            try:
                self._made([value])
            except Exception:
                row = at if rows is None else rows[at]
                return RowFailure(row, f"answered {_shown(value)} for row {row} of the batch, which is no {said}")
        return TypeError(f"`{self.what}`: {error}")

    def _sifted(self, values: list[Any], rows: list[int] | None, error: Exception) -> tuple[list[Any], list[int]]:
        """The answers without those that are not what was declared, each of which is settled by the policy."""
        kept: list[Any] = []
        kept_rows: list[int] = []
        bad = 0
        for at, value in enumerate(values):
            row = at if rows is None else rows[at]
            try:
                self._made([value])
            except Exception:
                bad += 1
                if self.policy.on_error == "default" and value is self.policy.default:
                    raise TypeError(f"the default of `{self.what}` is not what it answers with: {error}") from error
                said = ", ".join(f"{field.name}: {field.type}" for field in self.schema)
                self._settle(row, RowFailure(row, f"answered {_shown(value)}, which is no {said}"), kept, kept_rows)
            else:
                kept.append(value)
                kept_rows.append(row)
        if not bad:
            # Each of them can be a column, and together they cannot.
            raise TypeError(f"`{self.what}`: {error}") from error
        return kept, kept_rows

    def _settle(self, row: int, error: Exception, values: list[Any], rows: list[int]) -> None:
        """What the policy says of a row that failed; rows that go on are added."""
        if self.policy.on_error == "skip":
            return
        if self.policy.on_error == "collect":
            self._failures.append((row, error))
            return
        if self.policy.on_error == "default":
            values.append(self.policy.default)
            rows.append(row)
            return
        error.add_note(f"in `{self.what}`, row {row} of the batch") if hasattr(error, "add_note") else None
        raise error

    def _again(self, call: Callable[..., Any], arguments: tuple[Any, ...], error: Exception) -> Any:
        """Further attempts at one row; raises the last failure."""
        for attempt in range(self.policy.retries):
            time.sleep(min(0.1 * 2**attempt, 10.0))
            try:
                return call(*arguments)
            except Exception as other:
                error = other
        raise error

    # The kinds.

    def _rows(self, call: Callable[..., Any], columns: list[list[Any]], count: int) -> pa.RecordBatch:
        values: list[Any] = []
        calls: Iterable[Any] = map(call, *columns) if columns else (call() for _ in range(count))
        # `extend` keeps what came before an exception, so its length is the row that failed, and `map` goes on after.
        try:
            values.extend(calls)
            return self._answer(values, None)
        except RowFailure:
            raise
        except Exception as error:
            if self.policy.on_error == "fail" and not self.policy.retries:
                self._settle(len(values), error, values, [])
            failed: Exception = error
        rows = list(range(len(values)))
        at = len(values)
        while True:
            arguments = tuple(column[at] for column in columns)
            try:
                values.append(self._again(call, arguments, failed))
                rows.append(at)
            except Exception as error:
                self._settle(at, error, values, rows)
            at += 1
            before = len(values)
            try:
                values.extend(map(call, *[column[at:] for column in columns]) if columns else (call() for _ in range(count - at)))
                rows.extend(range(at, at + len(values) - before))
                break
            except Exception as error:
                rows.extend(range(at, at + len(values) - before))
                at += len(values) - before
                failed = error
        return self._answer(values, None if len(rows) == count else rows)

    def _generated(self, call: Callable[..., Any], columns: list[list[Any]], count: int) -> pa.RecordBatch:
        values: list[Any] = []
        rows: list[int] = []
        each = zip(*columns) if columns else iter([()] * count)
        for row, arguments in enumerate(each):
            try:
                made = list(call(*arguments))
            except Exception as error:
                try:
                    made = self._again(lambda *given: list(call(*given)), arguments, error)
                except Exception as last:
                    self._settle(row, last, values, rows)
                    continue
            values.extend(made)
            rows.extend([row] * len(made))
        return self._answer(values, rows)

    def _awaited(self, call: Callable[..., Any], columns: list[list[Any]], count: int) -> pa.RecordBatch:
        results: list[Any] = [None] * count
        failed: dict[int, Exception] = {}
        many = self.kind == "async_generator"
        loop = event_loop()
        with _LOOP_LOCK:
            # One gate for all threads of the query.
            gate = self._gates.setdefault(os.getpid(), asyncio.Semaphore(self.in_flight))
        each = iter(enumerate(zip(*columns) if columns else iter([()] * count)))
        stop = self.policy.on_error == "fail"

        async def once(arguments: tuple[Any, ...]) -> Any:
            if many:
                return [item async for item in call(*arguments)]
            return await call(*arguments)

        async def worker() -> None:
            for row, arguments in each:
                async with gate:
                    try:
                        results[row] = await once(arguments) if many else await call(*arguments)
                        continue
                    except Exception as error:
                        last = error
                # Waiting for a retry holds no slot.
                for attempt in range(self.policy.retries):
                    await asyncio.sleep(min(0.1 * 2**attempt, 10.0))
                    async with gate:
                        try:
                            results[row] = await once(arguments)
                            break
                        except Exception as error:
                            last = error
                else:
                    failed[row] = last
                    if stop:
                        return

        async def all_of_them() -> None:
            await asyncio.gather(*[worker() for _ in range(min(self.in_flight, count))])

        asyncio.run_coroutine_threadsafe(all_of_them(), loop).result()
        if not failed and not many:
            return self._answer(results, None)
        values: list[Any] = []
        rows: list[int] = []
        for row in range(count):
            if row in failed:
                self._settle(row, failed[row], values, rows)
            elif many:
                values.extend(results[row])
                rows.extend([row] * len(results[row]))
            else:
                values.append(results[row])
                rows.append(row)
        return self._answer(values, None if not many and len(rows) == count else rows)

    def _columns(self, call: Callable[..., Any], batch: pa.RecordBatch) -> pa.RecordBatch:
        try:
            return self._attempt(call, batch)
        except Exception as error:
            for attempt in range(self.policy.retries):
                time.sleep(min(0.1 * 2**attempt, 10.0))
                try:
                    return self._attempt(call, batch)
                except Exception as other:
                    error = other
            if self.policy.on_error not in ("skip", "default") or not self.policy.repeatable:
                raise error
            return self._bisected(call, batch)

    def _attempt(self, call: Callable[..., Any], batch: pa.RecordBatch) -> pa.RecordBatch:
        given = [FLAVORS[flavor](array) for flavor, array in zip(self.flavors, batch.columns)]
        answer = call(*given)
        fields = isinstance(answer, (dict, pa.RecordBatch, pa.Table)) or hasattr(answer, "columns")
        if fields if self.many is None else self.many:
            if isinstance(answer, (tuple, list)) and len(answer) == len(self.schema):
                answer = dict(zip(self.schema.names, answer))
            made = as_batch(answer, self.schema, self.what)
        else:
            field = self.schema.field(0)
            made = pa.RecordBatch.from_arrays([column(answer, field.type, self.what)], schema=self.schema)
        if made.num_rows != batch.num_rows:
            raise ValueError(f"`{self.what}` answered with {made.num_rows} rows for {batch.num_rows}")
        return made

    def _bisected(self, call: Callable[..., Any], batch: pa.RecordBatch) -> pa.RecordBatch:
        """The rows that are to blame, alone; all others as they come."""
        parts: list[pa.RecordBatch] = []
        rows: list[int] = []
        default = [pa.array([self._default_of(field)], field.type) for field in self.schema]
        waiting = [(0, batch.num_rows)]
        while waiting:
            start, length = waiting.pop()
            try:
                parts.append(self._attempt(call, batch.slice(start, length)))
                rows.extend(range(start, start + length))
            except Exception:
                if length > 1:
                    half = length // 2
                    waiting += [(start + half, length - half), (start, half)]
                elif self.policy.on_error == "default":
                    parts.append(pa.RecordBatch.from_arrays(default, schema=self.schema))
                    rows.append(start)
        table = pa.Table.from_batches(parts, self.schema).combine_chunks()
        columns = [column.chunk(0) if column.num_chunks else pa.array([], column.type) for column in table.columns]
        counted = pa.field(ROW, pa.uint32(), nullable=False)
        return pa.RecordBatch.from_arrays([pa.array(rows, pa.uint32()), *columns], schema=pa.schema([counted, *self.schema]))

    def _default_of(self, field: pa.Field) -> Any:
        default = self.policy.default
        return default.get(field.name) if self.many and isinstance(default, dict) else default


def _shown(value: Any, most: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"


_LOOP: tuple[int, asyncio.AbstractEventLoop] | None = None
_LOOP_LOCK = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process on which all async steps run, in a thread of its own."""
    global _LOOP
    with _LOOP_LOCK:
        if _LOOP is None or _LOOP[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rowmill-async", daemon=True).start()
            _LOOP = (os.getpid(), loop)
        return _LOOP[1]
