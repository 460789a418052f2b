"""Python functions as steps, in this process."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
import typing

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rowmill
from rowmill import col


@pytest.fixture
def frame():
    return rowmill.from_pydict({"x": [1, 2, 3, 4], "s": ["a", "b", "c", None], "y": [0.5, 1.5, 2.5, 3.5]})


def test_rows(frame):
    @rowmill.step
    def scaled(x: int, y: float) -> float:
        return x * y

    assert scaled(2, 3.0) == 6.0
    assert frame.map(scaled).to_pydict()["scaled"] == [0.5, 3.0, 7.5, 14.0]
    assert frame.select(v=scaled(col("x") + 1, col("y"))).to_pydict() == {"v": [1.0, 4.5, 10.0, 17.5]}
    assert frame.filter(scaled(col("x"), col("y")) > 5).count() == 2
    assert "scaled(x, y) -> scaled: double; row, once" in repr(scaled)


def test_a_lambda_and_a_column_of_the_same_name(frame):
    assert frame.map(lambda x: x * 10, returns="int64", name="x").to_pydict()["x"] == [10, 20, 30, 40]
    assert frame.map(lambda s: s and s.upper(), returns=str, name="upper").to_pydict()["upper"] == ["A", "B", "C", None]


@pytest.mark.parametrize("hint", ["pa.Array", "np.ndarray", "pd.Series", "pl.Series"])
def test_batches_by_annotation(frame, hint):
    kinds = {"pa.Array": pa.Array, "np.ndarray": np.ndarray, "pd.Series": pd.Series, "pl.Series": pl.Series}

    def more(x, y):
        assert isinstance(x, kinds[hint]), type(x)
        return pc.add(pc.cast(x, pa.float64()), y) if hint == "pa.Array" else x + y

    more.__annotations__ = {"x": kinds[hint], "y": kinds[hint]}
    assert frame.map(more, returns="float64").to_pydict()["more"] == [1.5, 3.5, 5.5, 7.5]
    assert frame.select(m=rowmill.step(more, returns="float64")(col("x"), col("y"))).to_pydict()["m"] == [1.5, 3.5, 5.5, 7.5]


def test_batch_rows_are_exact():
    sizes = []

    @rowmill.step(returns="int64", batch=700)
    def seen(x):
        sizes.append(len(x))
        return x

    got = rowmill.from_arrow(pa.table({"x": np.arange(3000)})).map(seen)
    assert got.collect()["seen"].to_pylist() == list(range(3000)) and sizes == [700, 700, 700, 700, 200]


def test_several_columns(frame):
    @dataclasses.dataclass
    class Parts:
        half: float
        text: str | None

    class Typed(typing.TypedDict):
        a: int
        b: list[str]

    def dataclassed(x: int) -> Parts:
        return Parts(x / 2, None if x == 1 else str(x))

    def typed(x: int) -> Typed:
        return {"a": x, "b": ["z"] * x}

    def tupled(x: int):
        return x, -x

    dataclassed.__annotations__["return"] = Parts
    typed.__annotations__["return"] = Typed
    got = frame.map(dataclassed).map(typed).map(tupled, returns={"p": "int32", "q": "int64"})
    assert got.schema["b"] == "list<string>" and got.schema["p"] == "int32"
    rows = got.to_pydict()
    assert rows["half"] == [0.5, 1.0, 1.5, 2.0] and rows["text"] == [None, "2", "3", "4"]
    assert rows["b"][2] == ["z", "z", "z"] and rows["q"] == [-1, -2, -3, -4]


def test_generators_fan_out(frame):
    def each(x: int) -> typing.Iterator[int]:
        yield from range(x - 1)

    got = frame.map(each).select("x", "each").to_pydict()
    assert got == {"x": [2, 3, 3, 4, 4, 4], "each": [0, 0, 1, 0, 1, 2]}


def test_async_functions_wait_together():
    most, now = 0, 0

    @rowmill.step(in_flight=100)
    async def slow(x: int) -> int:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        return x + 1

    started = time.monotonic()
    got = rowmill.from_pydict({"x": list(range(1000))}).map(slow).to_pydict()
    assert got["slow"] == list(range(1, 1001))
    assert most == 100 and time.monotonic() - started < 5


def test_async_generators(frame):
    async def each(x: int) -> typing.AsyncIterator[str]:
        for at in range(x % 3):
            await asyncio.sleep(0)
            yield f"{x}-{at}"

    assert frame.map(each).to_pydict()["each"] == ["1-0", "2-0", "2-1", "4-0"]


def test_a_class_is_made_once_however_many_threads_there_are():
    made = []

    @rowmill.step(returns="int64")
    class Model:
        def __init__(self):
            made.append(threading.get_ident())
            time.sleep(0.05)
            self.add = 100

        def __call__(self, x: int):
            return x + self.add

    got = rowmill.from_arrow(pa.table({"x": np.arange(300_000)})).map(Model)
    assert got.schema["Model"] == "int64" and not made
    assert got.collect()["Model"].to_pylist()[-1] == 300_099 and len(made) == 1


def test_map_batches(frame):
    def pandas_way(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[rows.x > 2]

    def polars_way(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select(total=pl.col("x").sum())

    def numpy_way(rows: dict) -> dict:
        return {"z": rows["x"] * 2}

    assert frame.map_batches(pandas_way).to_pydict()["x"] == [3, 4]
    assert frame.map_batches(polars_way, returns={"total": "int64"}).to_pydict() == {"total": [10]}
    assert frame.map_batches(numpy_way, returns={"z": "int64"}).to_pydict() == {"z": [2, 4, 6, 8]}
    assert frame.map_batches(lambda rows: rows, columns=["x"], returns={"x": "int64"}).columns == ["x"]
    with pytest.raises(rowmill.StepError, match="columns \\['x'\\], not \\['z'\\]"):
        frame.map_batches(lambda rows: {"x": rows["x"]}, returns={"z": "int64"}).collect()


def test_types_are_checked_before_anything_runs(frame):
    def wants_text(x: str) -> int:
        raise AssertionError("never called")

    with pytest.raises(TypeError, match="`x: str`, but the column `x` is int64"):
        frame.map(wants_text)
    with pytest.raises(ValueError, match="reads column `z`"):
        frame.map(lambda z: z, returns="int64")
    with pytest.raises(TypeError, match="is not known; annotate"):
        rowmill.step(lambda x: x)
    with pytest.raises(TypeError, match="no option `retry`"):
        rowmill.step(retry=3)(lambda x: x)
    with pytest.raises(ValueError, match="never called again"):
        rowmill.step(returns="int64", retries=3)(lambda x: x)
    with pytest.raises(TypeError, match="no logical type"):
        rowmill.step(returns="int46")(lambda x: x)


def test_an_exception_names_the_step_and_is_the_cause(frame):
    @rowmill.step
    def fails(x: int) -> int:
        if x == 3:
            raise KeyError("three")
        return x

    with pytest.raises(rowmill.StepError, match="`fails` raised KeyError: 'three'") as caught:
        frame.map(fails).collect()
    assert isinstance(caught.value.__cause__, KeyError) and caught.value.fault == "data"
    names = [entry.name for entry in caught.traceback]
    assert caught.value.__cause__.__traceback__ is not None and names


def test_a_wrong_answer_names_its_row(frame):
    with pytest.raises(rowmill.StepError, match="'two' for row 1"):
        frame.map(lambda x: "two" if x == 2 else x, returns="int64", name="w").collect()


def test_on_error(frame):
    def picky(x: int) -> int:
        if x % 2:
            raise ValueError(x)
        return -x

    assert frame.map(picky, on_error="skip").select("x", "picky").to_pydict() == {"x": [2, 4], "picky": [-2, -4]}
    assert frame.map(picky, on_error="default", default=0).to_pydict()["picky"] == [0, -2, 0, -4]
    assert frame.map(picky, on_error="default").to_pydict()["picky"] == [None, -2, None, -4]

    @rowmill.step(returns="int64", on_error="skip", effects="pure")
    def columns(x: pa.Array):
        if 3 in x.to_pylist():
            raise ValueError("three")
        return x

    assert frame.map(columns).to_pydict()["x"] == [1, 2, 4]
    with pytest.raises(ValueError, match="cannot be told from the others"):
        rowmill.step(returns="int64", on_error="skip", batch=10)(lambda x: x)

    async def slow(x: int) -> int:
        if x == 2:
            raise ValueError(x)
        return x

    assert frame.map(slow, on_error="skip").to_pydict()["slow"] == [1, 3, 4]
    wrong = frame.map(lambda x: "two" if x == 2 else x, returns="int64", name="w", on_error="skip")
    assert wrong.to_pydict()["w"] == [1, 3, 4]


def test_retries(frame):
    attempts: dict[int, int] = {}

    @rowmill.step(retries=3, effects="idempotent")
    def flaky(x: int) -> int:
        attempts[x] = attempts.get(x, 0) + 1
        if x == 2 and attempts[x] < 3:
            raise ConnectionError("not yet")
        return x

    assert frame.map(flaky).to_pydict()["flaky"] == [1, 2, 3, 4]
    assert attempts == {1: 1, 2: 3, 3: 1, 4: 1}


def test_steps_within_a_query(frame):
    @rowmill.step(effects="pure")
    def double(x: int) -> int:
        return x * 2

    mapped = frame.map(double).filter(col("double") > 2).group_by("s").agg(n=col("double").sum()).sort("s")
    assert mapped.to_pydict() == {"s": ["b", "c", None], "n": [4, 6, 8]}
    assert rowmill.sql("select sum(double) t from m", m=frame.map(double)).to_pydict() == {"t": [20]}
    assert "PythonExec: double" in mapped.explain()


def test_a_limit_does_not_run_the_rest():
    seen = []

    def note(rows):
        seen.append(rows.num_rows)
        return rows

    rowmill.from_arrow(pa.table({"x": np.arange(2_000_000)})).map_batches(note, batch=1000).limit(5).collect()
    assert sum(seen) < 1_000_000


def test_every_type_crosses_rows():
    import datetime
    import decimal

    table = pa.table({
        "i": pa.array([1, None]), "f": pa.array([1.5, None]), "b": pa.array([True, None]), "s": pa.array(["ä", None]),
        "v": pa.array(["view", None], pa.string_view()), "y": pa.array([b"\0", None]),
        "d": pa.array([datetime.date(2024, 1, 1), None]), "t": pa.array([datetime.datetime(2024, 1, 1), None]),
        "m": pa.array([decimal.Decimal("1.5"), None]), "l": pa.array([[1, 2], None]), "o": pa.array([{"k": 1}, None]),
    })  # fmt: skip
    for name in table.column_names:
        kind = table.schema.field(name).type
        got = rowmill.from_arrow(table).map(eval(f"lambda {name}: {name}"), returns=kind, name="out").collect()
        assert got["out"].to_pylist() == table[name].to_pylist(), name
