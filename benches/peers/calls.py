"""HTTP for each item: `rowmill run` beside `wrk` on the same server, in pairs, medians printed.

    python3 benches/peers/calls.py --target target/release [--items 100000] [--pairs 3] [--in-flight 256]

`wrk` makes as many requests a second as the server and the machine give to so many connections; Rowmill's rate counts
from the first to the last item of a whole run, with per-item outcomes. Further: a cap of 1,000 requests a second, with
the fullest second as the server saw it; a server that fails one request in a hundred; and one that tells one item to come
again in 60 s (`--skip-slow` passes that over), with the rate of all others as the server saw it.
"""

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

WORKFLOW = """rowmill: 1
name: calls
sources: {{numbers: {{range: {{end: {items}}}}}}}
steps:
  called:
    http:
      from: numbers
      connection: server
      path: /{route}/{{value}}
      response: {{answer: {{json: /value, type: int64}}}}
    in_flight: {in_flight}
    retry: {{attempts: 4, max_backoff: 2m}}
sinks: {{out: {{from: called, path: out.parquet}}}}
"""


class Server:
    """The server of the benches, on a free port, until the block ends."""

    def __init__(self, target: Path, latency_ms: int, fail_every: int = 0) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [str(target / "rowmill-bench-server"), str(self.port), str(latency_ms), str(fail_every)]
        self.process = subprocess.Popen(command)
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        sys.exit("the server did not start")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.terminate()
        self.process.wait()

    def seen(self) -> dict:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seconds") as answer:
            return json.load(answer)


def wrk(server: Server, connections: int, seconds: int) -> float:
    command = ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", f"http://127.0.0.1:{server.port}/item/1"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1))


def rowmill(target: Path, server: Server, items: int, in_flight: int, limits: str = "", route: str = "item") -> tuple[float, dict]:
    """Items a second, and the run's own report."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "calls.yaml").write_text(WORKFLOW.format(items=items, in_flight=in_flight, route=route), encoding="utf-8")
        Path(folder, "rowmill.yaml").write_text(
            f"connections: {{server: {{kind: http, base_url: 'http://127.0.0.1:{server.port}'{limits}}}}}\n",
            encoding="utf-8",
        )
        environment = {**os.environ, "ROWMILL_CONFIG": str(Path(folder, "rowmill.yaml"))}
        command = [str(target / "rowmill"), "run", "calls.yaml", "--output", "json", "--progress", "none"]
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        report = json.loads(answer.stdout)
        if answer.returncode != 0:
            sys.exit(json.dumps(report, indent=2))
        return items / report["elapsed_s"], report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=Path("target/release"))
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--skip-slow", action="store_true")
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    if shutil.which("wrk") is None:
        sys.exit("install wrk first (apt-get install wrk)")
    with Server(target, 10) as server:
        ratios = []
        for pair in range(arguments.pairs):
            base = wrk(server, arguments.in_flight, 6)
            ours, _ = rowmill(target, server, arguments.items, arguments.in_flight)
            ratios.append(ours / base)
            print(f"pair {pair + 1}: wrk {base:,.0f}/s, rowmill {ours:,.0f} items/s, ratio {ours / base:.3f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.3f} (goal 0.90)")
    with Server(target, 10) as server:
        rate, _ = rowmill(target, server, 10_000, arguments.in_flight, ", limits: {requests_per_second: 1000}")
        print(f"cap of 1,000/s: {rate:,.0f} items/s, fullest second at the server {server.seen()['fullest_second']}")
    with Server(target, 10, fail_every=100) as server:
        rate, report = rowmill(target, server, arguments.items, arguments.in_flight)
        print(f"one in a hundred answered 503: {rate:,.0f} items/s, {report['items'][0]['outcomes']}")
    if arguments.skip_slow:
        return
    with Server(target, 10) as server:
        rate, _ = rowmill(target, server, arguments.items, arguments.in_flight)
    with Server(target, 10) as server:
        _, report = rowmill(target, server, arguments.items, arguments.in_flight, route="slow")
        others = (arguments.items - 1) / server.seen()["span_s"]
        print(f"one item waits 60 s: the others at {others:,.0f} items/s, {others / rate:.3f} of a run without it, "
              f"{report['items'][0]['outcomes']}, {report['elapsed_s']:.1f} s in all")


if __name__ == "__main__":
    main()
