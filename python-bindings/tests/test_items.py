"""What holds for the rows of Python steps: cache, rate, bounds on errors; in this process and in others."""

from __future__ import annotations

import os
import time
import warnings

import numpy as np
import pyarrow as pa
import pytest

import rowmill
from rowmill import col

BOTH = [{}, {"workers": 1}]


@pytest.fixture
def frame():
    return rowmill.from_pydict({"x": list(range(100)), "k": [n % 5 for n in range(100)]})


def calls_in(folder):
    """A function that leaves a mark for every call, in whichever process."""
    place = str(folder / "calls")

    def noted(k: int) -> int:
        with open(place, "ab", buffering=0) as file:
            file.write(b".")
        return k * 10

    return noted, lambda: (folder / "calls").stat().st_size


@pytest.mark.parametrize("where", BOTH)
def test_a_cache_asks_once_for_equal_rows(frame, tmp_path, where):
    noted, count = calls_in(tmp_path)
    step = rowmill.step(effects="pure", cache=True, **where)(noted)
    assert frame.map(step).to_pydict()["noted"] == [n % 5 * 10 for n in range(100)]
    assert count() == 5
    frame.map(step).collect()
    assert count() == 5
    assert "cached" in frame.map(step).explain()


def test_a_cache_on_disk_has_keys_and_an_age(frame, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rowmill.configure()
    noted, count = calls_in(tmp_path)

    @rowmill.step(effects="idempotent", cache={"tier": "disk", "key": "k", "ttl": "1h"}, name="noted")
    def with_both(x: int, k: int) -> int:
        return noted(k)

    try:
        frame.map(with_both).collect()
        assert count() == 5 and (tmp_path / ".rowmill" / "cache").is_dir()
    finally:
        monkeypatch.undo()
        rowmill.configure()


def test_caches_that_make_no_sense_are_refused():
    def f(x: int) -> int:
        return x

    for options, text in [
        ({"cache": True}, "effects \"once\""),
        ({"cache": {"tear": "disk"}, "effects": "pure"}, "a cache has no `tear`"),
        ({"cache": {"key": "y"}, "effects": "pure"}, "no parameter `y`"),
        ({"cache": {"ttl": "soon"}, "effects": "pure"}, "no time"),
        ({"rate_limit": "fast"}, "no rate"),
        ({"rate_limit": 0}, "above 0"),
        ({"max_errors": "many", "on_error": "skip"}, "neither a number"),
        ({"max_errors": 3}, "max_errors is for"),
    ]:
        with pytest.raises((TypeError, ValueError), match=text):
            rowmill.step(**options)(f)
    frame = rowmill.from_pydict({"x": [1]})
    with pytest.raises(ValueError, match="there is no cache `attic`"):
        frame.map(rowmill.step(cache="attic", effects="pure")(f))
    with pytest.raises(ValueError, match="a class of machine"):
        rowmill.step(resources=4)(f)
    with pytest.raises(TypeError, match="use df.map"):
        frame.select(rowmill.step(on_error="dead_letter")(f)(col("x")))
    with pytest.raises(TypeError, match="use df.map"):
        frame.select(rowmill.step(rate_limit="5/s")(f)(col("x")))


@pytest.mark.parametrize("where", BOTH)
def test_a_rate_holds(frame, where):
    def f(x: int) -> int:
        return x + 1

    started = time.monotonic()
    got = frame.limit(30).map(f, rate_limit="50/s", **where).to_pydict()
    assert got["f"] == list(range(1, 31))
    # 30 calls at 50 a second, of which a few leave at once.
    assert time.monotonic() - started >= 0.5


@pytest.mark.parametrize("where", BOTH)
def test_too_many_errors_end_the_query(frame, where):
    def picky(x: int) -> int:
        if x % 10 == 0:
            raise ValueError(f"not {x}")
        return x

    got = frame.map(picky, on_error="skip", max_errors=10, **where).to_pydict()
    assert got["picky"] == [n for n in range(100) if n % 10]
    with pytest.raises(rowmill.StepError, match="more than `max_errors` allows"):
        frame.map(picky, on_error="skip", max_errors=9, **where).collect()
    with pytest.raises(rowmill.StepError, match="more than `max_errors` allows"):
        frame.map(picky, on_error="skip", max_errors="5%", **where).collect()


def test_an_exception_in_this_process_is_the_cause(frame):
    def fails(x: int) -> int:
        if x == 3:
            raise KeyError("three")
        return x

    with pytest.raises(rowmill.StepError, match="`fails` raised KeyError") as caught:
        frame.map(fails, rate_limit=1e6).collect()
    assert isinstance(caught.value.__cause__, KeyError)
    got = frame.map(fails, rate_limit=1e6, on_error="default", default=-1).to_pydict()
    assert got["fails"][2:5] == [2, -1, 4]


@pytest.mark.parametrize("where", BOTH)
def test_columns_of_the_same_name_are_replaced_in_their_place(frame, where):
    step = rowmill.step(lambda x: x * 2, returns="int64", name="x", max_errors=0, on_error="skip", **where)
    got = frame.map(step)
    assert got.columns == ["x", "k"]
    assert got.to_pydict()["x"] == [n * 2 for n in range(100)]


@pytest.mark.parametrize("where", BOTH)
def test_batches_and_generators_under_a_bound(frame, where):
    def columns(x: np.ndarray):
        if 7 in x:
            raise ValueError("seven")
        return x + 1

    def each(x: int):
        if x == 7:
            raise ValueError("seven")
        yield from [x] * (x % 3)

    options = {"effects": "pure", "on_error": "skip", "max_errors": 1, **where}
    got = frame.map(columns, returns="int64", **options).to_pydict()
    assert got["columns"] == [n + 1 for n in range(100) if n != 7]
    got = frame.map(each, returns="int64", **options).to_pydict()
    assert got["x"] == got["each"] == [n for n in range(100) if n != 7 for _ in range(n % 3)]


def picky(x: int, k: int) -> int:
    if x % 40 == 5:
        raise KeyError(f"no {x}")
    return x * 2


@pytest.mark.parametrize("where", BOTH)
def test_rows_that_are_put_aside_come_beside_the_others(frame, where):
    ok, failures = frame.map(picky, on_error="dead_letter", **where).collect_with_failures()
    assert ok["picky"].to_pylist() == [n * 2 for n in range(100) if n % 40 != 5]
    lost = failures["picky"]
    assert list(failures) == ["picky"] and lost["x"].to_pylist() == [5, 45, 85]
    assert lost.column_names[:2] == frame.columns and lost.schema.field("x").type == pa.int64()
    assert set(lost["error_outcome"].to_pylist()) == {"dead_lettered"} and lost["error_attempts"].to_pylist() == [1, 1, 1]
    assert lost["error_message"][0].as_py() == "KeyError: 'no 5'"
    assert "raise KeyError" in lost["error_details"][0].as_py()
    # What failed goes through again as it came.
    again = rowmill.from_arrow(lost.select(frame.columns)).map(lambda x, k: x, returns="int64", name="y")
    assert again.to_pydict()["y"] == [5, 45, 85]


def test_nothing_is_put_aside_where_nothing_fails(frame):
    ok, failures = frame.filter(col("x") < 5).map(picky, on_error="dead_letter").collect_with_failures()
    assert ok.num_rows == 5 and failures["picky"].num_rows == 0 and "error_code" in failures["picky"].column_names
    assert frame.collect_with_failures().failures == {}


def test_rows_that_nobody_asks_for_are_told_of(frame, tmp_path):
    lossy = frame.map(picky, on_error="dead_letter")
    for compute in (
        lossy.collect, lossy.count, lambda: list(lossy.to_batches()), lambda: lossy.write_parquet(tmp_path / "x.parquet"),
        lambda: pa.table(lossy),
    ):  # fmt: skip
        with pytest.warns(rowmill.RowmillWarning, match="`picky` put 3 rows aside"):
            compute()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lossy.collect_with_failures()
        with pytest.raises(rowmill.StepError, match="put 3 rows aside") as caught:
            lossy.collect()
        assert isinstance(caught.value.__cause__, rowmill.RowmillWarning)


def test_each_step_has_letters_of_its_own(frame):
    def second(picky: int) -> int:
        if picky == 20:
            raise ValueError("twenty")
        return picky

    steps = frame.map(picky, on_error="dead_letter").map(second, on_error="dead_letter", name="second")
    rows, failures = steps.map(second, on_error="dead_letter", name="picky").collect_with_failures()
    assert [(name, lost.num_rows) for name, lost in failures.items()] == [("picky", 3), ("second", 1), ("picky_2", 0)]
    assert rows.num_rows == 96
    # A column that the step replaces is shown as it came.
    kept = frame.map(lambda x: 1 // x, returns="int64", name="x", on_error="dead_letter").collect_with_failures()
    (lost,) = kept.failures.values()
    assert lost["x"].to_pylist() == [0] and lost.column_names[:2] == ["x", "k"]
    named = rowmill.from_pydict({"x": [1], "error_code": [2]})
    with pytest.raises(rowmill.RowmillError, match="error_code"):
        named.map(lambda x: x, returns="int64", name="y", on_error="dead_letter").collect_with_failures()


def test_once_rows_of_a_process_that_dies_are_unknown_and_kept(frame):
    def dies(x: int) -> int:
        if x == 7:
            os._exit(1)
        return x

    rows, failures = frame.map(dies, workers=1, on_error="dead_letter").collect_with_failures()
    assert rows.num_rows == 99 and failures["dies"]["error_outcome"].to_pylist() == ["unknown"]


@pytest.mark.parametrize("where", [*BOTH, {"max_errors": 0, "on_error": "skip"}])
def test_a_class_of_machine_shows_in_the_plan(frame, where):
    step = rowmill.step(lambda x: x, returns="int64", name="y", resources="gpu", **where)
    got = frame.map(step)
    assert "class=gpu" in got.explain() and got.to_pydict()["y"] == list(range(100))
