"""Progress of a run, on a terminal or in a notebook."""

from __future__ import annotations

import sys
import time
from typing import Any

from ._display import in_notebook


def _watched() -> bool:
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())


class Shown:
    """Shows progress while a run is under way, where that is wished; gives the function that hears of it."""

    def __init__(self, name: str, progress: Any) -> None:
        self._shown = Progress(name) if progress is True or (progress is None and _watched()) else None
        self._function = self._shown.update if self._shown is not None else progress if callable(progress) else None

    def __enter__(self) -> Any:
        return self._function

    def __exit__(self, *_: Any) -> None:
        if self._shown is not None:
            self._shown.close()


class Progress:
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
        if in_notebook():
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
