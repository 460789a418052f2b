"""Caches, lookups, poisoned rows and memory of steps with items: each against a baseline in the same run.

    python3 benches/peers/items.py --target target/release [--parts cache,lookup,poison,memory] [--pairs 3]

cache: a cold run of an HTTP step (1 ms, 64 in flight), then a run in which one item in a hundred changed.
lookup: set queries against PostgreSQL on loopback beside the same step with one item a query, and beside `pgbench`,
which sends one prepared query per item from eight clients.
poison: one item in a hundred fails for good, beside a clean run, for http and lookup.
memory: the peak of a run's resident memory from 1e6 to 1e8 items through a SQL step with an error policy, and from 1e5
to 1e7 through a lookup.
"""

import argparse
import json
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from calls import Server


def run(target: Path, folder: Path, workflow: str, configuration: str, *more: str, expect: tuple = (0,)) -> dict:
    """One run's own report, with `wall_s`, `cpu_s` and `peak_mb` as the system counted them."""
    (folder / "flow.yaml").write_text(workflow, encoding="utf-8")
    (folder / "rowmill.yaml").write_text(configuration, encoding="utf-8")
    command = [str(target / "rowmill"), "run", "flow.yaml", "--output", "json", "--progress", "none", *more]
    report_path = folder / "report.json"
    with report_path.open("wb") as out:
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.monotonic() - started
    report = json.loads(report_path.read_text(encoding="utf-8"))
    if os.waitstatus_to_exitcode(status) not in expect:
        sys.exit(json.dumps(report, indent=2)[:4000])
    report.update(wall_s=wall, cpu_s=usage.ru_utime + usage.ru_stime, peak_mb=usage.ru_maxrss / 1024)
    return report


def http_flow(items: int, in_flight: int, path: str, more: str = "", select: str = "value") -> str:
    return f"""rowmill: 1
name: calls
params: {{changed: {{type: int64, default: 0}}}}
sources: {{numbers: {{range: {{end: {items}}}}}}}
steps:
  asked_for: {{sql: 'SELECT {select} AS value FROM numbers'}}
  called:
    http: {{from: asked_for, connection: server, path: '{path}', response: {{answer: {{json: /value, type: int64}}}}}}
    in_flight: {in_flight}
{more}sinks: {{out: {{from: called, path: out.parquet}}}}
"""


def server_configuration(server: Server) -> str:
    return f"connections: {{server: {{kind: http, base_url: 'http://127.0.0.1:{server.port}'}}}}\n"


def cache(target: Path, pairs: int, items: int) -> None:
    select = "CASE WHEN value % 100 = 7 THEN value + $changed ELSE value END"
    ratios = []
    for pair in range(pairs):
        with Server(target, 1) as server, tempfile.TemporaryDirectory() as name:
            flow = http_flow(items, 64, "/item/{value}", "    cache: {tier: disk}\n", select)
            cold = run(target, Path(name), flow, server_configuration(server))
            again = run(target, Path(name), flow, server_configuration(server), "--set", f"changed={items}")
            outcomes = again["items"][0]["outcomes"]
            assert outcomes["ok"] == items // 100 and outcomes["cached"] == items - items // 100, outcomes
            ratios.append(again["elapsed_s"] / cold["elapsed_s"])
            print(
                f"cache, {items:,} items, pair {pair + 1}: cold {cold['elapsed_s']:.2f} s, 1% changed "
                f"{again['elapsed_s']:.2f} s, ratio {ratios[-1]:.3f}",
                flush=True,
            )
    print(f"cache: median ratio {statistics.median(ratios):.3f} (goal at most 0.10)")


class Postgres:
    """A PostgreSQL server of its own, with a table `t` of a million rows."""

    def __init__(self) -> None:
        binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        self.bin = binaries[-1] if binaries else Path(shutil.which("postgres") or sys.exit("no PostgreSQL")).parent
        self.folder = Path(tempfile.mkdtemp(prefix="rowmill-pg-"))
        shutil.chown(self.folder, "postgres")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.call("initdb", "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync")
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder} -c fsync=off"
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-o", options, "-l", str(self.folder / "log"), "-w", "start")
        self.sql("CREATE TABLE t AS SELECT g::bigint AS k, 'word ' || g AS v FROM generate_series(0, 999999) g")
        self.sql("ALTER TABLE t ADD PRIMARY KEY (k)")
        self.sql("VACUUM ANALYZE t")

    def call(self, name: str, *arguments: str) -> str:
        command = [str(self.bin / name), *arguments]
        done = subprocess.run(command, user="postgres", cwd="/", capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(done.stdout + done.stderr)
        return done.stdout

    def sql(self, text: str) -> str:
        return self.call("psql", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-qc", text)

    def per_item(self, clients: int, seconds: int) -> float:
        script = self.folder / "one.sql"
        script.write_text("\\set k random(0, 999999)\nSELECT v FROM t WHERE k = :k;\n", encoding="utf-8")
        text = self.call(
            "pgbench", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-n", "-M", "prepared", "-f",
            str(script), "-c", str(clients), "-j", "2", "-T", str(seconds), "postgres",
        )
        return float(next(line for line in text.splitlines() if line.startswith("tps")).split()[2])

    def __enter__(self) -> "Postgres":
        return self

    def __exit__(self, *_error: object) -> None:
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")
        shutil.rmtree(self.folder)

    def configuration(self) -> str:
        return f"connections: {{db: {{kind: postgres, url: 'postgres://postgres@127.0.0.1:{self.port}/postgres'}}}}\n"


def lookup_flow(items: int, query: str, more: str = "", select: str = "(value * 7919) % 1000000") -> str:
    return f"""rowmill: 1
name: lookups
sources: {{numbers: {{range: {{end: {items}}}}}}}
steps:
  keys: {{sql: 'SELECT {select} AS k FROM numbers'}}
  found:
    lookup: {{from: keys, connection: db, query: "{query}", types: {{v: string}}}}
{more}sinks: {{out: {{from: found, path: out.parquet}}}}
"""


def lookup(target: Path, pairs: int) -> None:
    with Postgres() as database, tempfile.TemporaryDirectory() as name:
        ratios = []
        for pair in range(pairs):
            bench = max(database.per_item(clients, 4) for clients in (2, 8))
            one = lookup_flow(100_000, "SELECT v FROM t WHERE k = {k}", "    batch: {rows: 1}\n    in_flight: 8\n")
            base = 100_000 / run(target, Path(name), one, database.configuration())["elapsed_s"]
            flow = lookup_flow(1_000_000, "SELECT v FROM t WHERE k = {k}")
            report = run(target, Path(name), flow, database.configuration())
            ours = 1_000_000 / report["elapsed_s"]
            ratios.append(ours / base)
            print(
                f"lookup, pair {pair + 1}: one item a query {base:,.0f}/s, sets {ours:,.0f} items/s, {ours / base:.1f} times "
                f"({ours / bench:.1f} times pgbench's {bench:,.0f}/s); {report['cpu_s']:.2f} CPU s of ours per million",
                flush=True,
            )
        print(f"lookup: median {statistics.median(ratios):.1f} times a query per item (goal 20)")


def poison(target: Path, pairs: int) -> None:
    letters = "    on_error: dead_letter\n"
    ratios = []
    with Server(target, 10) as server, tempfile.TemporaryDirectory() as name:
        for _ in range(pairs):
            clean = run(target, Path(name), http_flow(100_000, 256, "/item/{value}", letters), server_configuration(server))
            bad = run(
                target, Path(name), http_flow(100_000, 256, "/poison/{value}", letters), server_configuration(server),
                expect=(3,),
            )
            assert bad["items"][0]["outcomes"]["dead_lettered"] == 1000, bad["items"][0]
            ratios.append(clean["elapsed_s"] / bad["elapsed_s"])
    print(f"poison, http: 1% fail for good: {statistics.median(ratios):.3f} of the clean rate (goal 0.80)")
    with Postgres() as database, tempfile.TemporaryDirectory() as name:
        flow = lookup_flow(200_000, "SELECT v FROM t WHERE k = {k}", letters)
        ratios, told, missing = [], [], []
        absent = "CASE WHEN value % 100 = 7 THEN value + 2000000 ELSE value END"
        query = "SELECT v FROM t WHERE k = {k}"
        gaps = lookup_flow(200_000, query, letters, absent).replace("types: {v: string}", "types: {v: string}, on_missing: fail")
        divided = lookup_flow(200_000, "SELECT v FROM t WHERE k = {k} AND 1 / (({k} % 100) - 7) < 9", letters, "value")
        for _ in range(pairs):
            clean = run(target, Path(name), flow.replace("(value * 7919) % 1000000", "value"), database.configuration())
            bad = run(target, Path(name), divided, database.configuration(), expect=(3,))
            assert bad["items"][0]["outcomes"]["dead_lettered"] == 2000, bad["items"][0]
            ratios.append(clean["elapsed_s"] / bad["elapsed_s"])
            none = run(target, Path(name), gaps, database.configuration(), expect=(3,))
            assert none["items"][0]["outcomes"]["dead_lettered"] == 2000, none["items"][0]
            missing.append(clean["elapsed_s"] / none["elapsed_s"])
            told.append(bad["items"][0]["calls"])
        print(f"poison, lookup: 1% have no row: {statistics.median(missing):.3f} of the clean rate (goal 0.80)")
        print(
            f"poison, lookup: 1% make the database fail: {statistics.median(ratios):.3f} of the clean rate (goal 0.80), "
            f"{told[0]} queries"
        )


def memory(target: Path) -> None:
    guarded = """rowmill: 1
name: memory
sources: {{numbers: {{range: {{end: {items}}}}}}}
steps:
  words: {{sql: "SELECT value, CAST(value AS VARCHAR) AS word FROM numbers"}}
  parsed: {{sql: 'SELECT value, CAST(word AS BIGINT) + 1 AS y FROM words', on_error: dead_letter}}
sinks: {{out: {{from: parsed, path: out.parquet}}}}
"""
    with tempfile.TemporaryDirectory() as name:
        peaks = []
        for items in (1_000_000, 10_000_000, 100_000_000):
            report = run(target, Path(name), guarded.format(items=items), "{}\n")
            peaks.append(report["peak_mb"])
            print(
                f"memory, SQL with items, {items:>11,}: peak {report['peak_mb']:7.0f} MB, {report['elapsed_s']:6.2f} s, "
                f"{report['cpu_s'] / items * 1e6:.3f} CPU s per million",
                flush=True,
            )
        database = Path(name, "t.db")
        script = (
            "import sqlite3,sys; d=sqlite3.connect(sys.argv[1]); d.execute('create table t(k integer primary key, v text)');"
            "d.executemany('insert into t values(?,?)', ((k, f'word {k}') for k in range(100000))); d.commit()"
        )
        subprocess.run([sys.executable, "-c", script, str(database)], check=True)
        configuration = f"connections: {{db: {{kind: sqlite, url: 'sqlite:{database}'}}}}\n"
        for items in (100_000, 1_000_000, 10_000_000):
            flow = lookup_flow(items, "SELECT v FROM t WHERE k = {k}", select="(value * 7919) % 100000")
            report = run(target, Path(name), flow, configuration)
            print(
                f"memory, lookup, {items:>11,}: peak {report['peak_mb']:7.0f} MB, {report['elapsed_s']:6.2f} s, "
                f"{report['cpu_s'] / items * 1e6:.3f} CPU s per million",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=Path("target/release"))
    parser.add_argument("--parts", default="cache,lookup,poison,memory")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cache-items", type=int, default=1_000_000)
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for part in arguments.parts.split(","):
        match part:
            case "cache":
                cache(target, arguments.pairs, arguments.cache_items)
            case "lookup":
                lookup(target, arguments.pairs)
            case "poison":
                poison(target, arguments.pairs)
            case "memory":
                memory(target)
            case other:
                sys.exit(f"no part `{other}`")


if __name__ == "__main__":
    main()
