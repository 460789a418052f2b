"""Lazy frames, and groups of their rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

from . import _native
from ._display import in_notebook, schema_html, table_html, table_text
from ._expr import Expr, When, _column_or_expr, _flat, _sort_keys, lit

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow


#: What other libraries call it, and what it is called here.
_ELSEWHERE = {
    "groupby": "group_by", "assign": "with_columns", "with_column": "with_columns", "merge": "join", "apply": "map",
    "query": "filter", "sort_values": "sort", "orderBy": "sort", "order_by": "sort", "drop_duplicates": "distinct(*columns)",
    "dtypes": "schema", "shape": "count() and columns", "height": "count()", "len": "count()", "lazy": "the frame itself",
    "take": "limit", "iter_rows": "to_pylist", "iterrows": "to_pylist", "to_dict": "to_pydict", "to_csv": "write_csv",
    "to_parquet": "write_parquet", "sink_parquet": "write_parquet", "concat": "union", "map_elements": "map",
    "map_rows": "map", "with_row_index": "with_columns(index=functions.row_number().over())", "unnest": "explode",
    "describe": "agg(...)", "mean": 'agg(col("x").mean())', "sum": 'agg(col("x").sum())', "fillna": "with_columns(x=col(\"x\").fill_null(0))",
    "fill_null": "with_columns(x=col(\"x\").fill_null(0))", "dropna": 'filter(col("x").is_not_null())',
    "drop_nulls": 'filter(col("x").is_not_null())',
}  # fmt: skip


class Collected(NamedTuple):
    """What :meth:`DataFrame.collect_with_failures` gives."""

    #: The rows of the frame.
    rows: pyarrow.Table
    #: By step, the rows that it put aside: their columns, then `error_outcome`, `error_code`, `error_message`,
    #: `error_status`, `error_attempts` and `error_details` (JSON: a traceback, what a process printed).
    failures: dict[str, pyarrow.Table]


class DataFrame:
    """A lazy frame: it says what to compute, and nothing is read until rows are asked for.

    Rows come by :meth:`collect`, :meth:`to_batches`, :meth:`show`, the `to_*` and `write_*` methods, and by giving the
    frame to anything that reads Arrow's C stream interface (pyarrow, Polars, DuckDB ...).
    """

    __slots__ = ("_native", "_sql")

    def __init__(self, native: _native.Frame, sql: str | None = None) -> None:
        self._native = native
        self._sql = sql

    # What it is.

    @property
    def schema(self) -> dict[str, str]:
        """Columns with their logical types."""
        return dict(self._native.columns())

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return [name for name, _ in self._native.columns()]

    @property
    def arrow_schema(self) -> pyarrow.Schema:
        """Columns with their Arrow types."""
        import pyarrow

        return pyarrow.schema(self._native)

    def __repr__(self) -> str:
        columns = self._native.columns()
        width = max((len(name) for name, _ in columns), default=0)
        lines = [f"  {name:<{width}}  {kind}" for name, kind in columns]
        head = f"DataFrame, lazy, {len(columns)} column{'' if len(columns) == 1 else 's'}"
        return "\n".join([head, *lines, "not computed: show() prints rows, collect() gives them all"])

    def _repr_html_(self) -> str:
        return schema_html(self._native.columns())

    def explain(self, kind: str = "physical") -> str:
        """The plan: `"logical"` as written, `"optimized"`, or `"physical"` as it will run."""
        if kind not in ("logical", "optimized", "physical"):
            raise ValueError(f"there is no plan `{kind}`; it is logical, optimized or physical")
        return self._native.explain(kind)

    # Rows.

    def collect(self) -> pyarrow.Table:
        """All rows, as a pyarrow table. Ctrl-C ends the query."""
        import pyarrow

        return pyarrow.table(self._native.collect())

    to_arrow = collect

    def collect_with_failures(self) -> Collected:
        """All rows, and beside them those that steps with `on_error="dead_letter"` put aside, by the steps' names.

        `rows, failures = frame.collect_with_failures()`: what failed can be corrected and sent through again, as
        `rowmill.from_arrow(failures["score"])`. Other ways to compute such a frame leave these rows out, with a
        :class:`rowmill.RowmillWarning` that says how many.
        """
        import pyarrow

        rows, aside = _native.collect_with_failures(self._native)
        failures: dict[str, pyarrow.Table] = {}
        for name, batches in aside:
            at, unique = 2, name
            while unique in failures:
                at, unique = at + 1, f"{name}_{at}"
            failures[unique] = pyarrow.table(batches)
        return Collected(pyarrow.table(rows), failures)

    def to_batches(self) -> Iterator[pyarrow.RecordBatch]:
        """Batches as they are computed; a few wait at most. Leaving the loop early ends the query."""
        import pyarrow

        batches = self._native.stream()
        try:
            for batch in batches:
                yield pyarrow.record_batch(batch)
        finally:
            batches.close()

    def to_pandas(self) -> pandas.DataFrame:
        """All rows, as a pandas frame."""
        return self.collect().to_pandas()

    def to_polars(self) -> polars.DataFrame:
        """All rows, as a Polars frame."""
        import polars

        frame = polars.from_arrow(self.collect())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def to_pydict(self) -> dict[str, list[Any]]:
        """All rows, as lists by column."""
        return self.collect().to_pydict()

    def to_pylist(self) -> list[dict[str, Any]]:
        """All rows, as dictionaries."""
        return self.collect().to_pylist()

    def count(self) -> int:
        """How many rows there are."""
        return self._native.count()

    def __arrow_c_schema__(self) -> object:
        return self._native.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._native.__arrow_c_stream__(requested_schema)

    def cache(self) -> DataFrame:
        """Computes it once; the frame that comes back reads from memory."""
        return DataFrame(self._native.cache())

    def show(self, rows: int = 10) -> None:
        """Prints the first rows; in a notebook, as a table."""
        held = self._native.limit(0, rows).collect()
        cells = held.cells(rows)
        if in_notebook():
            from IPython.display import HTML, display

            display(HTML(table_html(self._native.columns(), cells)))
        else:
            print(table_text(self._native.columns(), cells))

    # Building.

    def _then(self, native: _native.Frame) -> DataFrame:
        return DataFrame(native)

    def select(self, *exprs: Any, **named: Any) -> DataFrame:
        """These columns: names, expressions, or `name=expression`. With aggregates alone it is one row."""
        wanted = [_column_or_expr(one)._native for one in _flat(exprs)]
        wanted += [_operand(value).alias(name)._native for name, value in named.items()]
        return self._then(self._native.select(wanted))

    def __getitem__(self, key: str | list[str]) -> Any:
        """`df["x"]` is the column as an expression, `df[["x", "y"]]` a frame of these columns."""
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"the frame has no column `{key}`; it has {', '.join(self.columns)}")
            return _column_or_expr(key)
        return self.select(*key)

    def __iter__(self) -> Any:
        raise TypeError("a frame is lazy; go through to_batches(), to_pylist() (rows) or columns (names)")

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there.
        if name.startswith("_"):
            raise AttributeError(name)
        known = _ELSEWHERE.get(name)
        if known is None and name in self.columns:
            known = f'df["{name}"] or col("{name}")'
        if known is None:
            import difflib

            known = next(iter(difflib.get_close_matches(name, [of for of in dir(type(self)) if of[0] != "_"], 1)), None)
        raise AttributeError(f"a frame has no attribute `{name}`" + (f"; use {known}" if known else ""))

    def with_columns(self, *exprs: Any, **named: Any) -> DataFrame:
        """All columns, and these beside them or in place of those of the same name."""
        pairs = []
        for one in _flat(exprs):
            expr = _column_or_expr(one)
            pairs.append((expr.name(), expr._native))
        pairs += [(name, _operand(value)._native) for name, value in named.items()]
        names = [name for name, _ in pairs]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"there are two new columns named {', '.join(sorted(twice))}")
        return self._then(self._native.with_columns(pairs))

    def filter(self, *predicates: Any) -> DataFrame:
        """Rows for which all predicates hold."""
        frame = self._native
        for predicate in _flat(predicates):
            if not isinstance(predicate, Expr):
                raise TypeError(f"filter() takes expressions, such as col(\"x\") > 1, not {type(predicate).__name__}")
            frame = frame.filter(predicate._native)
        return self._then(frame)

    where = filter

    def drop(self, *columns: Any) -> DataFrame:
        """All columns but these."""
        gone = _flat(columns)
        self._know(gone)
        return self.select(*[name for name in self.columns if name not in gone])

    def rename(self, names: Mapping[str, str]) -> DataFrame:
        """Columns under other names: `{"old": "new"}`."""
        self._know(names)
        return self._then(self._native.rename(list(names.items())))

    def _know(self, names: Any) -> None:
        for name in names:
            if name not in self.columns:
                raise ValueError(f"the frame has no column `{name}`; it has {', '.join(self.columns)}")

    def group_by(self, *keys: Any, **named: Any) -> GroupBy:
        """Groups of rows that agree in the keys; go on with `.agg(...)`."""
        exprs = [_column_or_expr(key) for key in _flat(keys)]
        exprs += [_operand(value).alias(name) for name, value in named.items()]
        return GroupBy(self, exprs)

    def agg(self, *exprs: Any, **named: Any) -> DataFrame:
        """Aggregates over all rows: one row."""
        return GroupBy(self, []).agg(*exprs, **named)

    def sort(self, *by: Any, descending: bool | list[bool] = False) -> DataFrame:
        """Sorted by columns, expressions, or `col("x").desc()`. Nulls come last, first where descending."""
        return self._then(self._native.sort(_sort_keys(by, descending)))

    def limit(self, count: int, offset: int = 0) -> DataFrame:
        """So many rows, after `offset` others. Which ones is settled only after :meth:`sort`."""
        return self._then(self._native.limit(offset, count))

    head = limit

    def distinct(self, *on: Any, order_by: Any = ()) -> DataFrame:
        """Rows that are there twice come once; with columns, the first row (in the order of `order_by`) that has each
        combination of them."""
        if not on:
            return self._then(self._native.distinct())
        keys = [_column_or_expr(one)._native for one in _flat(on)]
        order = order_by if isinstance(order_by, (list, tuple)) else [order_by]
        return self._then(self._native.distinct_on(keys, _sort_keys(order)))

    unique = distinct

    def union(self, *others: DataFrame, by_name: bool = False, distinct: bool = False) -> DataFrame:
        """The rows of all; columns meet by position, or by name, where missing ones are null."""
        frame = self._native
        for other in others:
            frame = frame.union(_native_frame(other), by_name, distinct)
        return self._then(frame)

    def intersect(self, other: DataFrame) -> DataFrame:
        """Different rows that both have."""
        return self._then(self._native.intersect(_native_frame(other)))

    def except_(self, other: DataFrame) -> DataFrame:
        """Different rows that the other does not have."""
        return self._then(self._native.except_(_native_frame(other)))

    def explode(self, *columns: str) -> DataFrame:
        """One row for each element of the lists in these columns; a null list gives one row of null, an empty one none."""
        names = _flat(columns)
        self._know(names)
        return self._then(self._native.explode(names))

    def join(
        self,
        other: Any,
        on: Any = None,
        how: str = "inner",
        *,
        left_on: Any = None,
        right_on: Any = None,
        suffix: str = "_right",
    ) -> DataFrame:
        """Joins on equal keys: `how` is inner, left, right, full, semi, anti or cross.

        Key columns of the same name come once. Other columns of `other` whose name is taken get `suffix`.
        """
        if how == "cross":
            if on is not None or left_on is not None or right_on is not None:
                raise ValueError("a cross join has no keys")
            left: list[Any] = []
            right: list[Any] = []
        elif on is not None:
            if left_on is not None or right_on is not None:
                raise ValueError("give on, or left_on and right_on")
            left = right = _flat([on])
        else:
            left, right = _flat([left_on]), _flat([right_on])
            if left_on is None or right_on is None or len(left) != len(right):
                raise ValueError("a join needs `on`, or as many `left_on` as `right_on`")
        left_keys = [_column_or_expr(key)._native for key in left]
        right_keys = [_column_or_expr(key)._native for key in right]
        return self._then(self._native.join(_native_frame(other), left_keys, right_keys, how, suffix))

    def pipe(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`function(frame, ...)`, for chains."""
        return function(self, *args, **kwargs)

    # Python functions.

    def map_batches(
        self,
        function: Callable[..., Any],
        returns: Any = None,
        *,
        batch: int | None = None,
        columns: list[str] | None = None,
    ) -> DataFrame:
        """What `function` makes of each batch: it is given the rows and answers with other rows.

        The parameter's annotation chooses what it is given: `pyarrow.RecordBatch` (also where there is none),
        `pyarrow.Table`, `pandas.DataFrame`, `polars.DataFrame`, or `dict` for numpy arrays by column. `returns` are the
        columns of the answer (`{"name": "type"}` or a pyarrow schema), those of the frame where absent. `batch` is the
        exact number of rows of a call; `columns` are those that it is given, all where absent.
        """
        from ._functions import batches_adapter

        adapter, schema = batches_adapter(function, returns, self.arrow_schema, columns)
        name = getattr(function, "__name__", type(function).__name__)
        native = _native.map_frame(self._native, name, adapter, columns or self.columns, schema, False, batch)
        return self._then(native)

    def map(self, function: Any, returns: Any = None, **options: Any) -> DataFrame:
        """All columns, and those that `function` makes of each row beside them.

        Its parameters are the columns of the same names. See :func:`rowmill.step` for what a function may be (rows,
        batches, async, generators, classes) and for the options.
        """
        from ._step import step_of

        return step_of(function, returns, options)._apply(self)

    # Writing.

    def write_parquet(self, path: Any, *, compression: str | None = None, partition_by: list[str] | None = None) -> int:
        """Writes a Parquet file, or a directory of them (a path that ends in `/`, or with `partition_by`). Readers see
        all of it or what was there before. Gives the number of rows."""
        return self._write(path, "parquet", compression, partition_by)

    def write_csv(
        self,
        path: Any,
        *,
        compression: str | None = None,
        partition_by: list[str] | None = None,
        header: bool = True,
        delimiter: str = ",",
        quote: str = '"',
        null: str | None = None,
    ) -> int:
        """Writes CSV; see :meth:`write_parquet`."""
        csv: dict[str, Any] = {"header": header, "delimiter": delimiter, "quote": quote}
        if null is not None:
            csv["null"] = null
        return self._write(path, "csv", compression, partition_by, csv)

    def write_json(self, path: Any, *, compression: str | None = None, partition_by: list[str] | None = None) -> int:
        """Writes one JSON object a line; see :meth:`write_parquet`."""
        return self._write(path, "json", compression, partition_by)

    def write_ipc(self, path: Any, *, partition_by: list[str] | None = None) -> int:
        """Writes Arrow IPC; see :meth:`write_parquet`."""
        return self._write(path, "arrow", None, partition_by)

    def _write(self, path: Any, format: str, compression: str | None, partition_by: Any, csv: Any = None) -> int:
        options: dict[str, Any] = {"format": format}
        if compression is not None:
            options["compression"] = compression
        if partition_by is not None:
            options["partition_by"] = [partition_by] if isinstance(partition_by, str) else list(partition_by)
        if csv is not None:
            options["csv"] = csv
        return _native.write_files(self._native, os.fspath(path), options)


class GroupBy:
    """Groups of rows; :meth:`agg` says what to compute for each."""

    __slots__ = ("_frame", "_keys")

    def __init__(self, frame: DataFrame, keys: list[Expr]) -> None:
        self._frame = frame
        self._keys = keys

    def agg(self, *exprs: Any, **named: Any) -> DataFrame:
        """The keys and these aggregates, one row for each group: `agg(total=col("x").sum())`."""
        wanted = [_column_or_expr(one)._native for one in _flat(exprs)]
        wanted += [_operand(value).alias(name)._native for name, value in named.items()]
        keys = [key._native for key in self._keys]
        return DataFrame(self._frame._native.aggregate(keys, wanted))

    def count(self, name: str = "count") -> DataFrame:
        """The keys and the number of rows of each group."""
        from .functions import count

        return self.agg(count().alias(name))

    def __repr__(self) -> str:
        return f"GroupBy, lazy, by {', '.join(key.name() for key in self._keys)}; go on with .agg(...)"


def _operand(value: Any) -> Expr:
    """In `name=value` a text is a constant like any other value."""
    if isinstance(value, Expr):
        return value
    if isinstance(value, When):
        return value._expr()
    return lit(value)


def _native_frame(data: Any) -> _native.Frame:
    from ._interchange import frame_of

    return frame_of(data)._native
