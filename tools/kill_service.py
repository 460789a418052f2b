"""The service that the kill test calls: answers by rule, logs every request, and is never killed.

`GET /enrich/ID` and `PUT /note/GROUP` are idempotent, and `POST /charge` must reach it once. What is answered depends on the id and on how
often it was asked, so that every run of the workflow has the same results; only latency is left to chance.
"""

import asyncio
import hashlib
import json
import random
import threading
import time
from dataclasses import dataclass, field


def number(*parts) -> int:
    """A number that depends on nothing but its parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


def is_refused(item: int) -> bool:
    """Whether the service says no to an item, as long as it is not mended."""
    return number("enrich", item) % 100 == 0


def enriched(item: int, mended: bool = False):
    """What the service knows of an item: a status and an answer."""
    roll = number("enrich", item) % 100
    if roll == 0 and not mended:
        return 422, {"error": "this item is refused"}
    if roll == 1:
        return 404, {}
    return 200, {"value": number("value", item) % 1000, "kind": f"k{number('kind', item) % 12}"}


@dataclass
class Call:
    """One request, as the service saw it."""

    at: float
    method: str
    path: str
    key: str
    body: str
    # The status that was sent, and when; None while the answer is due, or when the caller had gone.
    status: int | None = None
    answered: float | None = None

    @property
    def is_final(self) -> bool:
        """Whether the answer settles the item: any but "try again"."""
        return self.status is not None and self.status not in (429, 503)


@dataclass
class Service:
    """Serves on a thread of its own; `calls` grows by one for each request."""

    seed: int
    calls: list[Call] = field(default_factory=list)
    connections: int = 0
    port: int = 0
    asked: dict = field(default_factory=dict)
    # Whether items are answered that were refused before.
    mended: bool = False
    # Where it listens.
    host: str = "127.0.0.1"
    # How long it thinks, as a multiple of a few milliseconds.
    pace: float = 1.0
    # Whether callers stay connected when a run has ended, as executors of a cluster do.
    callers_stay: bool = False
    # Requests whose answer is due.
    due: int = 0

    def start(self) -> None:
        ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True).start()
        assert ready.wait(10), "the service did not start"

    def drained(self) -> None:
        """Waits until all callers have hung up, so that nothing of a dead process arrives any more.

        Where they stay connected it is the silence of a third of a second that says so.
        """
        end = time.monotonic() + 20
        quiet, asked = 0, len(self.calls)
        while quiet < (30 if self.callers_stay else 3):
            still = self.due == 0 and len(self.calls) == asked if self.callers_stay else self.connections == 0
            quiet, asked = quiet + 1 if still else 0, len(self.calls)
            assert time.monotonic() < end, "connections of a dead process stay open"
            time.sleep(0.01)

    def begin(self) -> None:
        """A fresh log, for a fresh run."""
        self.drained()
        self.calls, self.asked = [], {}

    async def _serve(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, self.host, 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self.random = random.Random(self.seed)
        ready.set()
        await server.serve_forever()

    async def _connection(self, reader, writer) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ", 2)
                headers = {}
                for line in head[1:]:
                    name, _, value = line.partition(":")
                    headers[name.strip().lower()] = value.strip()
                body = (await reader.readexactly(int(headers.get("content-length", "0")))).decode()
                call = Call(time.monotonic(), method, path, headers.get("idempotency-key", ""), body)
                self.calls.append(call)
                self.due += 1
                try:
                    status, answer, seconds = self._answer(call)
                    await asyncio.sleep(seconds * self.pace)
                finally:
                    self.due -= 1
                text = json.dumps(answer).encode()
                retry = "retry-after: 0\r\n" if status == 429 else ""
                writer.write(
                    f"HTTP/1.1 {status} x\r\ncontent-type: application/json\r\n{retry}"
                    f"content-length: {len(text)}\r\n\r\n".encode() + text
                )
                call.status, call.answered = status, time.monotonic()
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            writer.close()

    def _answer(self, call: Call):
        seconds = self.random.uniform(0.004, 0.02)
        if call.method == "GET" and call.path.startswith("/enrich/"):
            item = int(call.path.rsplit("/", 1)[1])
            before = self.asked[call.path] = self.asked.get(call.path, 0) + 1
            trouble = number("trouble", item) % 40
            if before == 1 and trouble < 2:
                return (503, 429)[trouble], {}, seconds
            return *enriched(item, self.mended), seconds
        if call.method == "PUT" and call.path.startswith("/note/"):
            group = int(call.path.rsplit("/", 1)[1])
            return 200, {"note": number("note", group) % 1000}, seconds
        if call.method == "POST" and call.path == "/charge":
            sent = json.loads(call.body)
            before = self.asked[sent["grp"]] = self.asked.get(sent["grp"], 0) + 1
            # "Not now", in words: the one answer after which a `once` call may be sent again.
            if before == 1 and number("busy", sent["grp"]) % 25 == 0:
                return 429, {}, seconds
            if number("slow", sent["grp"]) % 20 == 0:
                seconds += 0.15
            return 200, {"receipt": number("receipt", sent["grp"], sent["total"])}, seconds
        return 400, {"error": "no such path"}, 0.0
