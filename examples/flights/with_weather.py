"""Runs `weather.yaml` with all that it calls: starts the weather service, makes the register of planes, runs, and shows
where the items went.

    python3 examples/flights/with_weather.py [--rowmill PATH] [rowmill's own options ...]
"""

import argparse
import csv
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make_register(path: Path) -> None:
    """A SQLite database of the planes, from the table of the data set."""
    path.unlink(missing_ok=True)
    with open(HERE / "planes.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE planes (tailnum TEXT PRIMARY KEY, year INTEGER, model TEXT, seats INTEGER)")
    database.executemany(
        "INSERT INTO planes VALUES (?, ?, ?, ?)",
        [(row["tailnum"], row["year"] or None, row["model"], row["seats"] or None) for row in rows],
    )
    database.commit()
    database.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, service: subprocess.Popen) -> None:
    """Until the service listens; it tells itself why not."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and service.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    sys.exit("the weather service did not start")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rowmill", default=shutil.which("rowmill") or "rowmill", help="the command")
    arguments, rest = parser.parse_known_args()
    state = HERE / "out" / "state"
    state.mkdir(parents=True, exist_ok=True)
    register = state / "planes.db"
    make_register(register)
    port = free_port()
    log = state / "weather_service.log"
    service = subprocess.Popen(
        [sys.executable, str(HERE / "weather_service.py"), "--port", str(port), "--log", str(log)]
    )
    try:
        wait_for(port, service)
        config = state / "rowmill.yaml"
        config.write_text(
            f"""connections:
  weather:
    kind: http
    base_url: http://127.0.0.1:{port}
    limits: {{requests_per_second: 450}}
  fleet: {{kind: sqlite, url: "sqlite:{register}"}}
state: {{dir: {state}}}
""",
            encoding="utf-8",
        )
        environment = {**os.environ, "ROWMILL_CONFIG": str(config)}
        run = [arguments.rowmill, "run", str(HERE / "weather.yaml"), "--preview", *rest]
        code = subprocess.run(run, env=environment, check=False).returncode
        if code in (0, 3):
            print("\nitems that got no weather, from the ledger:")
            query = "SELECT code, message, count(*) AS items, min(item) AS for_example FROM items GROUP BY 1, 2"
            subprocess.run([arguments.rowmill, "items", "last", "--sql", query], env=environment, check=False)
            lines = log.read_text(encoding="utf-8").splitlines()
            statuses: dict[str, int] = {}
            for line in lines:
                statuses[line.split()[1]] = statuses.get(line.split()[1], 0) + 1
            print("the service's own log:", ", ".join(f"{many} x {status}" for status, many in sorted(statuses.items())))
        return 0 if code == 3 else code
    finally:
        service.terminate()
        service.wait()


if __name__ == "__main__":
    sys.exit(main())
