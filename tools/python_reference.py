#!/usr/bin/env python3
"""Makes the reference of the Python package from its docstrings and signatures.

    tools/python_reference.py --write       docs/reference/python.md
    tools/python_reference.py --check       whether it is what the package says

Needs an interpreter in which `rowmill` is installed; every public name must have a docstring.
"""

import argparse
import dataclasses
import inspect
import pathlib
import re
import sys

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "reference" / "python.md"

#: Titles, with the public names under them, in this order; what is missing here is an error.
SECTIONS = {
    "Frames": ["DataFrame", "GroupBy", "Collected"],
    "Making frames": [
        "read_parquet", "read_csv", "read_json", "read_ipc", "from_arrow", "from_pandas", "from_polars", "from_pydict",
        "from_pylist", "sql",
    ],
    "Expressions": ["col", "lit", "when", "Expr", "functions"],
    "Python functions": ["step", "Step"],
    "Workflows": ["Workflow", "load"],
    "Runs": ["Run", "StepRun", "SinkRun", "run", "runs"],
    "Settings": ["configure"],
    "Errors": [
        "RowmillError", "WorkflowError", "DataError", "StepError", "EnvironmentFailure", "InternalError", "Cancelled",
        "RowmillWarning",
    ],
}  # fmt: skip
#: Made by what is written above them, and not by people.
NOT_CALLED = {"DataFrame", "GroupBy", "Expr", "Step", "Run", "StepRun", "SinkRun", "Collected"}


def plain(text: str) -> str:
    """A docstring as Markdown: roles are names, an indented block is code."""
    text = re.sub(r":(?:meth|func|class):`~?\.?([^`]*)`", r"`\1`", text)
    return re.sub(r"(?m)^Args:$", "Arguments:\n", re.sub(r"(?m)^    (\w+): ", r"- `\1`: ", text))


def doc(thing: object, name: str) -> str:
    text = inspect.getdoc(thing)
    if not text:
        raise SystemExit(f"`{name}` has no docstring")
    return plain(text)


def signature(thing: object, name: str) -> str:
    said = inspect.signature(thing)
    parameters = [of.replace(annotation=shown(of.annotation)) for of in said.parameters.values() if of.name != "self"]
    text = str(said.replace(parameters=parameters, return_annotation=shown(said.return_annotation)))
    return f"{name}{text}".replace("_native.", "")


class shown(str):
    """An annotation as it is written."""

    def __new__(cls, annotation: object) -> object:
        if annotation in (inspect.Parameter.empty, inspect.Signature.empty):
            return annotation
        return str.__new__(cls, annotation if isinstance(annotation, str) else getattr(annotation, "__name__", annotation))

    def __repr__(self) -> str:
        return str(self)


def of_function(thing: object, name: str, level: str) -> list[str]:
    return [f"{level} `{signature(thing, name)}`", "", doc(thing, name), ""]


def of_class(thing: type, name: str) -> list[str]:
    head = name if name in NOT_CALLED or issubclass(thing, Exception) else signature(thing, name)
    lines = [f"### `{head}`", "", doc(thing, name), ""]
    fields = [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing) else []
    fields += getattr(thing, "_fields", [])
    notes = comments(thing)
    named = [field for field in fields if not field.startswith("_")] or [field for field in notes if field not in fields]
    lines += [f"- `{field}`" + (f": {notes[field]}" if field in notes else "") for field in named]
    lines += [""] if named else []
    for key, member in vars(thing).items():
        if key.startswith("_") or key in fields:
            continue
        if isinstance(member, property):
            lines += [f"#### `.{key}`", "", doc(member.fget, f"{name}.{key}"), ""]
        elif isinstance(member, classmethod):
            lines += of_function(getattr(thing, key), f"{name}.{key}", "####")
        elif inspect.isfunction(member) and member.__name__ != key:
            lines += [f"#### `.{key}`", "", f"The same as `.{member.__name__}`.", ""]
        elif inspect.isfunction(member):
            lines += of_function(member, f".{key}", "####")
    return lines


def comments(thing: type) -> dict[str, str]:
    """The `#:` comments above fields."""
    try:
        source = inspect.getsource(thing).splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    held: list[str] = []
    for line in map(str.strip, source):
        if line.startswith("#:"):
            held.append(line[2:].strip())
            continue
        field = re.match(r"(\w+):", line)
        if held and field:
            found[field.group(1)] = plain(" ".join(held))
        held = []
    return found


def of_functions(rowmill: object) -> list[str]:
    """The names of SQL's functions, which `rowmill.functions` has all of."""
    from rowmill import _native

    lines = ["### `functions`", "", doc(rowmill.functions, "functions"), ""]
    for name in ("count", "call"):
        lines += of_function(getattr(rowmill.functions, name), f"functions.{name}", "####")
    for title, names in zip(("Of a row", "Of a group", "Of a window"), _native.function_names()):
        lines += [f"{title}: " + ", ".join(f"`{name}`" for name in sorted(set(names))) + ".", ""]
    return lines


def page() -> str:
    import rowmill

    listed = [name for names in SECTIONS.values() for name in names]
    missing = set(rowmill.__all__) - set(listed) - {"__version__"}
    if missing or set(listed) - set(rowmill.__all__):
        raise SystemExit(f"SECTIONS and rowmill.__all__ differ: {sorted(missing | (set(listed) - set(rowmill.__all__)))}")
    lines = [
        "# The Python package: reference", "",
        "<!-- Made by tools/python_reference.py from the package's docstrings; do not edit. -->", "",
        "Everything is in the module `rowmill`. [python.md](../python.md) tells how it goes together.", "",
    ]  # fmt: skip
    for title, names in SECTIONS.items():
        lines += [f"## {title}", ""]
        for name in names:
            thing = getattr(rowmill, name)
            if name == "functions":
                lines += of_functions(rowmill)
            elif isinstance(thing, type):
                lines += of_class(thing, name)
            else:
                lines += of_function(thing, name, "###")
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the page")
    what.add_argument("--check", action="store_true", help="compare the page with the package")
    arguments = parser.parse_args()
    made = page()
    if arguments.write:
        PAGE.write_text(made)
    elif not PAGE.exists() or PAGE.read_text() != made:
        print(f"{PAGE} is not what the package says; run tools/python_reference.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
