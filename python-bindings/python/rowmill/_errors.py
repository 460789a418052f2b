"""What can go wrong, as exceptions. Each carries the engine's reports: code, message, next move."""

from __future__ import annotations

from typing import Any


class RowmillError(Exception):
    """A failure of a query, a workflow or a run.

    `str(error)` is the report as the command line shows it. `reports` holds each report as a dictionary, with
    `code`, `message`, `help` and the place in the text where there is one.
    """

    #: Every report.
    reports: list[dict[str, Any]]
    #: Whose fault it is: `workflow`, `data`, `environment` or `internal`.
    fault: str
    #: The durable run that it ended, as a :class:`rowmill.Run`.
    run: Any = None

    def __init__(self, text: str = "", reports: list[dict[str, Any]] | None = None, fault: str = "workflow") -> None:
        super().__init__(text)
        self.reports = reports or []
        self.fault = fault

    @property
    def code(self) -> str | None:
        """The code of the first report, such as `RM0301`; `rowmill error RM0301` explains it."""
        return self.reports[0].get("code") if self.reports else None

    @property
    def message(self) -> str:
        """The first report in one sentence."""
        return self.reports[0].get("message", str(self)) if self.reports else str(self)

    @property
    def help(self) -> list[str]:
        """Next moves of the first report."""
        return list(self.reports[0].get("help") or []) if self.reports else []


class WorkflowError(RowmillError):
    """The query or the workflow is wrong."""


class DataError(RowmillError):
    """The rows are wrong."""


class EnvironmentFailure(RowmillError):
    """The machine, the network or a service failed; the same run may succeed later."""


class InternalError(RowmillError):
    """A bug of Rowmill."""


class StepError(DataError):
    """A Python function failed for a row.

    In this process `__cause__` is the exception that it raised. From a worker process `fields` holds what came over:
    `traceback`, or what a process that died had printed (`stderr`).
    """

    #: What a worker process told of the failure.
    fields: dict[str, str] = {}


class RowmillWarning(UserWarning):
    """Something that a query did and that its result does not show, such as rows that were put aside."""


class Cancelled(RowmillError):
    """The run was cancelled; nothing was published."""


_BY_FAULT = {
    "workflow": WorkflowError,
    "data": DataError,
    "environment": EnvironmentFailure,
    "internal": InternalError,
}


def from_reports(text: str, reports: str, fault: str) -> RowmillError:
    """Called by the native module."""
    import json

    return _BY_FAULT[fault](text.rstrip(), json.loads(reports), fault)


def from_raised(text: str, cause: BaseException) -> BaseException:
    """Called by the native module: a function of the user's raised `cause`."""
    if isinstance(cause, (KeyboardInterrupt, SystemExit)):
        return cause
    if isinstance(cause, RowmillError):
        return cause
    from ._functions import trimmed

    report = {"code": "RM0600", "severity": "error", "fault": "data", "message": text, "help": []}
    error = StepError(text, [report], "data")
    error.__cause__ = trimmed(cause)
    return error


def from_failure(text: str, code: str, help: str, fields: list[tuple[str, str]]) -> StepError:
    """Called by the native module: a row failed in a worker process."""
    report = {"code": "RM0600", "severity": "error", "fault": "data", "message": text, "help": [help], "failure": code}
    error = StepError(f"{text}\n{help}", [report], "data")
    error.fields = dict(fields)
    if hasattr(error, "add_note"):
        for name, value in fields:
            error.add_note(f"{name} of the worker process:\n{value}")
    return error


def put_aside(step: str, rows: int) -> None:
    """Called by the native module: a query put rows aside that nobody asked for."""
    import warnings

    text = (
        f"`{step}` put {rows:,} row{'' if rows == 1 else 's'} aside (on_error=\"dead_letter\"); "
        "collect_with_failures() gives them and why"
    )
    # From a thread of the engine there is no line to name. Without a registry each query is told of.
    warnings.warn_explicit(text, RowmillWarning, "rowmill", 0, registry={})


def cancelled() -> Cancelled:
    """Called by the native module."""
    return Cancelled("the run was cancelled; nothing was published", [], "environment")
