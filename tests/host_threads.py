"""Threads and processes of a host program, which fail instead of hanging."""

import os
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Nothing takes a second; whoever waits longer than this waits for ever.
SOON = 60


def finish(*functions) -> None:
    """Call each in a thread of its own; AssertionError if one does not return."""
    running = [threading.Thread(target=f, daemon=True) for f in functions]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in running), "a thread waits for ever"


def run_script(script: str) -> subprocess.CompletedProcess:
    """Run the script in a Python process of its own, which can import npgemma."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, timeout=SOON, check=False, env=environment, capture_output=True, text=True)
