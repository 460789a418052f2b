"""The session that new frames use: its settings, and SQL in it over frames, files and variables of the caller."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

from . import _native
from ._errors import WorkflowError
from ._expr import _literal
from ._frame import DataFrame
from ._interchange import frame_of


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
    try:
        return DataFrame(_native.sql(query, found, given), query)
    except WorkflowError as error:
        if error.code != "RM0302":
            raise
        help = "tables are keyword arguments, variables that hold a frame, and files by their quoted paths"
        error.reports[0]["help"] = [*error.help, help]
        raise WorkflowError(f"{error}\n = help: {help}", error.reports, error.fault) from None


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
