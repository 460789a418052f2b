"""Lazy frames."""

from __future__ import annotations

import html as _html
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Callable

from . import _native
from ._expr import Expr, When, _column_or_expr, _flat, _literal, _sort_keys, lit

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow



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
        rows = "".join(
            f"<tr><td>{_html.escape(name)}</td><td>{_html.escape(kind)}</td></tr>" for name, kind in self._native.columns()
        )
        return (
            "<table><thead><tr><th>column</th><th>type</th></tr></thead>"
            f"<tbody>{rows}</tbody></table><small>lazy: show() or collect() computes it</small>"
        )

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
        if _in_notebook():
            from IPython.display import HTML, display

            display(HTML(self._table_html(cells)))
        else:
            print(self._table_text(cells))

    def _table_text(self, cells: list[list[str | None]]) -> str:
        header = self._native.columns()
        shown = [["null" if cell is None else _short(cell) for cell in row] for row in cells]
        names = [name for name, _ in header]
        kinds = [kind for _, kind in header]
        widths = [max(map(len, column)) for column in zip(names, kinds, *shown)]
        numeric = [kind.startswith(("int", "uint", "float", "decimal")) for kind in kinds]

        def line(row: list[str]) -> str:
            parts = (cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, numeric))
            return "  ".join(parts).rstrip()

        return "\n".join([line(names), line(kinds), line(["-" * w for w in widths]), *map(line, shown)])

    def _table_html(self, cells: list[list[str | None]]) -> str:
        header = self._native.columns()
        head = "".join(f"<th>{_html.escape(name)}<br><small>{_html.escape(kind)}</small></th>" for name, kind in header)
        body = "".join(
            "<tr>" + "".join("<td><i>null</i></td>" if c is None else f"<td>{_html.escape(_short(c))}</td>" for c in row) + "</tr>"
            for row in cells
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

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
            frame = frame.union(frame_of(other)._native, by_name, distinct)
        return self._then(frame)

    def intersect(self, other: DataFrame) -> DataFrame:
        """Different rows that both have."""
        return self._then(self._native.intersect(frame_of(other)._native))

    def except_(self, other: DataFrame) -> DataFrame:
        """Different rows that the other does not have."""
        return self._then(self._native.except_(frame_of(other)._native))

    def explode(self, *columns: str) -> DataFrame:
        """One row for each element of the lists in these columns; null lists give one row of null."""
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
        return self._then(self._native.join(frame_of(other)._native, left_keys, right_keys, how, suffix))

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
        return _native.write_files(self._native, _path(path), options)


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


def _short(text: str, most: int = 60) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else text[: most - 1] + "…"


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    running = shell.get_ipython()
    return running is not None and hasattr(running, "kernel")


def _path(path: Any) -> str:
    return os.fspath(path)


def _paths(path: Any) -> list[str]:
    return [_path(one) for one in path] if isinstance(path, (list, tuple)) else [_path(path)]


def _types(types: Any) -> list[tuple[str, str]]:
    return list(types.items()) if isinstance(types, Mapping) else list(types)


def _file_options(format: str | None, options: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {} if format is None else {"format": format}
    for key, value in options.items():
        if value is not None:
            made[key] = _types(value) if key in ("schema", "partitions") else value
    return made


def read_parquet(
    path: Any,
    *,
    schema: Mapping[str, str] | None = None,
    schema_policy: str | None = None,
    partitions: Mapping[str, str] | None = None,
) -> DataFrame:
    """A frame over Parquet files: a path, a directory, a glob, a URL, or a list of them.

    `schema_policy` is `"strict"` (files agree) or `"union"` (columns are united, numbers widen). `partitions` are
    columns found in directory names (`year=2013/`) with their types.
    """
    options = {"schema": schema, "schema_policy": schema_policy, "partitions": partitions}
    return DataFrame(_native.read_files(_paths(path), _file_options("parquet", options)))


def read_csv(
    path: Any,
    *,
    schema: Mapping[str, str] | None = None,
    schema_policy: str | None = None,
    partitions: Mapping[str, str] | None = None,
    compression: str | None = None,
    header: bool = True,
    delimiter: str = ",",
    quote: str = '"',
    escape: str | None = None,
    comment: str | None = None,
    null: str | None = None,
    newlines_in_values: bool = False,
    infer_rows: int = 10_000,
) -> DataFrame:
    """A frame over CSV files; types are found in the first `infer_rows` rows, unless `schema` declares them."""
    csv: dict[str, Any] = {
        "header": header, "delimiter": delimiter, "quote": quote, "escape": escape, "comment": comment, "null": null,
        "newlines_in_values": newlines_in_values, "infer_rows": infer_rows,
    }  # fmt: skip
    options = {"schema": schema, "schema_policy": schema_policy, "partitions": partitions, "compression": compression}
    made = _file_options("csv", options)
    made["csv"] = {key: value for key, value in csv.items() if value is not None}
    return DataFrame(_native.read_files(_paths(path), made))


def read_json(
    path: Any,
    *,
    schema: Mapping[str, str] | None = None,
    schema_policy: str | None = None,
    partitions: Mapping[str, str] | None = None,
    compression: str | None = None,
) -> DataFrame:
    """A frame over files of one JSON object a line."""
    options = {"schema": schema, "schema_policy": schema_policy, "partitions": partitions, "compression": compression}
    return DataFrame(_native.read_files(_paths(path), _file_options("json", options)))


def read_ipc(
    path: Any,
    *,
    schema: Mapping[str, str] | None = None,
    schema_policy: str | None = None,
    partitions: Mapping[str, str] | None = None,
) -> DataFrame:
    """A frame over Arrow IPC files."""
    options = {"schema": schema, "schema_policy": schema_policy, "partitions": partitions}
    return DataFrame(_native.read_files(_paths(path), _file_options("arrow", options)))


def from_arrow(data: Any) -> DataFrame:
    """A frame over anything that has Arrow's C stream or array interface (pyarrow, Polars, pandas, DuckDB ...). Columns
    are shared, not copied. A stream is read at once."""
    native = _native.from_arrow(data)
    if native is None:
        raise TypeError(f"an object of type {type(data).__name__} gives no Arrow data: it has no __arrow_c_stream__")
    return DataFrame(native)


def from_pandas(frame: pandas.DataFrame, *, index: bool = False) -> DataFrame:
    """A frame over a pandas frame; its index becomes columns only if `index`."""
    import pyarrow

    return from_arrow(pyarrow.Table.from_pandas(frame, preserve_index=index).replace_schema_metadata(None))


def from_polars(frame: polars.DataFrame | polars.LazyFrame) -> DataFrame:
    """A frame over a Polars frame; a lazy one is collected."""
    collect = getattr(frame, "collect", None)
    return from_arrow(collect() if collect is not None else frame)


def from_pydict(columns: Mapping[str, Any]) -> DataFrame:
    """A frame of lists, numpy arrays or Arrow arrays by column."""
    import pyarrow

    return from_arrow(pyarrow.table(dict(columns)))


def from_pylist(rows: list[Mapping[str, Any]]) -> DataFrame:
    """A frame of dictionaries, one a row."""
    import pyarrow

    return from_arrow(pyarrow.Table.from_pylist(list(rows)))


def frame_of(data: Any) -> DataFrame:
    """Whatever holds a table, as a frame."""
    if isinstance(data, DataFrame):
        return data
    module = type(data).__module__.partition(".")[0]
    if module == "pandas":
        return from_pandas(data)
    if module == "polars":
        return from_polars(data)
    if isinstance(data, Mapping):
        return from_pydict(data)
    return from_arrow(data)


def sql(query: str, *, params: Mapping[str, Any] | None = None, **frames: Any) -> DataFrame:
    """A query over frames and files: `sql("select * from t where x > $low", t=frame, params={"low": 3})`.

    Tables are looked for among the keyword arguments, then among the variables of the caller, local before global; a
    frame of pandas or Polars and a pyarrow table will do too. A quoted path is a file: `from 'data.parquet'`.
    """
    found: dict[str, _native.Frame] = {}
    caller = sys._getframe(1)
    folded = {name.lower(): value for name, value in frames.items()}
    for name in _native.sql_tables(query):
        value = frames.get(name, folded.get(name.lower()))
        if value is None:
            value = _variable(caller, name)
        if value is not None:
            found[name] = frame_of(value)._native
    given = {name: _literal(value) for name, value in (params or {}).items()}
    return DataFrame(_native.sql(query, found, given), query)


def _variable(caller: Any, name: str) -> Any:
    """A variable of the caller that holds a table; SQL folds names that are not quoted, Python does not."""
    for scope in (caller.f_locals, caller.f_globals):
        for candidate in (name, *(other for other in scope if isinstance(other, str) and other.lower() == name.lower())):
            value = scope.get(candidate)
            if isinstance(value, DataFrame) or hasattr(type(value), "__arrow_c_stream__"):
                return value
    return None


def configure(
    *,
    memory: str | None = None,
    threads: int | None = None,
    config: Any = None,
    **settings: Any,
) -> None:
    """Opens a new session for what is made from now on: `configure(memory="4GB", threads=4)`.

    Other settings are those of `rowmill config show`, with `__` for the dot: `execution__batch_rows=8192`. `config` is a
    configuration file. Without this call the session is opened on first use, with `rowmill.yaml` of the working folder
    and the `ROWMILL_*` variables, as the command does.
    """
    pairs = [(key.replace("__", "."), str(value)) for key, value in settings.items()]
    if memory is not None:
        pairs.append(("execution.memory", str(memory)))
    if threads is not None:
        pairs.append(("execution.threads", str(threads)))
    _native.configure(None if config is None else os.fspath(config), pairs)
