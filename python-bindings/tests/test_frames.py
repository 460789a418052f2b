"""What frames compute, beside Polars where both know the operation."""

from __future__ import annotations

import datetime
import decimal

import polars as pl
import pyarrow as pa
import pytest

import rowmill
from rowmill import col, lit, when
from rowmill import functions as f


@pytest.fixture
def people() -> rowmill.DataFrame:
    return rowmill.from_pydict(
        {"id": [1, 2, 3, 4], "name": ["Ann", "Bob", None, "Dan"], "team": ["a", "b", "a", "b"], "pay": [10.0, 20.0, 30.0, None]}
    )


def test_repr_shows_the_schema_and_says_that_it_is_lazy(people):
    text = repr(people)
    assert "lazy" in text and "id" in text and "int64" in text and "not computed" in text
    assert people.schema == {"id": "int64", "name": "string", "team": "string", "pay": "float64"}
    assert "<td>pay</td><td>float64</td>" in people._repr_html_()


def test_show_prints_rows(people, capsys):
    people.show(2)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[3].split() == ["1", "Ann", "a", "10.0"]


def test_expressions(people):
    got = people.select(
        "id",
        double=col("id") * 2,
        half=1 / col("id").cast("float64"),
        label=when(col("pay") > 15).then("rich").when(col("pay") > 5).then("fine").otherwise("?"),
        known=col("name").is_not_null(),
        filled=col("name").fill_null("nobody"),
        upper=col("name").upper(),
        between=col("id").between(2, 3),
        member=col("team").is_in(["a", "z"]),
        both=(col("id") > 1) & ~(col("id") == 4),
        like=col("name").like("%n%"),
        day=lit(datetime.date(2024, 2, 29)).part("day"),
        negative=-col("id"),
    ).to_pydict()
    assert got["double"] == [2, 4, 6, 8]
    assert got["half"] == [1.0, 0.5, 1 / 3, 0.25]
    assert got["label"] == ["fine", "rich", "rich", "?"]
    assert got["known"] == [True, True, False, True]
    assert got["filled"] == ["Ann", "Bob", "nobody", "Dan"]
    assert got["upper"] == ["ANN", "BOB", None, "DAN"]
    assert got["between"] == [False, True, True, False]
    assert got["member"] == [True, False, True, False]
    assert got["both"] == [False, True, True, False]
    assert got["like"] == [True, False, None, True]
    assert set(got["day"]) == {29} and got["negative"] == [-1, -2, -3, -4]


def test_an_expression_is_neither_true_nor_false():
    with pytest.raises(TypeError, match="use & and |"):
        bool(col("x") > 1)


@pytest.mark.parametrize(
    "value",
    [True, 7, 1.5, "text", b"bytes", datetime.date(2024, 1, 31), datetime.datetime(2024, 1, 31, 12, 30, 15, 250),
     datetime.datetime(2024, 1, 31, 12, tzinfo=datetime.timezone.utc), decimal.Decimal("-12.340"), datetime.time(12, 30)],
)  # fmt: skip
def test_literals_come_back_as_they_were(value):
    assert rowmill.from_pydict({"x": [1]}).select(v=lit(value)).to_pydict()["v"] == [value]


def test_group_by_and_expressions_around_aggregates(people):
    got = (
        people.group_by("team")
        .agg(
            n=f.count(),
            total=col("pay").sum(),
            ratio=col("pay").sum() / col("pay").count(),
            names=col("name").to_list(col("id").desc()),
            rich=col("pay").sum().filter(col("pay") > 15),
        )
        .sort("team")
        .to_pydict()
    )
    assert got == {
        "team": ["a", "b"], "n": [2, 2], "total": [40.0, 20.0], "ratio": [20.0, 20.0],
        "names": [[None, "Ann"], ["Dan", "Bob"]], "rich": [30.0, 20.0],
    }  # fmt: skip
    assert people.select(col("pay").sum(), most=col("id").max() + 1).to_pydict() == {"sum(pay)": [60.0], "most": [5]}
    assert people.group_by(big=col("id") > 2).count().sort("big").to_pydict() == {"big": [False, True], "count": [2, 2]}


def test_windows(people):
    got = people.with_columns(
        rank=f.row_number().over("team", order_by=col("id").desc()),
        running=col("id").sum().over(order_by="id", rows=(None, 0)),
        before=f.lag(col("id"), 1).over(order_by="id"),
    ).sort("id").to_pydict()  # fmt: skip
    assert got["rank"] == [2, 2, 1, 1] and got["running"] == [1, 3, 6, 10] and got["before"] == [None, 1, 2, 3]


def test_shapes(people):
    assert people.drop("name", "pay").columns == ["id", "team"]
    assert people.rename({"id": "key"}).columns == ["key", "name", "team", "pay"]
    assert people.with_columns(id=col("id") + 1, new=lit(0)).columns == ["id", "name", "team", "pay", "new"]
    assert people.sort("team", col("id").desc()).select("id").to_pydict()["id"] == [3, 1, 4, 2]
    assert people.sort("id").limit(2, offset=1).to_pydict()["id"] == [2, 3]
    assert people.select("team").distinct().count() == 2
    assert people.distinct("team", order_by=col("id").desc()).sort("team").to_pydict()["id"] == [3, 4]
    assert people["id"].name() == "id" and people[["id", "pay"]].columns == ["id", "pay"]
    with pytest.raises(ValueError, match="no column `nmae`"):
        people.drop("nmae")


def test_union(people):
    one, two = people.select("id", "team"), people.select("team", "id")
    assert one.union(one).count() == 8 and one.union(one, distinct=True).count() == 4
    assert one.union(two, by_name=True).columns == ["id", "team"]
    assert one.except_(one.filter(col("id") > 1)).to_pydict() == {"id": [1], "team": ["a"]}
    assert one.intersect(one.filter(col("id") > 3)).to_pydict() == {"id": [4], "team": ["b"]}


def test_explode():
    frame = rowmill.from_pydict({"k": [1, 2, 3], "v": [[1, 2], None, [3]]})
    assert frame.explode("v").to_pydict() == {"k": [1, 1, 2, 3], "v": [1, 2, None, 3]}


@pytest.mark.parametrize("how", ["inner", "left", "right", "full", "semi", "anti"])
def test_joins_are_those_of_polars(how):
    left = {"id": [1, 2, 2, 3], "x": ["a", "b", "c", "d"], "both": [1, 2, 3, 4]}
    right = {"id": [2, 3, 4], "y": [20, 30, 40], "both": [5, 6, 7]}
    got = rowmill.from_pydict(left).join(rowmill.from_pydict(right), on="id", how=how)
    want = pl.DataFrame(left).join(pl.DataFrame(right), on="id", how=how, coalesce=True if how in ("right", "full") else None)
    key = lambda row: tuple((value is None, value) for _, value in sorted(row.items()))
    assert sorted(got.to_pylist(), key=key) == sorted(want.to_dicts(), key=key)


def test_joins_by_expressions_and_with_itself(people):
    got = people.join(people, left_on="id", right_on=col("id") + 1, suffix="_before").sort("id")
    assert got.select("id", "id_before").to_pydict() == {"id": [2, 3, 4], "id_before": [1, 2, 3]}
    assert people.join(people, how="cross").count() == 16
    with pytest.raises(rowmill.WorkflowError, match="no join"):
        people.join(people, on="id", how="outside")
    with pytest.raises(ValueError, match="needs `on`"):
        people.join(people)


def test_rows_keep_their_order():
    rows = 1_000_000
    table = pa.table({"x": pa.array(range(rows))})
    got = rowmill.from_arrow(table).filter(col("x") % 2 == 0).with_columns(y=col("x") + 1).collect()
    assert got["x"].to_pylist() == list(range(0, rows, 2))


def test_mistakes_say_what_to_do(people):
    with pytest.raises(rowmill.WorkflowError, match="nmae") as caught:
        people.select("nmae")
    assert caught.value.code and caught.value.fault == "workflow"
    with pytest.raises(AttributeError, match="did you mean `lower`"):
        f.lowre
    with pytest.raises(ValueError, match="int46"):
        col("x").cast("int46")
    with pytest.raises(rowmill.DataError) as caught:
        people.select(col("name").cast("int64")).collect()
    assert caught.value.code == "RM0601" and "TRY_CAST" in caught.value.help[0]
    assert people.select(n=col("name").cast("int64", strict=False)).to_pydict()["n"] == [None] * 4


def test_explain(people):
    frame = people.filter(col("id") > 1)
    assert "Filter" in frame.explain("logical") and "FilterExec" in frame.explain()
    with pytest.raises(ValueError, match="there is no plan"):
        frame.explain("phisical")


def test_cache_computes_once(people):
    calls = []

    def seen(batch):
        calls.append(batch.num_rows)
        return batch

    frame = people.map_batches(seen).cache()
    assert frame.count() == 4 and frame.count() == 4 and len(calls) == 1
