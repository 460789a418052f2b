"""Faults of the environment that a durable run must bear: each makes the fault, sees that it happened, and goes on."""

import collections
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from kill_postgres import Postgres
from kill_service import is_refused
from kill_workflow import ROW_WISE, WORKFLOW, Journal, Place, Run, kill, require

# The lease of a run (30 s) and a little more.
LEASE_S = 30
# The exit code for "stopped by the environment; it can go on".
ENVIRONMENT = 75


@dataclass
class Tools:
    """What the modes share with the rounds."""

    place: Place
    reference: Any
    check_end: Callable

    def ends_well(self, run: Run) -> str:
        """Asserts all that holds of every run that ended; says what is worth knowing."""
        figures: collections.Counter = collections.Counter()
        self.check_end(run, self.reference, figures)
        return f"{figures['items unknown']} unknown" if figures["items unknown"] else ""


def wait_until(what: Callable[[], bool], message: str, seconds: float = 60) -> None:
    """Waits for something that a process is about to do."""
    end = time.monotonic() + seconds
    while not what():
        require(time.monotonic() < end, f"waited in vain: {message}")
        time.sleep(0.01)


def answered(run: Run, many: int) -> Callable[[], bool]:
    """Whether the service has answered so many requests of a run."""
    return lambda: sum(call.is_final for call in run.service.calls) >= many


def codes(run: Run) -> set[str]:
    """The codes of the errors that the last process reported."""
    lines = run.tail().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {error["code"] for error in found[-1].get("errors", [])} if found else set()


def full_disk(tools: Tools) -> str:
    """The state directory is on a disk that runs full; there is room again, and the run goes on."""
    if os.geteuid() != 0:
        return "skipped: only root can mount a small disk"
    folder = tools.place.folder / "small-disk"
    folder.mkdir(exist_ok=True)
    run = Run(tools.place, "full-disk", state=folder / "state")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "rowmill-kill", folder], capture_output=True)
    if mounted.returncode != 0:
        return f"skipped: {mounted.stderr.decode().strip()}"
    try:
        run.finish(run.begin(), (ENVIRONMENT,))
        require(bool(codes(run) & {"RM0702", "RM0704", "RM0808", "RM0705"}), f"the code is {codes(run)}\n{run.tail()}")
        require(all(run.output(name) is None for name in ROW_WISE), "a run that failed has published")
        asked = len(run.service.calls)
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        if not run.exists():
            run.finish(run.begin())
        else:
            run.finish(run.resume())
        said = tools.ends_well(run)
        return f"full after {asked} calls; {said}"
    finally:
        run.service.drained()
        subprocess.run(["umount", "-l", folder], check=False)


def locked_store(tools: Tools) -> str:
    """Another process holds the store's lock for longer than SQLite waits for it."""
    run = Run(tools.place, "locked-store")
    process = run.begin()
    wait_until(answered(run, 200), "200 answers")
    locker = sqlite3.connect(run.state / "runs.db", timeout=30, isolation_level=None)
    locker.execute("BEGIN EXCLUSIVE")
    committed = len(Journal(run).committed)
    time.sleep(12)
    require(process.poll() is None, f"the process did not wait\n{run.tail()}")
    require(len(Journal(run).committed) == committed, "something was committed under somebody else's lock")
    locker.execute("ROLLBACK")
    locker.close()
    run.finish(process)
    said = tools.ends_well(run)
    run.close()
    return said


def corrupted_store(tools: Tools) -> str:
    """The store's file is damaged: a clear end, and nothing half-written."""
    run = Run(tools.place, "corrupted-store")
    process = run.begin()
    wait_until(answered(run, 300), "300 answers")
    require(kill(process, 0), "the process had ended")
    path = run.state / "runs.db"
    # All that the write-ahead log holds goes into the file, and then the pages behind the first are overwritten.
    store = sqlite3.connect(path)
    store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    size = path.stat().st_size
    require(size > 16384, "the store is too small to be damaged")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    for words in (("resume", "last"), ("runs",), ("run", "flow.yaml", "--durable")):
        run.finish(run.start(*words), (ENVIRONMENT,))
        require("RM0808" in codes(run), f"{words}: the codes are {codes(run)}\n{run.tail()}")
    require(all(run.output(name) is None for name in ROW_WISE), "a run that failed has published")
    # A store that is no database at all.
    path.write_bytes(b"not a database, but a file of somebody else" * 200)
    run.finish(run.start("runs"), (ENVIRONMENT,))
    require(path.read_bytes().startswith(b"not a database"), "somebody else's file was changed")
    run.close()
    return ""


def postgres_restart(tools: Tools) -> str:
    """The run store is a PostgreSQL server that crashes and comes back in the middle; then a kill on top."""
    if not Postgres.is_installed():
        return "skipped: PostgreSQL's server is not installed"
    server = Postgres()
    try:
        run = Run(tools.place, "postgres", store=server.url)
        process = run.begin()
        for many in (200, 1200):
            wait_until(answered(run, many), f"{many} answers")
            require(process.poll() is None, f"the process had ended\n{run.tail()}")
            server.restart()
        wait_until(answered(run, 2000), "2000 answers")
        require(kill(process, 0.05), "the process had ended before the kill")
        run.service.drained()
        process = run.resume()
        more = sum(call.is_final for call in run.service.calls) + 100
        wait_until(answered(run, more), "answers to the process that resumed")
        server.restart()
        run.finish(process)
        said = tools.ends_well(run)
        run.close()
        return said
    finally:
        server.close()


def put_to_sleep(process: subprocess.Popen, run: Run) -> None:
    """Stops a process, but not while it holds the lock of its SQLite store: nobody can write under that."""
    for _ in range(50):
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.1)
        require(process.poll() is None, "the process had ended")
        store = sqlite3.connect(run.state / "runs.db", timeout=0.2, isolation_level=None)
        try:
            store.execute("BEGIN IMMEDIATE")
            store.execute("ROLLBACK")
            return
        except sqlite3.OperationalError:
            process.send_signal(signal.SIGCONT)
            time.sleep(0.02)
        finally:
            store.close()
    require(False, "the process held the store's lock each time that it was stopped")


def asleep(tools: Tools, steal: bool) -> str:
    """A process is stopped, another takes the run and ends it; the first wakes, and neither commits nor publishes."""
    run = Run(tools.place, "stolen" if steal else "expired")
    first = run.begin()
    wait_until(answered(run, 800), "800 answers")
    put_to_sleep(first, run)
    try:
        if not steal:
            run.finish(run.resume(), (ENVIRONMENT,))
            require("RM0803" in codes(run), f"the code is {codes(run)}, not that the run is held")
            time.sleep(LEASE_S + 1)
        second = run.resume(*(["--steal"] if steal else []))
        code = second.wait(120)
        require(code in (0, 3), f"the second process ended with {code}\n{run.tail()}")
        before = {name: (run.folder / "out" / name).stat().st_ino for name in [*ROW_WISE, "wide.csv"]}
        committed = Journal(run).committed
    finally:
        first.send_signal(signal.SIGCONT)
    run.finish(first, (ENVIRONMENT,))
    require("RM0805" in codes(run), f"the code is {codes(run)}, not that the run was taken\n{run.tail()}")
    after = {name: (run.folder / "out" / name).stat().st_ino for name in [*ROW_WISE, "wide.csv"]}
    require(after == before, "the process that slept has published")
    require(Journal(run).committed == committed, "the process that slept has committed")
    said = tools.ends_well(run)
    run.close()
    return said


def stolen(tools: Tools) -> str:
    """`resume --steal` takes the run from a process that is stopped and wakes up after the end."""
    return asleep(tools, steal=True)


def expired(tools: Tools) -> str:
    """The lease of a stopped process ends by itself; before that, the run is held."""
    return asleep(tools, steal=False)


def awake(tools: Tools) -> str:
    """`resume --steal` takes the run from a process that is awake: that one ends with RM0805."""
    run = Run(tools.place, "awake")
    first = run.begin()
    wait_until(answered(run, 800), "800 answers")
    second = run.resume("--steal")
    code = first.wait(60)
    require(code == ENVIRONMENT, f"the first process ended with {code}\n{run.tail()}")
    run.finish(second)
    require("RM0805" in run.tail(), f"nobody was told that the run was taken\n{run.tail()}")
    said = tools.ends_well(run)
    run.close()
    return said


def two_resumes(tools: Tools) -> str:
    """Two processes resume one run at the same moment: one gets it, the other is refused."""
    run = Run(tools.place, "two-resumes")
    process = run.begin()
    wait_until(answered(run, 800), "800 answers")
    require(kill(process, 0, signal.SIGINT), "the process had ended")
    run.finish(process, (130,))
    both = [run.resume(), run.resume()]
    ends = sorted(one.wait(120) for one in both)
    # The one that lost is told that the run is held (75), or that it has ended (1).
    require(ends[0] in (0, 1, 3) and 3 in ends and ends.count(3) == 1, f"they ended with {ends}\n{run.tail()}")
    run.service.drained()
    said = tools.ends_well(run)
    run.close()
    return said


def cancelled(tools: Tools) -> str:
    """`rowmill cancel` from another process ends the run for good."""
    run = Run(tools.place, "cancelled")
    process = run.begin()
    wait_until(answered(run, 200), "200 answers")
    # Sleeping processes cancel as well: the request is in the store.
    put_to_sleep(process, run)
    run.ask("cancel", "last", "--reason", "test")
    process.send_signal(signal.SIGCONT)
    code = process.wait(60)
    require(code in (130, 3), f"the process ended with {code}\n{run.tail()}")
    status = run.ask("show", "last")[0]["run"]["status"]
    require(code == 3 or status == "cancelled", f"the run is {status}")
    run.finish(run.resume(), (1,))
    require("RM0804" in codes(run), f"the code is {codes(run)}, not that the run has ended")
    require(code == 3 or all(run.output(name) is None for name in ROW_WISE), "a cancelled run has published")
    run.close()
    return "it had ended before it heard" if code == 3 else ""


def changed(tools: Tools) -> str:
    """A changed workflow or source is refused on resume; put back, the run goes on; a lost chunk file is named."""
    run = Run(tools.place, "changed")
    process = run.begin()
    wait_until(answered(run, 800), "800 answers")
    require(kill(process, 0), "the process had ended")
    run.service.drained()
    flow = run.folder / "flow.yaml"
    text = flow.read_text()
    source = tools.place.folder / "input" / "0.csv"
    original, times = source.read_bytes(), source.stat()
    for name, change, undo in (
        ("workflow", lambda: flow.write_text(f"{text}# changed\n"), lambda: flow.write_text(text)),
        ("source", lambda: source.write_bytes(original + b"1,1,x\n"), lambda: restore(source, original, times)),
    ):
        change()
        calls = len(run.service.calls)
        run.finish(run.resume(), (1,))
        undo()
        require("RM0802" in codes(run), f"{name}: the code is {codes(run)}\n{run.tail()}")
        require(len(run.service.calls) == calls, f"{name}: calls were made")
    chunk = next(path for path in (run.state / "runs").glob("*/*enriched.input/*.arrow"))
    chunk.rename(f"{chunk}.away")
    run.finish(run.resume(), (ENVIRONMENT, 1))
    require(chunk.name in run.tail(), f"the message does not name the lost file\n{run.tail()}")
    Path(f"{chunk}.away").rename(chunk)
    run.finish(run.resume())
    said = tools.ends_well(run)
    run.close()
    return said


def restore(path: Path, content: bytes, times: os.stat_result) -> None:
    """A file as it was, down to its time."""
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def collected(tools: Tools) -> str:
    """`rowmill gc` removes what ended and leaves what can go on."""
    run = Run(tools.place, "collected")
    run.finish(run.begin())
    tools.ends_well(run)
    wanted = sum(call.is_final for call in run.service.calls) + 300
    process = run.begin()
    wait_until(answered(run, wanted), "300 answers to the second run")
    require(kill(process, 0), "the process had ended")
    run.service.drained()
    before = run.ask("gc", "--older-than", "0s", "--dry-run")[0]
    require(before["runs"] == 1 and before["bytes"] > 0, f"it would remove {before}")
    run.ask("gc", "--older-than", "0s")
    left = [one["status"] for one in run.ask("runs")[0]["runs"]]
    require(left == ["running"], f"left are {left}")
    folders = list((run.state / "runs").iterdir())
    require(len(folders) == 1, f"folders are left: {folders}")
    run.finish(run.resume())
    run.close()
    return ""


def redis_gone(tools: Tools) -> str:
    """The cache is in Redis, which dies in the middle: the run goes on without it."""
    server = shutil.which("redis-server")
    if server is None:
        require("REQUIRE_DATABASES" not in os.environ, "redis-server is not installed")
        return "skipped: redis-server is not installed"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        redis = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: _listens(port), "redis-server")
            cached = WORKFLOW.replace("    in_flight: 24\n", "    in_flight: 24\n    cache: {tier: redis, connection: kept}\n")
            kept = f"  kept: {{kind: redis, url: 'redis://127.0.0.1:{port}'}}\n"
            run = Run(tools.place, "redis-gone", workflow=cached, connections=kept)
            process = run.begin()
            wait_until(answered(run, 300), "300 answers")
            redis.kill()
            redis.wait()
            asked = sum(call.is_final for call in run.service.calls)
            run.finish(process)
            require(sum(call.is_final for call in run.service.calls) > asked, "nothing was called after Redis had gone")
            said = tools.ends_well(run)
            run.close()
            return f"gone after {asked} answers; {said}"
        finally:
            redis.kill()
            redis.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def retried(tools: Tools) -> str:
    """`retry` after the service was mended, killed and gone on with: only what failed, or changed, is called."""
    run, service = Run(tools.place, "retried"), tools.place.service
    run.finish(run.begin(), (3,))
    refused = sum(times for item, times in tools.place.items.items() if is_refused(item))
    require(refused > 5, f"{refused} items were refused")
    first = len(service.calls)
    charged = {call.body for call in service.calls if call.method == "POST" and call.status == 200}
    kills = 0
    try:
        service.mended = True
        words = ("retry", "last", "--option", "output.progress=none")
        process = run.start(*words)
        for seconds in (0.2, 0.35, 0.5, 0.8):
            if not kill(process, seconds):
                break
            kills += 1
            service.drained()
            known = run.ask("show", "last")[0]["run"]
            if known["version"] == 2 and known["status"].startswith("succeeded"):
                process = None
                break
            process = run.start(*words) if known["version"] == 1 else run.resume()
        if process is not None:
            run.finish(process)
        require(kills > 0, "no kill hit the retry")
        again = service.calls[first:]
        gets = [call for call in again if call.method == "GET"]
        require(all(is_refused(int(call.path.rsplit("/", 1)[1])) for call in gets), "an item that was ok was asked again")
        require(len([call for call in gets if call.is_final]) >= refused, "not all that failed was tried again")
        sent = [call.body for call in again if call.method == "POST"]
        require(bool(sent) and not charged & set(sent), "a call was repeated that was answered")
        require(len(sent) == len(set(sent)), "a `once` call was sent twice")
        rows = {name: run.output(name) for name in ROW_WISE}
        wide = collections.Counter((run.output("wide.csv") or b"").decode().splitlines())
        unknown = {str(json.loads(row["item"])["grp"]) for row in run.ask("items", "last", "--status", "unknown")}
        run.close()
        # The same as if the service had been whole from the start.
        other = Run(tools.place, "mended")
        other.finish(other.begin(), (0,))
        for name, found in rows.items():
            require(found == other.output(name), f"{name} differs from that of a run without failures")
        expected = collections.Counter((other.output("wide.csv") or b"").decode().splitlines())
        expected = collections.Counter({row: n for row, n in expected.items() if row.split(",")[0] not in unknown})
        require(wide == expected, f"wide.csv: {list(((wide - expected) + (expected - wide)).items())[:5]}")
        other.close()
    finally:
        service.mended = False
    return f"{refused} items tried again, {kills} kills, {len(unknown)} unknown"


def order(tools: Tools) -> str:
    """Files are on disk, and their names, before the journal speaks of them: watched from outside, by strace."""
    if not shutil.which("strace"):
        return "skipped: strace is not installed"
    run = Run(tools.place, "order")
    trace = run.folder / "trace"
    watched = "openat,write,pwrite64,fsync,fdatasync,mkdir,mkdirat"
    strace = ["strace", "-f", "-y", "--seccomp-bpf", "-s", "9000", "-o", str(trace), "-e", f"trace={watched}"]
    run.finish(run.start("run", "flow.yaml", "--durable", under=strace), seconds=240)
    journal = Journal(run)
    # The moment (a line of the trace) of the last write and sync of each path, and of the journal's first word of it.
    written: dict[str, int] = {}
    synced: dict[str, list[int]] = {}
    made: dict[str, int] = {}
    named: dict[str, int] = {}
    names = {Path(file).name: file for file in sorted(journal.files)}
    root = run.folder.resolve()
    open_calls: dict[str, tuple[str, str]] = {}
    for line, text in enumerate(trace.read_text(errors="replace").splitlines()):
        thread, _, call = text.partition(" ")
        call = call.strip()
        if call.startswith("<..."):
            # The end of a call that another thread's lines interrupted: a sync counts from here.
            kind, path = open_calls.pop(thread, ("", ""))
            if kind in ("fsync", "fdatasync"):
                synced.setdefault(path, []).append(line)
            elif kind in ("mkdir", "mkdirat") and call.endswith("= 0"):
                made[path] = line
            continue
        kind, _, rest = call.partition("(")
        making = kind in ("mkdir", "mkdirat") and str(root) in rest
        path = rest.split('"')[1] if making else rest.partition("<")[2].partition(">")[0]
        if call.endswith("<unfinished ...>"):
            open_calls[thread] = (kind, path)
        elif kind in ("fsync", "fdatasync"):
            synced.setdefault(path, []).append(line)
        # One that was there already is not made again.
        if making and call.endswith("= 0"):
            made[path] = line
        if kind in ("write", "pwrite64"):
            written[path] = line
            if path.endswith("runs.db-wal"):
                for name in re.findall(r"v1-\d+-[\w.]+/[\w.-]+?\.arrow", rest):
                    named.setdefault(name, line)
    require(len(names) > 40 and len(named) >= len(journal.files), f"{len(named)} files were seen in the journal")
    for file in journal.files:
        path = next((run.state / "runs").glob(f"*/{file}")).resolve()
        spoken = named[file]
        require(written[str(path)] < synced[str(path)][0] < spoken, f"{file} was not synced before the journal had it")
        after = [moment for moment in synced.get(str(path.parent), []) if moment > synced[str(path)][0]]
        require(bool(after) and after[0] < spoken, f"the name of {file} was not synced before the journal had it")
        for folder in (path.parent, *path.parent.parents):
            if str(folder) in made:
                names_synced = [at for at in synced.get(str(folder.parent), []) if at > made[str(folder)]]
                require(bool(names_synced) and names_synced[0] < spoken, f"the name of {folder} was not synced")
    said = f"{len(journal.files)} files"
    run.close()
    return said


MODES: dict[str, Callable[[Tools], str]] = {
    "full-disk": full_disk,
    "locked-store": locked_store,
    "corrupted-store": corrupted_store,
    "postgres-restart": postgres_restart,
    "stolen": stolen,
    "awake": awake,
    "two-resumes": two_resumes,
    "cancelled": cancelled,
    "changed": changed,
    "collected": collected,
    "retried": retried,
    "redis-gone": redis_gone,
    "order": order,
    "expired": expired,
}
#: Modes that take longer than what they show is worth to every change.
SLOW = {"expired"}
