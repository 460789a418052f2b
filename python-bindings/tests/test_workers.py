"""Python functions in worker processes."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import time

import numpy as np
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


def test_a_leak_costs_no_other_row(frame):
    held = []

    def leak(x: int) -> int:
        held.append(bytearray(20_000_000))
        return x

    # A process that is full goes; all rows come through, some of them in another one.
    got = frame.map(leak, workers=1, memory="1GB", effects="pure", on_error="skip").to_pydict()
    assert got["leak"] == list(range(100))


def test_the_first_row_that_fails_is_the_last_one_called(frame, tmp_path):
    called = str(tmp_path / "called")

    def dies(x: int) -> int:
        with open(called, "a") as file:
            file.write(f"{x}\n")
        if x == 7:
            os._exit(9)
        return x

    with pytest.raises(rowmill.StepError, match="exited with status 9"):
        frame.map(dies, workers=1).collect()
    assert (tmp_path / "called").read_text().split() == [str(x) for x in range(8)]


def test_workers_log_as_the_program_does(frame, tmp_path):
    code = """
import logging, rowmill
logging.basicConfig(level=logging.INFO, format="%(levelname)s <%(name)s> %(message)s")
def noted(x: int) -> int:
    logging.getLogger("mine").info("row %d", x)
    logging.getLogger("mine").debug("not shown")
    return x
rowmill.from_pydict({"x": [1, 2]}).map(noted, workers=1).collect()
rowmill.from_pydict({"x": [3]}).limit(1).write_parquet("in.parquet")
rowmill.Workflow("w").source("s", "in.parquet").step("t", noted).sink("o", "out.parquet").run()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if "mine" in line] == [f"INFO <mine> row {x}" for x in (1, 2, 3)]


def test_programs_that_multiprocessing_spawned_have_workers_too(tmp_path):
    (tmp_path / "program.py").write_text("""
import multiprocessing, rowmill
def double(x: int) -> int:
    return x * 2
def work(n):
    return rowmill.from_pydict({"x": [n]}).map(double, workers=1).to_pydict()["double"]
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [4]))
""")
    done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "[[8]]\n", done.stderr


def test_large_columns_cross_in_shared_memory_and_come_back_whole():
    rows = 1_000_000

    def shifted(x: np.ndarray, s: pa.Array):
        with open("/proc/self/maps") as maps:
            assert "rowmill-to-worker" in maps.read()
        return {"y": x + 1.0, "t": pc.utf8_upper(s)}

    table = pa.table({"x": np.arange(rows, dtype="float64"), "s": pa.array([f"w{n % 1000}" for n in range(rows)])})
    step = rowmill.step(shifted, returns={"y": "float64", "t": "string"}, effects="pure", workers=2, batch=65536)
    # All of the answers are held at once, and none of them is written over.
    got = rowmill.from_arrow(table).map(step).collect()
    assert got["y"].to_numpy().tolist() == list(range(1, rows + 1))
    assert got["t"].to_pylist()[:3] == ["W0", "W1", "W2"] and got["t"].to_pylist()[-1] == "W999"


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
