"""The Hugging Face cache: where it is, and which folder holds a revision of a repository.

    <cache>/models--org--name/refs/main                  the commit that 'main' pointed to at the time of the download
                              snapshots/<commit>/<file>  links to ../../blobs/<hash of the file>
                              blobs/<hash>               sha256 of large files, git's sha1 of small ones

Source: huggingface_hub's documentation, 'Understand caching'; its constants.py for the environment variables. This
module never uses the network.
"""

import os
import re
from difflib import get_close_matches
from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.regular_files import read_regular
from npgemma.io.unusable import folder_report, repo_name

MOST_BYTES = 1000  # of a ref, which holds a commit
COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"{REPO_PART}(?:/{REPO_PART})?")


def cache_folder() -> Path:
    """$HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, else huggingface/hub in the user's cache folder.

    An empty variable counts as unset.
    """
    env = os.environ
    user_cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    home = expanded(env.get("HF_HOME") or os.path.join(user_cache, "huggingface"))
    cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(expanded(cache))


def expanded(path: str) -> str:
    """`path` with ~ and environment variables replaced."""
    return os.path.expandvars(os.path.expanduser(path))


def is_repo_id(name: str) -> bool:
    """Whether the hub allows this name: name or org/name."""
    forbidden = "--" in name or ".." in name or name.endswith(".git")
    return REPO_ID.fullmatch(name) is not None and max(map(len, name.split("/"))) <= 96 and not forbidden


def snapshot(repo: str, revision: str, *needed: str) -> Path | None:
    """The folder of a cached repository at a revision (branch, tag or commit); None if the repository is not cached.

    BadModel as for `snapshot_in`.
    """
    home = cache_folder() / f"models--{repo.replace('/', '--')}"
    return snapshot_in(home, repo, revision, *needed) if os.path.isdir(home) else None


def snapshot_in(home: Path, repo: str, revision: str, *needed: str) -> Path:
    """The folder of a revision of the repository in `home`.

    BadModel if the revision is not cached, or if its snapshot contains none of the files `needed`.
    """
    commit = revision if COMMIT.fullmatch(revision) else read_ref(home, repo, revision)
    folder = home / "snapshots" / commit
    if not folder.is_dir():
        raise BadModel(f"{repo} is cached, but not at revision {revision!r}: {folder} is missing; {known(home)}")
    if not any((folder / name).exists() for name in needed):
        raise BadModel(folder_report(folder, *needed[:1]))
    return folder


def snapshot_of(home: Path, *needed: str) -> Path:
    """The snapshot of a repository's folder: that of `main`, or the only one. BadModel as for `snapshot_in`."""
    commits = [each.name for each in (home / "snapshots").iterdir() if each.is_dir()]
    only = commits[0] if len(commits) == 1 and COMMIT.fullmatch(commits[0]) else "main"
    return snapshot_in(home, repo_name(home.name), "main" if (home / "refs" / "main").exists() else only, *needed)


def similar(name: str) -> list[str]:
    """The cached repositories whose names are like `name`: of another organisation, in other letters, with an error."""
    cached = {each.name: repo_name(each.name) for each in sorted(cache_folder().glob("models--*"))}
    last = {repo: repo.rpartition("/")[2].lower() for repo in cached.values()}
    wanted = repo_name(name).strip("/ ").rpartition("/")[2].lower()
    close = get_close_matches(wanted, [*last.values()], n=3, cutoff=0.85) if wanted else []
    return [repo for repo, short in last.items() if short in close]


def read_ref(home: Path, repo: str, revision: str) -> str:
    """The commit that a branch or tag pointed to when it was downloaded."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision, re.ASCII) or ".." in revision:
        raise BadModel(f"{repo}@{revision}: {revision!r} is not the name of a branch, a tag or a commit")
    try:
        commit = read_regular(home / "refs" / revision, MOST_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise BadModel(f"{repo} is cached, but not at revision {revision!r}; {known(home)}") from None
    if not COMMIT.fullmatch(commit):
        raise BadModel(f"{home / 'refs' / revision} does not contain a commit; download the model again")
    return commit


def known(home: Path) -> str:
    """The cached revisions of a repository, as a part of an error message."""
    refs = home / "refs"
    names = [ref.relative_to(refs).as_posix() for ref in sorted(refs.rglob("*")) if ref.is_file()]
    names += [each.name for each in sorted((home / "snapshots").glob("*")) if each.is_dir()]
    return f"cached revisions: {', '.join(names[:10])}" if names else "it has no cached revision"
