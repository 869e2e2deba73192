"""A folder of pictures: which of its files are pictures, and why the others are not."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from npgemma.errors import BadJobs
from npgemma.io.jobs import Job
from npgemma.io.picture_kinds import HEAD, SUFFIXES, Kind, is_picture, kind_of
from npgemma.io.regular_files import open_regular

HIDDEN = Kind("hidden", picture=False)
FOLDER = Kind("a folder", picture=False)
BROKEN_LINK = Kind("a broken link", picture=False)
SPECIAL = Kind("a special file", picture=False)
UNREADABLE = Kind("an unreadable file", picture=False)
OTHER = Kind("other", picture=False)


def folder_jobs(folder: Path, prompt: str, besides: Path | None = None) -> tuple[list[Job], str]:
    """One job per picture in a folder, sorted by file name, which is the id; and a sentence about the other files.

    The file `besides` and BadJobs as for `pictures_in`.
    """
    names, others = pictures_in(folder, () if besides is None else (besides,))
    return [Job(name, (name,), prompt, folder) for name in names], others


def pictures_in(folder: Path, besides: Sequence[Path] = ()) -> tuple[list[str], str]:
    """The names of the pictures in a folder, sorted; and a sentence about the other files.

    The files `besides` are left out: results may be written into the folder. BadJobs without pictures.
    """
    names, others = [], Counter[Kind]()
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if any(path.name == other.name and path.resolve() == other.resolve() for other in besides):
                continue
            kind = passed_over(path)
            if kind is None:
                names.append(path.name)
            else:
                others[kind] += 1
    except OSError as error:
        raise BadJobs(f"{folder} cannot be read: {error.strerror}") from None
    if not names:
        raise BadJobs(f"{folder} contains no pictures: {summary(others) or 'it is empty'}")
    return names, summary(others)


def passed_over(path: Path) -> Kind | None:
    """What a file in a folder is, if it is not a picture.

    First bytes decide. A file of an unknown kind that is called like a picture is a damaged one, whose error is told.
    """
    if path.name.startswith("."):
        return HIDDEN
    if path.is_dir():
        return FOLDER
    if not path.is_file():
        return SPECIAL if path.exists() else BROKEN_LINK
    named = path.suffix.lower() in SUFFIXES
    try:
        with open_regular(path) as file:
            head = file.read(HEAD)
    except OSError:
        return None if named else UNREADABLE
    return kind_of(head, path.suffix) or (None if named or is_picture(head) else OTHER)


def summary(others: Counter[Kind]) -> str:
    """'3 files passed over: 2 hidden, 1 AVIF picture; convert AVIF to PNG or JPEG', or nothing."""
    if not others:
        return ""
    total = others.total()
    counts = ", ".join(f"{count} {noun(kind, count)}" for kind, count in others.most_common())
    pictures = [re.sub("^an? ", "", kind.name) for kind, _ in others.most_common() if kind.picture]
    advice = f"; convert {' and '.join(pictures)} to PNG or JPEG" if pictures else ""
    return f"{total} {'file' if total == 1 else 'files'} passed over: {counts}{advice}"


def noun(kind: Kind, count: int) -> str:
    """'hidden', 'AVIF picture', 'text files', 'videos'."""
    if kind is HIDDEN:
        return kind.name
    one = re.sub("^an? ", "", kind.name)
    if one == kind.name:
        one += " picture" if kind.picture else " file"
    return one if count == 1 else re.sub(r"(?= \(|$)", "s", one, count=1)
