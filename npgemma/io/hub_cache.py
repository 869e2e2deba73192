"""The Hugging Face cache as its own tools leave it: where it is, and which snapshot of a repository is meant.

    <cache>/models--org--name/refs/main                  the commit that 'main' was when it was downloaded
                              snapshots/<commit>/<file>  links to ../../blobs/<hash of the file>
                              blobs/<hash>               sha256 of large files, git's sha1 of small ones

Source: huggingface_hub's documentation, 'Understand caching'; its constants.py for the environment variables. There is
no network code: what is not in the cache does not exist.
"""

import os
import re
from pathlib import Path

from npgemma.errors import BadModel

COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
REPO_ID = re.compile(rf"{REPO_PART}(?:/{REPO_PART})?")


def cache_folder() -> Path:
    """$HF_HUB_CACHE, else $HUGGINGFACE_HUB_CACHE, else hub in $HF_HOME, else in huggingface of the user's cache.

    A variable that is set to nothing counts as not set.
    """
    env = os.environ
    user_cache = env.get("XDG_CACHE_HOME") or "~/.cache"
    home = expanded(env.get("HF_HOME") or os.path.join(user_cache, "huggingface"))
    cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(expanded(cache))


def expanded(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def is_repo_id(name: str) -> bool:
    """name or org/name, as the hub allows them."""
    forbidden = "--" in name or ".." in name or name.endswith(".git")
    return REPO_ID.fullmatch(name) is not None and max(map(len, name.split("/"))) <= 96 and not forbidden


def snapshot(repo: str, revision: str, *needed: str) -> Path | None:
    """The folder of a repository's files at a revision: a branch, a tag, or a commit; None if it was never cached.

    BadModel, with what is there, for a revision that is not, and for one whose download left out all files in `needed`.
    """
    home = cache_folder() / f"models--{repo.replace('/', '--')}"
    if not os.path.isdir(home):
        return None
    commit = revision if COMMIT.fullmatch(revision) else read_ref(home, repo, revision)
    folder = home / "snapshots" / commit
    if not folder.is_dir():
        raise BadModel(f"{folder} is missing: {repo} is cached, but not at {revision}; {known(home)}")
    if not any((folder / name).exists() for name in needed):
        why = "its download is not finished" if is_unfinished(home) else "only parts of it were downloaded"
        raise BadModel(f"{folder} has no {needed[0]}: {why}; 'hf download {repo} --revision {revision}' completes it")
    return folder


def is_unfinished(home: Path) -> bool:
    """Whether a download of a repository was begun and not ended."""
    return any((home / "blobs").glob("*.incomplete"))


def read_ref(home: Path, repo: str, revision: str) -> str:
    """The commit that a branch or tag was, when it was downloaded."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", revision, re.ASCII) or ".." in revision:
        raise BadModel(f"{repo}@{revision}: {revision!r} is no name of a branch, a tag or a commit")
    try:
        commit = (home / "refs" / revision).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise BadModel(f"{repo} is cached, but not at {revision!r}; {known(home)}") from None
    if not COMMIT.fullmatch(commit):
        raise BadModel(f"{home / 'refs' / revision} holds no commit; download the model anew")
    return commit


def known(home: Path) -> str:
    """What may stand behind the @."""
    refs = home / "refs"
    names = [ref.relative_to(refs).as_posix() for ref in sorted(refs.rglob("*")) if ref.is_file()]
    names += [each.name for each in sorted((home / "snapshots").glob("*")) if each.is_dir()]
    return f"there are: {', '.join(names[:10])}" if names else "it holds no snapshot"
