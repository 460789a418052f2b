"""Two steps of different classes one after the other, beside the best schedule that they allow, medians printed.

    python3 benches/peers/cluster_pipeline.py --target target/release [--items 1500] [--runs 3] [--chunk-rows 50]

A program spins for 5 ms on each item (class cpu, one process), then a server takes 20 ms to answer for it (class io). With
one call in flight the server is what everything waits for; with four, both steps take equally long and nothing may wait.
The best schedule is that of a flow shop: the first item goes through both steps, then the slower step is never idle. Two
ratios are printed, each the best schedule's time by that of the run, from its start to its result on disk. One takes the
steps to last 5 and 20 ms; goal 0.95 on a machine that does nothing else. The other takes them to last as long as each was
measured to last alone, in the same way and a moment before, so that it tells of waiting alone and not of what a call or a
busy machine costs. Durable runs are measured in one process and on a cluster of one executor of each class, and so are runs
that are not durable.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from calls import Server  # noqa: E402

CPU_MS, IO_MS = 5, 20

WORKFLOW = """rowmill: 1
name: pipeline
sources: {{numbers: {{range: {{end: {items}}}}}}}
steps:
  spun:
    command: {{from: numbers, argv: [python3, ./spin.py], reads: [value], output: {{spun: int64}}}}
    batch: {{rows: 1}}
    in_flight: 1
    effects: pure
    resources: {{class: cpu}}
  called:
    http: {{from: spun, connection: server, path: '/item/{{value}}', response: {{answer: {{json: /value, type: int64}}}}}}
    in_flight: {in_flight}
sinks: {{out: {{from: called, path: out.parquet}}}}
"""

SPIN = """import json, sys, time
for line in sys.stdin:
    end = time.perf_counter() + %f
    item = json.loads(line)
    while time.perf_counter() < end:
        pass
    print(json.dumps({"id": item["id"], "ok": {"spun": item["item"]["value"]}}), flush=True)
"""


class Cluster:
    """A scheduler and one executor of each class in `folder`, until the block ends."""

    def __init__(self, rowmill: Path, folder: Path, environment: dict) -> None:
        self.rowmill, self.folder, self.environment = rowmill, folder, environment

    def __enter__(self) -> "Cluster":
        # Processes of the cluster outlive the command: they must not hold its pipes.
        with Path(self.folder, "up.log").open("w", encoding="utf-8") as log:
            command = [str(self.rowmill), "cluster", "up", "--executors", "cpu=1,io=1", "--port", "0"]
            subprocess.run(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, check=True)
        return self

    def __exit__(self, *_error: object) -> None:
        command = [str(self.rowmill), "cluster", "down", "--grace-s", "1"]
        subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, check=False)


def seconds(rowmill: Path, folder: Path, environment: dict, items: int, more: list[str]) -> float:
    command = [str(rowmill), "run", "flow.yaml", "--output", "json", "--progress", "none", *more]
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    report = json.loads(answer.stdout)
    if answer.returncode != 0 or any(step["outcomes"].get("ok") != items for step in report["items"]):
        sys.exit(answer.stdout + answer.stderr)
    return report["elapsed_s"]


def best(items: int, in_flight: int, cpu: float = CPU_MS / 1000, io: float = IO_MS / 1000) -> float:
    """Seconds of the best schedule, with steps that last so many seconds for an item."""
    each = io / in_flight
    return max(cpu, each) * items + (io if each < cpu else cpu)


def alone(text: str) -> list[str]:
    """The workflow with its first step only, and with its second only."""
    first, second, sinks = text.index("  spun:"), text.index("  called:"), text.index("sinks:")
    return [
        text[:second] + text[sinks:].replace("from: called", "from: spun"),
        text[:first] + text[second:].replace("from: spun", "from: numbers"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=Path("target/release"))
    parser.add_argument("--items", type=int, default=1_500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--chunk-rows", type=int, default=50)
    parser.add_argument("--in-flight", type=int, nargs="*", default=[1, 4])
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    rowmill, items = target / "rowmill", arguments.items
    with Server(target, IO_MS) as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Path(folder, "spin.py").write_text(SPIN % (CPU_MS / 1000), encoding="utf-8")
        Path(folder, "rowmill.yaml").write_text(
            f"connections: {{server: {{kind: http, base_url: 'http://127.0.0.1:{server.port}'}}}}\n"
            f"state: {{chunk_rows: {arguments.chunk_rows}}}\n",
            encoding="utf-8",
        )
        environment = {**os.environ, "ROWMILL_STATE__DIR": str(folder / "state")}
        with Cluster(rowmill, folder, environment):
            for in_flight in arguments.in_flight:
                text = WORKFLOW.format(items=items, in_flight=in_flight)
                bound = best(items, in_flight)
                after = (CPU_MS + IO_MS / in_flight) * items / 1000
                print(f"{in_flight} in flight: best {bound:.2f} s, one step after the other {after:.2f} s", flush=True)
                for kind, durable in (("durable", ["--durable"]), ("not durable", [])):
                    for place, more in (("in one process", []), ("on a cluster", ["--cluster", "local"])):
                        took, cpu, io = [], [], []
                        for _ in range(arguments.runs):
                            for workflow, into in zip([*alone(text), text], (cpu, io, took)):
                                Path(folder, "flow.yaml").write_text(workflow, encoding="utf-8")
                                into.append(seconds(rowmill, folder, environment, items, [*durable, *more]))
                        run, one, other = (statistics.median(times) for times in (took, cpu, io))
                        measured = best(items, in_flight, one / items, other / items * in_flight)
                        print(
                            f"  {kind}, {place}: {run:.2f} s, ratio {bound / run:.3f}; alone the steps take {one:.2f} s "
                            f"and {other:.2f} s, ratio {measured / run:.3f}",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
