"""Workflows: built here, or read from YAML and SQL."""

from __future__ import annotations

import datetime
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import _native
from ._errors import RowmillError
from ._expr import col
from ._frame import DataFrame, _file_options, _in_notebook, _path, _paths, frame_of


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
        from . import _frame

        readers = {"parquet": _frame.read_parquet, "csv": _frame.read_csv, "json": _frame.read_json, "arrow": _frame.read_ipc}
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
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
    ) -> Run:
        """Goes on with a run that stopped, from what is committed, to its end; gives the run as it is then.

        Items that were failing when it stopped are tried again. `restart` makes a new run, with the same parameters,
        from the workflow's file as it is now. `steal` takes the run from a process that still holds it.
        """
        self._kept()
        name, base = self.id, None if not self.sinks else next(iter(self.sinks.values()))._base
        return _watch(
            self.workflow, progress, base,
            lambda shown, started: _native.resume_run(name, steal, restart, shown, started),
        )  # fmt: skip

    def retry(
        self,
        *,
        unknown: bool = False,
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
    ) -> Run:
        """Tries the items again that failed in a run that ended, and publishes the result with what comes of them.

        What depends on their rows is made anew; no call is made again that was answered. Items of steps with effects
        `once` that may have happened (`unknown`) are left alone, unless `unknown` says that they are to be sent again.
        """
        self._kept()
        name, base = self.id, None if not self.sinks else next(iter(self.sinks.values()))._base
        return _watch(
            self.workflow, progress, base, lambda shown, started: _native.retry_run(name, unknown, shown, started)
        )

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


class Workflow:
    """A workflow: sources, steps and sinks by name.

    Build one with :meth:`source`, :meth:`step` and :meth:`sink`, each of which gives the workflow back, or read one
    with :func:`rowmill.load`, :meth:`from_yaml` or :meth:`from_sql`.
    """

    def __init__(self, name: str, description: str | None = None) -> None:
        self._name, self._description = name, description
        self._parts: list[tuple[str, tuple[Any, ...]]] = []
        self._frames: dict[str, DataFrame] = {}
        self._read: _native.NativeWorkflow | None = None
        self._base: str | None = None

    @classmethod
    def from_yaml(cls, text: str, *, base: Any = None) -> Workflow:
        """The workflow in a YAML text; relative paths start from `base`, from the working folder where absent."""
        return cls._of(_native.parse_workflow("workflow.yaml", text, base), base)

    @classmethod
    def from_sql(cls, text: str, *, base: Any = None) -> Workflow:
        """The workflow in the text of an SQL file; relative paths as in :meth:`from_yaml`."""
        return cls._of(_native.parse_workflow("workflow.sql", text, base), base)

    @classmethod
    def _of(cls, native: _native.NativeWorkflow, base: Any) -> Workflow:
        workflow = cls(native.name())
        workflow._read = native
        workflow._base = None if base is None else os.fspath(base)
        return workflow

    @property
    def name(self) -> str:
        """Its name."""
        return self._read.name() if self._read is not None else self._name

    def __repr__(self) -> str:
        if self._read is not None:
            sources, steps, sinks, _ = self._read.parts()
        else:
            sources = [part[0] for kind, part in self._parts if kind.startswith("source")]
            steps = [part[0] for kind, part in self._parts if kind in ("sql", "python")]
            sinks = [part[0] for kind, part in self._parts if kind == "sink"]
        lists = (("sources", sources), ("steps", steps), ("sinks", sinks))
        said = "; ".join(f"{what}: {', '.join(names)}" for what, names in lists if names)
        return f"Workflow {self.name}" + (f" ({said})" if said else " (empty)")

    # Building.

    def _add(self, kind: str, *part: Any) -> Workflow:
        if self._read is not None:
            raise TypeError("a workflow that was read from text is changed in its text")
        self._parts.append((kind, part))
        return self

    def param(self, name: str, type: str, default: Any = None) -> Workflow:
        """A parameter, `$name` in SQL and `${params.name}` in paths; one without a default must be given to each run."""
        return self._add("param", name, type, None if default is None else _text(default))

    def source(
        self,
        name: str,
        path: Any = None,
        *,
        data: Any = None,
        format: str | None = None,
        schema: Mapping[str, str] | None = None,
        schema_policy: str | None = None,
        partitions: Mapping[str, str] | None = None,
        compression: str | None = None,
        csv: Mapping[str, Any] | None = None,
        range: tuple[int, int] | None = None,
    ) -> Workflow:
        """Where rows come from: files (`path`, which may hold `${params.x}`), a frame or any table (`data`), or numbers
        (`range=(start, end)`, one column `value`)."""
        if sum(given is not None for given in (path, data, range)) != 1:
            raise ValueError("a source is one of path, data and range")
        if data is not None:
            self._frames[name] = frame_of(data)
            return self._add("source_provided", name)
        if range is not None:
            return self._add("source_range", name, range[0], range[1])
        options = {
            "schema": schema, "schema_policy": schema_policy, "partitions": partitions, "compression": compression,
            "csv": dict(csv) if csv is not None else None,
        }  # fmt: skip
        return self._add("source_files", name, _paths(path), _file_options(format, options))

    def step(
        self,
        name: str,
        rows: Any = None,
        *,
        sql: str | None = None,
        input: str | None = None,
        resources: str | None = None,
        **options: Any,
    ) -> Workflow:
        """A step: a query over sources and other steps, a Python function, or a frame.

        A function (or what :func:`rowmill.step` made of one; `options` are its) is called in processes of its own for
        the rows of the step `input`, of the last one where absent; its parameters are columns of the same names, and
        what it makes comes beside them. One that a module holds has a place in YAML, `module:function`; others live in
        this program. A frame computes from what it was made of; other steps read it by this name. `resources` is the
        class: cpu, memory, io, gpu or a name of yours.
        """
        if isinstance(rows, str) and sql is None:
            sql, rows = rows, None
        if (rows is None) == (sql is None):
            raise ValueError("a step is one of sql=..., a function and a frame")
        if sql is None and callable(rows):
            from ._step import step_of

            made = step_of(rows, options.pop("returns", None), options)
            return self._add("python", name, made._in_workflow(input or self._last("step"), resources))
        if options or input is not None:
            raise TypeError(f"`{next(iter(options), 'input')}` is for steps that call a function")
        if sql is not None:
            return self._add("sql", name, sql, resources)
        if resources is not None:
            raise ValueError("resources are for steps in SQL")
        self._frames[name] = frame_of(rows)
        return self._add("source_provided", name)

    def sink(
        self,
        name: str,
        path: Any,
        *,
        input: str | None = None,
        format: str | None = None,
        compression: str | None = None,
        partition_by: list[str] | None = None,
        csv: Mapping[str, Any] | None = None,
    ) -> Workflow:
        """Where rows go: those of the step `input`, of the last one where absent, all or nothing."""
        input = self._last("sink") if input is None else input
        options: dict[str, Any] = {"partition_by": list(partition_by or [])}
        for key, value in (("format", format), ("compression", compression), ("csv", dict(csv) if csv else None)):
            if value is not None:
                options[key] = value
        return self._add("sink", name, input, _path(path), options)

    def _last(self, taker: str) -> str:
        made = [part[0] for kind, part in self._parts if kind in ("sql", "python") or kind.startswith("source")]
        if not made:
            raise ValueError(f"there is no step yet whose rows the {taker} could take")
        return str(made[-1])

    def _lives_here(self) -> list[str]:
        """Names of steps whose functions no module holds."""
        found = [(part[0], part[1]["function"]) for kind, part in self._parts if kind == "python"]
        return [name for name, function in found if function.startswith("__program__:")]

    def _built(self) -> _native.NativeWorkflow:
        if self._read is not None:
            return self._read
        builder = _native.NativeBuilder(self._name, self._description)
        for kind, part in self._parts:
            getattr(builder, kind)(*part)
        return builder.build(self._base)

    # Using.

    def to_yaml(self) -> str:
        """Its text, from which :meth:`from_yaml` makes it again. Frames and tables of this program have none."""
        if self._frames:
            names = ", ".join(f"`{name}`" for name in self._frames)
            raise ValueError(f"{names} live in this program and cannot be said in YAML; write them to files first, or use SQL")
        for name in self._lives_here():
            raise ValueError(f"the function of `{name}` lives in this program and cannot be said in YAML; put it into a module")
        return self._built().to_yaml()

    def _given(self, params: Mapping[str, Any] | None, collect: Any = (), vars: Any = None) -> tuple[Any, ...]:
        pairs = [(name, _text(value)) for name, value in (params or {}).items()]
        frames = {name: frame._native for name, frame in self._frames.items()}
        names = [collect] if isinstance(collect, str) else list(collect)
        return (pairs, frames, names, None if vars is None else os.fspath(vars))

    def check(self, params: Mapping[str, Any] | None = None, *, vars: Any = None) -> list[str]:
        """Checks it to its last column, without running it; gives the warnings. Raises with everything that is wrong."""
        return self._built().check(self._given(params, (), vars))

    def explain(self, format: str = "text", params: Mapping[str, Any] | None = None, *, vars: Any = None) -> str:
        """What it will do: `"text"`, `"mermaid"`, `"dot"` or `"json"`."""
        return self._built().explain(self._given(params, (), vars), format)

    def run(
        self,
        params: Mapping[str, Any] | None = None,
        *,
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
        collect: Any = (),
        vars: Any = None,
        durable: bool | None = None,
    ) -> Run:
        """Runs it to its end.

        `progress` shows rows by step as they come (on a terminal and in notebooks where nothing is said), or is a
        function that is called with `{name: (rows, bytes)}`. `collect` names steps whose rows the run brings back in
        `Run.tables`. `vars` is a file of variables. Ctrl-C cancels the run; nothing is published then.

        `durable` keeps a journal of what was done, in the folder `state.dir` (`.rowmill`): a run that was cut off, or
        stopped, goes on with :meth:`Run.resume`, from another process too, and no call is made again whose result is
        known; `Run.items` then says what became of each item. Where it is not given, the workflow's text decides.
        """
        native = self._built()
        given = self._given(params, collect, vars)
        if durable or (durable is None and native.is_durable()):
            for name in self._lives_here():
                raise ValueError(
                    f"the function of `{name}` lives in this program, so the run cannot be durable: whoever goes on with "
                    "it must find the function; put it into a module"
                )
            return _watch(
                self.name, progress, self._base, lambda shown, started: native.run_durably(given, shown, started)
            )
        if durable is False and native.is_durable():
            raise ValueError("the workflow's text says `durable: true`; leave durable= out, or change the text")
        with _Shown(self.name, progress) as function:
            report = native.run(given, function)
        for name, batches in report["collected"].items():
            if batches is None:
                # No batch came, so nothing told the columns but the workflow itself.
                report["collected"][name] = self._empty(name, params, vars)
        return _run_of(report, self._base)

    def _empty(self, name: str, params: Mapping[str, Any] | None, vars: Any) -> Any:
        import json

        from ._functions import schema_of

        nodes = json.loads(self.explain("json", params, vars=vars))["nodes"]
        columns: list[tuple[str, str]] = next((node["columns"] for node in nodes if node["id"] == name), [])
        return schema_of(dict(columns)).empty_table()


def _watch(
    name: str, progress: Any, base: str | None, work: Callable[[Any, Callable[[str], None]], dict[str, Any]]
) -> Run:
    """A durable run to its end; what goes wrong carries the run."""
    ids: list[str] = []
    try:
        with _Shown(name, progress) as function:
            return _run_of(work(function, ids.append), base, durable=True)
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


def _run_of(report: dict[str, Any], base: str | None, durable: bool = False) -> Run:
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


def load(path: Any) -> Workflow:
    """The workflow in a file, `.yaml` or `.sql`. Relative paths in it start from its folder."""
    folder = os.path.dirname(os.path.abspath(os.fspath(path)))
    return Workflow._of(_native.load_workflow(os.fspath(path)), folder)


def _text(value: Any) -> str:
    """A parameter as the command line would give it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    isoformat = getattr(value, "isoformat", None)
    if isoformat is not None:
        return str(isoformat())
    if isinstance(value, (list, tuple)):
        import json

        return json.dumps(list(value), default=_text)
    return str(value)


def _watched() -> bool:
    return _in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


class _Shown:
    """Shows progress while a run is under way, where that is wished; gives the function that hears of it."""

    def __init__(self, name: str, progress: Any) -> None:
        self._shown = _Progress(name) if progress is True or (progress is None and _watched()) else None
        self._function = self._shown.update if self._shown is not None else progress if callable(progress) else None

    def __enter__(self) -> Any:
        return self._function

    def __exit__(self, *_: Any) -> None:
        if self._shown is not None:
            self._shown.close()


class _Progress:
    """Rows by step, on a terminal or in a notebook."""

    def __init__(self, name: str) -> None:
        self._name, self._started, self._shown, self._lines = name, time.monotonic(), 0.0, 0
        self._handle: Any = None

    def update(self, seen: dict[str, tuple[int, int]]) -> None:
        now = time.monotonic()
        if now - self._shown < 0.1:
            return
        self._shown = now
        seconds = max(now - self._started, 1e-3)
        lines = [f"{name}: {rows:,} rows, {rows / seconds:,.0f}/s" for name, (rows, _) in list(seen.items())[-12:]]
        if _in_notebook():
            from IPython.display import HTML, display

            import html

            text = HTML("<br>".join(map(html.escape, [f"{self._name}, {seconds:.1f} s", *lines])))
            if self._handle is None:
                self._handle = display(text, display_id=True)
            else:
                self._handle.update(text)
            return
        up = f"\x1b[{self._lines}A" if self._lines else ""
        sys.stderr.write(up + "".join(f"\x1b[2K  {line}\n" for line in lines))
        sys.stderr.flush()
        self._lines = len(lines)

    def close(self) -> None:
        if self._lines:
            sys.stderr.write(f"\x1b[{self._lines}A\x1b[J")
            sys.stderr.flush()


__all__ = ["Run", "SinkRun", "StepRun", "Workflow", "load", "run", "runs"]
