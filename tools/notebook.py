#!/usr/bin/env python3
"""Makes the tutorial's notebook from its script, and runs it as a notebook runs.

    tools/notebook.py --write       examples/python/tutorial.ipynb from examples/python/tutorial.py
    tools/notebook.py --check       whether it is what the script makes, and whether every cell of it runs in a kernel

A cell of the script begins with `# %%`; what stands on that line becomes a text above the cell. `--check` needs nbclient
and ipykernel beside rowmill.
"""

import argparse
import ast
import json
import pathlib
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "examples" / "python"


def cells(script: str) -> list[dict]:
    """The script's cells, as a notebook has them."""
    head, *rest = script.split("\n# %%")
    title = ast.get_docstring(ast.parse(head), clean=True) or ""
    made = [text("0-text", "# " + title.split("\n", 1)[0].split(":", 1)[0])]
    for at, cell in enumerate(rest, 1):
        said, _, code = cell.partition("\n")
        made += [text(f"{at}-text", said.strip()), source(f"{at}-code", code.strip("\n"))]
    return made


def lines(body: str) -> list[str]:
    return body.splitlines(keepends=True)


def text(name: str, body: str) -> dict:
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": lines(body)}


def source(name: str, body: str) -> dict:
    return {"cell_type": "code", "execution_count": None, "id": name, "metadata": {}, "outputs": [], "source": lines(body)}


def notebook(script: str) -> dict:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells(script), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def run(made: dict) -> None:
    import nbclient
    import nbformat

    # Outputs are shown where a cell fails, and are not kept.
    with tempfile.TemporaryDirectory() as folder:
        book = nbformat.reads(json.dumps(made), as_version=4)
        nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": folder}}).execute()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write the notebook")
    what.add_argument("--check", action="store_true", help="compare it with the script, and run it")
    arguments = parser.parse_args()
    made = notebook((FOLDER / "tutorial.py").read_text())
    path = FOLDER / "tutorial.ipynb"
    if arguments.write:
        path.write_text(json.dumps(made, indent=1) + "\n")
        return 0
    if not path.exists() or json.loads(path.read_text()) != made:
        print(f"{path} is not what tutorial.py makes; run tools/notebook.py --write", file=sys.stderr)
        return 1
    run(made)
    print(f"{sum(cell['cell_type'] == 'code' for cell in made['cells'])} cells ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
