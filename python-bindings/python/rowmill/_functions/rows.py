"""The adapter of functions over rows and over columns: each kind of call, and what becomes of rows that fail."""

from __future__ import annotations

import asyncio
import copy
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa

from .batches import as_batch
from .column_types import shown
from .columns import FLAVORS, column, to_list
from .event_loop import LOOP_LOCK, event_loop
from .failures import RowFailure, raised
from .warm import Warm

ROW = "__row"


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
        said = shown(self.schema.field(0).type) if not self.many else _columns_said(self.schema)
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
                said = _columns_said(self.schema)
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
        with LOOP_LOCK:
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


def _columns_said(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {shown(field.type)}" for field in schema)


def _shown(value: Any, most: int = 80) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"
