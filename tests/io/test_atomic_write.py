"""replace_file replaces a file completely or not at all."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from npgemma.io.atomic_write import replace_file


def test_a_successful_block_replaces_the_file(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    with replace_file(target) as temporary:
        assert temporary.parent.parent == tmp_path
        assert temporary.name == "file.txt"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_keeps_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail() -> None:
        with replace_file(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_new_file_gets_the_default_permissions(tmp_path: Path) -> None:
    """Some writers, such as safetensors, create files that only their owner can read."""
    (tmp_path / "plain").touch()
    with replace_file(tmp_path / "file") as temporary:
        temporary.chmod(0o600)
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replace_file(tmp_path / "none" / "file"):
        pass


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "link").symlink_to("target")
    with replace_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path):
    """Replacing a device such as /dev/null would turn it into a regular file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="it is not a regular file"), replace_file(tmp_path / name):
            pytest.fail("the block ran")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
    assert not (tmp_path / "pipe").is_file()


POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has no locks on folders")
# Rounds of writing, each to a file of the writer's own and to one that all writers share.
WRITE = """
import sys
from pathlib import Path
from npgemma.io.atomic_write import replace_file

def write(folder, mine):
    for _ in range(10):
        for name in (mine, "shared"):
            with replace_file(Path(folder) / name) as temporary:
                temporary.write_bytes(mine.encode() * 10_000)
            assert len(set((Path(folder) / name).read_bytes())) == 1
    assert set((Path(folder) / mine).read_text()) == {mine}
"""


def test_threads_may_write_into_one_folder_and_to_one_file(tmp_path: Path) -> None:
    scope: dict = {}
    exec(WRITE, scope)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda mine: scope["write"](tmp_path, mine), "abcdefgh"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"abcdefgh", "shared"]


def test_processes_may_write_into_one_folder_and_to_one_file(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITE + "write(*sys.argv[1:])", str(tmp_path)]
    running = [subprocess.Popen([*command, mine]) for mine in "abc"]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*"abc", "shared"]


KILLED = """
import os, signal, sys
from pathlib import Path
from npgemma.io.atomic_write import replace_file
with replace_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@POSIX
def test_the_next_writer_removes_what_a_killed_one_has_left(tmp_path: Path) -> None:
    target = tmp_path / "file.txt"
    assert subprocess.run([sys.executable, "-c", KILLED, str(target)]).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with replace_file(tmp_path / "another.txt"):
        assert left.exists()
    with replace_file(target) as temporary:
        temporary.write_text("whole")
        assert not left.exists()
    assert target.read_text() == "whole"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another.txt", "file.txt"]


def test_a_writer_leaves_the_file_of_a_live_one(tmp_path: Path) -> None:
    """The lock stays although safetensors replaces the temporary file by another one."""
    target = tmp_path / "x.safetensors"
    with replace_file(target) as slow:
        safetensors.numpy.save_file({"x": np.zeros(3)}, slow)
        with replace_file(target) as fast:
            fast.write_text("first")
        assert target.read_text() == "first"
    assert safetensors.numpy.load_file(target)["x"].tolist() == [0, 0, 0]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_planted_link_is_not_followed(kind: str, tmp_path: Path) -> None:
    """A link that is called like the temporary file of this or an earlier release leads nowhere."""
    others = tmp_path / "others"
    others.mkdir()
    (others / "mine").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    with replace_file(folder / "out.txt") as temporary:
        prefix = temporary.parent.name[:-8]
    target = others if kind == "folder" else others / "mine"
    for name in (f".npgemma-{os.getpid()}.txt", f"{prefix}planted0"):
        (folder / name).symlink_to(target)
    with replace_file(folder / "out.txt") as temporary:
        temporary.write_text("new")
    assert (others / "mine").read_text() == "mine"
    assert (folder / "out.txt").read_text() == "new"
    assert not (folder / "out.txt").is_symlink()


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="it is a link to itself"), replace_file(tmp_path / "loop"):
        pytest.fail("the block ran")
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]
