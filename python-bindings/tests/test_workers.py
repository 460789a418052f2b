"""Python functions in worker processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rowmill
from rowmill import col


@pytest.fixture
def frame():
    return rowmill.from_pydict({"x": list(range(100)), "s": [f"s{n}" for n in range(100)]})


def pid(x: int) -> int:
    return os.getpid()


def test_other_processes_call_it():
    got = rowmill.from_pydict({"x": list(range(50_000))}).map(pid, workers=2).select("pid").distinct().to_pydict()["pid"]
    assert os.getpid() not in got and 1 <= len(got) <= 2


def test_closures_travel_and_columns_stay(frame):
    factor = 3
    got = frame.map(lambda x, s: f"{s}:{x * factor}", returns=str, name="out", workers=2)
    assert got.to_pydict()["out"][:2] == ["s0:0", "s1:3"] and got.columns == ["x", "s", "out"]
    assert "workers=2" in got.explain()


def test_batches_async_and_generators(frame):
    def columns(x: pa.Array):
        return pc.add(x, 1)

    async def awaited(x: int) -> int:
        await asyncio.sleep(0.01)
        return x

    def each(x: int):
        yield from [x] * (x % 3)

    assert frame.map(columns, returns="int64", workers=1).to_pydict()["columns"] == list(range(1, 101))
    assert frame.map(awaited, workers=1).to_pydict()["awaited"] == list(range(100))
    got = frame.map(each, returns="int64", workers=2).to_pydict()
    assert got["x"] == got["each"] == [x for x in range(100) for _ in range(x % 3)]


def test_a_class_is_made_once_in_each_process(frame):
    class Model:
        def __init__(self):
            self.made = time.time()

        def __call__(self, x: int) -> float:
            return self.made

    got = frame.map(Model, workers=2, batch=10).to_pydict()["Model"]
    assert 1 <= len(set(got)) <= 2


def test_an_exception_comes_with_its_traceback(frame):
    def fails(x: int) -> int:
        if x == 42:
            raise KeyError("answer")
        return x

    with pytest.raises(rowmill.StepError, match="`fails`: KeyError: 'answer'") as caught:
        frame.map(fails, workers=1).collect()
    assert "raise KeyError" in caught.value.fields["traceback"]
    got = frame.map(fails, workers=1, on_error="skip").to_pydict()
    assert got["x"] == [x for x in range(100) if x != 42]
    assert frame.map(fails, workers=1, on_error="default", default=-1).to_pydict()["fails"][42] == -1


def die(x: int) -> int:
    if x == 7:
        ctypes.string_at(0)
    if x == 70:
        os._exit(3)
    return x


def test_a_row_that_kills_its_process_fails_alone(frame):
    got = frame.map(die, workers=2, effects="pure", on_error="skip").to_pydict()
    assert got["die"] == [x for x in range(100) if x not in (7, 70)]
    once = frame.map(die, workers=1, on_error="skip").to_pydict()
    assert once["die"] == [x for x in range(100) if x not in (7, 70)]
    with pytest.raises(rowmill.StepError, match="signal 11"):
        frame.map(die, workers=1, effects="pure").collect()


def test_a_process_that_leaks_meets_its_limit(frame):
    held = []

    def leak(x: int) -> int:
        if x >= 90:
            held.append(bytearray(300_000_000))
        return x

    got = frame.map(leak, workers=1, memory="1GB", effects="pure", on_error="skip", batch=10).to_pydict()
    assert got["x"][:90] == list(range(90)) and len(got["x"]) < 100


def test_a_timeout_kills_the_process(frame):
    def slow(x: int) -> int:
        if x == 3:
            time.sleep(60)
        return x

    started = time.monotonic()
    got = frame.map(slow, workers=1, timeout=2, effects="pure", on_error="skip", batch=4).limit(8).to_pydict()
    assert 3 not in got["x"] and time.monotonic() - started < 30


def test_retries(frame, tmp_path):
    def flaky(x: int) -> int:
        mark = tmp_path / str(x)
        if x == 5 and not mark.exists():
            mark.touch()
            raise ConnectionError("not yet")
        return x

    got = frame.map(flaky, workers=1, effects="idempotent", retries=2).to_pydict()
    assert got["flaky"] == list(range(100))


def test_what_is_printed_is_shown(frame, capsys):
    def chatty(x: int) -> int:
        if x == 1:
            print("hello from the worker")
        return x

    frame.map(chatty, workers=1).collect()
    assert "hello from the worker" in capsys.readouterr().err


def test_it_is_a_step_of_the_query(frame):
    got = frame.map(pid, workers=1).filter(col("x") > 97).agg(n=col("x").count()).to_pydict()
    assert got == {"n": [2]}
    with pytest.raises(ValueError, match="say workers= too"):
        frame.map(pid, memory="1GB")


def test_no_process_is_left(frame):
    import subprocess

    frame.map(pid, workers=2).collect()
    time.sleep(0.5)
    left = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "_worker.py"], capture_output=True, text=True).stdout
    assert not left.split()
