"""Logging in worker processes, as in the program that started them: the level and the format of its root logger."""

from __future__ import annotations

import logging
import sys
from typing import Any


def logging_of() -> tuple[int, str | None] | None:
    """How this program logs; None where it set nothing up, which Python does for itself."""
    root = logging.getLogger()
    if not root.handlers:
        return None
    format = None
    for handler in root.handlers:
        formatter = handler.formatter
        # Formats with `{` or `$` have a style of their own, which is not handed on.
        if formatter is not None and isinstance(formatter._fmt, str) and type(formatter._style) is logging.PercentStyle:
            format = formatter._fmt
            break
    return root.level, format


def start_logging(said: dict[str, Any] | None) -> None:
    """Has what this process logs go to standard error, and from there to the user."""
    if said is None:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(said["format"] or logging.BASIC_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(said["level"])
