"""npgemma as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """`python -m npgemma` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | options.pop("environment", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    command = [sys.executable, "-m", "npgemma", *map(str, arguments)]
    return subprocess.run(command, timeout=60, check=False, env=environment, **streams | options)
