"""The Hugging Face cache: where it is, what a name and a revision mean in it, and nothing read outside of it."""

import dataclasses
import json
import shutil
import socket
from pathlib import Path

import hub
import numpy as np
import pytest
from hub import COMMIT, OTHER, download, point, repository

import npgemma
from npgemma.commands.cli import main
from npgemma.errors import BadModel
from npgemma.io.hub_cache import cache_folder, is_repo_id, snapshot
from npgemma.io.model_folder import EMBEDDED

REPO = "org/name"
PICTURE = EMBEDDED.parent / "sample.png"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Two models that differ in every number, so that the wrong revision shows."""
    made = tmp_path_factory.mktemp("models")
    return {"first": hub.write_model(made / "first"), "second": hub.write_model(made / "second", seed=1, shards=2)}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, and no variable of the environment that leads elsewhere."""
    for name in hub.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path) -> Path:
    """What stands for a model where only its folder is looked for."""
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "config.json").write_text("{}")
    return tmp_path / "small"


# --------------------------------------------------------------------------------------------------- where the cache is

ENVIRONMENTS = {
    "nothing": ({}, "/home/me/.cache/huggingface/hub"),
    "XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    "HF_HOME": ({"HF_HOME": "/h"}, "/h/hub"),
    "HF_HOME before XDG_CACHE_HOME": ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
    "the old name": ({"HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    "the old name before HF_HOME": ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HOME": "/h"}, "/old"),
    "HF_HUB_CACHE": ({"HF_HUB_CACHE": "/c"}, "/c"),
    "HF_HUB_CACHE before all": ({name: f"/{name}" for name in hub.VARIABLES}, "/HF_HUB_CACHE"),
    "HF_HUB_CACHE empty": ({"HF_HUB_CACHE": "", "HUGGINGFACE_HUB_CACHE": "/old"}, "/old"),
    "the old name empty": ({"HUGGINGFACE_HUB_CACHE": "", "HF_HOME": "/h"}, "/h/hub"),
    "HF_HOME empty": ({"HF_HOME": "", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    "all empty": (dict.fromkeys(hub.VARIABLES, ""), "/home/me/.cache/huggingface/hub"),
    "~ in XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "~/x"}, "/home/me/x/huggingface/hub"),
    "~ in HF_HOME": ({"HF_HOME": "~/h"}, "/home/me/h/hub"),
    "~ in the old name": ({"HUGGINGFACE_HUB_CACHE": "~/old"}, "/home/me/old"),
    "~ in HF_HUB_CACHE": ({"HF_HUB_CACHE": "~/c"}, "/home/me/c"),
    "~ that is no home": ({"HF_HUB_CACHE": "/a/~/c"}, "/a/~/c"),
    "$ in XDG_CACHE_HOME": ({"XDG_CACHE_HOME": "$DISK/x"}, "/disk/x/huggingface/hub"),
    "$ in HF_HOME": ({"HF_HOME": "${DISK}/h"}, "/disk/h/hub"),
    "$ in the old name": ({"HUGGINGFACE_HUB_CACHE": "$DISK/old"}, "/disk/old"),
    "$ in HF_HUB_CACHE": ({"HF_HUB_CACHE": "/a$DISK"}, "/a/disk"),
    "$ of nothing": ({"HF_HUB_CACHE": "/a/$NO_SUCH_VARIABLE/c"}, "/a/$NO_SUCH_VARIABLE/c"),
    "a relative path": ({"HF_HOME": "here"}, "here/hub"),
}


@pytest.mark.parametrize(("environment", "expected"), ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_the_environment_says_where_the_cache_is(environment, expected, monkeypatch):
    for name in hub.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/me", "DISK": "/disk"} | environment).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


# ------------------------------------------------------------------------------------------------------------ names

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
def test_what_a_repository_may_be_called(name):
    assert is_repo_id(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_no_repository_is_called_is_not_looked_for(name, cache, monkeypatch):
    """It is not even looked for: none of these may become a path."""
    assert not is_repo_id(name)
    monkeypatch.chdir(cache.parent)  # where neither "" nor "." is a model
    monkeypatch.setattr(npgemma.io.model_folder, "snapshot", lambda *_: pytest.fail("it was looked for"))
    with pytest.raises(BadModel):
        npgemma.load(name)


# -------------------------------------------------------------------------------------------------------- revisions


def test_a_repository_that_was_never_cached_is_none(cache):
    assert snapshot(REPO, "main", "config.json") is None
    assert snapshot(REPO, COMMIT, "config.json") is None


def test_a_cache_that_is_not_there_is_none(cache):
    cache.rmdir()
    assert snapshot(REPO, "main", "config.json") is None


def test_a_branch_a_tag_a_pull_request_and_a_commit(cache, small):
    """refs/pr/3 is the ref of that name: a file in folders, as huggingface_hub writes it."""
    first = download(cache, REPO, small, COMMIT, ["main", "v1.0"])
    second = download(cache, REPO, small, OTHER, ["bfloat16", "refs/pr/3", "feature/new_words-2"])
    for revision in ("main", "v1.0", COMMIT):
        assert snapshot(REPO, revision, "config.json") == first
    for revision in ("bfloat16", "refs/pr/3", "feature/new_words-2", OTHER):
        assert snapshot(REPO, revision, "config.json") == second
    assert first == cache / "models--org--name" / "snapshots" / COMMIT


def test_a_name_without_an_organisation(cache, small):
    assert snapshot("name", "main", "config.json") is None
    assert download(cache, "name", small) == snapshot("name", "main", "config.json")


def test_a_commit_needs_no_ref(cache, small):
    """What was downloaded by its commit has none: only the snapshot is there."""
    folder = download(cache, REPO, small, refs=())
    (repository(cache, REPO) / "refs").rmdir()
    assert snapshot(REPO, COMMIT, "config.json") == folder


def test_without_a_ref_the_commits_are_named(cache, small):
    """Nobody knows which of them main is, though it be the only one; the error says what to pass."""
    download(cache, REPO, small, COMMIT, refs=())
    with pytest.raises(BadModel, match=f"org/name is cached, but not at revision 'main'; cached revisions: {COMMIT}$"):
        snapshot(REPO, "main", "config.json")
    download(cache, REPO, small, OTHER, refs=("refs/pr/3",))
    with pytest.raises(BadModel, match=f"cached revisions: refs/pr/3, {COMMIT}, {OTHER}$"):
        snapshot(REPO, "main", "config.json")


def test_a_ref_that_is_not_there_names_those_that_are(cache, small):
    download(cache, REPO, small, COMMIT, ["main", "bfloat16"])
    with pytest.raises(BadModel, match=f"not at revision 'float16'; cached revisions: bfloat16, main, {COMMIT}$"):
        snapshot(REPO, "float16", "config.json")


def test_the_beginning_of_a_commit_is_no_revision(cache, small):
    download(cache, REPO, small)
    for revision in (COMMIT[:7], COMMIT[:39], COMMIT + "0", COMMIT.upper()):
        with pytest.raises(BadModel, match=f"not at revision '{revision}'; cached revisions: main"):
            snapshot(REPO, revision, "config.json")


def test_a_ref_whose_snapshot_is_gone(cache, small):
    """As after deleting a revision by hand."""
    shutil.rmtree(download(cache, REPO, small))
    with pytest.raises(BadModel, match=f"not at revision 'main': .*{COMMIT} is missing; cached revisions: main"):
        snapshot(REPO, "main", "config.json")


def test_a_commit_that_was_never_downloaded(cache, small):
    download(cache, REPO, small)
    with pytest.raises(BadModel, match=f"{OTHER} is missing; cached revisions: main, {COMMIT}"):
        snapshot(REPO, OTHER, "config.json")


def test_a_repository_with_nothing_in_it(cache):
    """What is left when a download was refused: the folder alone."""
    repository(cache, REPO).mkdir()
    with pytest.raises(BadModel, match="not at revision 'main'; no revision of it is cached"):
        snapshot(REPO, "main", "config.json")


def test_an_unfinished_download_says_so(cache, small):
    """huggingface_hub writes to blobs/<name>.incomplete, and links to the blob once it is whole."""
    folder = download(cache, REPO, small)
    (folder / "config.json").unlink()
    (blob,) = (repository(cache, REPO) / "blobs").iterdir()
    blob.rename(f"{blob}.incomplete")
    with pytest.raises(BadModel) as error:
        snapshot(REPO, "main", "config.json")
    said = f"{folder}/config.json is missing: the download is incomplete"
    assert str(error.value) == f"{said}; run 'hf download org/name --revision main'"


def test_a_download_of_some_files_says_so(cache, small):
    folder = download(cache, REPO, small)
    assert snapshot(REPO, "main", "config.json") == folder
    with pytest.raises(BadModel, match=r"other\.json is missing: only some of the files were downloaded; run"):
        snapshot(REPO, "main", "other.json")


def test_a_link_to_a_blob_that_is_gone_is_no_file(cache, small):
    folder = download(cache, REPO, small)
    (folder / "config.json").resolve().unlink()
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        snapshot(REPO, "main", "config.json")


# --------------------------------------------------------------------------------------------------- hostile revisions

HOSTILE = [
    *("..", "../..", "../../x", "../main", "a/../../x", "refs/../../x", "../x", "main/..", "main/../../x", "a..b"),
    *("/etc/passwd", "/", "a/", "/a", "a//b", "\\..\\x", "..\\x", "C:\\x", "a\\b", "a b", " main", "main ", "a\0b"),
    *("main\n", "\nmain", "~", "~/x", "$HOME/x", "a:b", "a?b", "a*", "*", "[m]ain", "é", "\x1b[2J", "main;x", "a@b"),
]


@pytest.mark.parametrize("revision", HOSTILE)
def test_a_revision_that_is_no_name_is_refused(revision, cache, small, monkeypatch):
    """Though the file that it leads to is there, and holds a commit."""
    download(cache, REPO, small)
    for path in (cache / "x", repository(cache, REPO) / "x", repository(cache, REPO) / "refs" / "x"):
        path.write_text(COMMIT)
    monkeypatch.setenv("HOME", str(cache))
    monkeypatch.setattr(Path, "read_text", lambda path, *_: pytest.fail(f"{path} was read"))
    with pytest.raises(BadModel, match="is not the name of a branch, a tag or a commit"):
        snapshot(REPO, revision, "config.json")


@pytest.mark.parametrize("revision", HOSTILE)
def test_a_revision_that_is_no_name_is_one_sentence(revision, cache, small, capsys):
    download(cache, REPO, small)
    assert main(["inspect", f"{REPO}@{revision}"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert "Traceback" not in err
    assert "\x1b" not in err


@pytest.mark.parametrize("revision", [".", "refs", "a" * 5000, "/".join("a" * 3000)])
def test_a_revision_that_is_no_file_is_refused(revision, cache, small):
    download(cache, REPO, small, refs=["main", "refs/pr/3"])
    with pytest.raises(BadModel, match="is cached, but not at"):
        snapshot(REPO, revision, "config.json")


GARBAGE = {
    "nothing": b"",
    "a path out": b"../../..",
    "a path out, and long enough": b"../../../../../../../../../../../../../x",
    "a path down": b"snapshots/" + COMMIT.encode(),
    "an absolute path": b"/etc",
    "another ref": b"main",
    "what git writes": b"ref: refs/heads/main\n",
    "39 digits": COMMIT[:39].encode(),
    "41 digits": COMMIT.encode() + b"0",
    "upper case": COMMIT.upper().encode(),
    "two commits": COMMIT.encode() + b"\n" + OTHER.encode(),
    "a commit and a path": COMMIT.encode() + b"/../../..",
    "no text": b"\xff\xfe" + COMMIT.encode("utf-16-le"),
    "digits of another script": "٠١٢٣٤٥٦٧٨٩".encode() * 4,
    "a NUL": COMMIT.encode() + b"\0",
    "an escape sequence": b"\x1b[2J",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_a_ref_that_holds_no_commit_is_refused(content, cache, small):
    """A ref that says ../../.. would make any folder of the machine a model."""
    download(cache, REPO, small)
    (cache.parent / "config.json").write_text("{}")  # where ../../.. leads
    point(cache, REPO, "main", content)
    said = "does not contain a commit" if content.isascii() else "is cached, but not at revision 'main'"
    with pytest.raises(BadModel, match=said) as error:
        snapshot(REPO, "main", "config.json")
    assert str(error.value).isprintable()


def test_a_newline_after_the_commit_is_no_garbage(cache, small):
    """huggingface_hub writes none; whoever makes a ref with an editor or echo does."""
    folder = download(cache, REPO, small)
    point(cache, REPO, "main", COMMIT + "\n")
    assert snapshot(REPO, "main", "config.json") == folder


def test_a_ref_that_is_a_link_out_tells_nothing_of_what_is_there(cache, small, tmp_path):
    """Refs are plain files; one that links to /etc/shadow would have its first line in the error."""
    download(cache, REPO, small)
    (tmp_path / "secret").write_text("sesame:x:0:0")
    ref = repository(cache, REPO) / "refs" / "main"
    ref.unlink()
    ref.symlink_to(tmp_path / "secret")
    with pytest.raises(BadModel) as error:
        snapshot(REPO, "main", "config.json")
    assert "sesame" not in str(error.value)


# ------------------------------------------------------------------------------------------------------ models by name


def prompt_of(model) -> tuple[np.ndarray, np.ndarray]:
    inputs = model.processor([[PICTURE]], ["caption en"])
    return inputs.input_ids[0], inputs.pixel_values


@pytest.mark.parametrize("links", [True, False], ids=["links to blobs", "plain files"])
def test_a_model_by_name_is_the_model_of_the_folder(links, cache, folders):
    download(cache, REPO, folders["first"], COMMIT, ["main", "refs/pr/3"], links)
    download(cache, REPO, folders["second"], OTHER, ["bfloat16"], links)
    expected = {name: npgemma.load(folder) for name, folder in folders.items()}
    ids, pixels = prompt_of(expected["first"])
    logits = {name: model.forward(ids, pixels) for name, model in expected.items()}
    assert np.abs(logits["first"] - logits["second"]).max() > 0.1
    for name, which in {
        REPO: "first",
        f"{REPO}@": "first",
        f"{REPO}@main": "first",
        f"{REPO}@refs/pr/3": "first",
        f"{REPO}@{COMMIT}": "first",
        f"{REPO}@bfloat16": "second",
        f"{REPO}@{OTHER}": "second",
    }.items():
        model = npgemma.load(name)
        np.testing.assert_array_equal(model.forward(ids, pixels), logits[which], strict=True)
        assert model.folder == repository(cache, REPO) / "snapshots" / {"first": COMMIT, "second": OTHER}[which]
        answer = model.generate(PICTURE, "caption en", max_new_tokens=3)
        assert answer == expected[which].generate(PICTURE, "caption en", max_new_tokens=3)


def test_the_command_line_takes_a_name(cache, folders, capsys):
    download(cache, REPO, folders["first"])
    download(cache, REPO, folders["second"], OTHER, ["bfloat16"])
    for name, which in {REPO: "first", f"{REPO}@bfloat16": "second"}.items():
        flags = ["-m", name, "--max-new-tokens", "4", "--format", "json"]
        assert main(["ocr", str(PICTURE), *flags]) == 0
        expected = npgemma.load(folders[which]).generate(PICTURE, "ocr", max_new_tokens=4)
        assert json.loads(capsys.readouterr().out) == {"prompt": "ocr"} | dataclasses.asdict(expected)


def test_a_cache_behind_a_link_is_a_cache(cache, folders, tmp_path, monkeypatch):
    """~/.cache is often a link to a larger disk, and so may be the folder of a repository."""
    download(cache, REPO, folders["first"])
    repository(cache, REPO).rename(tmp_path / "moved")
    repository(cache, REPO).symlink_to(tmp_path / "moved", target_is_directory=True)
    (tmp_path / "link").symlink_to(cache, target_is_directory=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "link"))
    assert npgemma.load(REPO).generate(PICTURE, "ocr", max_new_tokens=1).finish_reason in ("length", "stop")


def test_an_adapter_of_the_cache_is_found_by_name(cache, small):
    """It has no config.json, and needs none."""
    (small / "config.json").rename(small / "adapter_config.json")
    folder = download(cache, "org/adapter", small)
    assert npgemma.io.model_folder.find_adapter("org/adapter") == folder
    assert npgemma.io.model_folder.find_adapter(f"org/adapter@{COMMIT}") == folder


def test_an_adapter_of_the_cache_that_is_given_as_the_model_is_told_so(cache, small):
    """As for a folder: nothing of it is missing, it is no model."""
    (small / "config.json").rename(small / "adapter_config.json")
    download(cache, "org/adapter", small)
    with pytest.raises(BadModel, match="is a LoRA adapter"):
        npgemma.load("org/adapter")


def test_a_weight_file_that_is_not_downloaded_yet_is_named(cache, folders):
    """The small files come first: config.json and the index are there, a shard is not."""
    folder = download(cache, REPO, folders["second"])
    shard = folder / "model-00002-of-00002.safetensors"
    blob = shard.resolve()
    shard.unlink()
    blob.rename(f"{blob}.incomplete")
    with pytest.raises(BadModel, match=r"model-00002-of-00002\.safetensors is missing"):
        npgemma.load(REPO)


def test_nothing_is_ever_downloaded(cache, folders, monkeypatch):
    """Neither what is not there, nor anything about what is; and HF_HUB_OFFLINE need not say so."""

    def no_network(*_, **__):
        pytest.fail("a socket was asked for")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(BadModel, match="npgemma does not download models: run 'hf download org/name' first"):
        npgemma.load(REPO)
    download(cache, REPO, folders["first"])
    npgemma.load(REPO)
