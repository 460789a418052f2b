"""Memory that a worker shares with the process that started it: the other side of `executors/python/src/shared.rs`.

Imports pyarrow and nothing of Rowmill, for `_worker.py` loads it without the package around it.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

import pyarrow as pa

#: Answers of fewer bytes go through the pipe.
LEAST_BYTES = 256 << 10
#: The smallest segment.
SEGMENT_BYTES = 1 << 20
#: Segments of one file.
SEGMENTS = 8


class Shared:
    """Two files in memory: one is read where it lies, answers are written into the other."""

    def __init__(self, to: int, from_: int) -> None:
        # What the user's code starts has no business with them.
        os.set_inheritable(to, False)
        os.set_inheritable(from_, False)
        self._to, self._from = to, from_
        self._maps: dict[int, tuple[int, mmap.mmap]] = {}
        #: What functions were given and may still hold, by where it starts.
        self._given: dict[int, memoryview] = {}
        #: Segments for answers: where each starts, and its size.
        self._segments: dict[int, int] = {}
        self._end = 0
        #: Whether answers are written here; there may be no memory left for them.
        self.works = True

    @classmethod
    def of(cls, said: Any) -> tuple[Shared | None, str | None]:
        """The memory that the first frame tells of, or why it cannot be used."""
        if said is None:
            return None, None
        try:
            shared = cls(*said)
            # Whether mapping is allowed at all shows here, before rows come.
            os.ftruncate(shared._from, mmap.PAGESIZE)
            mmap.mmap(shared._from, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ).close()
            shared._end = mmap.PAGESIZE
        except (OSError, ValueError) as error:
            return None, str(error)
        return shared, None

    def get(self, place: list[int]) -> pa.Buffer:
        """What lies there; it cannot be written to."""
        offset, capacity, length = place
        size, mapped = self._maps.get(offset, (0, None))
        if mapped is None or size != capacity:
            if len(self._maps) >= SEGMENTS:
                self._maps = {at: of for at, of in self._maps.items() if at in self._given}
            try:
                mapped = mmap.mmap(self._to, capacity, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)
            except OSError:
                # No descriptor or no room for a mapping: a copy needs neither.
                return pa.py_buffer(os.pread(self._to, length, offset))
            self._maps[offset] = (capacity, mapped)
        view = memoryview(mapped)[:length]
        self._given[offset] = view
        return pa.py_buffer(view)

    def held(self) -> list[int]:
        """Where that starts which somebody here still looks at; all else may be written again."""
        for offset in list(self._given):
            try:
                self._given[offset].release()
            except BufferError:
                # An array that a function kept, or one that an exception's frames hold until they are collected.
                continue
            del self._given[offset]
        return list(self._given)

    def put(self, batch: pa.RecordBatch, held: list[int]) -> list[int] | None:
        """Writes an answer; says where, or None where the pipe is the way. Segments in `held` are left alone."""
        if not self.works:
            return None
        length = pa.ipc.get_record_batch_size(batch)
        if length < LEAST_BYTES:
            return None
        # The stream's schema and end are not counted.
        length += batch.schema.serialize().size + 64
        free = [offset for offset in self._segments if offset not in held]
        offset = min((of for of in free if self._segments[of] >= length), key=self._segments.__getitem__, default=None)
        if offset is None:
            if len(self._segments) >= SEGMENTS:
                if not free:
                    return None
                # One that is too small makes room for a larger one.
                del self._segments[free[0]]
            offset, capacity = self._end, max(SEGMENT_BYTES, 1 << (length - 1).bit_length())
            os.ftruncate(self._from, offset + capacity)
            self._segments[offset], self._end = capacity, offset + capacity
        sink = _Sink(self._from, offset)
        with pa.ipc.new_stream(pa.PythonFile(sink, "w"), batch.schema) as writer:
            writer.write_batch(batch)
        return [offset, self._segments[offset], sink.at - offset]


class _Sink:
    """Writes to a file from one place on. Nothing is mapped, so that a function that runs wild cannot reach it."""

    closed = False

    def __init__(self, file: int, at: int) -> None:
        self.file, self.at = file, at

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            written = os.pwrite(self.file, rest, self.at)
            self.at += written
            rest = rest[written:]
        return size

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
