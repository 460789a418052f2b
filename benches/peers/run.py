#!/usr/bin/env python3
"""Measures Rowmill and its peers in one run, on one machine, and prints ratios.

    benches/peers/run.py --rowmill-item target/release/rowmill-bench-item \\
        --rowmill target/release/rowmill --tpchgen target/release/rowmill-tpchgen --json peers.json

Two questions, each answered by a table:

  item   What does the plainest item cost? `x + 1` over float64 values in memory, and a checksum of the results.
         Ratios are to numpy on one core, measured in the same run.
  tpch   What does SQL cost? The 22 TPC-H queries over Parquet files. Ratios are to DuckDB in the same run.

Every peer runs in a process of its own with a time limit; one that cannot be had is a row that says why. How each
one is called, and what the numbers leave out: README.md.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import venv

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tools"))
import check_tpch  # noqa: E402  (the path above finds it)

REQUIREMENTS = HERE / "requirements.txt"
MARK = "PEER "  # begins a child's line that is for us; engines print lines of their own


# --- The peers of `item`: each returns a function that does the work once and returns the checksum -------------------


def item_numpy(rows: int):
    import numpy

    x = numpy.arange(rows, dtype="float64")
    # Allocated once: fresh pages would cost more than the work, and the baseline is to be what the machine can do.
    y = numpy.empty_like(x)
    return lambda: float(numpy.add(x, 1.0, out=y).sum())


def item_polars_expression(rows: int):
    import numpy
    import polars

    frame = polars.DataFrame({"x": numpy.arange(rows, dtype="float64")})
    step, total = (polars.col("x") + 1.0).alias("y"), polars.col("y").sum()
    return lambda: frame.lazy().select(step).select(total).collect().item()


def item_polars_map_batches(rows: int):
    import numpy
    import polars

    frame = polars.DataFrame({"x": numpy.arange(rows, dtype="float64")})

    def work():
        step = polars.col("x").map_batches(lambda values: values + 1.0, return_dtype=polars.Float64).alias("y")
        return frame.lazy().select(step).select(polars.col("y").sum()).collect().item()

    return work


def item_duckdb(rows: int):
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"CREATE TABLE items AS SELECT CAST(range AS double) AS x FROM range({rows})")
    return lambda: connection.execute("SELECT sum(y) FROM (SELECT x + 1.0::double AS y FROM items)").fetchall()[0][0]


def arrow_slices(rows: int, count: int):
    """The items as `count` Arrow tables of about the same size."""
    import numpy
    import pyarrow

    table = pyarrow.table({"x": numpy.arange(rows, dtype="float64")})
    size = max(1, math.ceil(rows / count))
    return [table.slice(start, size) for start in range(0, rows, size)]


def item_datafusion(rows: int):
    import datafusion

    context = datafusion.SessionContext()
    slices = arrow_slices(rows, os.cpu_count() or 1)
    context.register_record_batches("items", [piece.to_batches(max_chunksize=8192) for piece in slices])
    query = "SELECT sum(y) AS total FROM (SELECT x + 1.0 AS y FROM items)"
    return lambda: context.sql(query).to_pydict()["total"][0]


def item_daft_expression(rows: int):
    import daft

    frame = daft.from_arrow(arrow_slices(rows, 16)).collect()
    return lambda: frame.select((daft.col("x") + 1.0).alias("y")).sum("y").to_pydict()["y"][0]


def item_daft_batch_function(rows: int):
    import daft
    import pyarrow.compute

    @daft.func.batch(return_dtype=daft.DataType.float64())
    def add_one(x):
        return pyarrow.compute.add(x.to_arrow(), 1.0)

    frame = daft.from_arrow(arrow_slices(rows, 16)).collect()
    return lambda: frame.select(add_one(frame["x"]).alias("y")).sum("y").to_pydict()["y"][0]


def item_ray_data(rows: int):
    import ray

    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    dataset = ray.data.from_arrow(arrow_slices(rows, 16))
    return lambda: dataset.map_batches(lambda batch: {"y": batch["x"] + 1.0}, batch_format="numpy").sum("y")


ITEM_PEERS = {
    "numpy, one core": item_numpy,
    "polars expression": item_polars_expression,
    "polars map_batches": item_polars_map_batches,
    "duckdb": item_duckdb,
    "datafusion": item_datafusion,
    "daft expression": item_daft_expression,
    "daft batch function": item_daft_batch_function,
    "ray data map_batches": item_ray_data,
}
ITEM_BASELINE = "numpy, one core"


# --- The peers of `tpch`: each returns a function that runs a query and returns its number of rows -------------------


def tpch_duckdb(data: pathlib.Path):
    connection = check_tpch.connect(data)
    return lambda sql: len(connection.execute(sql).fetchall())


def tpch_datafusion(data: pathlib.Path):
    import datafusion

    context = datafusion.SessionContext()
    for table in check_tpch.TABLES:
        context.register_parquet(table, str(data / f"{table}.parquet"))
    return lambda sql: sum(batch.num_rows for batch in context.sql(sql).collect())


def tpch_polars(data: pathlib.Path):
    import polars

    context = polars.SQLContext({table: polars.scan_parquet(data / f"{table}.parquet") for table in check_tpch.TABLES})
    return lambda sql: context.execute(sql).collect().height


TPCH_PEERS = {"duckdb": tpch_duckdb, "datafusion": tpch_datafusion, "polars": tpch_polars}
TPCH_BASELINE = "duckdb"


# --- A child: one peer of one part ------------------------------------------------------------------------------------


def tell(**fields) -> None:
    print(MARK + json.dumps(fields), flush=True)


def reason(error: BaseException) -> str:
    """The first line of an error, short enough for a table."""
    text = f"{type(error).__name__}: {error}".strip()
    return next((line.strip() for line in text.splitlines() if line.strip()), "no message")[:200]


def child(task: dict) -> None:
    """Runs one peer and tells each result as soon as it is there. Errors are results too."""
    try:
        if task["part"] == "item":
            work = ITEM_PEERS[task["peer"]](task["rows"])
        else:
            work = TPCH_PEERS[task["peer"]](pathlib.Path(task["data"]))
    except BaseException as error:  # an engine's panic is not always an Exception
        tell(unavailable=reason(error))
        return
    jobs = [(None, None)] if task["part"] == "item" else [(query, sql) for query, sql in task["queries"]]
    for query, sql in jobs:
        try:
            seconds = []
            for _ in range(task["repeat"]):
                start = time.perf_counter()
                value = work() if sql is None else work(sql)
                seconds.append(time.perf_counter() - start)
            tell(query=query, seconds=seconds, value=value)
        except BaseException as error:
            tell(query=query, unavailable=reason(error))


def spawn(command: list[str], limit_s: float) -> tuple[list[str], str | None]:
    """Runs a command to its end or its limit. Returns the lines it wrote, and what went wrong, if anything."""
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
    except OSError as error:
        return [], f"cannot run {command[0]}: {error.strerror}"
    late = threading.Event()

    def stop() -> None:
        # Politely first: an engine with processes of its own needs a moment to end them.
        late.set()
        for sign, wait_s in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 15.0)):
            try:
                os.killpg(process.pid, sign)
                process.wait(wait_s)
                return
            except subprocess.TimeoutExpired:
                continue
            except ProcessLookupError:
                return

    timer = threading.Timer(limit_s, stop)
    timer.start()
    stdout, stderr = process.communicate()
    timer.cancel()
    if late.is_set():
        return stdout.splitlines(), f"stopped after {limit_s:g} s"
    if process.returncode != 0:
        last = (stderr.strip().splitlines() or ["no message"])[-1]
        return stdout.splitlines(), f"exit status {process.returncode}: {last[:200]}"
    return stdout.splitlines(), None


def run_peer(python: str, task: dict, limit_s: float) -> tuple[list[dict], str | None]:
    """Runs a peer in a child. Returns what it told, and why it told no more, if it did not finish."""
    lines, trouble = spawn([python, str(HERE / "run.py"), "--child", json.dumps(task)], limit_s)
    told = [json.loads(line[len(MARK):]) for line in lines if line.startswith(MARK)]
    for entry in told:
        if "query" not in entry:
            return [], entry["unavailable"]
    return told, trouble


# --- The parts --------------------------------------------------------------------------------------------------------


def measure_item(options, python: str) -> dict:
    rows = options.rows
    wanted = rows * (rows + 1) / 2
    results: dict[str, dict] = {}

    def record(peer: str, told: list[dict], trouble: str | None) -> None:
        entry = told[0] if told else {}
        if "seconds" not in entry:
            results[peer] = {"unavailable": entry.get("unavailable") or trouble or "told nothing"}
        elif not isinstance(entry["value"], (int, float)) or abs(entry["value"] - wanted) > 1e-9 * wanted:
            results[peer] = {"unavailable": f"wrong checksum: {entry['value']}, expected {wanted:.0f}"}
        else:
            best = min(entry["seconds"])
            results[peer] = {"seconds": best, "rows_per_second": rows / best, "all_seconds": entry["seconds"]}

    for peer in ITEM_PEERS:
        if wants(options, peer):
            task = {"part": "item", "peer": peer, "rows": rows, "repeat": options.repeat}
            record(peer, *run_peer(python, task, options.limit))
    if options.rowmill_item:
        lines, trouble = spawn([*shlex.split(options.rowmill_item), "--json", "--rows", str(rows)], options.limit)
        told = []
        for line in lines:
            try:
                entry = json.loads(line)
                seconds = entry["seconds"]
                told = [{"seconds": seconds if isinstance(seconds, list) else [seconds], "value": entry["checksum"]}]
            except (ValueError, KeyError, TypeError):
                continue
        record("rowmill", told, trouble or "wrote no JSON line with `seconds` and `checksum`")
    elif wants(options, "rowmill"):
        results["rowmill"] = {"unavailable": "no --rowmill-item given"}

    base = results.get(ITEM_BASELINE, {}).get("seconds")
    for result in results.values():
        if base and "seconds" in result:
            result["ratio"] = result["seconds"] / base
    return {"rows": rows, "baseline": ITEM_BASELINE, "peers": results}


def measure_tpch(options, python: str, data: pathlib.Path, scratch: pathlib.Path) -> dict:
    queries = [(query, check_tpch.reference_sql(query, options.scale)) for query in options.queries]
    results: dict[str, dict] = {}
    for peer in TPCH_PEERS:
        if not wants(options, peer):
            continue
        task = {"part": "tpch", "peer": peer, "data": str(data), "queries": queries, "repeat": options.repeat}
        told, trouble = run_peer(python, task, options.limit)
        found = {entry["query"]: entry for entry in told}
        results[peer] = {
            query: {"seconds": min(found[query]["seconds"]), "rows": found[query]["value"]}
            if "seconds" in found.get(query, {})
            else {"unavailable": found.get(query, {}).get("unavailable") or trouble or "told nothing"}
            for query, _ in queries
        }
    if options.rowmill:
        inside, whole = {}, {}
        deadline = time.monotonic() + options.limit
        for query, _ in queries:
            try:
                runs = []
                for _ in range(options.repeat):
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise check_tpch.Failure(f"stopped after {options.limit:g} s")
                    runs.append(check_tpch.run_rowmill(options.rowmill, query, options.scale, data, scratch, left))
                whole[query] = {"seconds": min(seconds for seconds, _ in runs)}
                reported = [seconds for _, seconds in runs if seconds is not None]
                inside[query] = {"seconds": min(reported)} if reported else {"unavailable": "no time in the output"}
            except check_tpch.Failure as failure:
                whole[query] = inside[query] = {"unavailable": reason(failure).removeprefix("Failure: ")}
        results["rowmill, as reported"], results["rowmill, process"] = inside, whole
    elif wants(options, "rowmill"):
        results["rowmill"] = {query: {"unavailable": "no --rowmill given"} for query, _ in queries}

    base = results.get(TPCH_BASELINE, {})
    totals = {}
    for peer, entries in results.items():
        shared = []
        for query, entry in entries.items():
            reference = base.get(query, {})
            if "seconds" in entry and "seconds" in reference:
                if entry.get("rows", reference["rows"]) != reference["rows"]:
                    entries[query] = {"unavailable": f"{entry['rows']} rows, {TPCH_BASELINE} has {reference['rows']}"}
                    continue
                entry["ratio"] = entry["seconds"] / reference["seconds"]
                shared.append((entry["seconds"], reference["seconds"]))
        if shared:
            mine, theirs = (sum(column) for column in zip(*shared))
            totals[peer] = {"queries": len(shared), "seconds": mine, "ratio": mine / theirs}
    return {"scale": options.scale, "baseline": TPCH_BASELINE, "peers": results, "totals": totals}


def wants(options, peer: str) -> bool:
    """Whether `--peers` asks for it: by its first word."""
    return not options.peers or peer.split()[0].rstrip(",") in options.peers


# --- Printing ---------------------------------------------------------------------------------------------------------


def print_item(result: dict, repeat: int) -> None:
    print(f"\nitem: x + 1 over {result['rows']:,} float64 and a checksum, best of {repeat}\n")
    print(f"  {'peer':<24}{'seconds':>10}{'Mrows/s':>12}{'to numpy':>12}")
    for peer, entry in result["peers"].items():
        if "seconds" in entry:
            ratio = f"{entry['ratio']:.2f}" if "ratio" in entry else "-"
            print(f"  {peer:<24}{entry['seconds']:>10.4f}{entry['rows_per_second'] / 1e6:>12.1f}{ratio:>12}")
        else:
            print(f"  {peer:<24}  not available: {entry['unavailable']}")


def print_tpch(result: dict, repeat: int) -> None:
    peers = result["peers"]
    baseline = result["baseline"]
    print(f"\ntpch: scale {result['scale']:g} from Parquet, seconds (ratio to {baseline}), best of {repeat}\n")
    print("  query " + "".join(f"{peer:>24}" for peer in peers))
    notes: dict[str, list[str]] = {}
    for query in next(iter(peers.values()), {}):
        cells = []
        for peer, entries in peers.items():
            entry = entries[query]
            if "seconds" in entry:
                ratio = f" ({entry['ratio']:.2f})" if "ratio" in entry else ""
                cells.append(f"{entry['seconds']:.3f}{ratio}")
            else:
                cells.append("-")
                notes.setdefault(f"{peer}: not available: {entry['unavailable']}", []).append(f"q{query:02}")
        print(f"  q{query:02}   " + "".join(f"{cell:>24}" for cell in cells))
    cells = []
    for peer in peers:
        total = result["totals"].get(peer)
        cells.append(f"{total['seconds']:.3f} ({total['ratio']:.2f}) of {total['queries']}" if total else "-")
    print("  total " + "".join(f"{cell:>24}" for cell in cells))
    for note, queries in notes.items():
        print(f"  {', '.join(queries)}: {note}")


# --- The program ------------------------------------------------------------------------------------------------------


def prepare_venv(folder: pathlib.Path) -> str:
    """Makes the peers' environment, or brings it up to the requirements. Returns its Python."""
    python = folder / "bin" / "python"
    marker = folder / "requirements.txt"
    wanted = REQUIREMENTS.read_text()
    if python.exists() and marker.exists() and marker.read_text() == wanted:
        return str(python)
    print(f"installing the peers into {folder}", file=sys.stderr)
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    if subprocess.run([*install, "-r", str(REQUIREMENTS)]).returncode == 0:
        marker.write_text(wanted)
        return str(python)
    # One that cannot be had must not take the others with it; its row will say that it is missing.
    for line in wanted.splitlines():
        if line.strip() and not line.startswith("#"):
            subprocess.run([*install, line.strip()])
    return str(python)


def versions(python: str) -> dict:
    """Versions of the peers that are installed."""
    names = ["duckdb", "polars", "daft", "ray", "datafusion", "pyarrow", "numpy"]
    code = ("import importlib.metadata as m, json, sys\nfound = {}\nfor name in json.loads(sys.argv[1]):\n"
            "    try: found[name] = m.version(name)\n    except m.PackageNotFoundError: pass\nprint(json.dumps(found))")
    done = subprocess.run([python, "-c", code, json.dumps(names)], capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def parse_options():
    parser = argparse.ArgumentParser(description="Measure Rowmill and its peers in one run.")
    number, count = check_tpch.positive(float), check_tpch.positive(int)
    parser.add_argument("--parts", default="item,tpch", metavar="LIST", help="item, tpch or both")
    parser.add_argument("--peers", metavar="LIST", help="only these, such as duckdb,polars,rowmill")
    parser.add_argument("--repeat", type=count, default=3, metavar="N", help="runs of each; the best counts (3)")
    parser.add_argument("--limit", type=number, default=600.0, metavar="S", help="seconds a peer has for a part (600)")
    parser.add_argument("--rows", type=count, default=10_000_000, metavar="N", help="items of the item part (1e7)")
    parser.add_argument("--rowmill-item", metavar="CMD", help="called with `--json --rows N`; see README.md")
    parser.add_argument("--rowmill", metavar="PATH", help="the rowmill binary, for the tpch part")
    parser.add_argument("--tpchgen", metavar="PATH", help="the rowmill-tpchgen binary, to make the tables")
    parser.add_argument("--data", metavar="DIR", help="where the tables are or will be kept")
    parser.add_argument("--scale", type=number, default=1.0, help="TPC-H scale factor (1)")
    parser.add_argument("--queries", type=check_tpch.parse_queries, default=check_tpch.parse_queries("1-22"),
                        metavar="LIST", help="such as 1,3-5; all where absent")
    parser.add_argument("--venv", type=pathlib.Path, default=HERE / ".venv", metavar="DIR")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write everything here")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - {"item", "tpch"}:
        parser.error(f"--parts: `{unknown.pop()}` is neither item nor tpch")
    if options.peers:
        options.peers = options.peers.split(",")
        known = {peer.split()[0].rstrip(",") for peer in (*ITEM_PEERS, *TPCH_PEERS, "rowmill")}
        if unknown := set(options.peers) - known:
            parser.error(f"--peers: `{unknown.pop()}` is none of {', '.join(sorted(known))}")
    if not options.child and "tpch" in options.parts and not (options.tpchgen or options.data):
        parser.error("the tpch part needs --tpchgen to make the tables, or --data where they are")
    return options


def main() -> int:
    options = parse_options()
    if options.child:
        child(json.loads(options.child))
        return 0
    # The virtual environment's own Python is meant, not what it links to.
    python = prepare_venv(options.venv.absolute())
    report = {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": versions(python),
        "repeat": options.repeat,
    }
    if "item" in options.parts:
        report["item"] = measure_item(options, python)
        print_item(report["item"], options.repeat)
    if "tpch" in options.parts:
        with tempfile.TemporaryDirectory(prefix="rowmill-peers-") as scratch:
            data = pathlib.Path(options.data or pathlib.Path(scratch) / "data").absolute()
            data.mkdir(parents=True, exist_ok=True)
            if options.tpchgen:
                check_tpch.generate(os.path.abspath(options.tpchgen), options.scale, data)
            if missing := [table for table in check_tpch.TABLES if not (data / f"{table}.parquet").exists()]:
                check_tpch.fail(f"no {missing[0]}.parquet in {data}; give --tpchgen to make the tables")
            if options.rowmill:
                options.rowmill = os.path.abspath(options.rowmill)
            out = pathlib.Path(scratch) / "out"
            out.mkdir()
            report["tpch"] = measure_tpch(options, python, data, out)
            print_tpch(report["tpch"], options.repeat)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
