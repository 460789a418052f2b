"""A cluster whose processes this program starts itself: each in a network namespace of its own where that is possible, so
that it can be cut off, and one executor with a work directory on a small disk, so that it can run full.

        client, service of the test                     (the namespace of the test)
      ───────┬──────────────┬───────
       control bridge   service bridge
        │    │    │        │    │
      sched  e1   e2 ...   e1   e2 ...                  (one namespace for each process)

An executor has two links: over `control` it speaks with the scheduler, the client and other executors, over `service` with
the service that steps call. With the first one down it still makes the calls that it was given, and nobody hears of it.
"""

import json
import os
import pathlib
import secrets
import shutil
import signal
import subprocess
import time

from kill_workflow import require

# What an executor has of the small disk; a run needs a few MB of it.
SMALL_DISK = "48m"
CONTROL, SERVICE = "control", "service"
SCHEDULER = "scheduler"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


class Network:
    """Namespaces and the links between them."""

    def __init__(self, names: list[str]):
        self.tag = f"rc{os.getpid() % 100000}"
        # Of a network that nobody else here uses: 198.18.0.0/15 is kept for tests of networks.
        self.third = os.getpid() % 250
        self.names = names
        try:
            self._make()
        except OSError:
            self.close()
            raise

    def _make(self) -> None:
        for second, link in ((18, CONTROL), (19, SERVICE)):
            bridge = f"{self.tag}{link[0]}"
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"198.{second}.{self.third}.1/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
        for number, name in enumerate(self.names):
            space = self.namespace(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "set", "lo", "up")
            for second, link in ((18, CONTROL), (19, SERVICE)):
                _ip("link", "add", self._link(name, link), "type", "veth", "peer", "name", link, "netns", space)
                _ip("link", "set", self._link(name, link), "master", f"{self.tag}{link[0]}", "up")
                _ip("-n", space, "addr", "add", f"198.{second}.{self.third}.{10 + number}/24", "dev", link)
                _ip("-n", space, "link", "set", link, "up")

    def namespace(self, name: str) -> str:
        """The namespace of a process."""
        return f"{self.tag}-{name}"

    def _link(self, name: str, link: str) -> str:
        return f"{self.tag}{link[0]}{self.names.index(name)}"

    def address(self, name: str) -> str:
        """Where a process listens."""
        return f"198.18.{self.third}.{10 + self.names.index(name)}"

    @property
    def own(self) -> str:
        """Where the service is reached."""
        return f"198.19.{self.third}.1"

    def turn(self, name: str, links: tuple[str, ...], state: str) -> None:
        """Takes links of a process down or up."""
        for link in links:
            _ip("link", "set", self._link(name, link), state)

    def close(self) -> None:
        """Removes everything."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True, check=False)
        for link in (CONTROL, SERVICE):
            subprocess.run(["ip", "link", "del", f"{self.tag}{link[0]}"], capture_output=True, check=False)

    @staticmethod
    def try_new(names: list[str]) -> "Network | str":
        """A network, or why there is none."""
        if os.geteuid() != 0:
            return "only root can make network namespaces"
        if shutil.which("ip") is None:
            return "`ip` (iproute2) is not installed"
        try:
            return Network(names)
        except OSError as error:
            return f"network namespaces cannot be made here: {error}"


class Fleet:
    """One scheduler and some executors for `cpu` and `io`."""

    def __init__(self, rowmill: str, folder: pathlib.Path, executors: int, network: "Network | None"):
        self.rowmill, self.folder, self.network = rowmill, folder, network
        self.executors = [f"e{number}" for number in range(1, executors + 1)]
        self.processes: dict[str, subprocess.Popen] = {}
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(16))
        self.token.chmod(0o600)
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("ROWMILL_")}
        self.environment |= {"ROWMILL_EXECUTION__MEMORY": "512MB", "NO_COLOR": "1"}
        self.port = 0
        self.small_disk = ""
        for name in self.executors:
            self.work(name).parent.mkdir(parents=True, exist_ok=True)

    def mount_small_disk(self) -> str:
        """Puts the work directory of the last executor on a small disk; says why not."""
        if os.geteuid() != 0:
            return "only root can mount a small disk"
        folder = self.work(self.executors[-1]).parent
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "rowmill-chaos", str(folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.stderr.strip()
        self.small_disk = self.executors[-1]
        return ""

    @property
    def address(self) -> str:
        """The scheduler's."""
        return f"{self.host(SCHEDULER)}:{self.port}"

    @property
    def settings(self) -> str:
        """What a configuration needs so that a process talks to this cluster."""
        return "cluster: {insecure: true}\n" if self.network else ""

    def host(self, name: str) -> str:
        """The address on which a process listens."""
        return self.network.address(name) if self.network else "127.0.0.1"

    def work(self, name: str) -> pathlib.Path:
        """The work directory of an executor."""
        return self.folder / "disks" / name / "work"

    def log(self, name: str) -> pathlib.Path:
        """Where a process logs."""
        return self.folder / f"{name}.log"

    def _arguments(self, name: str) -> list[str]:
        if name == SCHEDULER:
            return ["scheduler", "--listen", f"{self.host(name)}:{self.port}", "--token-file", str(self.token)]
        return [
            "executor", "--scheduler", self.address, "--listen", self.host(name), "--class", "cpu", "--class", "io",
            "--slots", "2", "--work-dir", str(self.work(name)), "--token-file", str(self.token),
        ]

    def _start(self, name: str) -> None:
        inside = ["ip", "netns", "exec", self.network.namespace(name)] if self.network else []
        with self.log(name).open("a") as log:
            self.processes[name] = subprocess.Popen(
                [*inside, self.rowmill, *self._arguments(name)],
                cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )

    def _said(self, name: str, words: str, since: int, limit_s: float = 30) -> str:
        """The line of a log that begins so, written after `since` bytes."""
        deadline = time.monotonic() + limit_s
        while True:
            for line in self.log(name).read_bytes()[since:].decode(errors="replace").splitlines():
                if line.startswith(words):
                    return line
            alive = self.processes[name].poll() is None
            require(alive and time.monotonic() < deadline, f"{name} does not come up: {self.log(name)}")
            time.sleep(0.02)

    def up(self) -> None:
        """Starts what does not run, as whoever supervises it would, and waits until all have joined."""
        starting = []
        for name in [SCHEDULER, *self.executors]:
            process = self.processes.get(name)
            if process is not None and process.poll() is None:
                continue
            since = self.log(name).stat().st_size if self.log(name).exists() else 0
            self._start(name)
            if name == SCHEDULER:
                line = self._said(name, "the scheduler listens on ", since)
                self.port = int(line.rpartition(":")[2])
            else:
                starting.append((name, since))
        for name, since in starting:
            self._said(name, "executor ", since)
        deadline = time.monotonic() + 30
        while len(self.members()) < len(self.executors):
            require(time.monotonic() < deadline, f"these executors have joined: {self.members()}")
            time.sleep(0.05)

    def name_of(self, executor: str) -> str:
        """The name under which an executor has joined."""
        lines = [line for line in self.log(executor).read_text(errors="replace").splitlines() if " joined: " in line]
        return lines[-1].split()[1] if lines else ""

    def command(self, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess:
        """Runs a command of rowmill's to its end, where clients are."""
        return subprocess.run(
            [self.rowmill, *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=limit_s, check=False,
        )

    def reach(self) -> list[str]:
        """The arguments that lead a client here."""
        return ["--cluster", self.address, "--token-file", str(self.token)]

    def status(self) -> dict:
        """What the scheduler says."""
        done = self.command("cluster", "status", "--output", "json", *self.reach())
        require(done.returncode == 0, f"`cluster status` ended with {done.returncode}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def members(self) -> set[str]:
        """Executors that the scheduler believes to be there and to take work."""
        return {own["name"] for own in self.status()["executors"] if not own["draining"] and not own["closed"]}

    def send(self, name: str, what: signal.Signals) -> None:
        """A signal to a process."""
        process = self.processes[name]
        if process.poll() is None:
            process.send_signal(what)

    def kill(self, name: str) -> None:
        """SIGKILL, and what an executor had on its disk is gone as well."""
        self.send(name, signal.SIGKILL)
        self.processes[name].wait(10)
        if name != SCHEDULER:
            shutil.rmtree(self.work(name), ignore_errors=True)

    def down(self) -> None:
        """Ends everything."""
        for name, process in self.processes.items():
            self.send(name, signal.SIGCONT)
            process.kill()
            process.wait()
        self.processes.clear()

    def close(self) -> None:
        """Leaves nothing on this machine but the folder."""
        self.down()
        if self.small_disk:
            subprocess.run(["umount", "-l", str(self.work(self.small_disk).parent)], check=False)
        if self.network:
            self.network.close()
