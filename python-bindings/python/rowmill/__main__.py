"""`python -m rowmill` and the console script: the `rowmill` command."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """Runs the command with the arguments of this process and gives its exit code."""
    from ._native import main as command

    # The command takes Ctrl-C for itself; Python's handler would only run after it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return command(["rowmill", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
