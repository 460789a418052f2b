"""Tables of other libraries, by Arrow's interfaces, and Python's own lists and dictionaries, as frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _native
from ._frame import DataFrame

if TYPE_CHECKING:
    import pandas
    import polars


def from_arrow(data: Any) -> DataFrame:
    """A frame over anything that has Arrow's C stream or array interface (pyarrow, Polars, pandas, DuckDB ...). Columns
    are shared, not copied. A stream is read at once."""
    native = _native.from_arrow(data)
    if native is None:
        raise TypeError(f"an object of type {type(data).__name__} gives no Arrow data: it has no __arrow_c_stream__")
    return DataFrame(native)


def from_pandas(frame: pandas.DataFrame, *, index: bool = False) -> DataFrame:
    """A frame over a pandas frame; its index becomes columns only if `index`."""
    if not hasattr(frame, "columns") or not hasattr(frame, "index"):
        raise TypeError(f"from_pandas() takes a pandas DataFrame, not {type(frame).__name__}")
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
