"""HTTP for each item through a cluster's executor beside the same in one process, in pairs, medians printed.

    python3 benches/peers/cluster_calls.py --target target/release [--items 50000] [--pairs 3] [--in-flight 256]

The server answers after 10 ms, and then at once, which shows what handing an item to an executor costs. Client, executor
and server share this machine, so the second is the worst case. CPU seconds are those of client and executor together.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from calls import WORKFLOW, Server  # noqa: E402


def cpu_of(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """A scheduler and one executor of class io in `folder`, until the block ends."""

    def __init__(self, target: Path, folder: Path, environment: dict) -> None:
        self.rowmill, self.folder, self.environment = target / "rowmill", folder, environment

    def command(self, *arguments: str) -> str:
        answer = subprocess.run(
            [str(self.rowmill), *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False,
        )
        if answer.returncode != 0:
            sys.exit(answer.stdout + answer.stderr)
        return answer.stdout

    def __enter__(self) -> "Cluster":
        # Processes of the cluster outlive the command: they must not hold its pipes.
        with Path(self.folder, "up.log").open("w", encoding="utf-8") as log:
            command = [str(self.rowmill), "cluster", "up", "--executors", "io=1", "--slots", "1", "--port", "0"]
            subprocess.run(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log, check=True)
        record = json.loads(Path(self.folder, "state/cluster/cluster.json").read_text(encoding="utf-8"))
        self.executor = next(own["pid"] for own in record["processes"] if own["name"] == "io-1")
        return self

    def __exit__(self, *_error: object) -> None:
        self.command("cluster", "down", "--grace-s", "1")

    def rate(self, items: int, on_cluster: bool) -> tuple[float, float]:
        """Items a second, and CPU microseconds for each."""
        before = cpu_of(self.executor) + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        more = ["--cluster", "local"] if on_cluster else []
        text = self.command("run", "calls.yaml", "--output", "json", "--progress", "none", *more)
        spent = cpu_of(self.executor) + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
        report = json.loads(text)
        if report["items"][0]["outcomes"]["ok"] != items:
            sys.exit(text)
        return items / report["elapsed_s"], spent / items * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=Path("target/release"))
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=3)
    arguments = parser.parse_args()
    target = arguments.target.resolve()
    for latency_ms in (10, 0):
        with Server(target, latency_ms) as server, tempfile.TemporaryDirectory() as folder:
            text = WORKFLOW.format(items=arguments.items, in_flight=arguments.in_flight, route="item")
            Path(folder, "calls.yaml").write_text(text, encoding="utf-8")
            connection = f"connections: {{server: {{kind: http, base_url: 'http://127.0.0.1:{server.port}'}}}}\n"
            Path(folder, "rowmill.yaml").write_text(connection, encoding="utf-8")
            environment = {**os.environ, "ROWMILL_STATE__DIR": str(Path(folder, "state"))}
            with Cluster(target, Path(folder), environment) as cluster:
                cluster.rate(arguments.items, True)
                ratios = []
                for pair in range(arguments.pairs):
                    (here, own), (there, both) = (cluster.rate(arguments.items, on) for on in (False, True))
                    ratios.append(there / here)
                    print(
                        f"{latency_ms} ms, pair {pair + 1}: in one process {here:,.0f} items/s and {own:.0f} µs of CPU, "
                        f"through an executor {there:,.0f} and {both:.0f}, ratio {there / here:.3f}",
                        flush=True,
                    )
                print(f"{latency_ms} ms: median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
