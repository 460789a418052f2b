"""What must hold of every durable run that has ended, whatever happened on the way: kill_test.py and chaos_durable.py ask
it of theirs.
"""

import collections
import csv
import io
import json

from kill_workflow import ROW_WISE, Journal, Run, leftovers, require


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
