"""The event loop of async functions: one for each process, in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading

_LOOP: tuple[int, asyncio.AbstractEventLoop] | None = None
LOOP_LOCK = threading.Lock()


def event_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process on which all async steps run, in a thread of its own."""
    global _LOOP
    with LOOP_LOCK:
        if _LOOP is None or _LOOP[0] != os.getpid():
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rowmill-async", daemon=True).start()
            _LOOP = (os.getpid(), loop)
        return _LOOP[1]
