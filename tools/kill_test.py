"""Kills durable runs at random moments, resumes them, and compares what comes out with an undisturbed run.

    python3 tools/kill_test.py --rowmill target/release/rowmill                      # ten rounds, as ./check does
    python3 tools/kill_test.py --rowmill target/release/rowmill --rounds 500 --seconds 14400
    python3 tools/kill_test.py --rowmill target/release/rowmill --rounds 0 --modes full-disk,stolen

The workflow (kill_workflow.py) has an HTTP GET, a lookup, a barrier, a POST declared `once`, and duplicate rows; it
calls a service (kill_service.py) that outlives every process and logs each request. Of each round is asked:

- rows.csv and rows.parquet are the bytes of the undisturbed run, at every moment at which they are there;
- wide.csv is the same bag of rows, less the items whose `once` call became `unknown`;
- what was committed, or was in the effect log, when a process died is still there later and is not asked for again:
  the last process gets exactly as many final answers to GETs as items were missing in the store, and the answers that
  a crash lost came within the last moments (the log is written every 100 ms) before it;
- no POST was sent twice, unless the answer to the one before was 429; the key of a group is the same every time;
- the outcomes that `rowmill show` counts sum up to the items of each step;
- nothing of dead processes is left beside the results.

Then come the modes (kill_modes.py): faults of the environment instead of kills. The seed is printed; with it the same
moments are chosen again, though not to the microsecond.
"""

import argparse
import collections
import csv
import io
import json
import random
import signal
import sys
import time
import traceback

import kill_modes
from kill_service import Service
from kill_workflow import ROW_WISE, Journal, Place, Run, Wrong, kill, leftovers, require

# The effect log is written at most 100 ms after an answer; the rest is for a machine that has other things to do.
WINDOW_S = 0.1 + 2.0


class Reference:
    """An undisturbed run."""

    def __init__(self, run: Run, seconds: float):
        self.seconds = seconds
        self.row_wise = {name: run.output(name) for name in ROW_WISE}
        self.wide = table(run.output("wide.csv"))
        require(all(self.row_wise.values()) and len(self.wide) > 100, "the undisturbed run has no results")
        require(len(set(self.wide.values())) == 1, "the undisturbed run has groups twice")


def table(text: bytes | None) -> collections.Counter:
    """A CSV file as a bag of rows."""
    return collections.Counter(tuple(row) for row in list(csv.reader(io.StringIO((text or b"").decode())))[1:])


class Round:
    """One run that is killed now and then, and what was seen of it."""

    def __init__(self, run: Run, figures: collections.Counter):
        self.run, self.figures = run, figures
        self.journal = Journal(run)
        # Final answers to GETs up to the last look.
        self.answers = 0

    def look(self, died_at: float, reference: Reference) -> None:
        """After a process died: what the store knows, against what the service was asked."""
        before, self.journal = self.journal, Journal(self.run)
        for chunk, output in before.committed.items():
            require(self.journal.committed.get(chunk) == output, f"the committed chunk {chunk} changed")
        items = sum(self.run.place.items.values())
        known, known_before = (journal.known.get("enriched", 0) for journal in (self.journal, before))
        finals = [call for call in self.run.service.calls if call.method == "GET" and call.is_final]
        fresh, self.answers = len(finals) - self.answers, len(finals)
        require(known >= known_before, f"the store forgot results: {known_before} were known, then {known}")
        require(fresh <= items - known_before, f"{fresh} GETs were answered where {items - known_before} were missing")
        lost = fresh - (known - known_before)
        late = sum(call.answered > died_at - WINDOW_S for call in finals)
        require(0 <= lost <= late, f"{lost} answers were lost, of which at most {late} were in the window")
        self.figures["answers lost in the window"] += lost
        check_present(self.run, reference)

    def end(self, reference: Reference) -> None:
        """After the process that brought the run to its end."""
        items = sum(self.run.place.items.values())
        missing = items - self.journal.known.get("enriched", 0)
        finals = [call for call in self.run.service.calls if call.method == "GET" and call.is_final]
        last = len(finals) - self.answers
        require(last == missing, f"the last process asked {last} times for {missing} items that were missing")
        self.figures["GETs answered again"] += len(finals) - items
        check_end(self.run, reference, self.figures)


def check_present(run: Run, reference: Reference) -> None:
    """Whoever reads in the middle sees all of a result or nothing of it."""
    for name in ROW_WISE:
        found = run.output(name)
        require(found is None or found == reference.row_wise[name], f"{name} is half written or differs")


def check_end(run: Run, reference: Reference, figures: collections.Counter) -> None:
    """What must hold of every run that ended, whatever happened to it."""
    for name in ROW_WISE:
        require(run.output(name) == reference.row_wise[name], f"{name} differs from the undisturbed run")
    shown = run.ask("show", "last")[0]
    steps = {counts["step"]: counts["counts"] for stage in shown["stages"] for counts in stage["counts"]}
    require(shown["run"]["status"] == "succeeded_with_failures", f"status {shown['run']['status']}")
    for stage in shown["stages"]:
        whole = stage["committed_chunks"] == stage["chunk_count"] and stage["status"] == "done"
        require(whole, f"stage {stage['name']} ended with {stage}")
    expected = {"enriched": sum(run.place.items.values()), "charged": len(reference.wide)}
    for step, items in expected.items():
        require(sum(steps[step].values()) == items, f"outcomes of {step}: {steps[step]} do not sum up to {items}")
    require(steps["charged"].get("not_run", 0) == 0 and steps["enriched"].get("not_run", 0) == 0, "items were not run")

    unknown = {str(json.loads(row["item"])["grp"]) for row in run.ask("items", "last", "--status", "unknown")}
    require(len(unknown) == steps["charged"].get("unknown", 0), "the ledger and the counts disagree about `unknown`")
    wide = table(run.output("wide.csv"))
    expected_wide = collections.Counter({row: n for row, n in reference.wide.items() if row[0] not in unknown})
    require(wide == expected_wide, f"wide.csv: {list(((wide - expected_wide) + (expected_wide - wide)).items())[:5]}")

    sent = collections.defaultdict(list)
    for call in run.service.calls:
        if call.method == "POST":
            sent[str(json.loads(call.body)["grp"])].append(call)
    for group, calls in sent.items():
        require(len({call.key for call in calls}) == 1 and calls[0].key, f"group {group} was sent under several keys")
        for call in calls[:-1]:
            require(call.status == 429, f"the once call of group {group} was sent {len(calls)} times")
        figures["POSTs sent again after 429"] += len(calls) - 1
    keys = [calls[0].key for calls in sent.values()]
    require(len(set(keys)) == len(keys), "two groups have one idempotency key")
    for row in wide:
        require(sent[row[0]] and sent[row[0]][-1].status == 200, f"group {row[0]} has a receipt and no answered call")
    figures["items unknown"] += len(unknown)
    left = leftovers(run, Journal(run)) if (run.state / "runs.db").exists() else []
    require(not left, f"dead processes left {len(left)} files: {left[:5]}")


def one_round(place: Place, reference: Reference, pick: random.Random, figures: collections.Counter) -> None:
    """A run that is interrupted up to five times."""
    place.rounds += 1
    run = Run(place, f"round-{place.rounds}")
    this = Round(run, figures)
    kills = pick.choice([1, 2, 3, 5])
    process = run.begin()
    for _ in range(kills):
        # Ctrl-C now and then: it leaves a run that nobody holds.
        how = signal.SIGINT if pick.random() < 0.2 else signal.SIGKILL
        if not kill(process, pick.uniform(0, reference.seconds * 1.05), how):
            break
        died_at = time.monotonic()
        if how == signal.SIGINT:
            code = run.finish(process, (130, 0, 3, -signal.SIGINT))
            figures["Ctrl-C that hit"] += 1
            died_at = time.monotonic()
            if code in (0, 3):
                break
        else:
            figures["kills that hit"] += 1
        place.service.drained()
        this.look(died_at, reference)
        if not run.exists():
            figures["kills before the run was written down"] += 1
            process = run.begin()
            continue
        ended = run.ask("show", "last")[0]["run"]["status"]
        if ended.startswith("succeeded"):
            figures["kills after the end was written down"] += 1
            process = None
            break
        # A dead process on this machine holds nothing: neither waiting nor `--steal` is needed.
        process = run.resume()
        figures["resumes"] += 1
    if process is not None:
        run.finish(process)
    this.end(reference)
    run.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rowmill", required=True, help="the rowmill binary")
    parser.add_argument("--rounds", type=int, default=10, help="rounds of kills (10)")
    parser.add_argument("--seconds", type=float, default=180, help="no round begins after so many seconds (180)")
    parser.add_argument("--rows", type=int, default=3000, help="rows of input (3000)")
    parser.add_argument("--seed", type=int, default=None, help="of input and of the moments (random)")
    parser.add_argument("--modes", default="usual", help="faults of the environment: `usual`, `all`, `none`, or names")
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}", flush=True)
    usual = [name for name in kill_modes.MODES if name not in kill_modes.SLOW]
    named = {"usual": usual, "all": list(kill_modes.MODES), "none": []}
    modes = named.get(arguments.modes, arguments.modes.split(","))
    require(set(modes) <= set(kill_modes.MODES), f"modes are {', '.join(kill_modes.MODES)}")
    began = time.monotonic()
    pick = random.Random(seed)
    service = Service(seed)
    service.start()
    place = Place(arguments.rowmill, arguments.rows, seed, service, arguments.keep)
    figures: collections.Counter = collections.Counter()
    passed = failed = 0

    def attempt(name: str, work) -> None:
        nonlocal passed, failed
        started = time.monotonic()
        try:
            said = work()
            passed += 1
            print(f"ok      {name} ({time.monotonic() - started:.1f} s){f': {said}' if said else ''}", flush=True)
        except (Wrong, OSError, KeyError, ValueError) as error:
            failed += 1
            place.keep = True
            print(f"FAILED  {name}: {error}", flush=True)
            if not isinstance(error, Wrong):
                traceback.print_exc()

    reference = None
    for name in ("undisturbed", "undisturbed again"):
        started = time.monotonic()
        run = Run(place, name.replace(" ", "-"))
        run.finish(run.begin())
        again, reference = reference, Reference(run, time.monotonic() - started)
        check_end(run, again or reference, collections.Counter())
        run.close()
    print(f"an undisturbed run takes {reference.seconds:.2f} s and has {len(reference.wide)} groups", flush=True)
    tools = kill_modes.Tools(place, reference, check_end)
    for mode in modes:
        attempt(mode, lambda: kill_modes.MODES[mode](tools))
    for number in range(1, arguments.rounds + 1):
        if time.monotonic() - began > arguments.seconds:
            print(f"the time is over after {number - 1} rounds")
            break
        attempt(f"round {number}", lambda: one_round(place, reference, pick, figures))
    place.close()
    if arguments.rounds:
        require(figures["kills that hit"] > 0, "no kill hit a process")
    for what, many in sorted(figures.items()):
        print(f"{many:8} {what}")
    print(f"{passed} passed, {failed} failed, {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
