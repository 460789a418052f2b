"""The workflow of the kill test: its input, how it is started, and how what it left is read."""

import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Sequence

from kill_service import Service

CHUNK_ROWS = 200

WORKFLOW = """rowmill: 1
name: kill-test
sources:
  rows: {path: "input/*.csv", schema: {item: int64, grp: int64, note: string}}
steps:
  picked: {sql: "SELECT item, grp, upper(note) AS note FROM rows WHERE item % 17 <> 3"}
  enriched:
    http:
      from: picked
      connection: service
      path: "/enrich/{item}"
      response: {value: {json: /value, type: int64}, kind: {json: /kind, type: string}}
      not_found: "null"
    on_error: dead_letter
    retry: {attempts: 8, initial_backoff: 5ms, max_backoff: 50ms}
    in_flight: 24
  labelled:
    lookup:
      from: enriched
      connection: labels
      query: "SELECT label FROM labels WHERE kind = {kind} ORDER BY label"
      types: {label: string}
  sums:
    sql: "SELECT grp, sum(value) AS total, count(*) AS items, count(DISTINCT note) AS notes FROM labelled GROUP BY grp"
  charged:
    http:
      from: sums
      connection: service
      method: POST
      path: /charge
      body: {json: {grp: "{grp}", total: "{total}"}}
      response: {receipt: {json: /receipt, type: int64}}
    effects: once
    on_error: dead_letter
    retry: {attempts: 8, initial_backoff: 5ms, max_backoff: 50ms}
    in_flight: 12
sinks:
  rows_csv: {from: labelled, path: out/rows.csv}
  rows_parquet: {from: labelled, path: out/rows.parquet}
  wide: {from: charged, path: out/wide.csv}
"""
ROW_WISE = ["rows.csv", "rows.parquet"]


class Wrong(AssertionError):
    """Something that the test says must not happen."""


def require(what: bool, message: str) -> None:
    if not what:
        raise Wrong(message)


class Place:
    """A folder with input, workflow and lookup table; runs have state and output folders of their own in it."""

    def __init__(self, rowmill: str, rows: int, seed: int, service: Service, keep: bool = False):
        self.rowmill, self.service, self.keep = rowmill, service, keep
        self.folder = Path(tempfile.mkdtemp(prefix="rowmill-kill-"))
        self.rounds = 0
        pick = random.Random(seed)
        (self.folder / "input").mkdir()
        lines = [f"{item},{pick.randrange(rows // 5)},note {item % 7}" for item in range(rows)]
        # Rows that are equal in every column are different items all the same.
        lines += [lines[pick.randrange(rows)] for _ in range(rows // 10)]
        pick.shuffle(lines)
        for part in range(3):
            text = "\n".join(["item,grp,note", *lines[part::3]]) + "\n"
            (self.folder / "input" / f"{part}.csv").write_text(text)
        labels = sqlite3.connect(self.folder / "labels.db")
        labels.execute("CREATE TABLE labels (kind TEXT, label TEXT)")
        # No row for k0, two for k1, one for the others.
        known = [(f"k{kind}", f"label {kind}") for kind in range(1, 12)] + [("k1", "another")]
        labels.executemany("INSERT INTO labels VALUES (?, ?)", known)
        labels.commit()
        labels.close()
        #: How often each item comes to the GET step.
        self.items: dict[int, int] = {}
        for line in lines:
            item = int(line.split(",")[0])
            if item % 17 != 3:
                self.items[item] = self.items.get(item, 0) + 1

    def connections(self) -> str:
        """The section of a configuration: the service and the lookup table."""
        return (
            f"connections:\n"
            f"  service: {{kind: http, base_url: 'http://{self.service.host}:{self.service.port}'}}\n"
            f"  labels: {{kind: sqlite, url: 'sqlite://{self.folder}/labels.db'}}\n"
        )

    def close(self) -> None:
        if not self.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Run:
    """One durable run, from its first process to its last."""

    def __init__(
        self,
        place: Place,
        name: str,
        state: Path | None = None,
        workflow: str = WORKFLOW,
        store: str = "",
        connections: str = "",
        settings: str = "",
    ):
        place.service.begin()
        self.place, self.service = place, place.service
        self.folder = place.folder / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        (self.folder / "input").symlink_to(place.folder / "input")
        (self.folder / "flow.yaml").write_text(workflow)
        config = place.connections() + connections
        self.state = state or self.folder / "state"
        config += f"state:\n  dir: {self.state}\n  chunk_rows: {CHUNK_ROWS}\n"
        config += "  store: env:KILL_TEST_STORE\n" if store else ""
        config += settings
        (self.folder / "rowmill.yaml").write_text(config)
        self.environment = {**os.environ, "KILL_TEST_STORE": store, "NO_COLOR": "1"}
        self.log = (self.folder / "processes.log").open("w")

    def start(self, *words: str, under: Sequence[str] = ()) -> subprocess.Popen:
        """Starts rowmill, perhaps under another program; its output goes to the log."""
        command = [*under, self.place.rowmill, *words, "--output", "json", "--threads", "3", "--memory", "512MB"]
        self.log.write(f"\n$ {' '.join(words)}\n")
        self.log.flush()
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL
        )

    def begin(self) -> subprocess.Popen:
        return self.start("run", "flow.yaml", "--durable", "--option", "output.progress=none")

    def resume(self, *words: str) -> subprocess.Popen:
        return self.start("resume", "last", "--option", "output.progress=none", *words)

    def finish(self, process: subprocess.Popen, codes=(0, 3), seconds: float = 120) -> int:
        """Waits for a process that must end with one of these exit codes."""
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Wrong(f"it hangs: no end after {seconds} s\n{self.tail()}") from None
        require(code in codes, f"exit code {code}, expected one of {codes}\n{self.tail()}")
        self.service.drained()
        return code

    def ask(self, *words: str, codes=(0,)):
        """Output of a command, as JSON."""
        command = [self.place.rowmill, *words, "--output", "json"]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60)
        said = f"rowmill {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        require(done.returncode in codes, said)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
        return lines

    def exists(self) -> bool:
        """Whether the store knows a run: a process may be killed before it wrote one down."""
        found = self.ask("runs", codes=(0, 1))
        return bool(found and found[0].get("runs"))

    def output(self, name: str) -> bytes | None:
        path = self.folder / "out" / name
        return path.read_bytes() if path.exists() else None

    def tail(self) -> str:
        self.log.flush()
        text = (self.folder / "processes.log").read_text()[-6000:]
        return f"{text}\n(in {self.folder})"

    def close(self) -> None:
        self.log.close()
        if not self.place.keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def kill(process: subprocess.Popen, after: float, how: int = signal.SIGKILL) -> bool:
    """Sends a signal after some seconds; false if the process had ended before."""
    try:
        process.wait(after)
        return False
    except subprocess.TimeoutExpired:
        pass
    process.send_signal(how)
    if how == signal.SIGKILL:
        return process.wait(10) == -signal.SIGKILL
    return True


class Journal:
    """What a SQLite store holds, read from a copy, so that the next process finds the file as the dead one left it."""

    def __init__(self, run: Run):
        self.committed: dict[tuple, str] = {}
        self.known: dict[str, int] = {}
        self.files: set[str] = set()
        source = run.state / "runs.db"
        if not source.exists():
            return
        with tempfile.TemporaryDirectory() as folder:
            for suffix in ("", "-wal"):
                if Path(f"{source}{suffix}").exists():
                    shutil.copy(f"{source}{suffix}", f"{folder}/runs.db{suffix}")
            store = sqlite3.connect(f"{folder}/runs.db")
            try:
                self._read(store)
            except sqlite3.OperationalError as error:
                # The process may have died before the tables were made.
                require("no such table" in str(error), f"the store cannot be read: {error}")
            finally:
                store.close()

    def _read(self, store: sqlite3.Connection) -> None:
        names = dict(store.execute("SELECT stage, name FROM stages"))
        for stage, chunk, output, ledger in store.execute("SELECT stage, chunk, output, ledger FROM journal"):
            self.committed[stage, chunk] = output
            self.files |= {output, ledger} - {None}
        outcomes = "ok + cached + defaulted + skipped + failed + dead_lettered + unknown"
        for stage, items in store.execute(f"SELECT stage, sum({outcomes}) FROM step_counts GROUP BY stage"):
            self.known[names[stage]] = items
        results: dict[str, set] = {}
        for stage, chunk, packed in store.execute("SELECT stage, chunk, records FROM effects"):
            require((stage, chunk) not in self.committed, "a committed chunk still has an effect log")
            for key, kind in records(packed):
                if kind == 1:
                    results.setdefault(names[stage], set()).add((chunk, key))
        for step, keys in results.items():
            self.known[step] = self.known.get(step, 0) + len(keys)


def records(packed: bytes):
    """Key and kind of each record of a value of the effect log (the format stands in engine/store/src/effect.rs)."""
    version, count = struct.unpack_from("<BI", packed)
    require(version == 1, f"an effect log of version {version}")
    at = 5
    for _ in range(count):
        kind, length = struct.unpack_from("<BI", packed, at + 16)
        yield packed[at : at + 16], kind
        at += 21 + length
    require(at == len(packed) - 8, "an effect log value has another length than its records")


def leftovers(run: Run, journal: Journal) -> list[str]:
    """Files that dead attempts left: staged sinks, and chunks that nobody committed."""
    left = [str(path) for path in (run.folder / "out").iterdir() if path.name.startswith(".")]
    for path in (run.state / "runs").glob("*/*/*"):
        if str(path.relative_to(path.parents[1])) not in journal.files:
            left.append(str(path))
    return left


def now() -> float:
    return time.monotonic()
