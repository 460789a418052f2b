"""Faults of a cluster on which durable runs proceed. Each is done to the end: when a function returns, what was stopped goes
on, what was cut off is joined again, and what was killed may be started again.
"""

import collections
import errno
import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import Callable

from chaos_fleet import CONTROL, SCHEDULER, SERVICE, Fleet
from kill_postgres import Postgres
from kill_workflow import Run, require

# Longer than the scheduler's lease of an attempt (10 s), its patience with a silent executor (15 s) and the client's
# patience with a silent executor (8 s).
LONG_S = 19.0


@dataclass
class Scene:
    """What there is to disturb."""

    fleet: Fleet
    chance: random.Random
    postgres: Postgres | None
    run: Run
    #: Kills the client of the durable run and starts the next.
    replace_client: Callable[[], None]
    #: Seconds until the cluster had got over something, by what it was.
    recovered: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    #: What has to be undone when the run has ended.
    undo: list[Callable[[], None]] = field(default_factory=list)

    def victim(self) -> str:
        """Some executor."""
        return self.chance.choice(self.fleet.executors)


@dataclass
class Happened:
    """What was done."""

    what: str
    #: When it began and when it was over.
    began: float
    ended: float
    #: How many processes were lost that may have had calls under way.
    lost: int = 0


def _happened(what: str, began: float, lost: int = 0) -> Happened:
    return Happened(what, began, time.monotonic(), lost)


def executor(scene: Scene) -> Happened:
    """SIGKILL of an executor, its work directory deleted too; how long until its work is placed elsewhere."""
    fleet, victim = scene.fleet, scene.victim()
    name, began = fleet.name_of(victim), time.monotonic()
    fleet.kill(victim)
    # Its tasks are given to others in the moment in which the scheduler drops it.
    while name in fleet.members():
        require(time.monotonic() - began < 20, f"{name} is dead and still listed")
        time.sleep(0.02)
    scene.recovered["executor killed, until its work is placed elsewhere"].append(time.monotonic() - began)
    return _happened(f"killed {victim}", began, lost=1)


def executors(scene: Scene) -> Happened:
    """The same to all of them at once."""
    began = time.monotonic()
    for name in scene.fleet.executors:
        scene.fleet.kill(name)
    return _happened("killed all executors", began, lost=len(scene.fleet.executors))


def scheduler(scene: Scene) -> Happened:
    """SIGKILL of the scheduler, started again at once."""
    began = time.monotonic()
    scene.fleet.kill(SCHEDULER)
    scene.fleet.up()
    scene.recovered["scheduler killed and started again, until all executors are back"].append(time.monotonic() - began)
    return _happened("killed the scheduler", began)


def both(scene: Scene) -> Happened:
    """SIGKILL of the scheduler and of an executor."""
    began, victim = time.monotonic(), scene.victim()
    scene.fleet.kill(SCHEDULER)
    scene.fleet.kill(victim)
    return _happened(f"killed the scheduler and {victim}", began, lost=1)


def sleep(scene: Scene) -> Happened:
    """SIGSTOP of an executor for longer than its lease."""
    return _stopped(scene, scene.victim(), lost=1)


def sleeper(scene: Scene) -> Happened:
    """SIGSTOP of the scheduler for longer than anybody listens to silence."""
    return _stopped(scene, SCHEDULER, lost=0)


def _stopped(scene: Scene, name: str, lost: int) -> Happened:
    began = time.monotonic()
    scene.fleet.send(name, signal.SIGSTOP)
    time.sleep(LONG_S)
    scene.fleet.send(name, signal.SIGCONT)
    return _happened(f"stopped {name} for {LONG_S:.0f} s", began, lost)


def drain(scene: Scene) -> Happened:
    """SIGTERM of an executor: it finishes what it has."""
    began, victim = time.monotonic(), scene.victim()
    scene.fleet.send(victim, signal.SIGTERM)
    code = scene.fleet.processes[victim].wait(60)
    require(code == 0, f"the drained executor ended with {code}")
    return _happened(f"drained {victim}", began)


def cut(scene: Scene) -> Happened:
    """An executor is out of everybody's reach and goes on calling the service."""
    return _cut_off(scene, scene.victim(), (CONTROL,), lost=1)


def partition(scene: Scene) -> Happened:
    """An executor is out of everybody's reach, and everybody is out of its."""
    return _cut_off(scene, scene.victim(), (CONTROL, SERVICE), lost=1)


def alone(scene: Scene) -> Happened:
    """The scheduler is out of everybody's reach."""
    return _cut_off(scene, SCHEDULER, (CONTROL,), lost=0)


def _cut_off(scene: Scene, name: str, links: tuple[str, ...], lost: int) -> Happened:
    network = scene.fleet.network
    require(network is not None, "there is no network to cut")
    began, known = time.monotonic(), scene.fleet.name_of(name) if name != SCHEDULER else ""
    network.turn(name, links, "down")
    try:
        time.sleep(LONG_S)
        # A partition that nobody noticed was none.
        require(not known or known not in scene.fleet.members(), f"{name} is cut off and still listed")
    finally:
        network.turn(name, links, "up")
    what = "and calls the service" if links == (CONTROL,) and name != SCHEDULER else "from everything"
    return _happened(f"cut {name} off for {LONG_S:.0f} s {what}", began, lost)


def postgres(scene: Scene) -> Happened:
    """The server that holds the runs crashes and comes back."""
    began = time.monotonic()
    require(scene.postgres is not None, "there is no server to restart")
    scene.postgres.restart()
    return _happened("crashed and restarted PostgreSQL", began)


def disk(scene: Scene) -> Happened:
    """The disk of one executor is full from before the runs begin until they have ended."""
    fleet, began = scene.fleet, time.monotonic()
    folder = fleet.work(fleet.small_disk).parent
    ballast = folder / "ballast"
    scene.undo.append(lambda: ballast.unlink(missing_ok=True))
    # Filled with data, a block at a time: a file with a hole in it takes no room.
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"\xa5" * 4096):
                pass
        except OSError as error:
            require(error.errno == errno.ENOSPC, f"the disk cannot be filled: {error}")
    require(os.statvfs(folder).f_bavail == 0, "the disk is not full")
    return _happened(f"filled the disk of {fleet.small_disk}", began)


def client(scene: Scene) -> Happened:
    """SIGKILL of the client of the durable run, which another one goes on with."""
    began = time.monotonic()
    scene.replace_client()
    return _happened("killed the client", began, lost=1)


FAULTS: dict[str, Callable[[Scene], Happened]] = {
    function.__name__: function
    for function in (
        executor, executors, scheduler, both, sleep, sleeper, drain, cut, partition, alone, postgres, disk, client,
    )
}
#: Done before the runs begin.
BEFORE = {"disk"}
#: What a fault needs beside the processes.
NEEDS = {"cut": "network", "partition": "network", "alone": "network", "postgres": "postgres", "disk": "small disk"}
