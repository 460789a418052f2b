"""What the tests share."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tpchgen() -> str | None:
    """The program that makes TPC-H data: `TPCHGEN`, or where cargo puts it."""
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("TPCHGEN") or shutil.which(target / "release" / "rowmill-tpchgen")


@pytest.fixture(scope="session")
def tpch(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Tables of TPC-H at scale 0.01."""
    program = tpchgen()
    if program is None:
        if os.environ.get("TPCHGEN") == "":
            pytest.skip("TPCHGEN is empty")
        pytest.fail("no rowmill-tpchgen; build it (cargo build --release -p rowmill-examples) or set TPCHGEN")
    folder = tmp_path_factory.mktemp("tpch")
    subprocess.run([program, "--scale", "0.01", "--out", str(folder)], check=True, capture_output=True)
    return folder
