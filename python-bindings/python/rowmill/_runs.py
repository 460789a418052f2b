"""Runs: what one gave, and durable ones, which go on, are tried again and are found later."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from . import _native
from ._errors import RowmillError
from ._expr import col
from ._files import read_csv, read_ipc, read_json, read_parquet
from ._frame import DataFrame
from ._interchange import frame_of
from ._progress import Shown


@dataclass(frozen=True)
class StepRun:
    """What left a step."""

    name: str
    #: Its resource class.
    kind: str
    rows: int
    #: Bytes of Arrow data.
    bytes: int


@dataclass(frozen=True)
class SinkRun:
    """What a sink published."""

    name: str
    path: str
    rows: int
    format: str
    #: Columns that became folders, with their types.
    partitions: dict[str, str] = field(default_factory=dict)
    _base: str | None = None

    def read(self) -> DataFrame:
        """The result, as a frame over its files."""
        readers = {"parquet": read_parquet, "csv": read_csv, "json": read_json, "arrow": read_ipc}
        path = self.path
        if self._base is not None and "://" not in path:
            path = os.path.join(self._base, path)
        return readers[self.format](path, partitions=self.partitions or None)


@dataclass(frozen=True)
class Run:
    """A run: what :meth:`Workflow.run` gives when it came to its end, or an earlier durable one, from
    :func:`rowmill.runs`.

    A run that does not come to its end raises a :class:`rowmill.RowmillError`; of a durable one, the exception's `run`
    is the run, which may be able to go on.
    """

    #: UUIDv7.
    id: str
    workflow: str
    #: `succeeded`, `succeeded_with_failures` where items of a step did not get their result, or, of earlier runs,
    #: `queued`, `running`, `stopped` (it can go on), `failed`, `cancelled`.
    status: str
    steps: dict[str, StepRun]
    sinks: dict[str, SinkRun]
    #: Rows of the steps that were collected.
    tables: dict[str, Any]
    #: From the start to the last publication.
    elapsed_s: float
    #: Steps that nobody needed, so that they did not run.
    unneeded: list[str]
    warnings: list[str]
    #: Whether memory ran out in a hash join, so that the run started over with sort-merge joins.
    replanned: bool = False
    #: What became of the items of steps that are not SQL: counts by outcome, by step.
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    #: The first few items of each such step that are not simply ok: (file:row, outcome, reason).
    samples: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    #: Whether its journal and the ledgers of its items are kept.
    durable: bool = False
    #: Why it failed or stopped.
    error: str | None = None
    #: Parameters, as texts; of earlier runs.
    parameters: dict[str, str] = field(default_factory=dict)
    #: When it was submitted; of earlier runs.
    created: datetime.datetime | None = None

    def items(self, status: str | list[str] | None = None, step: str | None = None) -> DataFrame:
        """The items that are not simply ok, with what went wrong, as a frame; of a durable run.

        `status` is an outcome or a list of them: `failed`, `dead_lettered`, `unknown`, `skipped`, `defaulted`,
        `cached`, `not_run`. `step` is the name of one step. The columns are `step`, `chunk`, `row`, `outcome`, `code`,
        `message`, `attempts`, `status` (of HTTP), `details` (JSON: a traceback, what a process printed) and `item`
        (JSON: the item's columns).
        """
        self._kept()
        wanted = [status] if isinstance(status, str) else list(status or ())
        known = _native.outcome_names()
        for word in wanted:
            if word not in known:
                raise ValueError(f"there is no outcome {word!r}; known are {', '.join(known)}")
        frame = frame_of(_native.run_items(self.id))
        if wanted:
            frame = frame.filter(col("outcome").is_in(wanted))
        if step is not None:
            frame = frame.filter(col("step") == step)
        return frame

    def resume(
        self,
        *,
        restart: bool = False,
        steal: bool = False,
        unknown: bool = False,
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
        cluster: str | None = None,
        token_file: Any = None,
    ) -> Run:
        """Goes on with a run that stopped, from what is committed, to its end; gives the run as it is then.

        Items that were failing when it stopped are tried again. `restart` makes a new run, with the same parameters,
        from the workflow's file as it is now. `steal` takes the run from a process that still holds it.
        `unknown` also makes calls of steps with effects `once` again of which nobody knows whether they happened.
        `cluster` and `token_file` are those of :meth:`Workflow.run`.
        """
        if restart and unknown:
            raise ValueError("`restart` makes a new run, in which no call is `unknown`; give one of the two")
        self._kept()
        name, base = self.id, None if not self.sinks else next(iter(self.sinks.values()))._base
        place = at(cluster, token_file)
        return watch(
            self.workflow, progress, base,
            lambda shown, started: _native.resume_run(name, steal, restart, unknown, shown, started, place),
        )  # fmt: skip

    def retry(
        self,
        *,
        unknown: bool = False,
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
        cluster: str | None = None,
        token_file: Any = None,
    ) -> Run:
        """Tries the items again that failed in a run that ended, and publishes the result with what comes of them.

        What depends on their rows is made anew; no call is made again that was answered. Items of steps with effects
        `once` that may have happened (`unknown`) are left alone, unless `unknown` says that they are to be sent again. `cluster` and
        `token_file` are those of :meth:`Workflow.run`.
        """
        self._kept()
        name, base = self.id, None if not self.sinks else next(iter(self.sinks.values()))._base
        place = at(cluster, token_file)
        return watch(
            self.workflow, progress, base,
            lambda shown, started: _native.retry_run(name, unknown, shown, started, place),
        )  # fmt: skip

    def refresh(self) -> Run:
        """The run as its journal has it now."""
        self._kept()
        return _earlier(_native.find_run(self.id))

    def cancel(self, reason: str | None = None) -> str:
        """Asks for the run to be cancelled, whichever process works on it: `requested`, `cancelled`, or how it ended."""
        self._kept()
        return _native.cancel_run(self.id, reason)

    def _kept(self) -> None:
        if not self.durable:
            raise ValueError(
                "this run was not durable, so nothing of it is kept but what it says of itself (`outcomes`, `samples`); "
                "use Workflow.run(durable=True)"
            )

    def __repr__(self) -> str:
        lines = [f"Run {self.id} of {self.workflow}: {self.status} in {self.elapsed_s:.2f} s"]
        lines += [f"  {self.error}"] if self.error else []
        lines += [f"  step {step.name}: {step.rows:,} rows" for step in self.steps.values()]
        for name, counts in self.outcomes.items():
            lines.append(f"  items of {name}: " + ", ".join(f"{count:,} {outcome}" for outcome, count in counts.items() if count))
        lines += [f"  sink {sink.name}: {sink.rows:,} rows in {sink.path}" for sink in self.sinks.values()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import html

        rows = [("step", step.name, step.rows, "") for step in self.steps.values()]
        rows += [("sink", sink.name, sink.rows, sink.path) for sink in self.sinks.values()]
        body = "".join(
            f"<tr><td>{what}</td><td>{html.escape(name)}</td><td>{count:,}</td><td>{html.escape(path)}</td></tr>"
            for what, name, count, path in rows
        )
        return (
            f"<b>{html.escape(self.workflow)}</b>: {self.status} in {self.elapsed_s:.2f} s"
            f"<table><thead><tr><th></th><th>name</th><th>rows</th><th>path</th></tr></thead><tbody>{body}</tbody></table>"
        )


def at(cluster: str | None, token_file: Any) -> tuple[str, str | None] | None:
    """A cluster as the engine takes it."""
    if cluster is None:
        if token_file is not None:
            raise ValueError("token_file= is the token of a cluster; say which with cluster=")
        return None
    return (cluster, None if token_file is None else os.fspath(token_file))


def watch(
    name: str, progress: Any, base: str | None, work: Callable[[Any, Callable[[str], None]], dict[str, Any]]
) -> Run:
    """A durable run to its end; what goes wrong carries the run."""
    ids: list[str] = []
    try:
        with Shown(name, progress) as function:
            return run_of(work(function, ids.append), base, durable=True)
    except (RowmillError, KeyboardInterrupt) as error:
        if ids:
            try:
                error.run = _earlier(_native.find_run(ids[-1]))  # type: ignore[union-attr]
            except RowmillError:
                # Nothing was written down of it, or the journal is what failed.
                error.run = None  # type: ignore[union-attr]
        raise


def runs(status: str | None = None, *, workflow: str | None = None, limit: int = 100) -> list[Run]:
    """Durable runs, from new to old: all, those of one `status` (`stopped` ones can go on), or of one workflow."""
    return [_earlier(one) for one in _native.list_runs(status, workflow, limit)]


def run(name: str = "last") -> Run:
    """The durable run of this id, or whose id begins so, or the last one."""
    return _earlier(_native.find_run(name))


def _earlier(said: dict[str, Any]) -> Run:
    ended, started = said["ended_ms"], said["started_ms"]
    elapsed = (ended - started) / 1000 if ended is not None and started is not None else 0.0
    created = datetime.datetime.fromtimestamp(said["created_ms"] / 1000, datetime.timezone.utc)
    return Run(
        said["id"], said["workflow"], said["status"], {}, {}, {}, elapsed, [], [], outcomes=said["outcomes"],
        durable=True, error=said["error"], parameters=said["parameters"], created=created,
    )  # fmt: skip


def run_of(report: dict[str, Any], base: str | None, durable: bool = False) -> Run:
    import pyarrow

    steps = {one["name"]: StepRun(one["name"], one["class"], one["rows"], one["bytes"]) for one in report["steps"]}
    sinks = {
        one["name"]: SinkRun(one["name"], one["path"], one["rows"], one["format"], dict(one["partitions"]), base)
        for one in report["sinks"]
    }
    tables = {name: pyarrow.table(batches) for name, batches in report["collected"].items()}
    failures = sum(failed for _, _, failed in report["items"].values())
    status = "succeeded_with_failures" if failures else "succeeded"
    return Run(
        report["id"], report["workflow"], status, steps, sinks, tables, report["elapsed_s"],
        report["unneeded"], report["warnings"], report["replanned"],
        {name: outcomes for name, (outcomes, _, _) in report["items"].items()},
        {name: samples for name, (_, samples, _) in report["items"].items()}, durable,
    )  # fmt: skip
