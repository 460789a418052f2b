"""Rowmill: workflows over millions of items at columnar speed.

    import rowmill
    from rowmill import col

    df = rowmill.read_parquet("flights/*.parquet")
    late = df.filter(col("delay") > 60).group_by("carrier").agg(late=rowmill.functions.count())
    late.show()

Frames are lazy. `rowmill.sql` queries frames and files, `rowmill.step` makes a Python function a step, and
`rowmill.Workflow` runs named steps and publishes their results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import functions
from ._errors import (
    Cancelled,
    DataError,
    EnvironmentFailure,
    InternalError,
    RowmillError,
    RowmillWarning,
    StepError,
    WorkflowError,
)
from ._expr import Expr, col, lit, when
from ._files import read_csv, read_ipc, read_json, read_parquet
from ._frame import Collected, DataFrame, GroupBy
from ._interchange import from_arrow, from_pandas, from_polars, from_pydict, from_pylist
from ._native import __version__
from ._runs import Run, SinkRun, StepRun, run, runs
from ._session import configure, sql
from ._workflow import Workflow, load

if TYPE_CHECKING:
    from ._step import Step, step

__all__ = [
    "Cancelled",
    "Collected",
    "DataError",
    "DataFrame",
    "EnvironmentFailure",
    "Expr",
    "GroupBy",
    "InternalError",
    "RowmillError",
    "RowmillWarning",
    "Run",
    "SinkRun",
    "Step",
    "StepError",
    "StepRun",
    "Workflow",
    "WorkflowError",
    "__version__",
    "col",
    "configure",
    "from_arrow",
    "from_pandas",
    "from_polars",
    "from_pydict",
    "from_pylist",
    "functions",
    "lit",
    "load",
    "read_csv",
    "read_ipc",
    "read_json",
    "read_parquet",
    "run",
    "runs",
    "sql",
    "step",
    "when",
]


def __getattr__(name: str) -> Any:
    # Steps need pyarrow, which takes longer to import than all the rest.
    if name in ("step", "Step"):
        from . import _step

        globals()["step"], globals()["Step"] = _step.step, _step.Step
        return globals()[name]
    raise AttributeError(f"module 'rowmill' has no attribute {name!r}")
