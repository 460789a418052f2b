#!/usr/bin/env python3
"""Starts, shows and stops a cluster on several machines over ssh, from an inventory (inventory.example).

Each process runs under the user that ssh logs in as, in a folder of its own on its machine: token and configuration
(readable by that user alone), its log, its process id. Tokens travel through ssh's standard input, never on a command
line, and so does the URL of the PostgreSQL database by which several schedulers elect the one that leads.
"""

import argparse
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")
VALUE = re.compile(r"[A-Za-z0-9_.,:/\[\]-]+")
CLUSTER_KEYS = {"token": None, "config": None, "store": None, "rowmill": "rowmill", "folder": "/var/tmp/rowmill-cluster"}
MACHINE_KEYS = {
    "scheduler": {"address", "port", "listen"},
    "executor": {"address", "listen", "class", "slots", "drain_s", "task_port", "result_port"},
}
SSH = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--"]


class Wrong(Exception):
    """The inventory is not what it should be."""


@dataclass
class Machine:
    """One process to start."""

    host: str
    role: str
    name: str
    options: dict = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.options.get("address", self.host.rpartition("@")[2])


@dataclass
class Inventory:
    """What to start, schedulers first."""

    cluster: dict
    machines: list


def read(text: str) -> Inventory:
    """Reads an inventory; every line that cannot be used is an error that names it."""
    section, cluster, machines = None, dict(CLUSTER_KEYS), []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        if line in ("[cluster]", "[machines]"):
            section = line
        elif section == "[cluster]":
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or key not in CLUSTER_KEYS or not value:
                raise Wrong(f"line {number}: `{line}`; [cluster] has {', '.join(CLUSTER_KEYS)}")
            cluster[key] = value
        elif section == "[machines]":
            host, role, *rest = [*line.split(), ""] if " " not in line else line.split()
            if not HOST.fullmatch(host) or role not in MACHINE_KEYS:
                raise Wrong(f"line {number}: `{line}` is not HOST scheduler|executor [KEY=VALUE ...]")
            options = {}
            for word in rest:
                key, _, value = word.partition("=")
                if key not in MACHINE_KEYS[role] or not VALUE.fullmatch(value):
                    raise Wrong(f"line {number}: `{word}`; a {role} has {', '.join(sorted(MACHINE_KEYS[role]))}")
                options[key] = value
            count = sum(1 for other in machines if other.host == host)
            machines.append(Machine(host, role, f"{role}-{count}" if count else role, options))
        else:
            raise Wrong(f"line {number}: `{line}` stands before [cluster] and [machines]")
    schedulers = sum(1 for machine in machines if machine.role == "scheduler")
    if schedulers == 0:
        raise Wrong("no machine is a scheduler")
    if schedulers > 1 and cluster["store"] is None:
        raise Wrong(
            f"there are {schedulers} schedulers and [cluster] has no `store`, the file that holds the URL of the "
            "PostgreSQL database by which they elect the one that leads"
        )
    if cluster["token"] is None:
        raise Wrong("[cluster] has no `token`, the file that holds the cluster's token")
    return Inventory(cluster, sorted(machines, key=lambda machine: machine.role != "scheduler"))


def arguments(inventory: Inventory, machine: Machine) -> list:
    """The command of a process, on its machine."""
    folder = f"{inventory.cluster['folder']}/{machine.name}"
    own = [inventory.cluster["rowmill"], machine.role, "--token-file", f"{folder}/token"]
    options, listen = machine.options, machine.options.get("listen", machine.address)
    if inventory.cluster["config"]:
        own += ["--config", f"{folder}/rowmill.yaml"]
    if machine.role == "scheduler":
        if inventory.cluster["store"]:
            own += ["--store", f"file:{folder}/store"]
        return [*own, "--listen", f"{listen}:{options.get('port', '7780')}", "--host", machine.address]
    schedulers = [other for other in inventory.machines if other.role == "scheduler"]
    own += ["--scheduler", ",".join(f"{other.address}:{other.options.get('port', '7780')}" for other in schedulers)]
    own += ["--listen", listen, "--host", machine.address, "--work-dir", f"{folder}/work"]
    for name in options.get("class", "cpu").split(","):
        own += ["--class", name]
    for key in ("slots", "drain_s", "task_port", "result_port"):
        if key in options:
            own += [f"--{key.replace('_', '-')}", options[key]]
    return own


def steps(inventory: Inventory, action: str) -> list:
    """What is run: machine, command there, and the file that goes to its standard input."""
    cluster, all_steps = inventory.cluster, []
    # Executors hand over what they hold while the scheduler still takes it.
    machines = inventory.machines if action != "down" else inventory.machines[::-1]
    for machine in machines:
        folder = shlex.quote(f"{cluster['folder']}/{machine.name}")
        alive = f"[ -f {folder}/pid ] && kill -0 \"$(cat {folder}/pid)\" 2>/dev/null"
        if action == "up":
            all_steps.append((machine, f"umask 077; mkdir -p {folder} && cat > {folder}/token", cluster["token"]))
            if cluster["config"]:
                all_steps.append((machine, f"umask 077; cat > {folder}/rowmill.yaml", cluster["config"]))
            if cluster["store"] and machine.role == "scheduler":
                all_steps.append((machine, f"umask 077; cat > {folder}/store", cluster["store"]))
            command = shlex.join(arguments(inventory, machine))
            start = f"cd {folder} && {{ setsid nohup {command} >> log 2>&1 < /dev/null & echo $! > pid; }}"
            check = f"sleep 1; {alive} || {{ tail -n 5 {folder}/log; exit 1; }}"
            all_steps.append((machine, f"{alive} && echo 'runs already' || {{ {start}; {check}; }}", None))
        elif action == "status":
            all_steps.append((machine, f"{alive} && echo runs || {{ echo 'does not run'; exit 1; }}", None))
        else:
            wait = f"for _ in $(seq 300); do {alive} || break; sleep 0.5; done"
            stop = f"{alive} && {{ kill -TERM \"$(cat {folder}/pid)\"; {wait}; }}"
            all_steps.append((machine, f"{stop}; rm -f {folder}/pid {folder}/token {folder}/store", None))
    return all_steps


def main(given: list) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=["up", "status", "down"])
    parser.add_argument("inventory", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    asked = parser.parse_args(given)
    try:
        inventory = read(asked.inventory.read_text(encoding="utf-8"))
    except (OSError, Wrong) as error:
        print(f"{asked.inventory}: {error}", file=sys.stderr)
        return 2
    failed = 0
    for machine, command, source in steps(inventory, asked.action):
        full = [*SSH, machine.host, command]
        if asked.dry_run:
            print(shlex.join(full) + (f" < {shlex.quote(source)}" if source else ""))
            continue
        try:
            with open(asked.inventory.parent / source if source else "/dev/null", "rb") as stdin:
                done = subprocess.run(full, stdin=stdin, capture_output=True, text=True, check=False)
        except OSError as error:
            print(f"{machine.host} {machine.name}: {error}", file=sys.stderr)
            return 2
        said = (done.stdout + done.stderr).strip()
        if said or done.returncode:
            print(f"{machine.host} {machine.name}: {said or f'exit code {done.returncode}'}")
        failed += done.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
