#!/usr/bin/env python3
"""Measures Python functions inside a query: Rowmill beside Polars, Daft and Ray Data, in one run, on one machine.

    benches/peers/functions.py --python venv/bin/python --json functions.json

Five questions, each answered by a table:

  batch      x + 1 over ten million float64 values: a function over columns. Ratios are to Polars' `map_batches`.
  row        x + 1 over a million float64 values: a function over values. Ratios are to Daft's `daft.func`.
  async      `asyncio.sleep(0.01)` for a hundred thousand items, 256 at a time, which allows
             3.9 s at best: Daft, which is faster, holds that number for each of its partitions. Ratios are to Daft's
             async `daft.func`; a last row is for four times as many.
  inference  a model that takes 5 s to load; 5 ms of CPU for each of 4,000 items, then 20 ms and 0.2 ms an item, in
             batches, on a device that only one batch can use. Ratios are to the best schedule there is: every core
             computes from the start to the end, the model loads meanwhile, and the last batch comes after that.
  memory     x + 1 over a Parquet file of thirty million float64 values, as a stream. Beside the time, the peak of the
             process's memory counts, over what the imports take.

Data are in memory before the clock starts (in a file, for memory), and the sum of the results, which is checked, is part
of the time. The interpreter of `--python` must have rowmill, and whichever peers are to be measured; the others are reported as not
available. Every peer runs in a process of its own; the best of `--repeat` runs counts.
"""

import argparse
import asyncio
import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import run  # noqa: E402  (the path above finds it)

IN_FLIGHT = 256
LOAD_S, PREPARE_S, CALL_S, CALL_ITEM_S, DEVICE_BATCH = 5.0, 0.005, 0.020, 0.0002, 64
ROWS = {"batch": 10_000_000, "row": 1_000_000, "async": 100_000, "inference": 4_000, "memory": 30_000_000}
BASELINES = {
    "batch": "polars map_batches", "row": "daft func", "async": "daft async func", "inference": "the best schedule",
    "memory": "polars streaming",
}  # fmt: skip


def table(rows: int):
    import numpy
    import pyarrow

    return pyarrow.table({"x": numpy.arange(rows, dtype="float64")})


def rowmill_batch(rows: int, flavor: str):
    import numpy
    import pyarrow
    import pyarrow.compute

    import rowmill

    frame = rowmill.from_arrow(table(rows))

    def by_numpy(x: numpy.ndarray):
        return x + 1.0

    def by_arrow(x: pyarrow.Array):
        return pyarrow.compute.add(x, 1.0)

    function = {"numpy": by_numpy, "arrow": by_arrow}[flavor]
    step = rowmill.step(function, returns="float64", name="y")
    return lambda: frame.map(step).agg(y=rowmill.col("y").sum()).to_pydict()["y"][0]


def polars_batch(rows: int):
    return run.item_polars_map_batches(rows)


def rowmill_row(rows: int, workers: int | None = None):
    import rowmill

    frame = rowmill.from_arrow(table(rows))
    options = {} if workers is None else {"workers": workers}
    # Pure: what may be called again is sent in batches, and not row by row.
    step = rowmill.step(name="y", effects="pure", **options)(plus_one)
    return lambda: frame.map(step).agg(y=rowmill.col("y").sum()).to_pydict()["y"][0]


def plus_one(x: float) -> float:
    return x + 1.0


def polars_row(rows: int):
    import polars

    frame = polars.from_arrow(table(rows))
    step = polars.col("x").map_elements(plus_one, return_dtype=polars.Float64).alias("y")
    return lambda: frame.lazy().select(step).select(polars.col("y").sum()).collect().item()


def daft_row(rows: int):
    import daft

    step = daft.func(return_dtype=daft.DataType.float64())(lambda x: x + 1.0)
    frame = daft.from_arrow(run.arrow_slices(rows, 16)).collect()
    return lambda: frame.select(step(frame["x"]).alias("y")).sum("y").to_pydict()["y"][0]


def ray_row(rows: int):
    import ray

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_arrow(run.arrow_slices(rows, 16))
    return lambda: dataset.map(lambda row: {"y": row["x"] + 1.0}).sum("y")


async def later(x: float) -> float:
    await asyncio.sleep(0.01)
    return x + 1.0


def rowmill_async(rows: int, in_flight: int = IN_FLIGHT):
    import rowmill

    frame = rowmill.from_arrow(table(rows))
    step = rowmill.step(name="y", in_flight=in_flight)(later)
    return lambda: frame.map(step).agg(y=rowmill.col("y").sum()).to_pydict()["y"][0]


def daft_async(rows: int):
    import daft

    step = daft.func(return_dtype=daft.DataType.float64(), max_concurrency=IN_FLIGHT)(later)
    frame = daft.from_arrow(run.arrow_slices(rows, 16)).collect()
    return lambda: frame.select(step(frame["x"]).alias("y")).sum("y").to_pydict()["y"][0]


def plain_asyncio(rows: int):
    async def all_of_them():
        each, total = iter(range(rows)), 0.0

        async def one():
            nonlocal total
            for x in each:
                y = await later(float(x))
                total += y

        await asyncio.gather(*[one() for _ in range(IN_FLIGHT)])
        return total

    return lambda: asyncio.run(all_of_them())


def prepared(x: float) -> float:
    """Takes 5 ms of CPU."""
    end = time.thread_time() + PREPARE_S
    while time.thread_time() < end:
        pass
    return x


class Device:
    """A model on a device: the processor only waits for it."""

    def __init__(self):
        time.sleep(LOAD_S)

    def __call__(self, prepared):
        time.sleep(CALL_S + CALL_ITEM_S * len(prepared))
        import pyarrow.compute

        return pyarrow.compute.add(prepared, 1.0)


def rowmill_inference(rows: int):
    import rowmill

    frame = rowmill.from_arrow(table(rows))
    first = rowmill.step(effects="pure", workers=os.cpu_count(), batch=16, name="prepared")(prepared)
    second = rowmill.step(Device, returns="float64", effects="pure", batch=DEVICE_BATCH, workers=1, name="y")
    return lambda: frame.map(first).map(second).agg(y=rowmill.col("y").sum()).to_pydict()["y"][0]


def best_schedule(rows: int):
    def wait():
        time.sleep(rows * PREPARE_S / os.cpu_count() + CALL_S + CALL_ITEM_S * DEVICE_BATCH)
        return rows * (rows + 1) / 2

    return wait


def values_file(rows: int) -> str:
    import pyarrow.parquet

    path = pathlib.Path(os.environ.get("TMPDIR", "/tmp")) / f"rowmill-functions-{rows}.parquet"
    if not path.exists():
        fresh = path.with_suffix(f".{os.getpid()}")
        pyarrow.parquet.write_table(table(rows), fresh, compression="zstd", row_group_size=1 << 20)
        fresh.rename(path)
    return str(path)


def rowmill_memory(rows: int):
    import numpy

    import rowmill

    path = values_file(rows)

    def plus(x: numpy.ndarray):
        return x + 1.0

    step = rowmill.step(plus, returns="float64", name="y")
    return lambda: rowmill.read_parquet(path).map(step).agg(y=rowmill.col("y").sum()).to_pydict()["y"][0]


def polars_memory(rows: int):
    import polars

    path = values_file(rows)
    step = polars.col("x").map_batches(lambda x: x + 1.0, return_dtype=polars.Float64, is_elementwise=True).alias("y")
    return lambda: polars.scan_parquet(path).select(step).select(polars.col("y").sum()).collect(engine="streaming").item()


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PEERS = {
    "batch": {
        "polars map_batches": polars_batch,
        "daft batch function": run.item_daft_batch_function,
        "ray data map_batches": run.item_ray_data,
        "rowmill, numpy": lambda rows: rowmill_batch(rows, "numpy"),
        "rowmill, arrow": lambda rows: rowmill_batch(rows, "arrow"),
    },
    "row": {
        "polars map_elements": polars_row,
        "daft func": daft_row,
        "ray data map": ray_row,
        "rowmill": rowmill_row,
        "rowmill, a worker per core": lambda rows: rowmill_row(rows, os.cpu_count()),
    },
    "async": {
        "asyncio alone": plain_asyncio,
        "daft async func": daft_async,
        "rowmill": rowmill_async,
        "rowmill, 1,024 in flight": lambda rows: rowmill_async(rows, 1_024),
    },
    "inference": {"the best schedule": best_schedule, "rowmill": rowmill_inference},
    "memory": {"polars streaming": polars_memory, "rowmill": rowmill_memory},
}


def child(task: dict) -> None:
    """Runs one peer and tells its result."""
    try:
        if task["part"] == "memory":
            # Made before anything is measured, by a process of its own.
            os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c",
                      f"import sys; sys.path.insert(0, {str(HERE)!r}); import functions; functions.values_file({task['rows']})")
        work = PEERS[task["part"]][task["peer"]](task["rows"])
        before, seconds = peak_bytes(), []
        for _ in range(task["repeat"]):
            start = time.perf_counter()
            value = work()
            seconds.append(time.perf_counter() - start)
        run.tell(seconds=seconds, value=float(value), peak_bytes=peak_bytes() - before)
    except BaseException as error:  # an engine's panic is not always an Exception
        run.tell(unavailable=run.reason(error))


def measure(part: str, options) -> dict:
    rows = max(1, int(ROWS[part] * options.share))
    wanted = rows * (rows + 1) / 2
    results: dict[str, dict] = {}
    for peer in PEERS[part]:
        if options.only and not any(word in peer for word in options.only):
            continue
        task = {"part": part, "peer": peer, "rows": rows, "repeat": options.repeat}
        lines, trouble = run.spawn([options.python, str(HERE / "functions.py"), "--child", json.dumps(task)], options.limit)
        told = [json.loads(line[len(run.MARK):]) for line in lines if line.startswith(run.MARK)]
        entry = told[0] if told else {"unavailable": trouble or "told nothing"}
        if "seconds" in entry and abs(entry["value"] - wanted) > 1e-9 * wanted:
            entry = {"unavailable": f"wrong checksum: {entry['value']}, expected {wanted:.0f}"}
        results[peer] = entry
    base = results.get(BASELINES[part], {})
    base_s = min(base["seconds"]) if "seconds" in base else None
    print(f"\n{part}: {rows:,} items; ratios are to {BASELINES[part]}, more is faster")
    for peer, entry in results.items():
        if "seconds" not in entry:
            print(f"  {peer:<28} not available: {entry['unavailable']}")
            continue
        best = min(entry["seconds"])
        entry["rows_per_second"] = rows / best
        entry["speed"] = base_s / best if base_s else None
        ratio = f"{entry['speed']:8.2f}x" if base_s else ""
        peak = f"  {entry['peak_bytes'] / 1e6:9.1f} MB" if part == "memory" else ""
        print(f"  {peer:<28} {best:9.3f} s {rows / best / 1e6:10.3f} M/s {ratio}{peak}")
    return {"rows": rows, "baseline": BASELINES[part], "peers": results}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure Python functions inside a query, beside peers.")
    parser.add_argument("--python", default=sys.executable, metavar="PATH", help="an interpreter with rowmill and peers")
    parser.add_argument("--parts", default="batch,row,async,inference,memory", metavar="LIST", help="of batch, row, async, inference, memory")
    parser.add_argument("--only", nargs="*", metavar="WORD", help="peers whose names hold one of these")
    parser.add_argument("--repeat", type=run.check_tpch.positive(int), default=3, metavar="N", help="the best of N counts")
    parser.add_argument("--share", type=run.check_tpch.positive(float), default=1.0, help="share of the items, for a try")
    parser.add_argument("--limit", type=run.check_tpch.positive(float), default=300.0, metavar="S", help="seconds a peer may take")
    parser.add_argument("--json", metavar="FILE", help="also write the results here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.loads(options.child))
        return 0
    parts = options.parts.split(",")
    unknown = set(parts) - set(PEERS)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    results = {part: measure(part, options) for part in parts}
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
