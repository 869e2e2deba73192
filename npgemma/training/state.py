"""What a run needs to go on as if it had never stopped: one file, and a log.

A state holds everything: the trained arrays, their moments, the step, the length of the log at that step, and what the
run is: its options, and digests of its model and data. It is written beside its name and renamed, so that a state is
either whole or not there. The two newest are kept. Which examples a step has is a function of the seed and the step,
so there is no generator to save.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors

from npgemma.errors import BadData, BadModel, shortened, why
from npgemma.io.atomic_write import PREFIX, replace_file, temporary_folder
from npgemma.io.regular_files import open_regular, open_to_continue
from npgemma.io.results import lock
from npgemma.io.safetensors import open_with_metadata
from npgemma.io.strict_json import read_json
from npgemma.io.weight_writing import write_file
from npgemma.layers.shapes import Array

NAME = re.compile(r"state-(\d+)\.safetensors")
KEPT = 2  # states
LOG, RUN = "log.jsonl", "run.json"
BEGIN = b'{"run": '  # of a log
METADATA = "npgemma"  # the one key, whose value is JSON: the library writes several keys in random order
Facts = Mapping[str, Any]


class State(NamedTuple):
    """The arrays of a run after a step, by name, and the length of its log in bytes."""

    step: int
    arrays: Mapping[str, Array]
    log: int


def unwritable(path: Path, error: Exception) -> BadData:
    return BadData(f"{path} cannot be written: {why(error)}; the same command continues from the last state")


def save(folder: Path, state: State, facts: Facts) -> None:
    """Write a state, and remove all but the newest. BadData, with the older states in place, if the disk is full."""
    path = folder / f"state-{state.step:08d}.safetensors"
    metadata = {METADATA: json.dumps({"step": state.step, "log": state.log, "run": facts})}
    try:
        # under a name of its own, so that what a killed writer has left is found at the next state
        with temporary_folder(folder, "state") as temporary:
            write_file(state.arrays, temporary / path.name, metadata)
            sync(temporary / path.name)
            (temporary / path.name).replace(path)
        sync(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise unwritable(path, error) from None
    for old in states(folder)[KEPT:]:
        old.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Return when a file, or which files are in a folder, is on the disk. OSError."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def states(folder: Path) -> list[Path]:
    """The states in a folder, the newest first."""
    found = [path for path in folder.iterdir() if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(NAME.fullmatch(path.name)[1]), reverse=True)  # type: ignore[index]


def newest(folder: Path, facts: Facts) -> State | None:
    """The newest state that can be read, if there is any.

    BadData if none of several can, or if the run is another one, with the first difference.
    """
    errors = []
    for path in states(folder):
        try:
            arrays, metadata = open_with_metadata(path)
            known = json.loads(metadata[METADATA])
            state = State(known["step"], arrays, known["log"])
        except (BadModel, KeyError, ValueError) as error:
            errors.append(f"{path} cannot be read: {error}")
            continue
        require_same(known["run"], facts, folder)
        return state
    if errors:
        raise BadData(f"{errors[0]}; name a new folder, or remove this one")
    return None


def require_same(known: Facts, facts: Facts, folder: Path) -> None:
    """BadData, with the first difference, unless a folder holds this run."""
    facts = json.loads(json.dumps(facts))  # as it was saved: tuples are lists
    for key in sorted({*known, *facts}):
        if known.get(key) == facts.get(key):
            continue
        if key.endswith("sha256"):
            problem = f"the {key.removesuffix(' sha256')} is not the one that it began with"
        else:
            has, wants = (shortened(json.dumps(each.get(key))) for each in (known, facts))
            problem = f"its {key} is {has}, not {wants}"
        raise BadData(f"{folder} holds another run: {problem}; give its own options and files, or name a new folder")


@contextmanager
def claimed(folder: Path, facts: Facts) -> Iterator["Log"]:
    """Make a folder for a run, or take one that holds this run; yields its log, which no other process may write.

    BadData if it holds anything else, another run, or a run that another process is at.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            log = folder / LOG
            if not is_run(folder):
                raise BadData(f"{folder} is not empty and holds no run of npgemma; name a new folder")
            file = held.enter_context(open_to_continue(log))
        except OSError as error:
            raise BadData(f"{folder} cannot be written: {why(error)}") from None
        lock(file, log, BadData)
        if is_finished(folder):
            require_same(read_json(folder / RUN).get("run", {}), facts, folder)
        yield Log(file, log)


def is_run(folder: Path) -> bool:
    """Whether a folder is empty, or holds a run, or what one that was killed before its first state has left."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(PREFIX)}
    if not names or (LOG in names and (RUN in names or any(map(NAME.fullmatch, names)))):
        return True
    if names != {LOG}:
        return False
    with open_regular(folder / LOG) as file:
        begin = file.read(len(BEGIN))
    return begin == BEGIN[: len(begin)]


class Log:
    """The lines of a run, appended one by one; `position` is its length."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.position = 0

    def cut(self, position: int) -> None:
        """Go back to where it was at a state. BadData if it is shorter."""
        if self.file.seek(0, os.SEEK_END) < position:
            raise BadData(f"{self.path} is shorter than when the state beside it was saved; name a new folder")
        self.file.truncate(position)
        self.position = position

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line. BadData if it cannot be written."""
        left = memoryview(json.dumps(line).encode("ascii") + b"\n")
        try:
            while left:  # past the buffer of the file, which would retry a failed write when it is closed
                written = os.write(self.file.fileno(), left)
                self.position += written
                left = left[written:]
        except OSError as error:
            raise unwritable(self.path, error) from None

    def sync(self) -> None:
        """Return when all lines are on the disk."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from None

    def lines(self) -> list[dict[str, Any]]:
        """All lines so far."""
        return [json.loads(line) for line in self.path.read_bytes()[: self.position].splitlines()]


def finish(folder: Path, facts: Facts, summary: Facts) -> None:
    """Say that a run is complete, and remove its states. BadData if that cannot be written."""
    path = folder / RUN
    try:
        for each in folder.iterdir():
            if each.is_file():
                sync(each)
        with replace_file(path) as temporary:
            temporary.write_text(json.dumps({"run": facts} | dict(summary), indent=2) + "\n")
        sync(folder)
    except OSError as error:
        raise unwritable(path, error) from None
    with suppress(OSError):
        for state in states(folder):
            state.unlink()


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder is complete."""
    return (folder / RUN).exists()
