"""A weather service to call: small, slow now and then, and as moody as real ones.

It answers `GET /v1/STATION/MONTH/DAY` with JSON such as `{"temp": 3.1, "wind": {"speed": 12}}`, made from the question
alone, so that every run gets the same answers. It has 404 for days on which a station was closed, 503 for one question
in forty until it is asked again, and 429 with Retry-After for whoever asks faster than `--per-second`. Each request is
one line of its log.

    python3 weather_service.py --port 8079 --per-second 500 --log service.log
"""

import argparse
import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def number(text: str) -> int:
    """A number that hangs on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


class Limit:
    """At most so many requests in a second, counted in a window that slides."""

    def __init__(self, per_second: int) -> None:
        self.per_second = per_second
        self.times: list[float] = []
        self.lock = threading.Lock()

    def allows(self) -> bool:
        with self.lock:
            now = time.monotonic()
            self.times = [at for at in self.times if now - at < 1.0]
            if len(self.times) >= self.per_second:
                return False
            self.times.append(now)
            return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    limit: Limit
    log: object
    failed: set[str] = set()
    lock = threading.Lock()

    def do_GET(self) -> None:
        status, body, headers = self.answer()
        text = json.dumps(body).encode()
        with self.lock:
            self.log.write(f"{time.time():.3f} {status} {self.path}\n")
            self.log.flush()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def answer(self) -> tuple[int, dict, dict]:
        if not self.limit.allows():
            return 429, {"error": "slow down"}, {"Retry-After": "1"}
        parts = self.path.strip("/").split("/")
        if len(parts) != 4 or parts[0] != "v1":
            return 404, {"error": "no such place"}, {}
        moods = number(self.path)
        if moods % 97 == 0:
            return 404, {"error": "the station was closed on that day"}, {}
        with self.lock:
            moody = moods % 40 == 1 and self.path not in self.failed
            self.failed.add(self.path)
        if moody:
            return 503, {"error": "not now"}, {}
        time.sleep(0.002)
        month = int(parts[2])
        warm = 22 - abs(month - 7) * 4.5
        return 200, {"temp": round(warm + moods % 120 / 10 - 6, 1), "wind": {"speed": moods % 40}}, {}

    def log_message(self, *_arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8079)
    parser.add_argument("--per-second", type=int, default=500)
    parser.add_argument("--log", default="weather_service.log")
    arguments = parser.parse_args()
    Handler.limit = Limit(arguments.per_second)
    with open(arguments.log, "w", encoding="utf-8") as log:
        Handler.log = log
        Server(("127.0.0.1", arguments.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
