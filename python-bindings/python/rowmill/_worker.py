"""The other side of `rowmill-step-python`: loads a function, reads groups of items, writes what became of them.

Runs as `python -m rowmill._worker`, or as a file of its own, which needs pyarrow and nothing else. The frames are
described in `executors/python/src/lib.rs`.
"""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import traceback
from typing import Any, BinaryIO

import pyarrow as pa

if __package__:
    from . import _functions
else:
    # As a file: the package, with its native module, stays unloaded, and its folder is no place to look for modules.
    import importlib.util

    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]
    _spec = importlib.util.spec_from_file_location("rowmill_functions", os.path.join(_here, "_functions.py"))
    assert _spec is not None and _spec.loader is not None
    _functions = importlib.util.module_from_spec(_spec)
    sys.modules["rowmill_functions"] = _functions
    _spec.loader.exec_module(_functions)

MAGIC = b"RMW1"
PREFIX = struct.Struct("<4sIQ")


def read_frame(source: BinaryIO) -> tuple[dict[str, Any], memoryview] | None:
    """The next frame; None at the end."""
    prefix = source.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    magic, head, body = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise ValueError("this is no frame of Rowmill's")
    return json.loads(source.read(head)), memoryview(source.read(body))


def write_frame(sink: BinaryIO, head: dict[str, Any], body: Any = b"") -> None:
    """Writes one frame and flushes it."""
    text = json.dumps(head).encode()
    sink.write(PREFIX.pack(MAGIC, len(text), len(body)))
    sink.write(text)
    sink.write(body)
    sink.flush()


def raised(error: BaseException) -> dict[str, Any]:
    """An exception for the ledger; frames of this machinery are left out of its traceback."""
    cause = error
    if isinstance(error, _functions.RowFailure) and error.__cause__ is None:
        return {"type": "TypeError", "message": str(error), "traceback": "", "retryable": False}
    frames = traceback.extract_tb(cause.__traceback__)
    ours = (__file__, _functions.__file__)
    kept = [frame for frame in frames if frame.filename not in ours] or list(frames)
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(kept)]
    lines += traceback.format_exception_only(type(cause), cause)
    try:
        message = str(cause)
    except Exception:
        message = "(an exception that cannot be shown)"
    retryable = bool(getattr(cause, "retryable", False))
    return {"type": type(cause).__name__, "message": message, "traceback": "".join(lines), "retryable": retryable}


def load(head: dict[str, Any], body: memoryview) -> Any:
    """The function that the first frame names, as an adapter that collects failures."""
    split = len(body) - head["pickle_bytes"]
    schema = pa.ipc.open_stream(pa.py_buffer(body[:split])).schema
    sys.path[:0] = head["sys_path"]
    if head["function"] is None:
        import pickle

        function = pickle.loads(body[split:])
    else:
        import importlib

        module, _, name = head["function"].partition(":")
        function = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    # What `@rowmill.step` made of it stands around the function.
    function = getattr(function, "__rowmill_function__", function)
    if isinstance(function, type):
        function = _functions.Warm(function)
    if isinstance(function, _functions.Warm):
        function.instance()
    if not callable(function):
        raise TypeError(f"{head['what']} is a {type(function).__name__}, not a function")
    policy = _functions.Policy("collect")
    return _functions.RowStep(
        function, head["kind"], head["what"], schema, head["flavors"], head["many"], policy, head["in_flight"]
    )


def answer(step: Any, batch: pa.RecordBatch) -> tuple[dict[str, Any], Any]:
    """What became of one group: head and body."""
    failures: list[tuple[int, BaseException]] = []
    made = step.collect(batch, failures)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, made.schema) as writer:
        writer.write_batch(made)
    return {"failures": [[row, raised(error)] for row, error in failures]}, sink.getbuffer()


def serve(source: BinaryIO, sink: BinaryIO) -> int:
    """Answers groups until there are no more."""
    first = read_frame(source)
    if first is None:
        return 0
    try:
        step = load(*first)
    except BaseException as error:
        write_frame(sink, {"failed": raised(error)})
        return 0
    write_frame(sink, {"ready": True})
    while True:
        frame = read_frame(source)
        if frame is None:
            return 0
        try:
            batch = next(iter(pa.ipc.open_stream(pa.py_buffer(frame[1]))))
            head, body = answer(step, batch)
        except Exception as error:
            head, body = {"failed": raised(error)}, b""
        write_frame(sink, head, body)


def main() -> int:
    """Takes the pipes away from the user's code: it reads nothing, and what it prints goes to standard error."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    # Ctrl-C in a terminal goes to all processes of the group; this one ends when its parent says so.
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return serve(source, sink)


if __name__ == "__main__":
    sys.exit(main())
