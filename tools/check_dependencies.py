"""Holds the direction of dependencies against `cargo metadata`, and ARCHITECTURE.md's list of crates too.

The table below is the house: for each crate the crates of ours that it may use, and the heavy outsiders that only
some may link. Exits with 1 and names every edge that goes the wrong way.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Crate -> ours that it may depend on (in its library; dev-dependencies may look at anything below the edges).
MAY_USE = {
    "rowmill-spec": set(),
    "rowmill-step": {"rowmill-spec"},
    "rowmill-store": set(),
    "rowmill-limits": {"rowmill-step"},
    "rowmill-cache": {"rowmill-step"},
    "rowmill-gpu": set(),
    "rowmill-gpu-plan": {"rowmill-gpu", "rowmill-features"},
    "rowmill-features": set(),
    "rowmill-cores": set(),
    "rowmill-json": {"rowmill-features"},
    "rowmill-wire": {"rowmill-features", "rowmill-step"},
    "rowmill-executor": {"rowmill-features", "rowmill-json", "rowmill-wire", "rowmill-step"},
    "rowmill-scheduler": {"rowmill-features", "rowmill-cores", "rowmill-wire", "rowmill-store"},
    "rowmill-cluster": {
        "rowmill-features", "rowmill-json", "rowmill-spec", "rowmill-engine", "rowmill-wire", "rowmill-step",
        "rowmill-cores",
    },
    "rowmill-versions": set(),
    "rowmill-examples": set(),
    "rowmill-items": {"rowmill-step", "rowmill-store", "rowmill-limits", "rowmill-cache"},
    "rowmill-step-http": {"rowmill-spec", "rowmill-step"},
    "rowmill-step-lookup": {"rowmill-spec", "rowmill-step"},
    "rowmill-step-command": {"rowmill-spec", "rowmill-step"},
    "rowmill-step-gpu": {"rowmill-spec", "rowmill-step", "rowmill-gpu"},
    "rowmill-step-model": {"rowmill-spec", "rowmill-step"},
    "rowmill-step-python": {"rowmill-spec", "rowmill-step"},
    "rowmill-engine": {
        "rowmill-spec", "rowmill-step", "rowmill-store", "rowmill-limits", "rowmill-items",
        "rowmill-cache", "rowmill-features", "rowmill-json",
    },
    "rowmill": {
        "rowmill-spec", "rowmill-engine", "rowmill-step", "rowmill-store", "rowmill-limits", "rowmill-items",
        "rowmill-cache", "rowmill-gpu", "rowmill-gpu-plan",
        "rowmill-step-http", "rowmill-step-lookup", "rowmill-step-command", "rowmill-step-python", "rowmill-step-gpu",
        "rowmill-step-model",
    },
    "rowmill-cli": {
        "rowmill", "rowmill-spec", "rowmill-cluster", "rowmill-wire", "rowmill-scheduler", "rowmill-executor",
    },
    "rowmill-python": {
        "rowmill", "rowmill-spec", "rowmill-engine", "rowmill-step", "rowmill-items", "rowmill-limits",
        "rowmill-cache", "rowmill-step-python", "rowmill-cli",
    },
    "rowmill-benches": {"rowmill", "rowmill-spec", "rowmill-cluster", "rowmill-cores", "rowmill-wire"},
}

# Heavy outsiders have few doors: name prefix -> crates that may depend on it directly.
DOORS = {
    "datafusion": {
        "rowmill-engine", "rowmill", "rowmill-benches", "rowmill-features", "rowmill-python",
        "rowmill-wire", "rowmill-scheduler", "rowmill-executor", "rowmill-gpu-plan", "rowmill-cluster", "rowmill-json",
    },
    # Benches measure plain Ballista beside ours.
    "ballista": {
        "rowmill-versions", "rowmill-wire", "rowmill-scheduler", "rowmill-executor", "rowmill-cluster",
        "rowmill-benches",
    },
    "pyo3": {"rowmill-python"},
    "cudarc": {"rowmill-gpu"},
    "ort": {"rowmill-step-model"},
    "reqwest": {"rowmill-step-http", "rowmill-features"},
    "fred": {"rowmill-cache"},
    "sqlx": {"rowmill-store", "rowmill-step-lookup", "rowmill-features"},
}


def main() -> int:
    command = ["cargo", "metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        print(answer.stderr, file=sys.stderr)
        return 1
    packages = json.loads(answer.stdout)["packages"]
    ours = {package["name"] for package in packages}
    wrong = []
    for package in packages:
        name = package["name"]
        if name not in MAY_USE:
            wrong.append(f"{name} has no place in the house: add it to tools/check_dependencies.py and ARCHITECTURE.md")
            continue
        for dependency in package["dependencies"]:
            used = dependency["name"]
            if dependency["kind"] == "dev":
                continue
            if used in ours and used not in MAY_USE[name]:
                wrong.append(f"{name} depends on {used}, which the house does not allow")
            for prefix, doors in DOORS.items():
                if (used == prefix or used.startswith(prefix + "-")) and name not in doors:
                    wrong.append(f"{name} links {used}; only {', '.join(sorted(doors))} may")
    listed = set(re.findall(r"^\| `[^`]*` \| `(rowmill[a-z-]*)`", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE))
    for name in sorted(ours - listed):
        wrong.append(f"ARCHITECTURE.md does not list {name}")
    for name in sorted(listed - ours):
        wrong.append(f"ARCHITECTURE.md lists {name}, which is no crate")
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(ours)} crates, every dependency goes down")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
