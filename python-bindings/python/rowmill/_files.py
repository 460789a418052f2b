"""Frames over files, and what readers of files are told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from . import _native
from ._frame import DataFrame


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
