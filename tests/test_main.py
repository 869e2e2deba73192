"""The process of a command: its stderr has npgemma's own sentence alone, and survives being closed."""

import io
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from processes import ROOT, process


@pytest.fixture
def damaged(tmp_path):
    """A TIFF about whose strip libtiff prints lines of its own."""
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(256, size=(40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "TIFF", compression="tiff_lzw")
    content = bytearray(file.getvalue())
    content[1000:1040] = b"\xff" * 40
    (tmp_path / "x.tif").write_bytes(content)
    return tmp_path / "x.tif"


def test_lines_of_libraries_do_not_reach_the_user(damaged):
    read = f"import npgemma.io.picture as p\ntry: p.read_picture({str(damaged)!r})\nexcept Exception as e: print(e)"
    alone = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert "x.tif cannot be read" in alone.stdout
    assert "not yet in table" in alone.stderr  # what this is about: without a command, stderr is the program's own
    found = process("caption", damaged)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "npgemma: " + alone.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_a_crash_is_still_told_where_the_user_asks_for_it():
    crash = "import os, sys, npgemma.__main__ as m; m.keep_stderr(); os.kill(os.getpid(), int(sys.argv[1]))"
    command = [sys.executable, "-X", "faulthandler", "-c", crash, str(int(signal.SIGSEGV))]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert found.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in found.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows closes streams in another way")
def test_a_closed_stderr_is_not_missed():
    command = f'exec "{sys.executable}" -m npgemma caption missing.png 2>&-'
    assert subprocess.run(["sh", "-c", command], cwd=ROOT, timeout=60).returncode == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit address space")
def test_too_little_memory_for_the_libraries_is_one_sentence():
    """At 60 MB, NumPy cannot be loaded; Python alone needs 15."""
    command = f'ulimit -v 60000; exec "{sys.executable}" -m npgemma --version'
    found = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert found.returncode == 1
    assert re.fullmatch(r"npgemma: its libraries cannot be loaded: [^\n]+\n", found.stderr)
