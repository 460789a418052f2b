"""A PostgreSQL server for a test that crashes it: its own data, its own port, gone when the test ends."""

import os
import socket
import subprocess
import tempfile
from pathlib import Path


def _binaries() -> list[Path]:
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


class Postgres:
    """A server that runs."""

    @staticmethod
    def is_installed() -> bool:
        """Whether this machine has one."""
        return bool(_binaries())

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.port, self.databases = port, 0
        self.url = f"postgres://rowmill@127.0.0.1:{port}/postgres"
        self.folder = tempfile.mkdtemp(prefix="rowmill-kill-pg-")
        self.flags = f"-p {port} -k {self.folder} -c listen_addresses=127.0.0.1"
        # The server refuses to run as root.
        self.as_user: list[str] = []
        if os.geteuid() == 0:
            self.as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]
            subprocess.run(["chown", "postgres:postgres", self.folder], check=True)
        self._do("initdb", "-U", "rowmill", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
        self._do("pg_ctl", "start", "-w", "-l", f"{self.folder}/log", "-o", self.flags)

    def _do(self, program: str, *words: str) -> None:
        command = [*self.as_user, str(_binaries()[0] / program), "-D", f"{self.folder}/db", *words]
        subprocess.run(command, check=True, cwd="/tmp", stdout=subprocess.DEVNULL)

    def database(self) -> str:
        """The address of a new, empty database."""
        self.databases += 1
        name = f"runs{self.databases}"
        words = [str(_binaries()[0] / "createdb"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "rowmill", name]
        subprocess.run([*self.as_user, *words], check=True, cwd="/tmp", stdout=subprocess.DEVNULL)
        return f"postgres://rowmill@127.0.0.1:{self.port}/{name}"

    def restart(self) -> None:
        """Crashes it, as a power cut would end it, and starts it again."""
        self._do("pg_ctl", "restart", "-w", "-m", "immediate", "-l", f"{self.folder}/log", "-o", self.flags)

    def close(self) -> None:
        """Stops it and removes its data."""
        self._do("pg_ctl", "stop", "-m", "immediate")
        subprocess.run(["rm", "-rf", self.folder], check=False)
