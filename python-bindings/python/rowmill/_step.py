"""`@rowmill.step`: Python functions as steps."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any, overload

import pyarrow as pa

from . import _native
from ._expr import Expr, When, _native_of
from ._functions import (
    Policy,
    RowStep,
    Warm,
    accepts,
    fields_of,
    flavors_of,
    hints_of,
    kind_of,
    logging_of,
    parameters_of,
    schema_of,
    type_of,
)
from ._step_options import OPTIONS, cache_policy, column_rows, max_errors, rate_per_s, size_bytes, whole_rate


@overload
def step(function: Callable[..., Any]) -> Step: ...
@overload
def step(
    *,
    returns: Any = None,
    batch: int | bool | None = None,
    effects: str = "once",
    on_error: str = "fail",
    default: Any = None,
    retries: int = 0,
    in_flight: int = 256,
    name: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    timeout: float | None = None,
    max_errors: int | float | str | None = None,
    cache: bool | str | dict[str, Any] | None = None,
    rate_limit: str | float | None = None,
    resources: str | None = None,
) -> Callable[[Any], Step]: ...
def step(function: Any = None, *, returns: Any = None, **options: Any) -> Any:
    """Makes a function (or a class with `__call__`) a step of queries.

    What the function is decides how it is called:

    - a function of plain values is called for each row: `def f(price: float, count: int) -> float`;
    - one whose parameters are `pyarrow.Array`, `numpy.ndarray`, `pandas.Series` or `polars.Series` is called for each
      batch, with columns; so is one without annotations that has `batch=`, with Arrow arrays;
    - an `async def` is awaited for each row, `in_flight` of them at a time on one event loop;
    - a generator (async or not) gives any number of rows for one;
    - a class is made once in each process, when the first rows come, and its `__call__` is one of the above.

    Parameters are columns of the same names. Types come from the annotations and are checked before anything runs.

    Args:
        returns: what it answers with, where the annotation does not say: a type (`"int64"`, `pyarrow.int64()`, `int`),
            or several columns (`{"name": type}`, a dataclass, a TypedDict, a pyarrow schema).
        batch: rows of a call, exactly (the last one has fewer).
        effects: what calling it again means: `"pure"`, `"idempotent"`, or `"once"`. Only what is not `"once"` can be
            retried or cut in two to find a bad row.
        on_error: what becomes of a row that fails: `"fail"` (the query does), `"skip"` (the row goes), `"default"`, or
            `"dead_letter"` (the row is put aside with what went wrong: in the ledger of a workflow's run, or for
            :meth:`DataFrame.collect_with_failures`).
        default: the value of rows that failed, with `on_error="default"`.
        retries: further attempts at a row (a batch, in functions over batches) that failed.
        in_flight: calls at a time, of an async function.
        name: the name in plans and errors, and of the one column that it makes; the function's where absent.
        workers: so many processes call it, instead of this one: for work that holds the GIL, and for functions that may
            kill their process. A row that does fails alone if the function may be called again; otherwise all rows that
            were sent with it do. The function is found by its module and name, or travels by cloudpickle.
        memory: what each of these processes may take, such as `"2GB"`.
        timeout: seconds that a process may take for one batch before it is killed.
        max_errors: how many rows (`100`), or what share of them (`"1%"`), may fail before the query does.
        cache: keeps answers, so that equal rows are not asked again: `True` (in memory, for as long as this process
            lives), `"disk"`, or a mapping with `tier` (`"memory"`, `"disk"`, `"redis"`), `key` (columns), `ttl` (such as
            `"1h"`), `max_size` and `connection`. What counts is the function's source and the values it closes over, not
            what it calls. Not for effects `"once"`.
        rate_limit: calls in a second, as a number or such as `"100/s"` and `"3000/min"`. A function over batches is
            called once for each batch.
        resources: the class of machine that it needs: `"cpu"`, `"memory"`, `"io"`, `"gpu"` or a name of yours. A step of
            a workflow is placed by it; a frame is computed in this process, which serves every class, and shows it in
            its plan.

    Use it on columns, `df.select(f(col("x")))`, or on rows, `df.map(f)`.
    """
    if function is not None:
        return step_of(function, returns, options)
    return lambda function: step_of(function, returns, options)


def step_of(function: Any, returns: Any, options: dict[str, Any]) -> Step:
    """The step of a function; of a step, itself, unless options are given."""
    if isinstance(function, Step):
        if returns is None and not options:
            return function
        return Step(function.function, returns if returns is not None else function.returns, {**function.options, **options})
    return Step(function, returns, options)


class Step:
    """A Python function as a step; calling it with plain values calls the function."""

    def __init__(self, function: Any, returns: Any, options: dict[str, Any]) -> None:
        unknown = set(options) - OPTIONS
        if unknown:
            raise TypeError(f"a step has no option `{sorted(unknown)[0]}`; it has returns, {', '.join(sorted(OPTIONS))}")
        if not callable(function):
            raise TypeError(f"a step is a function or a class with __call__, not {type(function).__name__}")
        self.function, self.returns, self.options = function, returns, dict(options)
        functools.update_wrapper(self, function, updated=())
        self.name: str = options.get("name") or str(getattr(function, "__name__", type(function).__name__))
        self.effects: str = options.get("effects", "once")
        if self.effects not in ("pure", "idempotent", "once"):
            raise ValueError(f"effects are pure, idempotent or once, not {self.effects!r}")
        self._warm = Warm(function) if isinstance(function, type) else None
        self._hints = hints_of(function)
        self._parameters = parameters_of(function)
        self._kind, self._flavors = self._kind_of()
        self.policy = self._policy()
        self.in_flight = options.get("in_flight", 256)
        if not isinstance(self.in_flight, int) or self.in_flight < 1:
            raise ValueError("in_flight is a number from 1 on")
        self.schema, self.many = self._answers()
        self.workers = options.get("workers")
        if self.workers is not None and (not isinstance(self.workers, int) or self.workers < 1):
            raise ValueError("workers is a number from 1 on")
        self._memory = size_bytes(options.get("memory"))
        self._max_errors = max_errors(options.get("max_errors"))
        self._rate = rate_per_s(options.get("rate_limit"))
        self._cache = cache_policy(options.get("cache"), self.name, self.effects, self._parameters)
        self.resources = options.get("resources")
        if self.resources is not None and not (isinstance(self.resources, str) and self.resources):
            raise ValueError('resources is a class of machine: "cpu", "memory", "io", "gpu" or a name of yours')
        if self._max_errors is not None and self.policy.on_error == "fail":
            raise ValueError('max_errors is for other on_error than "fail", with which the first failure is one too many')
        if self.policy.on_error == "default":
            self._default_row()

    @property
    def __rowmill_function__(self) -> Any:
        """For worker processes that find the step by its name: what it was made of."""
        return self.function

    def _default_row(self) -> pa.RecordBatch:
        """The row that stands in for those that failed."""
        default = self.policy.default
        values = [default.get(field.name) if self.many and isinstance(default, dict) else default for field in self.schema]
        try:
            columns = [pa.array([value], field.type) for value, field in zip(values, self.schema)]
        except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError) as error:
            raise TypeError(f"default={default!r} is not what `{self.name}` answers with: {error}") from error
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _spec(self, reads: list[str]) -> dict[str, Any] | None:
        """What the engine's step operator is told; None where the function is simply called."""
        plain = (self._cache, self._rate, self._max_errors) == (None, None, None)
        if self.workers is None and plain and self.policy.on_error != "dead_letter":
            return None
        import os
        import sys

        rows = self._rows()
        if self._rate is not None and self._kind != "batch":
            # A group leaves together, so it holds no more than may leave in a tenth of a second.
            rows = max(1, min(rows or 4096, int(self._rate / 10)))
        said: dict[str, Any] = {
            "name": self.name, "kind": self._kind, "effects": self.effects, "workers": self.workers,
            "on_error": self.policy.on_error, "retries": self.policy.retries, "max_errors": self._max_errors,
            "default": self._default_row() if self.policy.on_error == "default" else None,
            "rate": self._rate, "cache": self._cache, "group_rows": rows, "class": self.resources, "source": self._source(),
        }  # fmt: skip
        if self.workers is None:
            said["pickle"] = self._pickle() if self._cache else b""
            return said
        return {
            **said, "function": self._travelling(), "python": sys.executable,
            "worker": os.path.join(os.path.dirname(os.path.abspath(__file__)), "_worker.py"),
            "sys_path": [path or os.getcwd() for path in sys.path], "many": self.many,
            "flavors": [self._flavors.get(name, "arrow") for name in reads], "in_flight": self.in_flight,
            "memory_bytes": self._memory, "timeout_s": self.options.get("timeout"), "logging": logging_of(),
        }  # fmt: skip

    def _in_workflow(self, source: str, resources: str | None) -> dict[str, Any]:
        """What a workflow's text says of this step over the rows of `source`."""
        if self.options.get("in_flight") is not None and self._kind not in ("async", "async_generator"):
            raise ValueError("in_flight= is for async functions; workers= says how many processes there are")
        flavored = self._kind == "batch" and not self._flavors
        function = self._travelling()
        return {
            "from": source, "function": function if isinstance(function, str) else _native.bring(self.name, function),
            "reads": [name for name, of in self._parameters.items() if of.default is of.empty], "output": self.schema, "given": "arrow" if flavored else None,
            "fan_out": self._kind in ("generator", "async_generator"), "calls": self.options.get("in_flight"),
            "rate": None if self._rate is None else whole_rate(self._rate),
            "memory_bytes": self._memory, "timeout_s": self.options.get("timeout"), "effects": self.effects,
            "on_error": self.policy.on_error, "retries": self.policy.retries, "max_errors": self._max_errors,
            "default": self._default_row() if self.policy.on_error == "default" else None,
            "group_rows": self._rows(), "workers": self.workers, "cache": self._cache,
            "class": resources or self.resources,
        }  # fmt: skip

    def _rows(self) -> int | None:
        """Rows of a call, where they are said."""
        rows = self.options.get("batch")
        return rows if isinstance(rows, int) and not isinstance(rows, bool) else None

    def _source(self) -> str:
        """The function's text, which tells one version of it from another."""
        try:
            return inspect.getsource(inspect.unwrap(self.function))
        except (OSError, TypeError):
            return ""

    def _pickle(self) -> bytes:
        import sys

        import cloudpickle

        # In a process that multiprocessing spawned, the program's own file is a module that nobody else can import.
        spawned = sys.modules.get("__mp_main__")
        if spawned is None or spawned.__name__ != "__mp_main__":
            return cloudpickle.dumps(self.function)
        cloudpickle.register_pickle_by_value(spawned)
        try:
            return cloudpickle.dumps(self.function)
        finally:
            cloudpickle.unregister_pickle_by_value(spawned)

    def _travelling(self) -> str | bytes:
        """How a worker finds the function: by module and name, where that leads to it, or pickled."""
        import importlib

        module, path = getattr(self.function, "__module__", None), getattr(self.function, "__qualname__", "")
        if module and module not in ("__main__", "__mp_main__") and "<" not in path:
            try:
                found: Any = importlib.import_module(module)
                for part in path.split("."):
                    found = getattr(found, part)
            except (ImportError, AttributeError):
                found = None
            if found is self.function or getattr(found, "function", None) is self.function:
                return f"{module}:{path}"
        return self._pickle()

    def _kind_of(self) -> tuple[str, dict[str, str]]:
        flavors = flavors_of(self._hints, self._parameters)
        plain = not any(name in self._hints for name in self._parameters)
        kind = kind_of(self.function, bool(flavors) or bool(self.options.get("batch") and plain))
        if flavors and kind != "batch":
            raise TypeError(f"`{self.name}` is called for each row, so it is given values, not {next(iter(flavors.values()))} columns")
        return kind, flavors

    def _policy(self) -> Policy:
        on_error = self.options.get("on_error", "fail")
        if on_error not in ("fail", "skip", "default", "dead_letter"):
            raise ValueError(f"on_error is fail, skip, default or dead_letter, not {on_error!r}")
        if "default" in self.options and on_error != "default":
            raise ValueError("default= is for on_error=\"default\"")
        retries = self.options.get("retries", 0)
        if not isinstance(retries, int) or retries < 0:
            raise ValueError("retries is a number from 0 on")
        repeatable = self.effects != "once"
        if retries and not repeatable:
            raise ValueError(
                f"`{self.name}` has effects \"once\", so it is never called again for a row; "
                "say effects=\"idempotent\" (or \"pure\") if it may be"
            )
        if on_error != "fail" and self._kind == "batch" and not repeatable:
            raise ValueError(
                f"`{self.name}` is called for batches and has effects \"once\": a bad row cannot be told from the others "
                "without calling it again; say effects=\"idempotent\" (or \"pure\") if it may be"
            )
        return Policy(on_error, self.options.get("default"), retries, repeatable)

    def _answers(self) -> tuple[pa.Schema, bool]:
        said = self.returns
        if said is None:
            said = self._hints.get("return")
            if self._kind in ("generator", "async_generator") and said is not None:
                inner = typing.get_args(said)
                said = inner[0] if inner else None
            if self._kind == "batch" and fields_of(said) is None:
                said = None
            if said is None or said is type(None):
                raise TypeError(
                    f"the type of what `{self.name}` answers is not known; annotate it (`-> int`) or say returns=\"int64\""
                )
        if isinstance(said, (dict, pa.Schema)) or fields_of(said) is not None or (
            hasattr(said, "__arrow_c_schema__") and not isinstance(said, pa.DataType)
        ):
            return schema_of(said), True
        return pa.schema([pa.field(self.name, type_of(said))]), False

    def __repr__(self) -> str:
        columns = ", ".join(f"{field.name}: {field.type}" for field in self.schema)
        return f"<Step {self.name}({', '.join(self._parameters)}) -> {columns}; {self._kind}, {self.effects}>"

    def _adapter(self, reads: list[str]) -> RowStep:
        positional = [self._flavors.get(name, "arrow") for name in reads]
        function: Any = self._warm or self.function
        return RowStep(
            function, self._kind, self.name, self.schema, positional, self.many, self.policy, self.in_flight
        )

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """With expressions, the call as an expression; with plain values, a plain call."""
        if not any(isinstance(one, (Expr, When)) for one in (*arguments, *named.values())):
            if self._warm is not None:
                return self._warm(*arguments)
            return self.function(*arguments, **named)
        if self._kind in ("generator", "async_generator") or self.policy.on_error in ("skip", "dead_letter"):
            raise TypeError(f"`{self.name}` does not give one value for each row; use df.map({self.name})")
        if self.many:
            raise TypeError(f"`{self.name}` makes several columns; use df.map({self.name})")
        names = list(self._parameters)
        if len(arguments) > len(names) and names:
            raise TypeError(f"`{self.name}` takes {len(names)} arguments, {len(arguments)} were given")
        given = list(arguments) + [named.pop(name) for name in names[len(arguments):] if name in named]
        if named:
            raise TypeError(f"`{self.name}` has no parameter `{next(iter(named))}`")
        needed = [name for name, of in self._parameters.items() if of.default is of.empty]
        if len(given) < len(needed):
            raise TypeError(f"`{self.name}` needs {', '.join(needed)}")
        if self.workers is not None:
            raise TypeError(f"`{self.name}` is called in worker processes; use df.map({self.name})")
        for option in ("cache", "rate_limit", "max_errors"):
            if self.options.get(option):
                raise TypeError(f"{option}= is about rows; use df.map({self.name})")
        self._placed()
        adapter = self._adapter(names[: len(given)] or ["_"] * len(given))
        operands = [_native_of(one) for one in given]
        pure = self.effects == "pure"
        return Expr(_native.call_function(self.name, adapter, operands, self.schema, pure)).alias(self.name)

    def _apply(self, frame: Any) -> Any:
        """The frame with this step's columns."""
        from ._frame import DataFrame

        self._placed()
        columns = frame.schema
        reads = []
        for name, parameter in self._parameters.items():
            if name in columns:
                reads.append(name)
            elif parameter.default is parameter.empty:
                raise ValueError(f"`{self.name}` reads column `{name}`, which the frame does not have; it has {', '.join(columns)}")
            else:
                break
        for name in reads:
            self._check(name, columns[name])
        native = _native.map_frame(
            frame._native, self.name, self._adapter(reads), reads, self.schema, True,
            self._rows() or (column_rows(columns.values()) if self._kind == "batch" else None), self._spec(reads),
            self.resources,
        )  # fmt: skip
        return DataFrame(native)

    def _placed(self) -> None:
        """Refuses what only worker processes can do."""
        for option in ("memory", "timeout"):
            if option in self.options and self.workers is None:
                raise ValueError(f"{option}= is for worker processes; say workers= too")

    def _check(self, name: str, kind: str) -> None:
        """Whether a column can be what the annotation says, before anything runs."""
        hint = self._hints.get(name)
        if hint is None or self._kind == "batch":
            return
        wanted = accepts(hint)
        if wanted is not None and not kind.startswith(wanted):
            shown = getattr(hint, "__name__", str(hint))
            raise TypeError(f"`{self.name}` takes `{name}: {shown}`, but the column `{name}` is {kind}")
