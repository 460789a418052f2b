"""Runs workflows on a cluster whose processes are killed and stopped at random, and compares results with local runs.

    python3 tools/chaos_test.py --rowmill target/release/rowmill --tpchgen target/release/rowmill-tpchgen   # as ./check
    python3 tools/chaos_test.py ... --rounds 1000 --seconds 14400
    python3 tools/chaos_test.py ... --standby 1        # a second scheduler that takes over

Each round starts one workflow with `rowmill run --cluster local` on a cluster of real processes and, at a random
moment, does one of these to it:

- `executor`   SIGKILL of an executor, its work directory deleted too
- `executors`  the same to all executors at once
- `scheduler`  SIGKILL of the scheduler, which loses every job
- `both`       the scheduler and an executor
- `sleep`      SIGSTOP of an executor for longer than its lease, then SIGCONT
- `sleeper`    SIGSTOP of the scheduler for longer than a client listens to silence, then SIGCONT
- `drain`      SIGTERM of an executor

and `rowmill cluster up` starts again what has ended, as an operator would. With `--standby` the scheduler of these is the
one that leads, and there are three more, after which nobody starts anything before the run has ended:

- `leader`        SIGKILL of the scheduler that leads
- `leader-sleep`  SIGSTOP of it for longer than its lease, then SIGCONT; afterwards it must not lead
- `lockout`       the store is locked for longer than the lease: nobody may lead until it is free

Of each round is asked:

- the run succeeds, and each result holds the same rows as the local run's, and so do the counts of its steps;
- nobody who reads a result in the meantime sees a part of it, or of two runs;
- afterwards no slot is taken and no job runs, and a tiny workflow goes through at once;
- what executors made for the job is removed.

Times to recovery are printed: for an executor from its death until the scheduler has given it up and placed its work
anew; for a scheduler from its death until a tiny workflow that was started at that moment has its result.

The seed is printed; with it the same faults are chosen again, though not to the microsecond. Rounds end when --seconds
have passed. Exit status: 0 all passed, 1 something failed, 2 wrong usage.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import traceback

FAULTS = ("executor", "executors", "scheduler", "both", "sleep", "sleeper", "drain")
STANDBY_FAULTS = ("leader", "leader-sleep", "lockout")
# What times to recovery ought to be, in seconds.
TARGETS = {"executor": 3.0, "scheduler": 10.0}
# Longer than the lease of a leader (`cluster.lease`, 4 s), which has then run out for certain.
LEADER_SLEEP_S = 10.0
# Longer than the scheduler's lease of an attempt (10 s), its patience with a silent executor (15 s) and the client's
# patience with a silent scheduler (8 s).
SLEEP_S = 17.0
# What a run may take beyond its undisturbed time, whatever happens to it.
LIMIT_S = 90.0

# Several stages with hash exchanges, so that there is something to lose on the way.
WORKFLOW = """\
rowmill: 1
name: chaos
params:
  data: {type: string, default: data}
  out: {type: string, default: out}
sources:
  lineitem: {path: "${params.data}/lineitem.parquet"}
  orders: {path: "${params.data}/orders.parquet"}
  supplier: {path: "${params.data}/supplier.parquet"}
steps:
  shipped:
    sql: SELECT * FROM lineitem WHERE l_shipdate > DATE '1993-01-01'
  joined:
    sql: |
      SELECT o.o_custkey, s.s_nationkey, l.l_suppkey, l.l_quantity, l.l_extendedprice * (1 - l.l_discount) AS revenue
      FROM shipped l JOIN orders o ON l.l_orderkey = o.o_orderkey JOIN supplier s ON l.l_suppkey = s.s_suppkey
  pairs:
    sql: |
      SELECT a.s_nationkey AS nation, count(*) AS pairs, sum(a.l_quantity + b.l_quantity) AS quantity
      FROM joined a JOIN joined b ON a.l_suppkey = b.l_suppkey AND a.o_custkey < b.o_custkey
      GROUP BY a.s_nationkey
sinks:
  pairs: {from: pairs, path: "${params.out}/pairs.csv"}
"""
TINY = """\
rowmill: 1
name: tiny
params:
  data: {type: string, default: data}
  out: {type: string, default: out}
sources:
  supplier: {path: "${params.data}/supplier.parquet"}
steps:
  few:
    sql: SELECT s_nationkey, count(*) AS many FROM supplier WHERE s_acctbal > 0 GROUP BY s_nationkey
sinks:
  few: {from: few, path: "${params.out}/few.csv"}
"""


class Wrong(Exception):
    """What is wrong, in a sentence."""


def require(holds: bool, otherwise: str) -> None:
    """Ends the round when something does not hold."""
    if not holds:
        raise Wrong(otherwise)


def is_scheduler(name: str) -> bool:
    """Whether a process of this name is a scheduler: `scheduler`, `scheduler.2`."""
    return name.partition(".")[0] == "scheduler"


def bag(path: pathlib.Path) -> collections.Counter:
    """The rows of a CSV file, in whatever order."""
    return collections.Counter(path.read_text().splitlines())


class Cluster:
    """A cluster of processes on this machine."""

    def __init__(self, rowmill: str, folder: pathlib.Path, executors: str, standby: int):
        self.rowmill, self.folder, self.executors, self.standby = rowmill, folder, executors, standby
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("ROWMILL_")}
        self.environment["ROWMILL_STATE__DIR"] = str(folder / "state")

    def command(self, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess:
        """Runs a command of rowmill's to its end."""
        return subprocess.run(
            [self.rowmill, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=limit_s, check=False,
        )

    def up(self) -> None:
        """Starts what does not run."""
        more = ["--standby", str(self.standby)] if self.standby else []
        done = self.command("cluster", "up", "--executors", self.executors, "--slots", "2", "--port", "0", *more)
        require(done.returncode == 0, f"`cluster up` ended with {done.returncode}: {done.stderr.strip()}")

    def down(self) -> None:
        """Stops everything."""
        self.command("cluster", "down", "--grace-s", "2")

    def status(self) -> dict:
        """What the scheduler says."""
        done = self.command("cluster", "status", "--output", "json")
        require(done.returncode == 0, f"`cluster status` ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def record(self) -> dict:
        """What `cluster up` wrote down."""
        return json.loads((self.folder / "state" / "cluster" / "cluster.json").read_text())

    def processes(self) -> dict:
        """Process ids by name."""
        return {process["name"]: process["pid"] for process in self.record()["processes"]}

    def schedulers(self) -> list:
        """The addresses of all schedulers."""
        record = self.record()
        return [record["address"], *record.get("standbys", [])]

    def leader(self) -> tuple:
        """The scheduler that leads: its name, its address, its term. Waits while none does."""
        addresses = self.schedulers()
        if len(addresses) == 1:
            return "scheduler", addresses[0], 0
        deadline = time.monotonic() + 60
        while True:
            try:
                status = self.status()
                break
            except Wrong:
                if time.monotonic() > deadline:
                    raise
        number = addresses.index(status["leader"])
        return "scheduler" if number == 0 else f"scheduler.{number + 1}", status["leader"], status["term"]

    def ask(self, address: str) -> subprocess.CompletedProcess:
        """Asks one scheduler alone what it is doing."""
        token = str(self.folder / "state" / "cluster" / "token")
        return self.command("cluster", "status", "--cluster", address, "--token-file", token)

    def work(self, name: str) -> pathlib.Path:
        """The work directory of an executor."""
        return self.folder / "state" / "cluster" / "work" / name

    def start(self, workflow: str, out: pathlib.Path) -> subprocess.Popen:
        """Starts a run."""
        return subprocess.Popen(
            [self.rowmill, "run", workflow, "--cluster", "local", "--output", "json", "--progress", "none",
             "--set", f"data={self.folder / 'data'}", "--set", f"out={out}"],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )


def send(pid: int, what: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        pass


def lives(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def await_loss(cluster: Cluster, before: int) -> float:
    """Waits until the scheduler has given up an executor that was just killed; gives the seconds that it took."""
    began = time.monotonic()
    while len(cluster.status()["executors"]) >= before:
        require(time.monotonic() - began < 30, "an executor that was killed is not given up")
    return time.monotonic() - began


def disturb(cluster: Cluster, fault: str, chance: random.Random, times: dict) -> str:
    """Does one fault; gives what was done in words."""
    processes = cluster.processes()
    executors = sorted(name for name in processes if not is_scheduler(name))
    victim = chance.choice(executors)
    scheduler = cluster.leader()[0]

    def kill(name: str) -> None:
        send(processes[name], signal.SIGKILL)
        if not is_scheduler(name):
            shutil.rmtree(cluster.work(name), ignore_errors=True)

    if fault == "executor":
        before = len(cluster.status()["executors"])
        kill(victim)
        times["executor"].append(await_loss(cluster, before))
        return f"killed {victim}"
    if fault == "executors":
        for name in executors:
            kill(name)
        return "killed all executors"
    if fault == "scheduler":
        kill(scheduler)
        return "killed the scheduler"
    if fault == "both":
        kill(scheduler)
        kill(victim)
        return f"killed the scheduler and {victim}"
    if fault == "drain":
        send(processes[victim], signal.SIGTERM)
        return f"drained {victim}"
    name = scheduler if fault == "sleeper" else victim
    send(processes[name], signal.SIGSTOP)
    time.sleep(SLEEP_S)
    send(processes[name], signal.SIGCONT)
    return f"stopped {name} for {SLEEP_S:.0f} s"


def read_to_end(run: subprocess.Popen, limit_s: float, what: str) -> dict:
    """The report of a run that must succeed."""
    try:
        out, err = run.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        run.kill()
        run.communicate()
        raise Wrong(f"{what} did not end within {limit_s:.0f} s") from None
    require(run.returncode == 0, f"{what} ended with {run.returncode}: {err.strip()} {out.strip()}")
    return json.loads(out.splitlines()[-1] if "\n}" not in out else out)


def rows_by_step(report: dict) -> dict:
    """What left each step."""
    return {step["name"]: step["rows"] for step in report["steps"]}


class Reference:
    """The local run."""

    def __init__(self, cluster: Cluster):
        out = cluster.folder / "local"
        began = time.monotonic()
        arguments = ["--output", "json", "--set", f"data={cluster.folder / 'data'}", "--set", f"out={out}"]
        done = cluster.command("run", "chaos.yaml", *arguments, limit_s=300)
        require(done.returncode == 0, f"the local run ended with {done.returncode}: {done.stderr}")
        self.seconds = time.monotonic() - began
        self.rows = bag(out / "pairs.csv")
        self.steps = rows_by_step(json.loads(done.stdout))
        require(len(self.rows) > 20, "the local run has no rows")
        done = cluster.command("run", "tiny.yaml", *arguments)
        require(done.returncode == 0, f"the local tiny run ended with {done.returncode}: {done.stderr}")
        self.few = bag(out / "few.csv")


def settle(cluster: Cluster, figures: collections.Counter) -> None:
    """After a run: no slot is taken, no job runs, and what was made is gone."""
    deadline = time.monotonic() + 40
    while True:
        status = cluster.status()
        busy = [executor for executor in status["executors"] if executor["busy"]]
        left = [path for path in (cluster.folder / "state" / "cluster" / "work").glob("*/shuffle/*") if path.is_dir()]
        if not busy and not status["jobs"] and not left:
            break
        require(time.monotonic() < deadline, f"left behind: slots {busy}, jobs {status['jobs']}, folders {left}")
        time.sleep(0.1)
    figures["settled"] += 1


def lock_out(cluster: Cluster) -> str:
    """Locks the schedulers' store until nobody leads any more. Gives what was done in words."""
    term = cluster.leader()[2]
    lock = sqlite3.connect(cluster.folder / "state" / "cluster" / "schedulers.db", isolation_level=None, timeout=10)
    try:
        lock.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        waiting = set(cluster.schedulers())
        while waiting:
            require(time.monotonic() - began < 20, f"{waiting} lead, and cannot renew")
            waiting = {address for address in waiting if "stands by" not in cluster.ask(address).stderr}
        took = time.monotonic() - began
        lock.execute("ROLLBACK")
    finally:
        lock.close()
    began = time.monotonic()
    after = cluster.leader()
    require(after[2] > term, f"term {term} goes on as {after[2]}")
    return f"locked the store; nobody led after {took:.1f} s, and {after[0]} {time.monotonic() - began:.1f} s after that"


def take_over(cluster: Cluster, fault: str, out: pathlib.Path, reference: Reference, times: dict) -> str:
    """Takes the scheduler that leads away; another must lead soon. Gives what was done in words."""
    name, address, term = cluster.leader()
    pid = cluster.processes()[name]
    sleeps = fault == "leader-sleep"
    send(pid, signal.SIGSTOP if sleeps else signal.SIGKILL)
    began = time.monotonic()
    read_to_end(cluster.start("tiny.yaml", out), 60, f"a tiny run without {name}")
    took = time.monotonic() - began
    require(bag(out / "few.csv") == reference.few, "the rows of the tiny run differ")
    times["scheduler (stopped)" if sleeps else "scheduler"].append(took)
    if sleeps:
        time.sleep(max(0.0, LEADER_SLEEP_S - (time.monotonic() - began)))
        send(pid, signal.SIGCONT)
        # From its first step on it does not lead; while it leaves its seat it does not answer.
        stands_by = False
        until = time.monotonic() + 3
        while time.monotonic() < until or not stands_by:
            said = cluster.ask(address)
            require(said.returncode != 0, f"{name} went on and leads: {said.stdout}")
            stands_by = stands_by or "stands by" in said.stderr
            require(time.monotonic() < until + 20, f"{name} went on and does not stand by: {said.stderr}")
    after = cluster.leader()
    require(after[0] != name and after[2] > term, f"{name} led in term {term}; now {after[0]} leads in term {after[2]}")
    return f"{'stopped' if sleeps else 'killed'} the leader; {after[0]} had a result {took:.1f} s later"


def round_of(cluster: Cluster, number: int, fault: str, chance: random.Random, reference: Reference,
             undisturbed_s: float, figures: collections.Counter, times: dict) -> str:
    """One round; gives what happened in words."""
    out = cluster.folder / "out" / str(number)
    run = cluster.start("chaos.yaml", out)
    time.sleep(chance.uniform(0.0, undisturbed_s))
    in_time = run.poll() is None
    if fault == "lockout":
        what = lock_out(cluster)
    elif fault in STANDBY_FAULTS:
        what = take_over(cluster, fault, out, reference, times)
    else:
        what = disturb(cluster, fault, chance, times)
    began = time.monotonic()
    # A fault that came after the end of the run disturbs the next one.
    figures["in time" if in_time else "too late"] += 1
    time.sleep(chance.uniform(0.0, 1.0))
    if fault == "drain":
        # What drains ends by itself, and is started again then.
        deadline = time.monotonic() + 60
        while all(map(lives, cluster.processes().values())) and run.poll() is None:
            require(time.monotonic() < deadline, f"{what} and it stays")
            time.sleep(0.1)
    if fault not in STANDBY_FAULTS:
        cluster.up()
    report = read_to_end(run, undisturbed_s + LIMIT_S, f"the run ({what})")
    if fault in STANDBY_FAULTS:
        cluster.up()
    recovered = time.monotonic() - began
    require(bag(out / "pairs.csv") == reference.rows, f"the rows differ from the local run's ({what})")
    require(rows_by_step(report) == reference.steps, f"steps counted {rows_by_step(report)}, not {reference.steps}")
    settle(cluster, figures)
    began = time.monotonic()
    read_to_end(cluster.start("tiny.yaml", out), 30, "the tiny run")
    tiny = time.monotonic() - began
    require(bag(out / "few.csv") == reference.few, "the rows of the tiny run differ")
    require(tiny < 10, f"a tiny run took {tiny:.1f} s after {what}")
    # The drained executor may have ended only now.
    cluster.up()
    return f"{what}; the run ended {recovered:.1f} s later, a tiny run took {tiny:.2f} s"


def main() -> int:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rowmill", required=True)
    parser.add_argument("--tpchgen", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--scale", type=float, default=0.02)
    parser.add_argument("--executors", default="cpu=2")
    parser.add_argument("--standby", type=int, default=0, help="schedulers that stand by")
    parser.add_argument("--faults", help="those of the list above, separated by commas [default: all that fit]")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="leave the folder with the logs")
    options = parser.parse_args()
    known = FAULTS + (STANDBY_FAULTS if options.standby else ())
    faults = options.faults.split(",") if options.faults else list(known)
    if unknown := set(faults) - set(known):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rowmill-chaos-"))
    (folder / "chaos.yaml").write_text(WORKFLOW)
    (folder / "tiny.yaml").write_text(TINY)
    subprocess.run([options.tpchgen, "--scale", str(options.scale), "--out", str(folder / "data")],
                   check=True, capture_output=True)
    cluster = Cluster(str(pathlib.Path(options.rowmill).resolve()), folder, options.executors, options.standby)
    figures: collections.Counter = collections.Counter()
    times: dict = collections.defaultdict(list)
    failed = 0
    try:
        reference = Reference(cluster)
        cluster.up()
        began = time.monotonic()
        report = read_to_end(cluster.start("chaos.yaml", folder / "out" / "first"), 300, "the undisturbed run")
        undisturbed = time.monotonic() - began
        require(bag(folder / "out" / "first" / "pairs.csv") == reference.rows, "undisturbed, the rows differ")
        require(rows_by_step(report) == reference.steps, f"undisturbed, steps counted {rows_by_step(report)}")
        print(f"undisturbed: {reference.seconds:.1f} s local, {undisturbed:.1f} s on the cluster", flush=True)
        order = list(faults)
        chance.shuffle(order)
        started = time.monotonic()
        rounds = 0
        while rounds < options.rounds and time.monotonic() - started < options.seconds:
            fault = order[rounds % len(order)]
            rounds += 1
            try:
                told = round_of(cluster, rounds, fault, chance, reference, undisturbed, figures, times)
                print(f"round {rounds}: {told}", flush=True)
            except (Wrong, OSError, ValueError, KeyError, subprocess.SubprocessError) as error:
                failed += 1
                print(f"round {rounds} ({fault}) FAILED: {error}", flush=True)
                if not isinstance(error, Wrong):
                    traceback.print_exc()
                # The next round begins with a cluster that is whole.
                cluster.down()
                cluster.up()
        print(f"{rounds - failed} rounds passed, {failed} failed; faults {dict(figures)}", flush=True)
        for what, seconds in sorted(times.items()):
            target = TARGETS[what.partition(" ")[0]]
            print(f"time to recovery, {what}: median {statistics.median(seconds):.1f} s, most {max(seconds):.1f} s in "
                  f"{len(seconds)} rounds; it ought to be at most {target:.0f} s", flush=True)
        require(figures["in time"] > 0, "no fault came while a run was under way")
    except Wrong as error:
        failed += 1
        print(f"FAILED: {error}", flush=True)
    finally:
        cluster.down()
        if options.keep or failed:
            print(f"logs: {folder / 'state' / 'cluster' / 'logs'}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
