"""Rowmill from Python in ten minutes: run it whole, or cell by cell (`# %%`) in an editor or a notebook.

    pip install ./python-bindings
    python examples/python/tutorial.py
"""

# %% Frames are lazy: they say what to compute, and nothing is read until rows are asked for.
import asyncio
import pathlib
import sys
import tempfile

import numpy as np

import rowmill
from rowmill import col, when
from rowmill import functions as f

folder = pathlib.Path(tempfile.mkdtemp(prefix="rowmill-tutorial-"))
flights = rowmill.from_pydict(
    {
        "id": list(range(1, 9)),
        "carrier": ["AA", "UA", "AA", "DL", "UA", "DL", "AA", "UA"],
        "miles": [1400, 1416, 1089, 762, 719, 1065, 229, 944],
        "delay": [2.0, 4.0, 33.0, -25.0, -4.0, 12.0, None, 90.0],
    }
)
print(flights)
flights.show(3)

# %% Expressions: arithmetic, comparisons, functions, aggregates, windows.
late = flights.filter(col("delay") > 0).with_columns(
    hours=col("delay") / 60,
    how=when(col("delay") > 60).then("very").when(col("delay") > 10).then("rather").otherwise("hardly"),
)
late.show()

by_carrier = (
    flights.group_by("carrier")
    .agg(flights=f.count(), mean_delay=col("delay").mean(), longest=col("miles").max())
    .sort(col("mean_delay").desc())
)
assert by_carrier.to_pydict()["carrier"] == ["UA", "AA", "DL"]
ranked = flights.with_columns(rank=f.row_number().over("carrier", order_by=col("miles").desc()))
assert ranked.filter(col("rank") == 1).count() == 3

# %% SQL finds frames by the names of variables; the answer is a frame again.
carriers = rowmill.from_pydict({"carrier": ["AA", "UA"], "name": ["American", "United"]})
named = rowmill.sql("select name, count(*) as n from flights join carriers using (carrier) group by name order by name")
assert named.to_pydict() == {"name": ["American", "United"], "n": [3, 3]}

# %% Files are written whole or not at all, and read back as frames.
by_carrier.write_parquet(folder / "by_carrier.parquet")
assert rowmill.read_parquet(folder / "by_carrier.parquet").columns == by_carrier.columns


# %% A Python function is a step. Its parameters are columns, its types come from the annotations.
@rowmill.step(effects="pure")
def kilometres(miles: int) -> float:
    return miles * 1.609344


with_km = flights.map(kilometres)
assert with_km.schema["kilometres"] == "float64"


# Functions over numpy, pandas, Polars or Arrow columns are called for whole batches.
@rowmill.step(returns="float64", effects="pure")
def score(miles: np.ndarray, delay: np.ndarray):
    return np.nan_to_num(delay) / miles


assert flights.map(score).count() == 8


# An async function is awaited for many rows at once; a generator gives any number of rows for one.
@rowmill.step(in_flight=100)
async def weather(carrier: str) -> str:
    await asyncio.sleep(0.01)
    return f"sunny at {carrier}"


def legs(miles: int):
    while miles > 0:
        yield min(miles, 500)
        miles -= 500


assert flights.map(weather).to_pydict()["weather"][0] == "sunny at AA"
assert flights.map(legs, returns="int64").count() > flights.count()


# A class is made once in each process, when the first rows come: the place for a model.
@rowmill.step(returns="string")
class Model:
    def __init__(self):
        self.limit = 1000

    def __call__(self, miles: int):
        return "long" if miles > self.limit else "short"


assert flights.map(Model).group_by("Model").count().count() == 2


# %% Errors belong to rows: one bad row need not end the query.
def minutes(delay: float) -> str:
    return f"{int(delay)} min"  # raises for null


try:
    flights.map(minutes).collect()
except rowmill.StepError as error:
    print("as it should be:", error)
assert flights.map(minutes, on_error="skip").count() == 7
assert flights.map(minutes, on_error="default", default="?").to_pydict()["minutes"][6] == "?"
told, failures = flights.map(minutes, on_error="dead_letter").collect_with_failures()
assert told.num_rows == 7 and failures["minutes"]["id"].to_pylist() == [7]
print("put aside:", failures["minutes"]["error_message"][0])

# %% In worker processes functions run beside each other, and one that dies takes only its row with it.
if __name__ == "__main__":

    def fragile(id: int) -> int:
        import os

        if id == 5:
            os._exit(1)
        return id

    survived = flights.map(fragile, workers=2, effects="pure", on_error="skip")
    assert survived.to_pydict()["id"] == [1, 2, 3, 4, 6, 7, 8]

# %% A workflow has named steps, parameters and sinks; it can be said in YAML and run by the command.
flights.write_parquet(folder / "flights.parquet")
workflow = (
    rowmill.Workflow("late-flights")
    .param("least", "int64", 10)
    .source("flights", folder / "flights.parquet")
    .step("late", sql="select * from flights where delay >= $least")
    .step("by_carrier", sql="select carrier, count(*) as n from late group by carrier order by carrier")
    .sink("report", folder / "report.parquet")
)
workflow.check()
run = workflow.run({"least": 4})
print(run)
assert run.sinks["report"].read().to_pydict() == {"carrier": ["AA", "DL", "UA"], "n": [1, 1, 2]}
print(workflow.to_yaml())

# %% A function of a module is a step of a workflow: `module:function` in YAML, called in worker processes.
(folder / "distances.py").write_text(
    """
def kilometres(miles: int) -> float:
    if miles < 500:
        raise ValueError("too short for an aeroplane")
    return miles * 1.609344
"""
)
sys.path.insert(0, str(folder))
import distances  # noqa: E402  (it was written a moment ago)

distant = (
    rowmill.Workflow("distances")
    .source("flights", folder / "flights.parquet")
    .step("far", distances.kilometres, effects="pure", on_error="dead_letter", workers=2)
    .sink("far", folder / "far.parquet")
)
print(distant.to_yaml())

# %% A durable run keeps a journal: what became of each item is known afterwards, and a run that stopped goes on.
rowmill.configure(state__dir=folder / "state")
run = distant.run(durable=True)
print(run)
assert run.status == "succeeded_with_failures" and run.outcomes["far"]["ok"] == 7
lost = run.items("dead_lettered")
lost.select("item", "message", "attempts").show()
assert lost.count() == 1
assert [earlier.id for earlier in rowmill.runs()] == [run.id]
