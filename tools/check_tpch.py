#!/usr/bin/env python3
"""Runs the 22 TPC-H workflows and holds their results against DuckDB's.

    cargo build --release -p rowmill-cli -p rowmill-examples
    tools/check_tpch.py --rowmill target/release/rowmill --tpchgen target/release/rowmill-tpchgen --venv /tmp/tpch-venv

The data is made by `rowmill-tpchgen`. Each `examples/tpch/qNN.yaml` runs as a process of its own, and the file that it
writes is compared with what DuckDB answers to `examples/tpch/reference/qNN.sql`, which is the text of the
specification and shares nothing with the workflow.

Rows must come in the order that the query asks for; rows that it leaves tied may come in any order, and a LIMIT may cut
a tie anywhere. Values must be equal; two floats may differ by a relative 1e-9. Where one side has a float and the other
a decimal (the mean of decimals is a float in DuckDB and a decimal with four more digits in DataFusion), they may also
differ by one unit in the decimal's last place.

Prints one line a query and closes with `N passed, N failed`. Exit status: 0 all passed, 1 something failed, 2 wrong
usage or missing tools.
"""

import argparse
import contextlib
import datetime
import decimal
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / "examples" / "tpch"
TABLES = ("lineitem", "orders", "partsupp", "customer", "part", "supplier", "nation", "region")
REQUIREMENTS = {"duckdb": "duckdb==2.0.0", "pyarrow": "pyarrow==25.0.1"}

# Positions, in the result, of the columns of each query's ORDER BY; queries without one have a single row.
SORT_KEYS = {
    1: (0, 1), 2: (0, 2, 1, 3), 3: (1, 2), 4: (0,), 5: (1,), 6: (), 7: (0, 1, 2), 8: (0,), 9: (0, 1), 10: (2,),
    11: (1,), 12: (0,), 13: (1, 0), 14: (), 15: (0,), 16: (3, 0, 1, 2), 17: (), 18: (4, 3), 19: (), 20: (0,),
    21: (1, 0), 22: (0,),
}
LIMIT = re.compile(r"\nlimit (\d+)\s*;?\s*$")
RELATIVE_TOLERANCE = 1e-9


class Failure(Exception):
    """What is wrong with one query, in a sentence."""


def fail(message: str) -> None:
    """Ends the program: wrong usage, or a tool is missing."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# --- The pieces that benches/peers also uses -------------------------------------------------------------------------


def fraction(scale: float) -> str:
    """The share of query 11: 0.0001 divided by the scale factor, as the decimal(12, 10) that the workflow declares."""
    return f"{decimal.Decimal('0.0001') / decimal.Decimal(repr(scale)):.10f}"


def reference_sql(query: int, scale: float) -> str:
    """The specification's text of a query, ready to run, without a closing semicolon."""
    text = (WORKFLOWS / "reference" / f"q{query:02}.sql").read_text()
    text = text.replace("cast($fraction as decimal(12, 10))", f"cast('{fraction(scale)}' as decimal(12, 10))")
    return text.rstrip().removesuffix(";")


def generate(tpchgen: str, scale: float, data: pathlib.Path) -> None:
    """Makes the tables in `data`, unless those of this scale are there already."""
    marker = data / "scale.json"
    wanted = {"scale": scale, "tables": list(TABLES)}
    try:
        if json.loads(marker.read_text()) == wanted:
            return
    except (OSError, ValueError):
        pass
    marker.unlink(missing_ok=True)
    done = subprocess.run([tpchgen, "--scale", repr(scale), "--out", str(data)], capture_output=True, text=True)
    if done.returncode != 0:
        fail(f"{tpchgen} ended with {done.returncode}: {done.stderr.strip()}")
    marker.write_text(json.dumps(wanted))


def connect(data: pathlib.Path):
    """A DuckDB connection that sees the tables as views."""
    import duckdb

    connection = duckdb.connect()
    for table in TABLES:
        path = str(data / f"{table}.parquet").replace("'", "''")
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{path}')")
    return connection


def elapsed_seconds(stdout: str) -> float | None:
    """The time that a run reports in `--output json`: in the last JSON object of the output."""
    try:
        report = json.loads(stdout)
    except ValueError:
        lines = [line for line in stdout.splitlines() if line.startswith("{")]
        try:
            report = json.loads(lines[-1]) if lines else None
        except ValueError:
            report = None
    if not isinstance(report, dict):
        return None
    for key, unit in (("elapsed_ms", 1e-3), ("elapsed_s", 1.0), ("elapsed_seconds", 1.0), ("elapsed", 1.0)):
        if isinstance(report.get(key), (int, float)):
            return report[key] * unit
    return None


# What stands in the environment of every run: where a cluster's folder is, if there is one.
ENVIRONMENT: dict[str, str] = {}


def run_rowmill(rowmill: str, query: int, scale: float, data: pathlib.Path, out: pathlib.Path, limit_s: float):
    """Runs one workflow. Returns (seconds of the whole process, seconds that it reports or None)."""
    command = [rowmill, "run", str(WORKFLOWS / f"q{query:02}.yaml"), "--output", "json",
               "--set", f"data={data}", "--set", f"out={out}"]
    if query == 11:
        command += ["--set", f"fraction={fraction(scale)}"]
    result = out / f"q{query:02}.parquet"
    result.unlink(missing_ok=True)
    start = time.perf_counter()
    try:
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment)
    except subprocess.TimeoutExpired:
        raise Failure(f"still running after {limit_s:g} s") from None
    except OSError as error:
        raise Failure(f"cannot run {rowmill}: {error}") from None
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no output")[-2000:]
        raise Failure(f"exit status {done.returncode}: {words}")
    if not result.is_file():
        raise Failure(f"exit status 0, but {result} is not there")
    return seconds, elapsed_seconds(done.stdout)


@contextlib.contextmanager
def cluster(rowmill: str, executors: str | None, scratch: pathlib.Path):
    """A cluster on this machine, on which runs go while it is there; nothing where no executors are asked for."""
    if not executors:
        yield
        return
    ENVIRONMENT["ROWMILL_STATE__DIR"] = str(scratch / "state")
    environment = {**os.environ, **ENVIRONMENT}
    command = [rowmill, "cluster", "up", "--port", "0", "--executors", executors]
    up = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if up.returncode != 0:
        fail(f"the cluster did not come up: {up.stderr.strip()}")
    ENVIRONMENT["ROWMILL_CLUSTER"] = "local"
    try:
        yield
    finally:
        subprocess.run([rowmill, "cluster", "down"], env=environment, stdout=subprocess.DEVNULL)


# --- Comparing -------------------------------------------------------------------------------------------------------


def close(got, want) -> bool:
    """Whether two values are equal, as the head of this file defines it."""
    if got is None or want is None:
        return got is want
    numbers = (int, float, decimal.Decimal)
    if isinstance(got, numbers) and isinstance(want, numbers) and not isinstance(got, bool):
        if not isinstance(got, float) and not isinstance(want, float):
            return got == want
        one, other = float(got), float(want)
        if math.isnan(one) or math.isnan(other):
            return math.isnan(one) and math.isnan(other)
        tolerance = RELATIVE_TOLERANCE * max(abs(one), abs(other))
        for value in (got, want):
            if isinstance(value, decimal.Decimal):
                tolerance += 10.0 ** value.as_tuple().exponent
        return abs(one - other) <= tolerance
    return type(got) is type(want) and got == want


def compare(got: list[tuple], full: list[tuple], limit: int | None, keys: tuple[int, ...]) -> None:
    """Holds `got` against `full`, the reference result before its LIMIT. Raises [`Failure`] at the first difference."""
    expected = len(full) if limit is None else min(limit, len(full))
    if len(got) != expected:
        raise Failure(f"{len(got)} rows, expected {expected}")
    if got and len(got[0]) != len(full[0]):
        raise Failure(f"{len(got[0])} columns, expected {len(full[0])}")
    start = 0
    while start < expected:
        # The run of rows of `full` that tie with row `start`.
        end = start + 1
        while end < len(full) and all(close(full[end][key], full[start][key]) for key in keys):
            end += 1
        unmatched = full[start:end]
        for at in range(start, min(end, expected)):
            match = next((row for row in unmatched if all(map(close, got[at], row))), None)
            if match is None:
                nearest = full[at]
                column = next((n for n, pair in enumerate(zip(got[at], nearest)) if not close(*pair)), None)
                where = "" if column is None else f", column {column + 1}"
                raise Failure(f"row {at + 1}{where}: got {show(got[at])}, expected {show(nearest)}")
            unmatched.remove(match)
        start = end


def show(row: tuple) -> str:
    words = ", ".join(str(v) if isinstance(v, (datetime.date, decimal.Decimal)) else repr(v) for v in row)
    return f"({words})"


# --- The program -----------------------------------------------------------------------------------------------------


def check(query: int, options, data: pathlib.Path, out: pathlib.Path, connection) -> dict:
    """Runs and compares one query; with `--time`, also its times. Raises [`Failure`]."""
    import pyarrow.parquet

    wall, reported = run_rowmill(options.rowmill, query, options.scale, data, out, options.limit)
    table = pyarrow.parquet.read_table(out / f"q{query:02}.parquet", partitioning=None)
    got = list(zip(*(column.to_pylist() for column in table.columns)))

    sql = reference_sql(query, options.scale)
    cut = LIMIT.search(sql)
    full = connection.execute(LIMIT.sub("", sql)).fetchall()
    compare(got, full, int(cut[1]) if cut else None, SORT_KEYS[query])
    outcome = {"query": query, "rows": len(got)}
    if options.time:
        runs = [(wall, reported)]
        while len(runs) < options.time:
            runs.append(run_rowmill(options.rowmill, query, options.scale, data, out, options.limit))
        outcome["wall_s"] = min(seconds for seconds, _ in runs)
        inside = [seconds for _, seconds in runs if seconds is not None]
        outcome["reported_s"] = min(inside) if inside else None
        peer = []
        for _ in range(options.time):
            start = time.perf_counter()
            connection.execute(sql).fetchall()
            peer.append(time.perf_counter() - start)
        outcome["duckdb_s"] = min(peer)
        outcome["ratio"] = ours(outcome) / outcome["duckdb_s"]
    return outcome


def ours(outcome: dict) -> float:
    """The time that a run reports, or where it reports none that of the whole process."""
    return outcome["wall_s"] if outcome["reported_s"] is None else outcome["reported_s"]


def times(outcome: dict) -> str:
    if "wall_s" not in outcome:
        return ""
    inside = outcome["reported_s"]
    inside = "not reported" if inside is None else f"{inside:.3f} s"
    return (f"  rowmill {inside} (process {outcome['wall_s']:.3f} s)  duckdb {outcome['duckdb_s']:.3f} s"
            f"  ratio {outcome['ratio']:.2f}")


def parse_queries(text: str) -> list[int]:
    """`1,3-5` to [1, 3, 4, 5]."""
    queries = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if not match or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 22:
            raise argparse.ArgumentTypeError(f"`{piece}` is not a query from 1 to 22, nor a range of them")
        queries.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(queries)


def positive(kind):
    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"`{text}` is not a number above zero")
        return value

    return parse


def parse_options(arguments=None):
    parser = argparse.ArgumentParser(description="Hold the TPC-H workflows' results against DuckDB's.")
    parser.add_argument("--rowmill", required=True, metavar="PATH", help="the rowmill binary")
    parser.add_argument("--tpchgen", required=True, metavar="PATH", help="the rowmill-tpchgen binary")
    parser.add_argument("--scale", type=positive(float), default=0.01, help="scale factor, 0.01 where absent")
    parser.add_argument("--data", metavar="DIR", help="keep the tables here, for the next time")
    parser.add_argument("--queries", type=parse_queries, default=parse_queries("1-22"), metavar="LIST",
                        help="such as 1,3-5; all where absent")
    parser.add_argument("--time", type=positive(int), metavar="N", help="also print times, the best of N runs")
    parser.add_argument("--limit", type=positive(float), default=600.0, metavar="S", help="seconds a run may take")
    parser.add_argument("--cluster", metavar="EXECUTORS", help="run on a cluster of these, such as cpu=2,io=1")
    parser.add_argument("--venv", metavar="DIR", help="where to install duckdb and pyarrow, if Python lacks them")
    parser.add_argument("--json", metavar="FILE", help="also write the outcomes here")
    return parser.parse_args(arguments)


def missing() -> list[str]:
    import importlib.util

    return [requirement for name, requirement in REQUIREMENTS.items() if importlib.util.find_spec(name) is None]


def ensure_packages(options) -> None:
    """Goes on in the virtual environment of `--venv` if this Python lacks a package."""
    if not missing():
        return
    if not options.venv:
        fail(f"this Python has no {' and no '.join(missing())}; install them, or give --venv DIR")
    folder = pathlib.Path(options.venv).resolve()
    python = folder / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() != folder:
        if not python.exists():
            venv.create(folder, with_pip=True)
        os.execv(python, [str(python), *sys.argv])
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *missing()])
    if done.returncode != 0:
        fail(f"pip could not install {' '.join(missing())}")


def main() -> int:
    options = parse_options()
    ensure_packages(options)
    for tool in (options.rowmill, options.tpchgen):
        if not os.access(tool, os.X_OK) or os.path.isdir(tool):
            fail(f"`{tool}` is not a program; build it with `cargo build --release`")
    options.rowmill, options.tpchgen = os.path.abspath(options.rowmill), os.path.abspath(options.tpchgen)

    outcomes = []
    with tempfile.TemporaryDirectory(prefix="rowmill-tpch-") as scratch:
        data = pathlib.Path(options.data or pathlib.Path(scratch) / "data").resolve()
        out = pathlib.Path(scratch) / "out"
        data.mkdir(parents=True, exist_ok=True)
        out.mkdir()
        generate(options.tpchgen, options.scale, data)
        connection = connect(data)
        with cluster(options.rowmill, options.cluster, pathlib.Path(scratch)):
            for query in options.queries:
                try:
                    outcome = check(query, options, data, out, connection)
                    print(f"q{query:02} passed  {outcome['rows']:>6} rows{times(outcome)}", flush=True)
                except Failure as failure:
                    outcome = {"query": query, "failure": str(failure)}
                    print(f"q{query:02} FAILED  {failure}", flush=True)
                outcomes.append(outcome)

    timed = [outcome for outcome in outcomes if "wall_s" in outcome]
    if timed:
        mine = sum(map(ours, timed))
        theirs = sum(outcome["duckdb_s"] for outcome in timed)
        print(f"total of {len(timed)}: rowmill {mine:.3f} s  duckdb {theirs:.3f} s  ratio {mine / theirs:.2f}")
    failed = sum("failure" in outcome for outcome in outcomes)
    if options.json:
        report = {"scale": options.scale, "outcomes": outcomes}
        pathlib.Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
