"""Workflows: built here, or read from YAML and SQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from . import _native
from ._files import _file_options, _path, _paths
from ._frame import DataFrame
from ._interchange import frame_of
from ._progress import Shown
from ._runs import Run, at, run_of, watch


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

    def explain(
        self,
        format: str = "text",
        params: Mapping[str, Any] | None = None,
        *,
        vars: Any = None,
        cluster: str | None = None,
        token_file: Any = None,
    ) -> str:
        """What it will do: `"text"`, `"mermaid"`, `"dot"` or `"json"`; with `cluster`, what of it would run there."""
        return self._built().explain(self._given(params, (), vars), format, at(cluster, token_file))

    def run(
        self,
        params: Mapping[str, Any] | None = None,
        *,
        progress: bool | Callable[[dict[str, tuple[int, int]]], Any] | None = None,
        collect: Any = (),
        vars: Any = None,
        durable: bool | None = None,
        cluster: str | None = None,
        token_file: Any = None,
    ) -> Run:
        """Runs it to its end.

        `progress` shows rows by step as they come (on a terminal and in notebooks where nothing is said), or is a
        function that is called with `{name: (rows, bytes)}`. `collect` names steps whose rows the run brings back in
        `Run.tables`. `vars` is a file of variables. Ctrl-C cancels the run; nothing is published then.

        `durable` keeps a journal of what was done, in the folder `state.dir` (`.rowmill`): a run that was cut off, or
        stopped, goes on with :meth:`Run.resume`, from another process too, and no call is made again whose result is
        known; `Run.items` then says what became of each item. Where it is not given, the workflow's text decides.

        `cluster` is the address of a cluster's scheduler (`"host:7780"`), or `"local"` for the one that
        `rowmill cluster up` started: its executors do the work. The cluster's token is in `token_file`, or in the
        variable `ROWMILL_CLUSTER_TOKEN`.
        """
        native = self._built()
        given, place = self._given(params, collect, vars), at(cluster, token_file)
        if durable or (durable is None and native.is_durable()):
            for name in self._lives_here():
                raise ValueError(
                    f"the function of `{name}` lives in this program, so the run cannot be durable: whoever goes on with "
                    "it must find the function; put it into a module"
                )
            return watch(
                self.name, progress, self._base, lambda shown, started: native.run_durably(given, shown, started, place)
            )
        if durable is False and native.is_durable():
            raise ValueError("the workflow's text says `durable: true`; leave durable= out, or change the text")
        with Shown(self.name, progress) as function:
            report = native.run(given, function, place)
        for name, batches in report["collected"].items():
            if batches is None:
                # No batch came, so nothing told the columns but the workflow itself.
                report["collected"][name] = self._empty(name, params, vars)
        return run_of(report, self._base)

    def _empty(self, name: str, params: Mapping[str, Any] | None, vars: Any) -> Any:
        import json

        from ._functions import schema_of

        nodes = json.loads(self.explain("json", params, vars=vars))["nodes"]
        columns: list[tuple[str, str]] = next((node["columns"] for node in nodes if node["id"] == name), [])
        return schema_of(dict(columns)).empty_table()


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
