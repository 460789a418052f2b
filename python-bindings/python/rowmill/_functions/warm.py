"""Warm state: a class that is made once in each process."""

from __future__ import annotations

import os
import threading
from typing import Any


class Warm:
    """A class with `__call__`: made once in each process, when the first rows come."""

    def __init__(self, made: type, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None) -> None:
        self.made, self.arguments, self.options = made, arguments, options or {}
        self.__name__ = made.__name__
        self._process = 0
        self._instance: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> Any:
        return (self.made, self.arguments, self.options)

    def __setstate__(self, state: Any) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def instance(self) -> Any:
        """The instance of this process."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._instance = self.made(*self.arguments, **self.options)
                    self._process = os.getpid()
        return self._instance

    def __call__(self, *arguments: Any) -> Any:
        return self.instance()(*arguments)
