"""Where huggingface_hub itself finds the cache and a snapshot in it, offline."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import hub
import pytest
from hub import COMMIT, OTHER, download, point

from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the live tests compare with huggingface_hub")

from huggingface_hub.utils import HFValidationError, validate_repo_id  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

REPO = "org/name"
# What people set, and combinations of it. A variable set to nothing is left out: huggingface_hub takes it for the
# current folder, npgemma for not set.
VALUES = {
    "HF_HUB_CACHE": (None, "/c", "~/c", "$DISK/c", "c"),
    "HUGGINGFACE_HUB_CACHE": (None, "/old", "~/old", "${DISK}/old"),
    "HF_HOME": (None, "/h", "~/h", "$DISK/h", "$PLACE/h", "~", "."),
    "XDG_CACHE_HOME": (None, "/x", "~/x", "$DISK/x"),
}
# The constants are read when huggingface_hub is imported, so each environment needs it anew.
SCRIPT = """
import importlib, json, os, sys
from huggingface_hub import constants
found = []
for environment in json.load(sys.stdin):
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    found.append(importlib.reload(constants).HF_HUB_CACHE)
json.dump(found, sys.stdout)
"""


def environments() -> list[dict[str, str | None]]:
    """Every variable alone, and 60 random combinations."""
    rng = random.Random(0)
    nothing = dict.fromkeys(VALUES)
    alone = [nothing | {name: value} for name, values in VALUES.items() for value in values]
    several = [{name: rng.choice(values) for name, values in VALUES.items()} for _ in range(60)]
    return alone + several


def test_the_cache_is_where_huggingface_hub_has_it(monkeypatch):
    given = environments()
    fixed = {"HOME": "/home/me", "DISK": "/disk", "PLACE": "~/place"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | fixed,
        timeout=60,
    )
    for name, value in fixed.items():
        monkeypatch.setenv(name, value)
    found = []
    for environment in given:
        for name, value in environment.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        found.append(cache_folder())
    expected = [Path(path) for path in json.loads(done.stdout)]
    assert len(set(expected)) > 15
    assert [pair for pair in zip(given, expected, found, strict=True) if pair[1] != pair[2]] == []


def test_what_a_repository_may_be_called():
    """Random names of the characters that matter, most of them wrong, and the limits of a length."""
    rng = random.Random(0)
    names = ["".join(rng.choice("aB0_-.-./é ~") for _ in range(rng.randint(1, 7))) for _ in range(20_000)]
    names += [
        "a" * 96,
        "a" * 97,
        "org/" + "a" * 96,
        "org/" + "a" * 97,
        "o" * 96 + "/a",
        "o" * 97 + "/a",
        "a.git",
        "a/b.git",
    ]

    def allowed(name: str) -> bool:
        try:
            validate_repo_id(name)
        except HFValidationError:
            return False
        return True

    expected = [allowed(name) for name in names]
    assert 1000 < sum(expected) < 19_000
    assert [name for name, is_one in zip(names, expected, strict=True) if is_repo_id(name) != is_one] == []


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Two commits of a repository, under refs of every kind."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    download(tmp_path / "cache", REPO, tmp_path / "small", COMMIT, ["main", "v1.0"])
    download(tmp_path / "cache", REPO, tmp_path / "small", OTHER, ["bfloat16", "refs/pr/3", "feature/x"])
    point(tmp_path / "cache", REPO, "gone", "0" * 40)
    return tmp_path / "cache"


REVISIONS = ["main", "v1.0", "bfloat16", "refs/pr/3", "feature/x", COMMIT, OTHER]
MISSING = ["gone", "float16", "pr/3", "refs/pr/4", "0" * 40, COMMIT[:7], COMMIT.upper(), "refs", "feature"]


def theirs(cache: Path, revision: str) -> Path | None:
    """The snapshot that huggingface_hub answers with, or None where it would have to ask the hub."""
    try:
        return Path(huggingface_hub.snapshot_download(REPO, revision=revision, cache_dir=cache, local_files_only=True))
    except (huggingface_hub.errors.LocalEntryNotFoundError, OSError):  # OSError: of a ref that is a folder
        return None


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_revision_is_the_snapshot_of_huggingface_hub(revision, cache):
    found = snapshot(REPO, revision, "config.json")
    assert found is not None
    assert found == theirs(cache, revision)
    path = huggingface_hub.try_to_load_from_cache(REPO, "config.json", cache_dir=cache, revision=revision)
    assert path == str(found / "config.json")


@pytest.mark.parametrize("revision", MISSING)
def test_a_revision_that_huggingface_hub_has_not_is_an_error(revision, cache):
    assert theirs(cache, revision) is None
    with pytest.raises(BadModel):
        snapshot(REPO, revision, "config.json")


def test_the_cache_of_these_tests_is_one_to_huggingface_hub(cache):
    """Its own scan finds the repository, both commits and their refs, without a warning."""
    (hub.repository(cache, REPO) / "refs" / "gone").unlink()
    found = huggingface_hub.scan_cache_dir(cache)
    assert found.warnings == []
    (repo,) = found.repos
    assert repo.repo_id == REPO
    refs = {revision.commit_hash: revision.refs for revision in repo.revisions}
    assert refs == {COMMIT: {"main", "v1.0"}, OTHER: {"bfloat16", "refs/pr/3", "feature/x"}}
    (file,) = next(iter(repo.revisions)).files
    assert file.blob_path.name == hub.blob_name(b"{}", False)
