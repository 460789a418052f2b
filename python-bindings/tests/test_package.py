"""The package as a whole: what it says of itself is so."""

from __future__ import annotations

import ast
import importlib.resources
import inspect
import os
import pathlib
import re
import resource
import subprocess
import sys

import pytest

import rowmill
from rowmill import _native


def stub() -> ast.Module:
    return ast.parse((importlib.resources.files(rowmill) / "_native.pyi").read_text())


def parameters(function: ast.FunctionDef) -> list[str]:
    arguments = function.args
    return [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs) if one.arg != "self"]


def real_parameters(function: object) -> list[str] | None:
    try:
        return [name for name in inspect.signature(function).parameters if name != "self"]
    except (TypeError, ValueError):
        # Not every method of a native class says its signature.
        return None


def test_the_stub_is_the_native_module():
    said = {of.name: of for of in stub().body if isinstance(of, (ast.ClassDef, ast.FunctionDef))}
    real = {name for name in dir(_native) if not name.startswith("_")}
    # `SortKey` and others that are only handed around are classes too.
    assert set(said) == real
    for name, of in said.items():
        thing = getattr(_native, name)
        if isinstance(of, ast.FunctionDef):
            assert real_parameters(thing) == parameters(of), name
            continue
        methods = {one.name: one for one in of.body if isinstance(one, ast.FunctionDef)}
        public = {one for one in vars(thing) if not one.startswith("_")}
        assert {one for one in methods if not one.startswith("_")} == public, name
        for method, one in methods.items():
            found = getattr(thing, method)
            real_ones = real_parameters(found)
            if not method.startswith("__") and real_ones is not None:
                assert real_ones == parameters(one), f"{name}.{method}"


def test_everything_public_says_what_it_is():
    for name in rowmill.__all__:
        thing = getattr(rowmill, name)
        if name == "__version__":
            continue
        assert inspect.getdoc(thing), name
        for method, of in vars(thing).items() if isinstance(thing, type) else ():
            if not method.startswith("_") and (inspect.isfunction(of) or isinstance(of, property)):
                assert inspect.getdoc(of), f"{name}.{method}"
    assert set(rowmill.__all__) <= set(dir(rowmill)) | {"step", "Step"}
    assert (importlib.resources.files(rowmill) / "py.typed").is_file()


def test_importing_it_is_quick():
    def took(code: str) -> float:
        # Time of the processor, for the machine may have other work.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    bare = min(took("pass") for _ in range(5))
    assert min(took("import rowmill") for _ in range(5)) - bare < 0.150
    heavy = "import rowmill, sys; assert not {'pyarrow', 'numpy', 'pandas', 'polars', 'IPython'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True)


def command(*arguments: str) -> str:
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout


def test_the_command_comes_with_it():
    script = pathlib.Path(sys.executable).parent / "rowmill"
    if not script.exists():
        pytest.skip("the package is not installed, so there is no console script")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(__file__).parents[2] / "target"))
    binary = target / "release" / "rowmill"
    ways = [[str(script)], [sys.executable, "-m", "rowmill"]] + ([[str(binary)]] if binary.exists() else [])
    helps = [command(*way, "--help") for way in ways]
    assert all(text == helps[0] for text in helps) and "Usage: rowmill" in helps[0]
    commands = re.findall(r"(?m)^  (\w+) ", helps[0].partition("Commands:")[2].partition("\n\n")[0])
    assert {"run", "check", "explain", "resume", "retry", "sql"} <= set(commands)
    for name in commands:
        if name != "help":
            texts = {command(*way, name, "--help") for way in ways}
            assert len(texts) == 1, name


def test_names_from_elsewhere_lead_here():
    frame = rowmill.from_pydict({"x": [1], "s": ["a"]})
    for name, text in [("groupby", "use group_by"), ("x", 'df\\["x"\\]'), ("selct", "use select"), ("assign", "with_columns")]:
        with pytest.raises(AttributeError, match=text):
            getattr(frame, name)
    assert not hasattr(frame, "no_such_thing")
    with pytest.raises(TypeError, match="to_batches"):
        iter(frame)
    with pytest.raises(TypeError, match="not list"):
        rowmill.from_pandas([1, 2])


def test_errors_name_what_is_wrong():
    frame = rowmill.from_pydict({"amount": [1], "s": ["a"]})
    with pytest.raises(rowmill.WorkflowError, match="(?s)there is no column `amuont`\n.*did you mean `amount`"):
        frame.select("amuont")
    with pytest.raises(rowmill.WorkflowError, match="(?s)there is no column `customer`\n.*the columns here are amount, s"):
        frame.join(frame, on="customer")
    with pytest.raises(rowmill.WorkflowError, match="(?s)there is no table `fraem`\n.*variables that hold a frame"):
        rowmill.sql("select * from fraem")
    with pytest.raises(rowmill.WorkflowError, match="^error.RM0301.: expected: an SQL statement"):
        rowmill.sql("selec 1")
    with pytest.raises(rowmill.WorkflowError, match="function `avg` takes .*, not [Ss]tring"):
        frame.select(rowmill.col("s").mean())
    with pytest.raises(rowmill.StepError, match="`wrong` answered 'a' for row 0 of the batch, which is no float64"):
        frame.map(lambda s: s, returns="float64", name="wrong").collect()


def test_a_traceback_begins_with_the_function():
    def fails(x: int) -> int:
        raise KeyError(x)

    with pytest.raises(rowmill.StepError) as caught:
        rowmill.from_pydict({"x": [1]}).map(fails).collect()
    frames = caught.value.__cause__.__traceback__
    assert frames.tb_frame.f_code.co_name == "fails"


def test_the_page_for_those_who_come_from_elsewhere_runs(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "coming-from.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) > 5
    monkeypatch.chdir(tmp_path)
    # As a program: workers and `sql` look at its names.
    (tmp_path / "page.py").write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, "page.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
