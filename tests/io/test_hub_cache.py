"""The Hugging Face cache: its folder, the names and revisions of repositories, and refs that lead out of it."""

import os
import shutil
from pathlib import Path

import hub
import pytest
from hub import COMMIT, OTHER, download, point, repository

import npgemma
from npgemma.commands.cli import main
from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot

REPO = "org/name"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    return hub.empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def small(tmp_path) -> Path:
    """A folder that contains only an empty config.json: enough to be found, not to be loaded."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    return tmp_path / "small"


# ---------------------------------------------------------------------------------------------------- the cache folder

ENVIRONMENTS = {
    "no variables": ({}, "/home/me/.cache/huggingface/hub"),
    "XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    "HF_HOME": ({"HF_HOME": "/h"}, "/h/hub"),
    "HF_HOME and XDG_CACHE_HOME": ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
    "HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    "HUGGINGFACE_HUB_CACHE and HF_HOME": ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
    "HF_HUB_CACHE": ({"HF_HUB_CACHE": "/c"}, "/c"),
    "all variables": ({name: f"/{name}" for name in hub.VARIABLES}, "/HF_HUB_CACHE"),
    "an empty HF_HUB_CACHE": ({"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    "an empty HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "", "HF_HOME": "/h"}, "/h/hub"),
    "an empty HF_HOME": ({"HF_HOME": "", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    "all variables empty": (dict.fromkeys(hub.VARIABLES, ""), "/home/me/.cache/huggingface/hub"),
    "~ in XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "~/x"}, "/home/me/x/huggingface/hub"),
    "~ in HF_HOME": ({"HF_HOME": "~/h"}, "/home/me/h/hub"),
    "~ in HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "~/old"}, "/home/me/old"),
    "~ in HF_HUB_CACHE": ({"HF_HUB_CACHE": "~/c"}, "/home/me/c"),
    "~ inside a path": ({"HF_HUB_CACHE": "/a/~/c"}, "/a/~/c"),
    "$ in XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "$DISK/x"}, "/disk/x/huggingface/hub"),
    "$ in HF_HOME": ({"HF_HOME": "${DISK}/h"}, "/disk/h/hub"),
    "$ in HUGGINGFACE_HUB_CACHE": ({"HUGGINGFACE_HUB_CACHE": "$DISK/old"}, "/disk/old"),
    "$ in HF_HUB_CACHE": ({"HF_HUB_CACHE": "/a$DISK"}, "/a/disk"),
    "an unset variable": ({"HF_HUB_CACHE": "/a/$NO_SUCH_VARIABLE/c"}, "/a/$NO_SUCH_VARIABLE/c"),
    "a relative path": ({"HF_HOME": "here"}, "here/hub"),
}


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_environment_variables_set_the_cache_folder(environment, expected, monkeypatch):
    for name in hub.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me", "DISK": "/disk"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


# ----------------------------------------------------------------------------------------------------- repository names

GOOD_NAMES = [
    *("name", "org/name", "google/paligemma-3b-mix-224", "A.b_c-d/E.f_g-h", "0", "0/1", "_a_/_b_", "a.git.b", "x.gi"),
    *("git", "a" * 96, "o/" + "a" * 94, "a.b/c"),
]
BAD_NAMES = [
    *("", "/", "a/", "/a", "a/b/c", "a//b", "a--b", "o--r/a", "a..b", "o..r/a", "-a", "a-", ".a", "a.", "-o/a", "o-/a"),
    *("o/-a", "o/a-", "o/.a", "o/a.", "a.git", "o/a.git", "a b", "a\n", "\na", "a\\b", "a:b", "C:a", "a+b", "é"),
    *("o/é", "a\0", "~", "~/a", "..", "../a", "a/..", ".", "./a", "$HOME", "a" * 97, "o/" + "a" * 97, "\N{DIGIT ONE}²"),
]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_a_valid_repository_name_is_accepted(name):
    assert is_repo_id(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_an_invalid_repository_name_is_not_looked_up(name, cache, monkeypatch):
    """An invalid name must never become part of a path in the cache."""
    assert not is_repo_id(name)
    monkeypatch.chdir(cache.parent)  # a folder that is not a model, since "." names it
    checked, isdir = [], os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: checked.append(Path(path)) or isdir(path))
    with pytest.raises(BadModel):
        npgemma.load(name)
    assert Path(name) in checked
    assert not any(path.is_relative_to(cache) for path in checked)


# ------------------------------------------------------------------------------------------------------------ revisions


def test_a_repository_that_is_not_cached_is_none(cache):
    assert snapshot(REPO, "main", "config.json") is None
    assert snapshot(REPO, COMMIT, "config.json") is None


def test_without_a_cache_folder_no_repository_is_found(cache):
    cache.rmdir()
    assert snapshot(REPO, "main", "config.json") is None


def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(cache, small):
    """huggingface_hub stores a ref with slashes, such as refs/pr/3, as a file in nested folders."""
    first = download(cache, REPO, small, COMMIT, ["main", "v1.0"])
    second = download(cache, REPO, small, OTHER, ["bfloat16", "refs/pr/3", "feature/new_words-2"])
    for revision in ("main", "v1.0", COMMIT):
        assert snapshot(REPO, revision, "config.json") == first
    for revision in ("bfloat16", "refs/pr/3", "feature/new_words-2", OTHER):
        assert snapshot(REPO, revision, "config.json") == second
    assert first == cache / "models--org--name" / "snapshots" / COMMIT


def test_a_repository_name_may_have_no_organisation(cache, small):
    assert snapshot("name", "main", "config.json") is None
    assert download(cache, "name", small) == snapshot("name", "main", "config.json")


def test_a_commit_needs_no_ref(cache, small):
    """A download by commit writes a snapshot, but no ref."""
    folder = download(cache, REPO, small, refs=())
    (repository(cache, REPO) / "refs").rmdir()
    assert snapshot(REPO, COMMIT, "config.json") == folder


def test_without_the_ref_of_main_the_error_lists_the_cached_revisions(cache, small):
    """Even the only cached commit need not be that of main."""
    download(cache, REPO, small, COMMIT, refs=())
    with pytest.raises(BadModel, match=f"org/name is cached, but not at revision 'main'; cached revisions: {COMMIT}$"):
        snapshot(REPO, "main", "config.json")
    download(cache, REPO, small, OTHER, refs=("refs/pr/3",))
    with pytest.raises(BadModel, match=f"cached revisions: refs/pr/3, {COMMIT}, {OTHER}$"):
        snapshot(REPO, "main", "config.json")


def test_a_missing_ref_is_refused_with_the_cached_revisions(cache, small):
    download(cache, REPO, small, COMMIT, ["main", "bfloat16"])
    with pytest.raises(BadModel, match=f"not at revision 'float16'; cached revisions: bfloat16, main, {COMMIT}$"):
        snapshot(REPO, "float16", "config.json")


def test_a_commit_must_be_given_as_40_lower_case_digits(cache, small):
    download(cache, REPO, small)
    for revision in (COMMIT[:7], COMMIT[:39], COMMIT + "0", COMMIT.upper()):
        with pytest.raises(BadModel, match=f"not at revision '{revision}'; cached revisions: main"):
            snapshot(REPO, revision, "config.json")


def test_a_ref_to_a_deleted_snapshot_is_refused(cache, small):
    shutil.rmtree(download(cache, REPO, small))
    with pytest.raises(BadModel, match=f"not at revision 'main': .*{COMMIT} is missing; cached revisions: main"):
        snapshot(REPO, "main", "config.json")


def test_a_commit_that_is_not_cached_is_refused(cache, small):
    download(cache, REPO, small)
    with pytest.raises(BadModel, match=f"{OTHER} is missing; cached revisions: main, {COMMIT}"):
        snapshot(REPO, OTHER, "config.json")


def test_an_empty_repository_has_no_revisions(cache):
    """A failed download leaves an empty folder."""
    repository(cache, REPO).mkdir()
    with pytest.raises(BadModel, match="not at revision 'main'; it has no cached revision"):
        snapshot(REPO, "main", "config.json")


def test_an_incomplete_download_is_reported(cache, small):
    """huggingface_hub writes blobs/<name>.incomplete, renames it when it is complete, and then links to it."""
    folder = download(cache, REPO, small)
    (folder / "config.json").unlink()
    (blob,) = (repository(cache, REPO) / "blobs").iterdir()
    blob.rename(f"{blob}.incomplete")
    with pytest.raises(BadModel) as error:
        snapshot(REPO, "main", "config.json")
    problem = f"{folder}/config.json is missing: the download is incomplete (1 unfinished file)"
    assert str(error.value) == f"{problem}; run 'hf download org/name'"


def test_a_partial_download_is_reported(cache, small):
    folder = download(cache, REPO, small)
    assert snapshot(REPO, "main", "config.json") == folder
    with pytest.raises(BadModel, match=r"other\.json is missing: only some of the files were downloaded; run"):
        snapshot(REPO, "main", "other.json")


def test_a_link_to_a_missing_blob_is_a_missing_file(cache, small):
    folder = download(cache, REPO, small)
    (folder / "config.json").resolve().unlink()
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        snapshot(REPO, "main", "config.json")


# ------------------------------------------------------------------------------------------- invalid revisions and refs

HOSTILE = [
    *("..", "../..", "../../x", "../main", "a/../../x", "refs/../../x", "../x", "main/..", "main/../../x", "a..b"),
    *("/etc/passwd", "/", "a/", "/a", "a//b", "\\..\\x", "..\\x", "C:\\x", "a\\b", "a b", " main", "main ", "a\0b"),
    *("main\n", "\nmain", "~", "~/x", "$HOME/x", "a:b", "a?b", "a*", "*", "[m]ain", "é", "\x1b[2J", "main;x", "a@b"),
]


@pytest.mark.parametrize("revision", HOSTILE)
def test_an_invalid_revision_is_refused_before_a_file_is_read(revision, cache, small, monkeypatch):
    """Even if the file at that path exists and contains a commit."""
    download(cache, REPO, small)
    for path in (cache / "x", repository(cache, REPO) / "x", repository(cache, REPO) / "refs" / "x"):
        path.write_text(COMMIT)
    monkeypatch.setenv("HOME", str(cache))
    monkeypatch.setattr(Path, "read_text", lambda path, *_: pytest.fail(f"{path} was read"))
    with pytest.raises(BadModel, match="is not the name of a branch, a tag or a commit"):
        snapshot(REPO, revision, "config.json")


@pytest.mark.parametrize("revision", HOSTILE)
def test_the_command_reports_an_invalid_revision_without_a_traceback(revision, cache, small, capsys):
    download(cache, REPO, small)
    assert main(["inspect", f"{REPO}@{revision}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert "Traceback" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize("revision", [".", "refs", "a" * 5000, "/".join("a" * 3000)])
def test_a_valid_revision_that_is_not_a_file_is_refused(revision, cache, small):
    """Either a folder of refs, or a name that is too long for a file."""
    download(cache, REPO, small, refs=["main", "refs/pr/3"])
    with pytest.raises(BadModel, match="is cached, but not at"):
        snapshot(REPO, revision, "config.json")


INVALID_REFS = {
    "an empty file": b"",
    "a path out of the cache": b"../../..",
    "a path out of the cache with 40 characters": b"../../../../../../../../../../../../../x",
    "a path in the repository": b"snapshots/" + COMMIT.encode(),
    "an absolute path": b"/etc",
    "another ref": b"main",
    "a symbolic ref of git": b"ref: refs/heads/main\n",
    "39 digits": COMMIT[:39].encode(),
    "41 digits": COMMIT.encode() + b"0",
    "upper case": COMMIT.upper().encode(),
    "two commits": COMMIT.encode() + b"\n" + OTHER.encode(),
    "a commit and a path": COMMIT.encode() + b"/../../..",
    "binary data": b"\xff\xfe" + COMMIT.encode("utf-16-le"),
    "Arabic digits": "٠١٢٣٤٥٦٧٨٩".encode() * 4,
    "a commit and a NUL": COMMIT.encode() + b"\0",
    "an escape sequence": b"\x1b[2J",
}


@pytest.mark.parametrize("content", INVALID_REFS.values(), ids=INVALID_REFS)
def test_a_ref_without_a_commit_is_refused(content, cache, small):
    """A ref with the content ../../.. could make any folder of the machine a model."""
    download(cache, REPO, small)
    (cache.parent / "config.json").write_text("{}")  # where ../../.. leads
    point(cache, REPO, "main", content)
    message = "does not contain a commit" if content.isascii() else "is cached, but not at revision 'main'"
    with pytest.raises(BadModel, match=message) as error:
        snapshot(REPO, "main", "config.json")
    assert str(error.value).isprintable()


def test_a_newline_after_the_commit_is_allowed(cache, small):
    """huggingface_hub does not write it, but an editor and echo do."""
    folder = download(cache, REPO, small)
    point(cache, REPO, "main", COMMIT + "\n")
    assert snapshot(REPO, "main", "config.json") == folder


def test_an_error_does_not_quote_the_target_of_a_ref_that_is_a_link(cache, small, tmp_path):
    """The target could be /etc/shadow."""
    download(cache, REPO, small)
    (tmp_path / "secret").write_text("sesame:x:0:0")
    ref = repository(cache, REPO) / "refs" / "main"
    ref.unlink()
    ref.symlink_to(tmp_path / "secret")
    with pytest.raises(BadModel) as error:
        snapshot(REPO, "main", "config.json")
    assert "sesame" not in str(error.value)
