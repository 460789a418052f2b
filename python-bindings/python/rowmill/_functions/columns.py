"""Columns on their way to a function and back: Arrow arrays as Python values, numpy, pandas and Polars; answers as Arrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from .column_types import shown


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
            raise TypeError(f"`{what}` answered with what is no column of {shown(kind)}: {error}") from error
        if isinstance(value, pa.ChunkedArray):
            value = value.combine_chunks()
    if value.type == kind:
        return value
    try:
        return value.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise TypeError(f"`{what}` answered with a column of {shown(value.type)}, not {shown(kind)}: {error}") from error
