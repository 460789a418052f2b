"""What went wrong with a row or a call: the exception of a policy, and any exception as the ledger keeps it."""

from __future__ import annotations

import os
import traceback
from typing import Any

_HERE = os.path.dirname(__file__)


class RowFailure(Exception):
    """A row failed and the step's policy says that the run fails with it; `__cause__` is what was raised."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def raised(error: BaseException) -> dict[str, Any]:
    """An exception for the ledger; frames of this machinery are left out of its traceback."""
    if isinstance(error, RowFailure) and error.__cause__ is None:
        return {"type": "TypeError", "message": str(error), "traceback": "", "retryable": False}
    frames = traceback.extract_tb(error.__traceback__)
    kept = [frame for frame in frames if not _is_ours(frame.filename)]
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept or list(frames))]
    lines += traceback.format_exception_only(type(error), error)
    try:
        message = str(error)
    except Exception:
        message = "(an exception that cannot be shown)"
    retryable = getattr(error, "retryable", None)
    said = retryable if isinstance(retryable, bool) else None
    return {"type": type(error).__name__, "message": message, "traceback": "".join(lines), "retryable": said}


def trimmed(error: BaseException) -> BaseException:
    """The exception with a traceback that begins where the user's code does, if it reaches that."""
    frames = error.__traceback__
    while frames is not None and _is_ours(frames.tb_frame.f_code.co_filename):
        frames = frames.tb_next
    return error if frames is None else error.with_traceback(frames)


def _is_ours(filename: str) -> bool:
    return os.path.basename(filename) == "_worker.py" or os.path.dirname(filename) == _HERE
