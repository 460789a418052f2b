"""Data in and out."""

from __future__ import annotations

import datetime
import decimal
import gc

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import rowmill
from rowmill import col

N = None
EVERY_TYPE = pa.table(
    {
        "null": pa.nulls(4),
        "bool": pa.array([True, N, False, True]),
        **{str(t): pa.array([1, N, 3, 4], t) for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
        **{str(t): pa.array([1, N, 3, 4], t) for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
        "half": pa.array(np.array([1, 2, 3, 4], np.float16)),
        "float": pa.array([1.5, N, 3, 4], pa.float32()),
        "double": pa.array([1.5, N, 3, 4], pa.float64()),
        "string": pa.array(["a", N, "", "a long text that is not inlined"]),
        "large_string": pa.array(["a", N, "", "text"], pa.large_string()),
        "string_view": pa.array(["a", N, "", "a long text that is not inlined in a view"], pa.string_view()),
        "binary": pa.array([b"a", N, b"", b"\0"]),
        "fixed": pa.array([b"ab", N, b"cd", b"ef"], pa.binary(2)),
        "date32": pa.array([datetime.date(2024, 1, 1), N, N, N]),
        "date64": pa.array([datetime.date(2024, 1, 1), N, N, N], pa.date64()),
        "time": pa.array([datetime.time(1), N, N, N], pa.time64("us")),
        "timestamp": pa.array([datetime.datetime(2024, 1, 1), N, N, N], pa.timestamp("ms")),
        "zoned": pa.array([datetime.datetime(2024, 1, 1), N, N, N], pa.timestamp("us", "Europe/Berlin")),
        "duration": pa.array([datetime.timedelta(1), N, N, N], pa.duration("s")),
        "decimal": pa.array([decimal.Decimal("1.25"), N, N, N], pa.decimal128(10, 2)),
        "decimal256": pa.array([decimal.Decimal("1.25"), N, N, N], pa.decimal256(60, 2)),
        "list": pa.array([[1, 2], N, [], [N]]),
        "large_list": pa.array([["a"], N, [], [N]], pa.large_list(pa.string())),
        "fixed_list": pa.array([[1, 2], N, [3, 4], [5, 6]], pa.list_(pa.int32(), 2)),
        "struct": pa.array([{"x": 1, "y": "a"}, N, {"x": N, "y": "b"}, {"x": 3, "y": N}]),
        "map": pa.array([[("a", 1)], N, [], [("b", 2)]], pa.map_(pa.string(), pa.int64())),
        "dictionary": pa.array(["a", N, "b", "a"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize("name", EVERY_TYPE.column_names)
@pytest.mark.parametrize("cut", [(0, 4), (1, 3), (2, 0)])
def test_every_type_comes_back_as_it_went(name, cut):
    table = EVERY_TYPE.select([name]).slice(*cut)
    back = rowmill.from_arrow(table).collect()
    back.validate(full=True)
    assert back.schema == table.schema and back.to_pylist() == table.to_pylist()
    streamed = pa.table(rowmill.from_arrow(table))
    streamed.validate(full=True)
    assert streamed.to_pylist() == table.to_pylist()


def test_metadata_and_names_survive():
    schema = pa.schema([pa.field("größe", pa.int64(), nullable=False, metadata={"k": "v"})], metadata={"t": "w"})
    back = rowmill.from_arrow(pa.table({"größe": [1]}, schema=schema)).arrow_schema
    assert back.field(0).metadata == {b"k": b"v"} and not back.field(0).nullable


def test_nothing_is_copied():
    array = np.arange(1_000_000, dtype=np.float64)
    table = pa.table({"x": pa.array(array)})
    back = rowmill.from_arrow(table).collect()
    first = back["x"].chunk(0)
    assert first.buffers()[1].address == array.ctypes.data


def test_data_outlive_their_owner():
    frame = rowmill.from_arrow(pa.table({"x": np.arange(100_000)}))
    back = frame.collect()
    del frame
    gc.collect()
    assert back["x"][99_999].as_py() == 99_999


def test_a_capsule_is_used_once():
    class Once:
        def __init__(self):
            self.capsule = pa.table({"x": [1]}).__arrow_c_stream__()

        def __arrow_c_stream__(self, requested_schema=None):
            return self.capsule

    once = Once()
    assert rowmill.from_arrow(once).count() == 1
    with pytest.raises(ValueError, match="taken before"):
        rowmill.from_arrow(once)


def test_what_gives_no_arrow_is_refused():
    with pytest.raises(TypeError, match="__arrow_c_stream__"):
        rowmill.from_arrow([1, 2])

    class Lies:
        def __arrow_c_stream__(self, requested_schema=None):
            return "no capsule"

    with pytest.raises(ValueError):
        rowmill.from_arrow(Lies())
    with pytest.raises(ValueError, match="a table or a record batch"):
        rowmill.from_arrow(pa.chunked_array([[1]]))


def test_errors_of_a_producer_are_told():
    def batches():
        yield pa.record_batch({"x": [1]})
        raise RuntimeError("the well ran dry")

    reader = pa.RecordBatchReader.from_batches(pa.schema([("x", pa.int64())]), batches())
    with pytest.raises(ValueError, match="the well ran dry"):
        rowmill.from_arrow(reader)


def test_pandas_polars_and_duckdb():
    data = {"x": [1, 2, None], "s": ["a", None, "c"]}
    assert rowmill.from_polars(pl.DataFrame(data)).to_polars().equals(pl.DataFrame(data))
    assert rowmill.from_polars(pl.DataFrame(data).lazy()).count() == 3
    frame = pd.DataFrame({"x": [1.0, 2.0], "s": ["a", "b"]}, index=[7, 8])
    back = rowmill.from_pandas(frame)
    assert back.columns == ["x", "s"] and back.to_pandas()["x"].tolist() == [1.0, 2.0]
    assert "__index_level_0__" in rowmill.from_pandas(frame, index=True).columns
    lazy = rowmill.from_pydict(data)  # noqa: F841 (DuckDB finds it by name)
    assert duckdb.sql("select sum(x) from lazy").fetchall() == [(3,)]
    assert rowmill.from_arrow(duckdb.sql("select 42 as answer")).to_pydict() == {"answer": [42]}
    assert pl.DataFrame(lazy).height == 3


def test_batches_stream():
    frame = rowmill.from_arrow(pa.table({"x": np.arange(300_000)}))
    batches = list(frame.filter(col("x") >= 0).to_batches())
    assert len(batches) > 1 and sum(batch.num_rows for batch in batches) == 300_000
    for batch in frame.to_batches():
        assert batch.num_rows > 0
        break


def test_streaming_errors_carry_their_code():
    frame = rowmill.from_pydict({"s": ["x"]}).select(col("s").cast("int64"))
    with pytest.raises(rowmill.DataError) as caught:
        list(frame.to_batches())
    assert caught.value.code == "RM0601"
    with pytest.raises(Exception, match="x"):
        pa.table(frame)


@pytest.mark.parametrize("format", ["parquet", "csv", "json", "ipc"])
def test_files_there_and_back(tmp_path, format):
    frame = rowmill.from_pydict({"id": [1, 2, 3], "name": ["a", "b", None], "part": ["x", "y", "x"]})
    write, read = getattr(frame, f"write_{format}"), getattr(rowmill, f"read_{format}")
    path = tmp_path / f"data.{'arrow' if format == 'ipc' else format}"
    assert write(path) == 3
    assert sorted(read(path).to_pylist(), key=lambda row: row["id"]) == frame.to_pylist()
    folder = tmp_path / "parts"
    write(f"{folder}/", partition_by=["part"])
    back = read(f"{folder}/", partitions={"part": "string"})
    assert back.filter(col("part") == "x").count() == 2


def test_csv_options(tmp_path):
    path = tmp_path / "odd.csv"
    path.write_text("# odd\na;b\n1;-\n2;x\n")
    frame = rowmill.read_csv(path, delimiter=";", comment="#", null="-", schema={"a": "int32", "b": "string"})
    assert frame.schema == {"a": "int32", "b": "string"} and frame.to_pydict() == {"a": [1, 2], "b": [None, "x"]}
    with pytest.raises(ValueError, match="one ASCII character"):
        rowmill.read_csv(path, delimiter=";;")


def test_globs_lists_and_policies(tmp_path):
    rowmill.from_pydict({"x": [1]}).write_parquet(tmp_path / "a.parquet")
    rowmill.from_pydict({"x": [2.5], "y": ["z"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(rowmill.RowmillError) as caught:
        rowmill.read_parquet(tmp_path / "*.parquet")
    assert caught.value.code
    both = rowmill.read_parquet([tmp_path / "a.parquet", tmp_path / "b.parquet"], schema_policy="union")
    assert both.sort("x").to_pydict() == {"x": [1.0, 2.5], "y": [None, "z"]}


def test_a_missing_file_is_named():
    with pytest.raises(rowmill.RowmillError, match="nowhere.parquet") as caught:
        rowmill.read_parquet("nowhere.parquet")
    assert caught.value.code == "RM0502"


def test_writing_replaces_whole_files_and_nothing_foreign(tmp_path):
    path = tmp_path / "out.parquet"
    rowmill.from_pydict({"x": [1]}).write_parquet(path)
    bad = rowmill.from_pydict({"s": ["x"]}).select(col("s").cast("int64"))
    with pytest.raises(rowmill.DataError):
        bad.write_parquet(path)
    assert rowmill.read_parquet(path).to_pydict() == {"x": [1]} and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(rowmill.RowmillError):
        rowmill.from_pydict({"x": [1]}).write_parquet(tmp_path)
