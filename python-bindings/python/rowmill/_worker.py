"""The other side of `rowmill-step-python`: loads a function, reads groups of items, writes what became of them.

Runs as `python -m rowmill._worker`, or as a file of its own, which needs pyarrow and nothing else. The frames are
described in `executors/python/src/lib.rs`, the memory that is shared in `_shared.py`.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import sys
from typing import Any, BinaryIO

import pyarrow as pa

if __package__:
    from . import _functions
    from ._shared import Shared
else:
    # As a file: the package, with its native module, stays unloaded, and its folder is no place to look for modules.
    import importlib.util

    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != _here]

    def _beside(name: str, path: str, folder: str | None = None) -> Any:
        spec = importlib.util.spec_from_file_location(
            name, os.path.join(_here, path), submodule_search_locations=None if folder is None else [folder]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    _functions = _beside("rowmill_functions", "_functions/__init__.py", os.path.join(_here, "_functions"))
    Shared = _beside("rowmill_shared", "_shared.py").Shared  # type: ignore[misc]

MAGIC = b"RMW1"
PREFIX = struct.Struct("<4sIQ")
#: The end of an IPC stream.
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
#: Bytes that a pipe holds: the more, the fewer changes from one process to the other for one group.
PIPE_BYTES = 1 << 20


def read_frame(source: BinaryIO) -> tuple[dict[str, Any], memoryview] | None:
    """The next frame; None at the end."""
    prefix = source.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        return None
    magic, head, body = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise ValueError("this is no frame of Rowmill's")
    return json.loads(source.read(head)), memoryview(source.read(body))


def write_frame(sink: BinaryIO, head: dict[str, Any], body: tuple[Any, ...] = ()) -> None:
    """Writes one frame, whose body may come in parts, and flushes it."""
    text = json.dumps(head).encode()
    sink.write(PREFIX.pack(MAGIC, len(text), sum(len(part) for part in body)) + text)
    for part in body:
        sink.write(part)
    sink.flush()


def load(head: dict[str, Any], body: memoryview) -> Any:
    """The function that the first frame names, as an adapter that collects failures. Where the frame asks for a check
    and no more, what a class needs is not made."""
    split = len(body) - head["pickle_bytes"]
    schema = pa.ipc.open_stream(pa.py_buffer(body[:split])).schema
    _functions.start_logging(head.get("logging"))
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
    if not callable(function):
        raise TypeError(f"{head['function'] or head['what']} is a {type(function).__name__}, not a function")
    kind, flavors = head["kind"], head["flavors"]
    if kind is None:
        shown = head["function"] or head["what"]
        kind, flavors = _functions.asked(function, head["arguments"], head["given"], head["fan_out"], shown)
    if isinstance(function, _functions.Warm) and not head["check"]:
        function.instance()
    policy = _functions.Policy("collect")
    return _functions.RowStep(function, kind, head["what"], schema, flavors, head["many"], policy, head["in_flight"])


def answer(step: Any, batch: pa.RecordBatch, shared: Shared | None, held: list[int]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """What became of one group: head and body."""
    made, failures = step.collect(batch)
    head: dict[str, Any] = {"failures": [[row, _functions.raised(error)] for row, error in failures]}
    if shared is not None:
        try:
            head["at"] = shared.put(made, held)
        except OSError as error:
            # No memory is left for it: the pipe needs none.
            shared.works, head["unshared"] = False, str(error)
        if head.get("at") is not None:
            return head, ()
    # The messages of an IPC stream, each made in one piece.
    return head, (memoryview(made.schema.serialize()), memoryview(made.serialize()), END)


def work(step: Any, head: dict[str, Any], body: memoryview, shared: Shared | None) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Answers one group. Nothing of the group is held when this is over, but by the function itself."""
    try:
        place = head.get("at")
        lies = pa.py_buffer(body) if shared is None or place is None else shared.get(place)
        batch = next(iter(pa.ipc.open_stream(lies)))
        del lies
        return answer(step, batch, shared, head.get("held") or [])
    except Exception as error:
        return {"failed": _functions.raised(error)}, ()


def serve(source: BinaryIO, sink: BinaryIO) -> int:
    """Answers groups until there are no more."""
    first = read_frame(source)
    if first is None:
        return 0
    shared, unshared = Shared.of(first[0].get("shared"))
    try:
        step = load(*first)
    except BaseException as error:
        write_frame(sink, {"failed": _functions.raised(error)})
        return 0
    write_frame(sink, {"ready": True, "kind": step.kind, "unshared": unshared})
    while True:
        frame = read_frame(source)
        if frame is None:
            return 0
        try:
            head, body = work(step, *frame, shared)
            del frame
            if shared is not None:
                head["held"] = shared.held()
            write_frame(sink, head, body)
        except MemoryError:
            # There is no room left to say more; who started this process starts another one.
            os.write(2, b"MemoryError: the worker process has used up its memory\n")
            os._exit(1)


def main() -> int:
    """Takes the pipes away from the user's code: it reads nothing, and what it prints goes to standard error."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    for pipe in (source, sink):
        try:
            # F_SETPIPE_SZ; a system that does not know it, or allows less, keeps what it has.
            fcntl.fcntl(pipe, getattr(fcntl, "F_SETPIPE_SZ", 1031), PIPE_BYTES)
        except OSError:
            pass
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
