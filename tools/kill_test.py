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
import random
import signal
import sys
import time
import traceback

import kill_modes
from kill_checks import Reference, check_end, check_present
from kill_service import Service
from kill_workflow import Journal, Place, Run, Wrong, kill, require

# The effect log is written at most 100 ms after an answer; the rest is for a machine that has other things to do.
WINDOW_S = 0.1 + 2.0


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
