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
from npgemma.io.tokenizers import read_tokenizer

PICTURE = EMBEDDED.parent / "sample.png"
INDEX, SHARD = "model.safetensors.index.json", "model-00002-of-00002.safetensors"
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
SECRET = "sesame:x:0:0"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A folder with every file that npgemma ever opens in one: two shards, a tokenizer, a mask decoder, an adapter."""
    folder = hub.write_model(tmp_path_factory.mktemp("whole") / "model", shards=2)
    np.savez(folder / CODEC, **mask_codecs.random_tensors())
    (folder / ADAPTER_CONFIG).write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    a, b = np.ones((1, 11), np.float32), np.ones((60, 1), np.float32)
    module = "base_model.model.language_model.model.layers.0.self_attn.q_proj"
    tiny.save({f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, folder / ADAPTER)
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, and an empty cache beside it."""
    (tmp_path / "here").mkdir()
    (tmp_path / "cache").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "here"


def config_only(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


# ---------------------------------------------------------------------------------------------------------------- links

# How each file of a folder is opened, by the function that opens it and from the outside.
OPENED = {
    "config.json": lambda folder: read_config(folder),
    "tokenizer.model": lambda folder: read_tokenizer(folder, read_config(folder).image_token_index),
    INDEX: open_folder,
    SHARD: open_folder,
    CODEC: lambda folder: segment(folder),
    ADAPTER_CONFIG: read_adapter,
    ADAPTER: read_adapter,
}


def segment(folder: Path) -> None:
    """The one command that opens the mask decoder of a folder."""
    arguments = ["segment", str(PICTURE), "cat", "-m", str(folder), "--max-new-tokens", "1"]
    a = build_parser().parse_args(arguments)
    a.load = npgemma.load
    a.run(a)


def use(folder: Path) -> None:
    """Everything in a folder, as one who uses the library would come to it."""
    model = npgemma.load(folder, adapter=folder if (folder / ADAPTER_CONFIG).exists() else None)
    model.generate(PICTURE, "ocr", max_new_tokens=1)
    segment(folder)


def escape(folder: Path, name: str, target: Path | str | None = None) -> Path:
    """Move a file out of the folder and put a link in its place, to `target` or the file; returns where it went."""
    outside = folder.parent / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(target or outside)
    return outside


def test_every_file_is_opened(whole):
    """Or else the tests below would say nothing."""
    use(whole)
    for opened in OPENED.values():
        opened(whole)


@pytest.mark.parametrize("name", OPENED)
def test_a_link_out_of_the_folder_is_refused(name, folder):
    """Though it is the very file: a link that may lead anywhere would read what is not the model's."""
    outside = escape(folder, name)
    for reading in (OPENED[name], use):
        with pytest.raises(BadModel) as error:
            reading(folder)
        assert f"{folder / name} is a link to {outside}, outside the model's folder" in str(error.value)


def test_a_link_out_of_the_folder_is_refused_for_a_model_in_one_file(tmp_path):
    folder = hub.write_model(tmp_path / "model")
    escape(folder, "model.safetensors")
    with pytest.raises(BadModel, match=r"model\.safetensors is a link to .*, outside the model's folder"):
        npgemma.load(folder)


@pytest.mark.parametrize("name", OPENED)
def test_a_link_out_of_the_folder_is_one_sentence(name, folder, capsys):
    escape(folder, name)
    assert main(["segment", str(PICTURE), "cat", "-m", str(folder), "--adapter", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"npgemma: {folder / name} is a link to")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", OPENED)
def test_a_link_to_a_secret_tells_nothing_of_it(name, folder, tmp_path):
    (tmp_path / "secret").write_text(SECRET)
    escape(folder, name, tmp_path / "secret")
    with pytest.raises(BadModel, match="outside the model's folder") as error:
        OPENED[name](folder)
    assert SECRET not in str(error.value)


@pytest.mark.skipif(not Path("/etc/passwd").exists(), reason="there is no such file here")
@pytest.mark.parametrize("target", ["/etc/passwd", "../" * 40 + "etc/passwd", "sub/" + "../" * 40 + "etc/passwd"])
def test_passwd_is_no_config(target, folder):
    (folder / "sub").mkdir()
    escape(folder, "config.json", target)
    with pytest.raises(BadModel, match=r"is a link to /etc/passwd, outside the model's folder"):
        npgemma.load(folder)


def test_a_link_by_way_of_another_is_refused(folder, tmp_path):
    """config.json -> one -> ../outside: where it ends is what counts; and a folder on the way may be the link."""
    outside = escape(folder, "config.json", "one")
    (folder / "one").symlink_to(outside)
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)
    (folder / "one").unlink()
    (folder / "one").symlink_to(tmp_path, target_is_directory=True)
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to(f"one/{outside.name}")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)


def test_a_folder_beside_with_a_name_that_begins_alike_is_outside(folder, tmp_path):
    """/tmp/model-secret is not in /tmp/model."""
    (tmp_path / "model-secret").mkdir()
    (folder / "config.json").rename(tmp_path / "model-secret" / "config.json")
    (folder / "config.json").symlink_to("../model-secret/config.json")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(folder)


@pytest.mark.parametrize("absolute", [True, False])
def test_a_link_within_the_folder_is_followed(absolute, folder):
    (folder / "kept").mkdir()
    for name in OPENED:
        (folder / name).rename(folder / "kept" / name)
        (folder / name).symlink_to(folder / "kept" / name if absolute else Path("kept", name))
    use(folder)


def test_a_folder_that_is_a_link_is_a_folder(whole, tmp_path):
    """The user's own link, or one of a path above; and one to it again."""
    (tmp_path / "one").symlink_to(whole, target_is_directory=True)
    (tmp_path / "two").symlink_to("one", target_is_directory=True)
    (tmp_path / "three").symlink_to(whole.parent, target_is_directory=True)
    for path in (tmp_path / "one", tmp_path / "two", tmp_path / "three" / whole.name):
        assert find_model(path) == path
        use(path)


def test_a_folder_link_and_a_file_link_together(folder, tmp_path):
    """A link out stays one, however the folder was reached."""
    escape(folder, "config.json")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(tmp_path / "link")


# An index is looked for and need not be there: what is missed then is the file that has all weights.
MISSED = dict.fromkeys([name for name in OPENED if name != INDEX]) | {INDEX: "model.safetensors"}


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("target", ["gone", "../gone", "/gone/away", "round", "round and round"])
def test_a_link_to_nothing_or_to_itself_is_a_missing_file(name, target, folder):
    """round -> round, and a -> b -> a, lead nowhere either."""
    (folder / name).unlink()
    (folder / name).symlink_to({"round": name}.get(target, target))
    (folder / "round and round").symlink_to(name)
    if name == "config.json":
        (folder / ADAPTER_CONFIG).unlink()  # or else it would be an adapter's folder
    for reading in (OPENED[name], use):
        if reading is use and name == ADAPTER_CONFIG:
            continue  # what has no such file is not given as an adapter
        with pytest.raises(BadModel) as error:
            reading(folder)
        assert str(error.value).startswith(str(folder / (MISSED[name] or name)))
        assert "is missing" in str(error.value) or "symbolic links" in str(error.value)


@pytest.mark.parametrize("target", ["gone", "loop.safetensors"])
def test_a_weight_file_that_no_index_names_may_be_a_broken_link(target, folder):
    """As a file of other weights is whose blob was deleted to save space: nothing asks for it."""
    (folder / "loop.safetensors").symlink_to(target)
    use(folder)


# --------------------------------------------------------------------------------------------------- links of the cache


def test_the_links_of_a_snapshot_are_followed(whole, tmp_path):
    use(download(tmp_path, "org/name", whole))


def test_the_links_of_a_snapshot_are_followed_through_a_link_to_it(whole, tmp_path):
    """ln -s ~/.cache/huggingface/hub/models--org--name/snapshots/<commit> model"""
    (tmp_path / "link").symlink_to(download(tmp_path, "org/name", whole), target_is_directory=True)
    use(tmp_path / "link")


@pytest.mark.parametrize("name", OPENED)
def test_a_snapshot_has_no_other_way_out(name, whole, tmp_path):
    """Neither to what is beside the blobs, nor into another repository's, nor anywhere."""
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
                OPENED[name](snapshot)


def test_blobs_are_a_snapshots_alone(folder, tmp_path):
    """A folder of one's own has no ../../blobs, whatever there is beside it."""
    (tmp_path / "blobs").mkdir()
    mine = tmp_path / "models" / "mine"
    shutil.copytree(folder, mine)
    (mine / "config.json").rename(tmp_path / "blobs" / "abc")
    (mine / "config.json").symlink_to("../../blobs/abc")
    with pytest.raises(BadModel, match="outside the model's folder"):
        read_config(mine)


def test_blobs_that_are_a_link_lead_to_blobs_alone(whole, tmp_path):
    """An unpacked archive may hold snapshots/x/config.json -> ../../blobs/passwd and blobs -> /etc."""
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


def test_member_is_the_path_itself(whole, tmp_path):
    """Not what it links to: errors name what people see."""
    snapshot = download(tmp_path, "org/name", whole)
    assert member(snapshot, "config.json") == snapshot / "config.json"
    assert member(whole, "gone") == whole / "gone"
    assert snapshot.name == COMMIT
