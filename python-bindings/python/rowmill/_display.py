"""What a frame looks like: tables as text and as HTML."""

from __future__ import annotations

import html
import sys


def in_notebook() -> bool:
    """Whether a notebook shows what this process prints."""
    shell = sys.modules.get("IPython")
    if shell is None:
        return False
    running = shell.get_ipython()
    return running is not None and hasattr(running, "kernel")


def schema_html(header: list[tuple[str, str]]) -> str:
    """Names and types of the columns of a frame that is not computed, for a notebook."""
    rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{html.escape(kind)}</td></tr>" for name, kind in header)
    return (
        "<table><thead><tr><th>column</th><th>type</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><small>lazy: show() or collect() computes it</small>"
    )


def table_text(header: list[tuple[str, str]], cells: list[list[str | None]]) -> str:
    """Rows as a text, under names and types of the columns."""
    shown = [["null" if cell is None else _short(cell) for cell in row] for row in cells]
    names = [name for name, _ in header]
    kinds = [kind for _, kind in header]
    widths = [max(map(len, column)) for column in zip(names, kinds, *shown)]
    numeric = [kind.startswith(("int", "uint", "float", "decimal")) for kind in kinds]

    def line(row: list[str]) -> str:
        parts = (cell.rjust(w) if number else cell.ljust(w) for cell, w, number in zip(row, widths, numeric))
        return "  ".join(parts).rstrip()

    return "\n".join([line(names), line(kinds), line(["-" * w for w in widths]), *map(line, shown)])


def table_html(header: list[tuple[str, str]], cells: list[list[str | None]]) -> str:
    """The same for a notebook."""
    head = "".join(f"<th>{html.escape(name)}<br><small>{html.escape(kind)}</small></th>" for name, kind in header)
    body = "".join(
        "<tr>" + "".join("<td><i>null</i></td>" if c is None else f"<td>{html.escape(_short(c))}</td>" for c in row) + "</tr>"
        for row in cells
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _short(text: str, most: int = 60) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else text[: most - 1] + "…"
