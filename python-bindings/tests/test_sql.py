"""SQL over frames and files, and TPC-H against DuckDB."""

from __future__ import annotations

import sys

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import rowmill
from conftest import ROOT
from rowmill import col
from rowmill import functions as f

sys.path.insert(0, str(ROOT / "tools"))
import check_tpch  # noqa: E402

GLOBAL = rowmill.from_pydict({"g": [5]})


def test_frames_by_argument_and_by_name(tmp_path):
    here = rowmill.from_pydict({"x": [1, 2]})  # noqa: F841
    Folded = pa.table({"y": [3]})  # noqa: F841
    assert rowmill.sql("select sum(x) s from here").to_pydict() == {"s": [3]}
    assert rowmill.sql("select g, y from global, Folded").to_pydict() == {"g": [5], "y": [3]}
    assert rowmill.sql("select * from t", t=pl.DataFrame({"a": [1]})).to_pydict() == {"a": [1]}
    assert rowmill.sql("select * from t", t=pd.DataFrame({"a": [1]})).to_pydict() == {"a": [1]}
    assert rowmill.sql("select * from t", t={"a": [1]}).to_pydict() == {"a": [1]}
    path = tmp_path / "f.parquet"
    rowmill.from_pydict({"z": [9]}).write_parquet(path)
    assert rowmill.sql(f"select z from '{path}'").to_pydict() == {"z": [9]}


def test_parameters():
    t = rowmill.from_pydict({"x": [1, 2, 3], "s": ["a", "b", "c"]})
    got = rowmill.sql("select x from t where x > $low and s <> $not", t=t, params={"low": 1, "not": "c"})
    assert got.to_pydict() == {"x": [2]}


def test_mistakes():
    with pytest.raises(rowmill.WorkflowError) as caught:
        rowmill.sql("selct 1")
    assert caught.value.code == "RM0301"
    with pytest.raises(rowmill.WorkflowError, match="nothing_here"):
        rowmill.sql("select * from nothing_here")
    with pytest.raises(rowmill.RowmillError):
        rowmill.sql("create table t as select 1")
    with pytest.raises(rowmill.RowmillError):
        rowmill.sql("copy (select 1) to '/tmp/x.parquet'")


def test_frames_and_sql_mix():
    t = rowmill.from_pydict({"k": ["a", "b", "a"], "v": [1, 2, 3]}).filter(col("v") > 1)
    got = rowmill.sql("select k, sum(v) as v from t group by k", t=t).sort("k")
    assert got.to_pydict() == {"k": ["a", "b"], "v": [3, 2]}


@pytest.fixture(scope="module")
def duck(tpch):
    return check_tpch.connect(tpch)


def hold(duck, query, frame):
    sql = check_tpch.reference_sql(query, 0.01)
    cut = check_tpch.LIMIT.search(sql)
    full = duck.execute(check_tpch.LIMIT.sub("", sql)).fetchall()
    table = frame.collect()
    got = list(zip(*(column.to_pylist() for column in table.columns)))
    check_tpch.compare(got, full, int(cut[1]) if cut else None, check_tpch.SORT_KEYS[query])


@pytest.mark.parametrize("query", range(1, 23))
def test_tpch_by_sql(duck, tpch, query):
    tables = {name: rowmill.read_parquet(tpch / f"{name}.parquet") for name in check_tpch.TABLES}
    hold(duck, query, rowmill.sql(check_tpch.reference_sql(query, 0.01), **tables))


def table(tpch, name):
    return rowmill.read_parquet(tpch / f"{name}.parquet")


def test_tpch_1_by_frames(duck, tpch):
    price, net = col("l_extendedprice"), col("l_extendedprice") * (1 - col("l_discount"))
    frame = (
        table(tpch, "lineitem")
        .filter(col("l_shipdate") <= rowmill.lit("1998-09-02", "date"))
        .group_by("l_returnflag", "l_linestatus")
        .agg(
            col("l_quantity").sum(), price.sum(), net.sum().alias("disc_price"),
            (net * (1 + col("l_tax"))).sum().alias("charge"), col("l_quantity").mean(), price.mean(),
            col("l_discount").mean(), f.count().alias("n"),
        )
        .sort("l_returnflag", "l_linestatus")
    )  # fmt: skip
    hold(duck, 1, frame)


def test_tpch_3_by_frames(duck, tpch):
    cut = rowmill.lit("1995-03-15", "date")
    frame = (
        table(tpch, "customer").filter(col("c_mktsegment") == "BUILDING")
        .join(table(tpch, "orders").filter(col("o_orderdate") < cut), left_on="c_custkey", right_on="o_custkey")
        .join(table(tpch, "lineitem").filter(col("l_shipdate") > cut), left_on="o_orderkey", right_on="l_orderkey")
        .group_by("l_orderkey", "o_orderdate", "o_shippriority")
        .agg(revenue=(col("l_extendedprice") * (1 - col("l_discount"))).sum())
        .select("l_orderkey", "revenue", "o_orderdate", "o_shippriority")
        .sort(col("revenue").desc(), "o_orderdate")
        .limit(10)
    )  # fmt: skip
    hold(duck, 3, frame)


def test_tpch_6_by_frames(duck, tpch):
    frame = (
        table(tpch, "lineitem")
        .filter(
            col("l_shipdate") >= rowmill.lit("1994-01-01", "date"),
            col("l_shipdate") < rowmill.lit("1995-01-01", "date"),
            col("l_discount").between(0.05, 0.07),
            col("l_quantity") < 24,
        )
        .agg(revenue=(col("l_extendedprice") * col("l_discount")).sum())
    )
    hold(duck, 6, frame)


def test_tpch_4_and_13_by_frames(duck, tpch):
    late = table(tpch, "lineitem").filter(col("l_commitdate") < col("l_receiptdate"))
    orders = table(tpch, "orders")
    quarter = orders.filter(
        (col("o_orderdate") >= rowmill.lit("1993-07-01", "date")) & (col("o_orderdate") < rowmill.lit("1993-10-01", "date"))
    )
    four = (
        quarter.join(late, left_on="o_orderkey", right_on="l_orderkey", how="semi")
        .group_by("o_orderpriority").agg(order_count=f.count()).sort("o_orderpriority")
    )  # fmt: skip
    hold(duck, 4, four)
    plain = orders.filter(~col("o_comment").like("%special%requests%"))
    thirteen = (
        table(tpch, "customer").join(plain, left_on="c_custkey", right_on="o_custkey", how="left")
        .group_by("c_custkey").agg(c_count=col("o_orderkey").count())
        .group_by("c_count").agg(custdist=f.count())
        .sort(col("custdist").desc(), col("c_count").desc())
    )  # fmt: skip
    hold(duck, 13, thirteen)
