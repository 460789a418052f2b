"""Durable runs with HTTP steps on a cluster whose processes, links, disks and stores fail at random moments.

    python3 tools/chaos_durable.py --rowmill target/release/rowmill --tpchgen target/release/rowmill-tpchgen   # as ./check
    python3 tools/chaos_durable.py ... --rounds 1000 --seconds 86400

As root each process has a network namespace of its own, so that it can be cut off (chaos_fleet.py), and one executor has a
small disk. The run store is a PostgreSQL server where one is installed. Each round starts two workflows on one cluster: the
durable one of the kill test (kill_workflow.py) with one idempotent PUT more, and SQL with exchanges (chaos_test.py); and
does one of the faults of chaos_faults.py to them. Of each round is asked:

- both runs succeed, and their results are those of undisturbed local runs, by the rules of the kill test (kill_checks.py):
  the bytes of row-wise results, the outcomes of each step, no `once` call sent twice, one key for each group;
- calls are repeated only where a process was lost that may have had them under way, and PUTs under the same key;
- nothing becomes `unknown` where no process with calls was lost, and else no more than were in flight;
- afterwards no slot is taken, no job runs, nothing of a job is left on any executor, and a tiny workflow goes through at
  once;
- a killed executor's work is placed elsewhere within 3 seconds.

The seed is printed; with it the same faults are chosen again, though not to the microsecond. Faults that are not possible
here are named with the reason. Exit status: 0 all passed, 1 something failed, 2 wrong usage.
"""

import argparse
import collections
import itertools
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

import chaos_test
from chaos_faults import BEFORE, FAULTS, NEEDS, Happened, Scene
from chaos_fleet import SCHEDULER, Fleet, Network
from kill_checks import Reference, check_end, check_present
from kill_postgres import Postgres
from kill_service import Service
from kill_workflow import WORKFLOW, Place, Run, Wrong, require

# What a run may take beyond its undisturbed time, whatever happens to it.
LIMIT_S = 90.0
# What a tiny workflow may take when all is over.
TINY_S = 5.0
# Until the work of a killed executor is placed elsewhere.
RECOVERY_S = 3.0
# The effect log is written at most 100 ms after an answer; the rest is for a machine that has other things to do.
WINDOW_S = 0.1 + 2.0
# The `in_flight` of the GETs, and of the PUTs and POSTs.
GETS, OTHERS = 24, 12

# One more step, whose calls have keys and may be repeated.
NOTED = """  noted:
    http:
      from: sums
      connection: service
      method: PUT
      path: "/note/{grp}"
      body: {json: {total: "{total}"}}
      response: {note: {json: /note, type: int64}}
    effects: idempotent
    retry: {attempts: 8, initial_backoff: 5ms, max_backoff: 50ms}
    in_flight: 12
"""
DURABLE = WORKFLOW.replace("  charged:\n    http:\n      from: sums\n", NOTED + "  charged:\n    http:\n      from: noted\n")


class ClusterRun(Run):
    """A durable run whose calls are made by executors."""

    def __init__(self, place: Place, name: str, fleet: Fleet, store: str):
        super().__init__(place, name, workflow=DURABLE, store=store, settings=fleet.settings)
        self.fleet = fleet

    def begin(self) -> subprocess.Popen:
        return self.start("run", "flow.yaml", "--durable", "--option", "output.progress=none", *self.fleet.reach())

    def resume(self, *words: str) -> subprocess.Popen:
        return self.start("resume", "last", "--option", "output.progress=none", *self.fleet.reach(), *words)


class Durable:
    """A durable run on the cluster, from its first client to its last."""

    def __init__(self, run: ClusterRun):
        self.run, self.process = run, run.begin()

    def asked(self) -> int:
        """Answers that the service has given."""
        return sum(call.is_final for call in self.run.service.calls)

    def await_answers(self, many: int) -> None:
        """Waits until the run is so far."""
        deadline = time.monotonic() + LIMIT_S
        while self.asked() < many:
            ended = self.process.poll() is not None
            require(not ended and time.monotonic() < deadline, f"no {many} answers\n{self.run.tail()}")
            time.sleep(0.005)

    def replace_client(self) -> None:
        """Kills the client and lets another one go on."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process = self.run.resume() if self.run.exists() else self.run.begin()

    def check(self, happened: Happened, reference: Reference, figures: collections.Counter) -> None:
        """What must hold at the end."""
        check_end(self.run, reference, figures)
        again = check_repeats(self.run, happened)
        figures["calls made again"] += again
        if not happened.lost:
            require(again == 0, f"{again} answered calls were made again, and nothing was lost")
        unknown = self.run.ask("items", "last", "--status", "unknown")
        most = OTHERS * happened.lost
        require(len(unknown) <= most, f"{len(unknown)} items are unknown, at most {most} were in flight")


def check_repeats(run: Run, happened: Happened) -> int:
    """Sees that calls that were answered were made again only where the answer may have been lost; how many were."""
    again = 0
    for method, in_flight in (("GET", GETS), ("PUT", OTHERS)):
        calls = collections.defaultdict(list)
        for call in run.service.calls:
            if call.method == method and call.is_final:
                calls[call.path].append(call)
        surplus = []
        for path, answered in calls.items():
            if method == "PUT":
                keys = {call.key for call in answered}
                require(len(keys) == 1 and "" not in keys, f"{path} was sent under the keys {keys}")
            times = run.place.items[int(path.rsplit("/", 1)[1])] if method == "GET" else 1
            require(len(answered) >= times, f"{path} was answered {len(answered)} times, not {times}")
            surplus += answered[times:]
        early = [call for call in surplus if call.at < happened.began]
        require(not early, f"{len(early)} answered calls were made again before anything happened, as {early[:1]}")
        window = (happened.began - WINDOW_S, happened.ended + WINDOW_S)
        due = sum(window[0] <= call.answered <= window[1] for all_of in calls.values() for call in all_of)
        require(len(surplus) <= due, f"{len(surplus)} of {method} were made again, of which {due} answers were due")
        # A client that dies loses what it had not written down yet as well.
        if happened.what != "killed the client":
            most = in_flight * happened.lost
            require(len(surplus) <= most, f"{len(surplus)} of {method} were made again, at most {most} were in flight")
        again += len(surplus)
    return again


class Theatre:
    """Everything that rounds share."""

    def __init__(self, options: argparse.Namespace, seed: int, folder: pathlib.Path):
        self.figures: collections.Counter = collections.Counter()
        self.recovered: dict[str, list[float]] = collections.defaultdict(list)
        self.missing: dict[str, str] = {}
        self.folder = folder
        names = [SCHEDULER, *(f"e{number}" for number in range(1, options.executors + 1))]
        network = Network.try_new(names)
        if isinstance(network, str):
            self.missing["network"], network = network, None
        self.fleet = Fleet(str(pathlib.Path(options.rowmill).resolve()), folder, options.executors, network)
        self.postgres: Postgres | None = None
        self.service = Service(seed, host=network.own if network else "127.0.0.1", pace=options.pace)
        self.service.start()
        self.place = Place(self.fleet.rowmill, options.rows, seed, self.service, options.keep)
        try:
            if Postgres.is_installed():
                self.postgres = Postgres()
            else:
                self.missing["postgres"] = "PostgreSQL's server is not installed"
            if why := self.fleet.mount_small_disk():
                self.missing["small disk"] = why
            (folder / "chaos.yaml").write_text(chaos_test.WORKFLOW)
            (folder / "tiny.yaml").write_text(chaos_test.TINY)
            state = f"state: {{dir: {folder / 'state'}}}\n"
            (folder / "rowmill.yaml").write_text(self.place.connections() + self.fleet.settings + state)
            generate = [options.tpchgen, "--scale", str(options.scale), "--out", str(folder / "data")]
            subprocess.run(generate, check=True, capture_output=True)
            self._local()
        except BaseException:
            self.close()
            raise

    def _local(self) -> None:
        self.sql = chaos_test.Reference(self.fleet)
        began = time.monotonic()
        run = Run(self.place, "local", workflow=DURABLE)
        run.finish(run.begin(), (3,))
        self.durable = Reference(run, time.monotonic() - began)
        check_end(run, self.durable, collections.Counter())
        # How many answers the service has given when the GETs, the PUTs and the POSTs begin, and when all is done.
        answers = collections.Counter(call.method for call in self.service.calls if call.is_final)
        self.phases = list(itertools.accumulate((answers[method] for method in ("GET", "PUT", "POST")), initial=0))
        run.close()
        # From here on executors stay connected with the service.
        self.service.callers_stay = True

    def close(self) -> None:
        """Leaves nothing on this machine but logs."""
        self.fleet.close()
        if self.postgres:
            self.postgres.close()
        self.place.close()

    def start(self, workflow: str, out: pathlib.Path) -> subprocess.Popen:
        """Starts a run of SQL."""
        folder = self.fleet.folder
        return subprocess.Popen(
            [self.fleet.rowmill, "run", workflow, *self.fleet.reach(), "--output", "json", "--progress", "none",
             "--set", f"data={folder / 'data'}", "--set", f"out={out}"],
            cwd=folder, env=self.fleet.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )

    def settle(self) -> None:
        """After the runs: no slot is taken, no job runs, and what was made for them is gone."""
        deadline = time.monotonic() + 40
        while True:
            status = self.fleet.status()
            busy = [executor for executor in status["executors"] if executor["busy"]]
            left = [path for name in self.fleet.executors for path in self.fleet.work(name).glob("shuffle/*")]
            if not busy and not status["jobs"] and not left:
                return
            require(time.monotonic() < deadline, f"left behind: slots {busy}, jobs {status['jobs']}, folders {left}")
            time.sleep(0.1)

    def tiny(self, out: pathlib.Path) -> float:
        """How long a tiny workflow takes."""
        began = time.monotonic()
        chaos_test.read_to_end(self.start("tiny.yaml", out), 30, "the tiny run")
        took = time.monotonic() - began
        require(chaos_test.bag(out / "few.csv") == self.sql.few, "the rows of the tiny run differ")
        return took

    def round_of(self, number: int, fault: str, chance: random.Random) -> str:
        """One round; gives what happened in words."""
        out = self.folder / "out" / str(number)
        store = self.postgres.database() if self.postgres else ""
        run = ClusterRun(self.place, f"round-{number}", self.fleet, store)
        durable: Durable | None = None
        scene = Scene(self.fleet, chance, self.postgres, run, lambda: durable.replace_client(), self.recovered)
        sql = None
        try:
            if fault in BEFORE:
                happened = FAULTS[fault](scene)
            durable, sql = Durable(run), self.start("chaos.yaml", out)
            if fault not in BEFORE:
                # Each kind of call is disturbed as often as the others, however many there are of it.
                phase = chance.randrange(len(self.phases) - 1)
                first, last = self.phases[phase : phase + 2]
                durable.await_answers(int(chance.uniform(first + 20, first + (last - first) * 0.9)))
                require(durable.process.poll() is None, "the run had ended before anything happened")
                happened = FAULTS[fault](scene)
                time.sleep(chance.uniform(0.0, 1.0))
            check_present(run, self.durable)
            self.fleet.up()
            began = time.monotonic()
            run.finish(durable.process, (3,), seconds=self.durable.seconds * 2 + LIMIT_S)
            report = chaos_test.read_to_end(sql, LIMIT_S, f"the run of SQL ({happened.what})")
            ended = time.monotonic() - began
            if fault == "disk":
                full = self.fleet.name_of(self.fleet.small_disk) not in self.fleet.members()
                require(full, "nobody noticed that the disk is full")
        finally:
            for undo in scene.undo:
                undo()
            for process in (durable and durable.process, sql):
                if process is not None and process.poll() is None:
                    process.kill()
                    process.wait()
        # With the disk back, the executor takes work again.
        self.fleet.up()
        durable.check(happened, self.durable, self.figures)
        require(chaos_test.bag(out / "pairs.csv") == self.sql.rows, "the rows of SQL differ from the local run's")
        steps = chaos_test.rows_by_step(report)
        require(steps == self.sql.steps, f"the steps of SQL counted {steps}, not {self.sql.steps}")
        self.settle()
        tiny = self.tiny(out)
        require(tiny < TINY_S, f"a tiny run took {tiny:.1f} s")
        self.figures[f"fault {fault}"] += 1
        run.close()
        return f"{happened.what}; the runs ended {ended:.1f} s later, a tiny run took {tiny:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rowmill", required=True)
    parser.add_argument("--tpchgen", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=240, help="no round begins after so many seconds (240)")
    parser.add_argument("--rows", type=int, default=2000, help="rows of the durable run (2000)")
    parser.add_argument("--scale", type=float, default=0.01, help="of the tables of SQL (0.01)")
    parser.add_argument("--pace", type=float, default=2.0, help="how slow the service is (2)")
    parser.add_argument("--executors", type=int, default=3)
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="leave the folders with the logs")
    options = parser.parse_args()
    faults = options.faults.split(",")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    chance = random.Random(seed)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="rowmill-chaos-"))
    theatre = Theatre(options, seed, folder)
    for fault in [fault for fault in faults if NEEDS.get(fault) in theatre.missing]:
        print(f"skipped: {fault}: {theatre.missing[NEEDS[fault]]}", flush=True)
        faults.remove(fault)
    failed = rounds = 0
    try:
        theatre.fleet.up()
        print(f"undisturbed and local: {theatre.durable.seconds:.1f} s durable, {theatre.sql.seconds:.1f} s SQL; "
              f"a tiny run on the cluster: {theatre.tiny(folder / 'out' / '0'):.2f} s", flush=True)
        chance.shuffle(faults)
        started = time.monotonic()
        while faults and rounds < options.rounds and time.monotonic() - started < options.seconds:
            fault = faults[rounds % len(faults)]
            rounds += 1
            try:
                print(f"round {rounds}: {theatre.round_of(rounds, fault, chance)}", flush=True)
            except (Wrong, chaos_test.Wrong, OSError, ValueError, KeyError, AssertionError,
                    subprocess.SubprocessError) as error:
                failed += 1
                theatre.place.keep = True
                print(f"round {rounds} ({fault}) FAILED: {error}", flush=True)
                if not isinstance(error, (Wrong, chaos_test.Wrong)):
                    traceback.print_exc()
                # The next round begins with a cluster that is whole.
                theatre.fleet.down()
                theatre.fleet.up()
        for what, seconds in sorted(theatre.recovered.items()):
            print(f"{what}: {', '.join(f'{second:.2f}' for second in seconds)} s", flush=True)
            if what.startswith("executor killed") and max(seconds) > RECOVERY_S:
                failed += 1
                print(f"FAILED: that is more than {RECOVERY_S:.0f} s", flush=True)
        print(f"{rounds} rounds, {failed} failures, {time.monotonic() - started:.0f} s; {dict(theatre.figures)}", flush=True)
        if not rounds:
            failed += 1
            print("FAILED: no round began", flush=True)
    except (Wrong, chaos_test.Wrong) as error:
        failed += 1
        print(f"FAILED: {error}", flush=True)
    finally:
        theatre.close()
        if options.keep or failed:
            print(f"logs: {folder}", flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
