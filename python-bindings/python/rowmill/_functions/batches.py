"""Functions over whole batches: what they are given, what they answer, and their adapter."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from .column_types import schema_of
from .columns import column, to_numpy
from .signatures import hints_of, parameters_of
from .warm import Warm


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
