#!/usr/bin/env python3
"""What `cluster.py` would run, the units of systemd, and that both name options which `rowmill` has.

`--rowmill PATH` checks the options against that binary; without it, against the source of its command line.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import cluster

HERE = Path(__file__).resolve().parent
EXAMPLE = (HERE / "inventory.example").read_text(encoding="utf-8")


def known_options(command: str) -> set:
    """The options of a command of `rowmill`, from the struct that clap reads."""
    source = (HERE.parent / "cli/src/args.rs").read_text(encoding="utf-8")
    structure = {"scheduler": "SchedulerArguments", "executor": "ExecutorArguments"}[command]
    body = source.split(f"struct {structure} {{")[1].split("\n}")[0]
    names = set(re.findall(r'long = "([a-z-]+)"', body))
    plain = re.findall(r"#\[arg\(long(?:,[^\]]*)?\)\]\s+pub\(crate\) (\w+):", body)
    return {f"--{name.replace('_', '-')}" for name in names | set(plain)} | {"--config"}


class Script(unittest.TestCase):
    def test_the_example_is_what_it_says(self):
        inventory = cluster.read(EXAMPLE)
        self.assertEqual([machine.role for machine in inventory.machines], ["scheduler"] + ["executor"] * 3)
        gpu = cluster.arguments(inventory, inventory.machines[3])
        self.assertIn("10.0.0.1:7780", gpu)
        for option in ("--slots 1", "--class gpu", "--drain-s 120", "--listen 10.0.0.4", "--host 10.0.0.4"):
            self.assertIn(option, shlex.join(gpu))

    def test_options_are_those_of_rowmill(self):
        inventory = cluster.read(EXAMPLE)
        for machine in inventory.machines:
            used = {word for word in cluster.arguments(inventory, machine) if word.startswith("--")}
            self.assertLessEqual(used, known_options(machine.role))

    def test_wrong_inventories_are_refused(self):
        wrong = [
            "host scheduler",
            "[machines]\nhost scheduler",
            "[cluster]\ntoken = t\n[machines]\nhost executor",
            "[cluster]\ntoken = t\n[machines]\na scheduler\nb scheduler",
            "[cluster]\ntoken = t\nstore = s\n[machines]\na executor",
            "[cluster]\ntoken = t\n[machines]\n-oProxyCommand=x scheduler",
            "[cluster]\ntoken = t\n[machines]\nhost scheduler port=1;reboot",
            "[cluster]\ntoken = t\n[machines]\nhost scheduler slots=3",
            "[cluster]\ntokens = t\n[machines]\nhost scheduler",
            "[cluster]\ntoken = t\n[machines]\nhost",
        ]
        for text in wrong:
            with self.assertRaises(cluster.Wrong, msg=text):
                cluster.read(text)

    def test_several_schedulers_share_a_store_and_executors_know_all_of_them(self):
        text = "[cluster]\ntoken = t\nstore = url\n[machines]\na scheduler\nc executor\nb scheduler port=7781\n"
        inventory = cluster.read(text)
        self.assertEqual([machine.role for machine in inventory.machines], ["scheduler", "scheduler", "executor"])
        for machine in inventory.machines[:2]:
            own = cluster.arguments(inventory, machine)
            self.assertIn("--store file:/var/tmp/rowmill-cluster/scheduler/store", shlex.join(own))
            used = {word for word in own if word.startswith("--")}
            self.assertLessEqual(used, known_options("scheduler"))
        executor = shlex.join(cluster.arguments(inventory, inventory.machines[2]))
        self.assertIn("--scheduler a:7780,b:7781", executor)
        self.assertNotIn("--store", executor)
        # The URL goes the way of the token: through standard input, to schedulers alone.
        sent = [(machine.host, source) for machine, _, source in cluster.steps(inventory, "up") if source == "url"]
        self.assertEqual(sent, [("a", "url"), ("b", "url")])

    def test_the_commands_start_and_stop_processes(self):
        """Runs the commands of each step on this machine, with a `rowmill` that sleeps."""
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "rowmill"
            program.write_text('#!/bin/sh\necho "$@"\nexec sleep 600\n', encoding="utf-8")
            program.chmod(0o755)
            token = Path(folder) / "token"
            token.write_text("a-token-of-the-tests-0123456789", encoding="utf-8")
            text = f"[cluster]\ntoken = {token}\nrowmill = {program}\nfolder = {folder}/state\n[machines]\n"
            inventory = cluster.read(text + "one scheduler\none executor class=cpu,io slots=2\n")

            def run(action):
                codes = []
                for _, command, source in cluster.steps(inventory, action):
                    with open(source or os.devnull, "rb") as stdin:
                        done = subprocess.run(["sh", "-c", command], stdin=stdin, capture_output=True, check=False)
                    codes.append(done.returncode)
                return codes

            self.assertEqual(run("status"), [1, 1])
            self.assertEqual(set(run("up")), {0})
            self.assertEqual(run("status"), [0, 0])
            pids = [Path(folder, "state", name, "pid").read_text() for name in ("scheduler", "executor-1")]
            self.assertEqual(set(run("up")), {0})
            again = [Path(folder, "state", name, "pid").read_text() for name in ("scheduler", "executor-1")]
            self.assertEqual(pids, again, "what runs is left alone")
            kept = Path(folder, "state/executor-1/token")
            self.assertEqual(kept.stat().st_mode & 0o777, 0o600)
            self.assertIn("--class cpu --class io", Path(folder, "state/executor-1/log").read_text())
            run("down")
            self.assertEqual(run("status"), [1, 1])
            self.assertFalse(kept.exists())

    def test_a_dry_run_says_everything_and_shows_no_token(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "inventory").write_text(EXAMPLE, encoding="utf-8")
            command = [sys.executable, str(HERE / "cluster.py"), "up", f"{folder}/inventory", "--dry-run"]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            self.assertEqual(said.count("ssh "), 12)
            self.assertEqual(said.count("< token"), 4)


class Units(unittest.TestCase):
    UNITS = sorted((HERE / "systemd").glob("*.service"))

    def test_options_are_those_of_rowmill(self):
        self.assertEqual(len(self.UNITS), 2)
        for unit in self.UNITS:
            line = re.search(r"^ExecStart=(.*)$", unit.read_text(encoding="utf-8"), re.MULTILINE).group(1)
            _, command, *words = line.split()
            used = {word for word in words if word.startswith("--")}
            self.assertLessEqual(used, known_options(command))

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd-analyze is not here")
    def test_systemd_reads_them(self):
        with tempfile.TemporaryDirectory() as folder:
            for unit in self.UNITS:
                # The binary need not be installed where units are checked.
                text = unit.read_text(encoding="utf-8").replace("/usr/local/bin/rowmill", "/bin/true")
                name = unit.name.replace("@.", "@cpu.")
                (Path(folder) / name).write_text(text, encoding="utf-8")
                command = ["systemd-analyze", "verify", "--man=no", str(Path(folder) / name)]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                own = [line for line in done.stderr.splitlines() if "rowmill" in line]
                self.assertEqual(own, [], done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=1)
