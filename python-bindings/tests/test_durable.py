"""Durable runs, and Python functions as steps of workflows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import rowmill
from rowmill import Workflow

MODULE = """
import os
here = os.path.dirname(__file__)

def note(name):
    with open(os.path.join(here, name), "ab", buffering=0) as file:
        file.write(b".")

def double(x: int) -> int:
    note("calls")
    if x == 7 and not os.path.exists(os.path.join(here, "mended")):
        raise ValueError("seven is not mended")
    return x * 2

def slow(x: int) -> int:
    import time
    note("calls")
    time.sleep(0.02)
    return x * 2

def each(x):
    for n in range(x % 3):
        yield {"n": n}

def columns(x: "pyarrow.Array"):
    import pyarrow.compute as pc
    return pc.add(x, 1)

class Model:
    def __init__(self):
        note("loads")
        print("model is loaded")
        self.factor = 3
    def __call__(self, x: int) -> int:
        return x * self.factor

def die(x: int) -> int:
    if x == 11:
        os._exit(9)
    return x
"""

TEXT = """
rowmill: 1
name: flow
sources: {{numbers: {{range: {{end: {rows}}}}}}}
steps:
  called:
    python:
      from: numbers
      function: {function}
      reads: [value]
      output: {output}
      {more}
    {items}
sinks: {{out: {{from: called, path: out.parquet}}}}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a module, in which runs live."""
    (tmp_path / "functions_of_durable.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "functions_of_durable", raising=False)
    rowmill.configure()
    yield tmp_path
    monkeypatch.undo()
    rowmill.configure()


def yaml(function, output="{y: int64}", items="effects: pure", more="", rows=20):
    return TEXT.format(function=f"functions_of_durable:{function}", output=output, items=items, more=more, rows=rows)


def loaded(place, **said):
    (place / "flow.yaml").write_text(yaml(**said))
    return rowmill.load("flow.yaml")


def result(run):
    """The rows of the sink, by value: a run that is not durable writes them as they come."""
    return run.sinks["out"].read().sort("value").to_pydict()


def test_a_function_of_a_module_is_a_step_of_a_text(place, capfd):
    run = loaded(place, function="Model").run()
    assert result(run)["y"] == [n * 3 for n in range(20)]
    assert (place / "loads").stat().st_size <= os.cpu_count()
    assert "model is loaded" in capfd.readouterr().err
    run = loaded(place, function="each", output="{n: int64}", more="fan_out: true").run()
    assert result(run)["value"] == [n for n in range(20) for _ in range(n % 3)]
    run = loaded(place, function="columns").run()
    assert result(run)["y"] == list(range(1, 21))


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"function": "absent"}, "absent"),
        ({"function": "each"}, "fan_out: true"),
        ({"function": "double", "more": "fan_out: true"}, "is for generators"),
        ({"function": "double", "more": "given: numbers"}, "given"),
        ({"function": "double", "output": "{value: int64}"}, "has already"),
    ],
)
def test_what_does_not_fit_is_told_by_check(place, said, text):
    with pytest.raises(rowmill.RowmillError, match=text):
        loaded(place, **said).check()


def test_the_command_runs_them_too(place):
    (place / "flow.yaml").write_text(yaml("double", items="effects: pure\n    on_error: skip"))
    done = subprocess.run([sys.executable, "-m", "rowmill", "run", "flow.yaml"], capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr
    assert rowmill.read_parquet("out.parquet").sort("value").to_pydict()["y"] == [n * 2 for n in range(20) if n != 7]


def test_a_row_that_kills_its_process_is_found(place):
    run = loaded(place, function="die", items="effects: pure\n    on_error: dead_letter").run(durable=True)
    assert run.status == "succeeded_with_failures"
    assert result(run)["y"] == [n for n in range(20) if n != 11]
    items = run.items().to_pylist()
    assert len(items) == 1 and items[0]["outcome"] == "dead_lettered" and items[0]["code"] == "crashed"
    assert json.loads(items[0]["item"]) == {"value": 11}


def test_the_ledger_keeps_tracebacks(place):
    run = loaded(place, function="double", items="effects: pure\n    on_error: skip").run(durable=True)
    [item] = run.items("skipped", step="called").to_pylist()
    assert item["message"] == "ValueError: seven is not mended"
    assert "functions_of_durable.py" in json.loads(item["details"])["traceback"]
    assert run.items("failed").to_pylist() == []
    with pytest.raises(ValueError, match="there is no outcome"):
        run.items("lost")


def test_a_run_that_stopped_goes_on(place):
    flow = loaded(place, function="double", items="effects: pure")
    with pytest.raises(rowmill.RowmillError, match="seven is not mended") as caught:
        flow.run(durable=True)
    stopped = caught.value.run
    assert stopped.status == "stopped" and stopped.workflow == "flow" and "seven" in stopped.error
    assert [run.id for run in rowmill.runs("stopped")] == [stopped.id]
    (place / "mended").touch()
    run = rowmill.run(stopped.id[:30]).resume()
    assert run.status == "succeeded" and run.id == stopped.id and run.durable
    assert result_of(place) == [n * 2 for n in range(20)]
    assert rowmill.run("last").status == "succeeded"
    assert rowmill.run().outcomes["called"]["ok"] == 20
    with pytest.raises(rowmill.RowmillError, match="has ended"):
        run.resume()


def result_of(place):
    return rowmill.read_parquet(str(place / "out.parquet")).to_pydict()["y"]


def test_a_process_that_is_killed_leaves_a_run_that_goes_on(place):
    script = textwrap.dedent("""
        import rowmill
        rowmill.load("flow.yaml").run(durable=True)
    """)
    (place / "flow.yaml").write_text(yaml("slow", items="batch: {rows: 10}\n    effects: idempotent", rows=400))
    program = subprocess.Popen([sys.executable, "-c", script])
    until = time.monotonic() + 60
    while not (place / "calls").exists() or (place / "calls").stat().st_size < 60:
        assert time.monotonic() < until and program.poll() is None
        time.sleep(0.02)
    program.send_signal(signal.SIGKILL)
    program.wait()
    before = (place / "calls").stat().st_size
    assert before < 400
    run = rowmill.run().resume(steal=True)
    assert run.status == "succeeded" and result_of(place) == [n * 2 for n in range(400)]
    # What had been answered, and written down, is not asked again.
    assert (place / "calls").stat().st_size < before + 400


def test_items_that_failed_are_tried_again(place):
    run = loaded(place, function="double", items="effects: pure\n    on_error: dead_letter").run(durable=True)
    assert run.items("dead_lettered").to_pydict()["row"] == [7]
    calls = (place / "calls").stat().st_size
    (place / "mended").touch()
    again = run.retry()
    assert again.status == "succeeded" and result_of(place) == [n * 2 for n in range(20)]
    assert (place / "calls").stat().st_size == calls + 1
    with pytest.raises(rowmill.RowmillError):
        again.retry()


def test_a_workflow_that_was_built_is_durable_too(place):
    import functions_of_durable

    flow = Workflow("built").source("numbers", range=(0, 20)).step("named", sql="SELECT value AS x FROM numbers")
    flow.step("doubled", functions_of_durable.double, effects="pure", on_error="dead_letter", workers=1, batch=5)
    flow.sink("out", "out.parquet")
    text = flow.to_yaml()
    assert "functions_of_durable:double" in text and "in_flight: 1" in text
    run = flow.run(durable=True)
    assert run.outcomes["doubled"]["dead_lettered"] == 1 and run.outcomes["doubled"]["ok"] == 19
    assert rowmill.run(run.id).items("dead_lettered").to_pydict()["row"] == [7]
    again = Workflow.from_yaml(text, base=str(place)).run(durable=True)
    assert again.outcomes == run.outcomes


def test_functions_of_the_program_run_in_workflows(place):
    factor = 4

    @rowmill.step(effects="pure", cache=True)
    def times(value: int) -> int:
        return value * factor

    flow = Workflow("here").source("numbers", range=(0, 10)).step("timed", times).sink("out", "out.parquet")
    assert result(flow.run())["times"] == [n * 4 for n in range(10)]
    with pytest.raises(ValueError, match="put it into a module"):
        flow.to_yaml()
    with pytest.raises(ValueError, match="put it into a module"):
        flow.run(durable=True)


def test_runs_that_are_not_durable_keep_nothing(place):
    run = loaded(place, function="double", items="effects: pure\n    on_error: skip").run()
    assert run.samples["called"][0][1] == "skipped"
    with pytest.raises(ValueError, match="durable=True"):
        run.items()
    with pytest.raises(rowmill.RowmillError):
        rowmill.run("no-such-run")
    with pytest.raises(ValueError, match="known are"):
        rowmill.runs("lost")
    assert rowmill.runs() == []


def test_a_file_that_changed_is_not_run(place):
    flow = loaded(place, function="double", items="effects: pure\n    on_error: skip")
    (place / "flow.yaml").write_text(yaml("slow"))
    with pytest.raises(ValueError, match="changed since it was loaded"):
        flow.run(durable=True)


def test_a_rate_holds_in_workflows_and_stands_in_their_text(place):
    import functions_of_durable

    flow = Workflow("paced").source("numbers", range=(0, 20)).step("xs", sql="select value as x from numbers where value <> 7")
    flow.step("called", functions_of_durable.double, effects="pure", rate_limit="2400/min", workers=2)
    flow.sink("out", "out.parquet")
    text = flow.to_yaml()
    assert "rate_limit: 40/s" in text and Workflow.from_yaml(text).to_yaml() == text
    started = time.monotonic()
    assert flow.run().outcomes["called"]["ok"] == 19
    # 19 calls at 40 a second, of which a few leave at once.
    assert time.monotonic() - started >= 0.25
    slow = Workflow("w").source("n", range=(0, 1))
    with pytest.raises(ValueError, match="less than one call in an hour"):
        slow.step("s", rowmill.step(rate_limit="0.5/h")(functions_of_durable.double))


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-m", "rowmill", "cluster"]
    with open(tmp_path / "said", "wb") as said:
        up = [*command, "up", "--executors", "cpu=1,io=1", "--port", "0"]
        subprocess.run(up, check=True, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
    yield tmp_path
    with open(tmp_path / "said", "wb") as said:
        subprocess.run([*command, "down", "--grace-s", "1"], stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def test_workflows_run_on_a_cluster(cluster):
    (cluster / "numbers.csv").write_text("n\n" + "".join(f"{n}\n" for n in range(1000)))
    (cluster / "twice.py").write_text("def twice(n: int) -> int:\n    return 2 * n\n")
    (cluster / "flow.yaml").write_text(
        "rowmill: 1\nname: flow\nsources: {numbers: {path: numbers.csv}}\nsteps:\n"
        "  doubled:\n    python: {from: numbers, function: 'twice:twice', reads: [n], output: {m: int64}}\n"
        "    effects: pure\n"
        "  sums: {sql: 'SELECT n % 10 AS k, sum(n) AS total FROM numbers GROUP BY 1'}\n"
        "sinks:\n  doubled: {from: doubled, path: doubled.csv}\n  sums: {from: sums, path: sums.csv}\n"
    )
    flow = rowmill.load("flow.yaml")
    assert "ClusterExec" in flow.explain(cluster="local")
    flow.run(cluster="local")
    assert sum(rowmill.read_csv("doubled.csv").to_pydict()["m"]) == 999 * 1000
    assert sum(rowmill.read_csv("sums.csv").to_pydict()["total"]) == 999 * 500
    run = flow.run(durable=True, cluster="local")
    assert run.status == "succeeded"
    with pytest.raises(ValueError, match="token_file"):
        flow.run(token_file="token")
    with pytest.raises(rowmill.RowmillError, match="address"):
        flow.run(cluster="a b", token_file=".rowmill/cluster/token")
