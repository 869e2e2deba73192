"""Links in a model's folder must not lead out of it."""

import os
import shutil
from pathlib import Path

import hub
import mask_codecs
import numpy as np
import pytest
import tiny
from hub import COMMIT, download, repository

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.mask_vqvae import CODEC
from npgemma.checkpoints.paligemma import read_config
from npgemma.commands.cli import build_parser, main
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED, find_model, member
from npgemma.io.safetensors import open_folder
from npgemma.io.tokenizers import paligemma_family, read_tokenizer

PICTURE = EMBEDDED.parent / "sample.png"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
SECRET = "sesame:x:0:0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with every file that npgemma opens: two shards, a tokenizer, a mask codec and an adapter."""
    folder = hub.write_model(tmp_path_factory.mktemp("whole") / "model", shards=2)
    np.savez(folder / CODEC, **mask_codecs.random_tensors())
    (folder / ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    a, b = np.ones((1, 11), np.float32), np.ones((60, 1), np.float32)
    module = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    tiny.save({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / ADAPTER)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of `whole` that the test may change."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


# By file: a function that opens it.
OPENERS = {
    "config.json": lambda folder: read_config(folder),
    "tokenizer.model": lambda folder: read_tokenizer(folder, paligemma_family(read_config(folder).image_token_index)),
    INDEX: open_folder,
    SHARD: open_folder,
    CODEC: lambda folder: segment(folder),
    ADAPTER_CONFIG: read_adapter,
    ADAPTER: read_adapter,
}


def segment(folder: Path) -> None:
    """Run `npgemma segment`, the command that opens the mask codec."""
    arguments = ["segment", str(PICTURE), "cat", "-m", str(folder), "--max-new-tokens", "1"]
    a = build_parser().parse_args(arguments)
    a.load = npgemma.load
    a.run(a)


def use(folder: Path) -> None:
    """Open every file of a folder with the public functions and commands."""
    model = npgemma.load(folder, adapter=folder if (folder / ADAPTER_CONFIG).exists() else None)
    model.generate(PICTURE, "ocr", max_new_tokens=1)
    segment(folder)


def move_out(folder: Path, name: str, target: Path | str | None = None) -> Path:
    """Move a file out of the folder and replace it by a link, to `target` or the file; returns the file's new path."""
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(target or outside)
    return outside


def test_every_file_can_be_opened(whole):
    """The tests below replace one file by a link and expect an error."""
    use(whole)
    for opened in OPENERS.values():
        opened(whole)


@pytest.mark.parametrize("name", OPENERS)
def test_a_link_out_of_the_folder_is_refused(name, folder):
    """Even to the right file: a link in a model must not make npgemma read files that are not part of the model."""
    outside = move_out(folder, name)
    for reading in (OPENERS[name], use):
        with pytest.raises(BadModel) as error:
            reading(folder)
        assert f"{folder / name} is a link to {outside}, outside the model's folder" in str(error.value)


def test_a_link_out_of_the_folder_is_refused_for_an_unsharded_model(tmp_path):
    folder = hub.write_model(tmp_path / "model")
    move_out(folder, "model.safetensors")
    with pytest.raises(BadModel, match=r"model\.safetensors is a link to .*, outside the model's folder"):
        npgemma.load(folder)


@pytest.mark.parametrize("name", OPENERS)
def test_the_command_reports_a_link_out_of_the_folder_in_one_line(name, folder, capsys):
    move_out(folder, name)
    assert main(["segment", str(PICTURE), "cat", "-m", str(folder), "--adapter", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"npgemma: {folder / name} is a link to")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", OPENERS)
def test_the_error_does_not_quote_the_target_of_the_link(name, folder, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    move_out(folder, name, tmp_path / "secret")
    with pytest.raises(BadModel, match="outside the model's folder") as error:
        OPENERS[name](folder)
    assert SECRET not in str(error.value)


@pytest.mark.skipif(not Path("/etc/passwd").exists(), reason="this machine has no /etc/passwd")
@pytest.mark.parametrize("target", ["/etc/passwd", "../" * 40 + "etc/passwd", "sub/" + "../" * 40 + "etc/passwd"])
def test_a_link_to_passwd_is_refused(target, folder):
    (folder / "sub").mkdir()
    move_out(folder, "config.json", target)
    with pytest.raises(BadModel, match=r"is a link to /etc/passwd, outside the model's folder"):
        npgemma.load(folder)


def test_a_chain_of_links_out_of_the_folder_is_refused(folder, tmp_path):
    """config.json -> one -> ../outside, and config.json -> one/outside with one -> .."""
    outside = move_out(folder, "config.json", "one")
    (folder / "one").symlink_to(outside)
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)
    (folder / "one").unlink()
    (folder / "one").symlink_to(tmp_path, target_is_directory=True)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(f"one/{outside.name}")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)


def test_a_sibling_folder_whose_name_begins_with_that_of_the_model_is_outside(folder, tmp_path):
    """/tmp/model-secret is not in /tmp/model."""
    (tmp_path / "model-secret").mkdir()
    (folder / "config.json").rename(tmp_path / "model-secret" / "config.json")
    (folder / "config.json").symlink_to("../model-secret/config.json")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_within_the_folder_is_followed(absolute, folder):
    (folder / "kept").mkdir()
    for name in OPENERS:
        (folder / name).rename(folder / "kept" / name)
        (folder / name).symlink_to(folder / "kept" / name if absolute else Path("kept", name))
    use(folder)


def test_the_model_folder_may_be_a_link(whole, tmp_path):
    """A link to the folder, a link to that link, or a link to the folder that contains it."""
    (tmp_path / "one").symlink_to(whole, target_is_directory=True)
    (tmp_path / "two").symlink_to("one", target_is_directory=True)
    (tmp_path / "three").symlink_to(whole.parent, target_is_directory=True)
    for path in (tmp_path / "one", tmp_path / "two", tmp_path / "three" / whole.name):
        assert find_model(path) == path
        use(path)


def test_a_link_out_of_a_linked_folder_is_refused(folder, tmp_path):
    move_out(folder, "config.json")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(tmp_path / "link")


# The file that the error names. A model without an index needs model.safetensors.
MISSING = {name: name for name in OPENERS} | {INDEX: "model.safetensors"}


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize("target", ["gone", "../gone", "/gone/away", "itself", "a loop of two links"])
def test_a_broken_or_circular_link_is_a_missing_file(name, target, folder):
    (folder / name).unlink()
    (folder / name).symlink_to({"itself": name}.get(target, target))
    (folder / "a loop of two links").symlink_to(name)
    if name == "config.json":
        (folder / ADAPTER_CONFIG).unlink()  # otherwise the folder would be an adapter
    for reading in (OPENERS[name], use):
        if reading is use and name == ADAPTER_CONFIG:
            continue  # without this file, `use` does not load the folder as an adapter
        with pytest.raises(BadModel) as error:
            reading(folder)
        assert str(error.value).startswith(str(folder / MISSING[name]))
        assert "is missing" in str(error.value) or "symbolic links" in str(error.value)


@pytest.mark.parametrize("target", ["gone", "loop.safetensors"])
def test_a_broken_link_that_the_index_does_not_name_is_ignored(target, folder):
    """For example a copy in another format, whose blob was deleted to save space."""
    (folder / "loop.safetensors").symlink_to(target)
    use(folder)


# --------------------------------------------------------------------------------------------------- links of snapshots


def test_the_links_of_a_snapshot_are_followed(whole, tmp_path):
    use(download(tmp_path, "org/name", whole))


def test_the_links_of_a_linked_snapshot_are_followed(whole, tmp_path):
    """ln -s ~/.cache/huggingface/hub/models--org--name/snapshots/<commit> model"""
    (tmp_path / "link").symlink_to(download(tmp_path, "org/name", whole), target_is_directory=True)
    use(tmp_path / "link")


@pytest.mark.parametrize("name", OPENERS)
def test_the_links_of_a_snapshot_may_lead_only_to_its_blobs(name, whole, tmp_path):
    """Not to a file next to the blobs, to a blob of another repository, or anywhere else."""
    snapshot, other = download(tmp_path, "org/name", whole), download(tmp_path, "org/other", whole)
    blob = (snapshot / name).resolve()
    secret = repository(tmp_path, "org/name") / "secret"
    shutil.copyfile(blob, secret)
    for target in (secret, secret.parent / "blobs-of-others", tmp_path / "secret", (other / name).resolve()):
        if not target.exists():
            shutil.copyfile(blob, target)
        for link in (target, Path(os.path.relpath(target, snapshot))):
            (snapshot / name).unlink()
            (snapshot / name).symlink_to(link)
            with pytest.raises(BadModel, match="outside the model's folder"):
                OPENERS[name](snapshot)


def test_only_a_snapshot_may_link_to_blobs(folder, tmp_path):
    """The parent of a snapshot is called `snapshots`."""
    (tmp_path / "blobs").mkdir()
    mine = tmp_path / "models" / "mine"
    shutil.copytree(folder, mine)
    (mine / "config.json").rename(tmp_path / "blobs" / "abc")
    (mine / "config.json").symlink_to("../../blobs/abc")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(mine)


def test_blobs_must_not_be_a_link_to_another_folder(whole, tmp_path):
    """An unpacked archive may contain snapshots/x/config.json -> ../../blobs/passwd and blobs -> /etc."""
    snapshot = download(tmp_path / "cache", "org/name", whole)
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(SECRET)
    blobs = repository(tmp_path / "cache", "org/name") / "blobs"
    shutil.rmtree(blobs)
    blobs.symlink_to(etc, target_is_directory=True)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to("../../blobs/passwd")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(snapshot)


def test_member_returns_the_link_and_not_its_target(whole, tmp_path):
    """Errors name the path that the user sees."""
    snapshot = download(tmp_path, "org/name", whole)
    assert member(snapshot, "config.json") == snapshot / "config.json"
    assert member(whole, "gone") == whole / "gone"
    assert snapshot.name == COMMIT
