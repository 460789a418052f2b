"""Workflows from Python, and the command."""

from __future__ import annotations

import pathlib
import signal
import subprocess
import sys
import time

import pytest

import rowmill
from conftest import ROOT
from rowmill import Workflow, col


@pytest.fixture
def flights(tmp_path):
    frame = rowmill.from_pydict({"month": [1, 1, 2], "carrier": ["AA", "UA", "AA"], "delay": [10, 70, 80]})
    frame.write_parquet(tmp_path / "flights.parquet")
    return tmp_path


def late(folder: pathlib.Path) -> Workflow:
    return (
        Workflow("late")
        .param("least", "int64", 60)
        .source("flights", folder / "flights.parquet")
        .step("late", sql="select * from flights where delay >= $least")
        .step("by_carrier", sql="select carrier, count(*) as n from late group by carrier")
        .sink("report", folder / "out.parquet")
    )


def test_build_check_explain_run(flights):
    workflow = late(flights)
    assert "sources: flights; steps: late, by_carrier; sinks: report" in repr(workflow)
    assert workflow.check() == []
    assert "by_carrier" in workflow.explain() and workflow.explain("mermaid").startswith("flowchart")
    seen = []
    run = workflow.run({"least": 75}, progress=seen.append, collect="late")
    assert run.status == "succeeded" and run.sinks["report"].rows == 1 and run.steps["late"].rows == 1
    assert run.tables["late"].to_pydict()["delay"] == [80]
    assert run.sinks["report"].read().to_pydict() == {"carrier": ["AA"], "n": [1]}
    assert seen and seen[-1]["by_carrier"][0] == 1
    assert "sink report: 1 rows" in repr(run) and "<table>" in run._repr_html_()


def test_a_step_without_rows_is_collected_too(flights):
    run = late(flights).run({"least": 1000}, collect=["late", "by_carrier"], progress=False)
    assert run.tables["late"].column_names == ["month", "carrier", "delay"] and run.tables["by_carrier"].num_rows == 0


def test_yaml_there_and_back(flights):
    text = late(flights).to_yaml()
    again = Workflow.from_yaml(text)
    assert again.run().sinks["report"].rows == 2 and again.to_yaml() == text
    path = flights / "flow.yaml"
    path.write_text(text)
    loaded = rowmill.load(path)
    assert loaded.name == "late" and loaded.run({"least": 0}).steps["late"].rows == 3


PROGRAM = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    n = message["item"]["n"]
    answer = {"error": "three is bad"} if n == 3 else {"ok": {"doubled": n * 2}}
    print(json.dumps({"id": message["id"], **answer}), flush=True)
"""


def test_outcomes_of_items(tmp_path):
    (tmp_path / "double.py").write_text(PROGRAM)
    text = (
        "rowmill: 1\nname: doubling\nsources: {numbers: {range: {start: 0, end: 10}}}\nsteps:\n"
        "  named: {sql: 'select value as n from numbers'}\n"
        "  doubled:\n    command:\n      from: named\n"
        f"      argv: ['{sys.executable}', '{tmp_path}/double.py']\n"
        "      reads: [n]\n      output: {doubled: int64}\n    effects: pure\n    on_error: skip\n"
        f"sinks: {{out: {{from: doubled, path: '{tmp_path}/out.parquet'}}}}\n"
    )
    run = Workflow.from_yaml(text).run()
    assert run.outcomes["doubled"]["ok"] == 9 and sum(run.outcomes["doubled"].values()) == 10
    assert run.samples["doubled"][0][2].endswith("three is bad") and "items of doubled: " in repr(run)
    assert run.sinks["out"].read().count() == 9


def test_frames_as_sources_and_steps(flights):
    frame = rowmill.read_parquet(flights / "flights.parquet").map(lambda delay: delay // 60, returns="int64", name="hours")
    workflow = (
        Workflow("mixed")
        .source("names", data={"carrier": ["AA", "UA"], "name": ["American", "United"]})
        .step("hours", frame)
        .step("named", sql="select name, sum(hours) as hours from hours join names using (carrier) group by name")
        .sink("out", flights / "out" / "named.csv")
    )
    run = workflow.run()
    assert run.sinks["out"].read().sort("name").to_pydict() == {"name": ["American", "United"], "hours": [1, 1]}
    with pytest.raises(ValueError, match="`names`, `hours` live in this program"):
        workflow.to_yaml()


def test_mistakes_are_told_at_once(flights):
    workflow = Workflow("wrong").source("flights", flights / "flights.parquet").step("a", sql="select nope from flights")
    with pytest.raises(rowmill.WorkflowError) as caught:
        workflow.step("b", sql="select * from missing").sink("o", flights / "o.parquet").check()
    assert len(caught.value.reports) >= 1 and caught.value.code.startswith("RM")
    with pytest.raises(rowmill.RowmillError) as caught:
        late(flights).run({"leest": 1})
    assert "least" in str(caught.value)
    with pytest.raises(rowmill.RowmillError):
        Workflow.from_yaml("rowmill: 1\nname: x\nstepz: {}\n")


def test_a_function_that_raises_publishes_nothing(flights):
    def bad(delay: int) -> int:
        raise ValueError("no")

    frame = rowmill.read_parquet(flights / "flights.parquet").map(bad)
    workflow = Workflow("bad").step("bad", frame).sink("out", flights / "out.parquet")
    with pytest.raises(rowmill.RowmillError, match="`bad` raised ValueError: no"):
        workflow.run()
    assert not (flights / "out.parquet").exists()


def run_command(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "rowmill", *map(str, arguments)], capture_output=True, text=True, **options)


def test_the_command_is_the_command(flights):
    done = run_command("--version")
    assert done.returncode == 0 and done.stdout.strip() == f"rowmill {rowmill.__version__}"
    (flights / "flow.yaml").write_text(late(flights).to_yaml())
    done = run_command("run", flights / "flow.yaml", "--set", "least=0", "--output", "json")
    assert done.returncode == 0 and '"outcome":"succeeded"' in done.stdout.replace(" ", "")
    assert run_command("run", flights / "nowhere.yaml").returncode == 2
    assert run_command("sql", "select 1 as one", "--format", "csv").stdout == "one\n1\n"
    assert run_command("nonsense").returncode == 2


LONG = """
import sys, pyarrow, pandas, rowmill
print("ready", flush=True)
try:
    {what}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(rowmill.sql("select 1 as x").to_pydict(), flush=True)
"""
CROSS = "rowmill.sql(\"select count(*) from generate_series(1, 300000) a, generate_series(1, 300000) b where a.value + b.value = 7\")"


@pytest.mark.parametrize(
    "what",
    [f"{CROSS}.collect()", f"{CROSS}.show()", f"list({CROSS}.to_batches())", f"{CROSS}.write_parquet('x.parquet')",
     "rowmill.from_pydict({'x': [1]}).map(lambda x: __import__('time').sleep(2), returns='int64', name='y').collect()"],
)  # fmt: skip
def test_ctrl_c_ends_a_query(tmp_path, what):
    process = subprocess.Popen(
        [sys.executable, "-c", LONG.format(what=what)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert out.splitlines()[:2] == ["interrupted", "{'x': [1]}"], out
    assert process.returncode == 0 and time.monotonic() - started < 30
    # A run that had no time to clean up leaves a hidden folder, which the next one removes.
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_ctrl_c_in_the_command(tmp_path):
    (tmp_path / "flow.yaml").write_text(
        "rowmill: 1\nname: long\nsources: {a: {range: {start: 0, end: 300000}}, b: {range: {start: 0, end: 300000}}}\n"
        "steps: {s: {sql: 'select count(*) as n from a, b where a.value + b.value = 7'}}\n"
        "sinks: {o: {from: s, path: out.parquet}}\n"
    )
    process = subprocess.Popen([sys.executable, "-m", "rowmill", "run", str(tmp_path / "flow.yaml")], stderr=subprocess.PIPE)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (tmp_path / "out.parquet").exists()


PROCESSES = """
import multiprocessing, rowmill
def work(n):
    return rowmill.from_pydict({"x": list(range(n))}).select(rowmill.col("x").sum()).to_pydict()["sum(x)"][0]
if __name__ == "__main__":
    assert work(10) == 45
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        print(pool.map(work, [10, 20, 30]), flush=True)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes(tmp_path, method):
    script = tmp_path / "script.py"
    script.write_text(PROCESSES.replace("METHOD", repr(method)))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[45, 190, 435]\n", done.stderr


def test_threads():
    from concurrent.futures import ThreadPoolExecutor

    def work(n):
        frame = rowmill.from_pydict({"x": list(range(n))})
        return frame.map(lambda x: x + 1, returns="int64", name="y").select(col("y").sum()).to_pydict()["sum(y)"][0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(1, 50))) == [n * (n + 1) // 2 for n in range(1, 50)]


def test_importing_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.process_time(); import rowmill; took = time.process_time() - start;"
        "heavy = {'pyarrow', 'pandas', 'polars', 'numpy', 'asyncio'} & set(sys.modules); print(took, heavy)"
    )
    best = min(
        (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(5)),
        key=lambda out: float(out.split()[0]),
    )
    took, heavy = best.split(maxsplit=1)
    assert heavy.strip() == "set()"
    # Time of the processor: what others do on the machine is not counted.
    assert float(took) < 0.15


def test_configure():
    try:
        rowmill.configure(memory="1GB", threads=2, execution__batch_rows=1000)
        batches = list(rowmill.sql("select * from generate_series(1, 5000)").to_batches())
        assert max(batch.num_rows for batch in batches) <= 1000
        with pytest.raises(rowmill.RowmillError) as caught:
            rowmill.configure(execution__batchrows=3)
        assert "batch_rows" in str(caught.value)
    finally:
        rowmill.configure()


def test_the_stubs_name_what_is_there():
    import ast

    from rowmill import _native

    stub = ast.parse((ROOT / "python-bindings/python/rowmill/_native.pyi").read_text())
    said = {node.name for node in stub.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    there = {name for name in dir(_native) if not name.startswith("_")}
    assert said == there
    for node in stub.body:
        if isinstance(node, ast.ClassDef):
            methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)} - {"__init__", "__iter__", "__next__", "__len__"}
            assert methods <= set(dir(getattr(_native, node.name))), node.name
