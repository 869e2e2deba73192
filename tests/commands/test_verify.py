"""verify: the status of files and weights, and what to do about damage."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import hub
import numpy as np
import pytest
import tiny

from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED

FILES = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES += ["model.safetensors.index.json", "tokenizer.model"]
HINT = "delete the blobs that they link to and download them again"
Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write_model(tmp_path_factory.mktemp("model") / "model", shards=2)


@pytest.fixture
def snapshot(shards: Path, tmp_path: Path) -> Path:
    """The model in a Hugging Face cache: links to blobs, which are named by their hashes."""
    return hub.download(tmp_path, "org/name", shards)


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Verify:
    """verify(*arguments): the exit status, stdout and stderr."""

    def verify(*arguments: object) -> tuple[int, str, str]:
        status = main(["verify", *map(str, arguments)])
        return status, *capsys.readouterr()

    return verify


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flip_a_bit(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# -------------------------------------------------------------------------------------------------------------- verify


def test_an_undamaged_model_is_ok(snapshot: Path, verify: Verify) -> None:
    lines = [f"ok        {sha256(snapshot / name)}  {name}\n" for name in FILES]
    assert verify(snapshot) == (0, "".join(lines) + "weights   all finite\n", "")


def test_a_model_in_the_cache_is_found_by_its_name(snapshot, tmp_path, monkeypatch, verify) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert verify("org/name") == verify(snapshot)


def test_one_wrong_bit_of_the_weights_is_damage(snapshot: Path, verify: Verify) -> None:
    flip_a_bit((snapshot / FILES[1]).resolve(), -100)
    lines = [f"ok        {sha256(snapshot / name)}  {name}" for name in FILES]
    lines[1] = f"damaged   {sha256(snapshot / FILES[1])}  {FILES[1]}"
    status, out, err = verify(snapshot)
    assert (status, out) == (1, "\n".join([*lines, "weights   all finite", ""]))
    assert err == f"npgemma: damaged, not as published: {FILES[1]}; {HINT}\n"


def test_the_status_of_files_outside_a_cache_is_unknown(shards: Path, verify: Verify) -> None:
    lines = [f"unknown   {sha256(shards / name)}  {name}\n" for name in FILES]
    assert verify(shards) == (0, "".join(lines) + "weights   all finite\n", "")


def test_a_missing_blob_is_damage_and_the_other_files_are_checked(snapshot: Path, verify: Verify) -> None:
    (snapshot / FILES[2]).resolve().unlink()
    status, out, err = verify(snapshot)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["ok", "ok", "damaged", "ok", "ok"]
    missing, damaged = err.splitlines()
    assert missing.endswith(f"{FILES[2]} is missing: {FILES[3]} names it; run 'hf download org/name'")
    assert damaged == f"npgemma: damaged, not as published: {FILES[2]}; {HINT}"


def test_the_embedded_model_is_verified_by_default(verify: Verify) -> None:
    status, out, err = verify()
    assert (status, err) == (0, "")
    assert f"unknown   {sha256(EMBEDDED / 'model.safetensors')}  model.safetensors" in out.splitlines()
    assert out.endswith("\nweights   all finite\n")


def test_json_is_one_object(snapshot: Path, verify: Verify) -> None:
    status, out, err = verify(snapshot, "--format", "json")
    assert (status, err, out.count("\n")) == (0, "", 1)
    files = [{"name": name, "sha256": sha256(snapshot / name), "genuine": True} for name in FILES]
    found = json.loads(out)
    assert found.pop("weight_files") == [name for name in FILES if name.endswith(".safetensors")]
    rest = {"foreign": {}, "not_used": [], "not_finite": [], "error": None}
    assert found == {"folder": str(snapshot), "files": files} | rest


def test_json_says_which_file_is_damaged(snapshot: Path, verify: Verify) -> None:
    flip_a_bit((snapshot / "tokenizer.model").resolve(), 1500)
    status, out, err = verify(snapshot, "--format", "json")
    assert status == 1
    assert [file["genuine"] for file in json.loads(out)["files"]] == [True, True, True, True, False]
    assert err == f"npgemma: damaged, not as published: tokenizer.model; {HINT}\n"


FOREIGN = {
    "tokenizer.model": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a git-lfs pointer"),
    "config.json": (b"<!doctype html><html>", "an HTML page"),
    "generation_config.json": (b"", "empty"),
    "preprocessor_config.json": (b'{"error": "Repository not found"}', "the error message of a server"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_not_what_its_name_says_is_damaged(name: str, shards: Path, tmp_path: Path, verify) -> None:
    """Outside a cache as well, where no hash is known."""
    folder, (content, kind) = Path(shutil.copytree(shards, tmp_path / "model")), FOREIGN[name]
    (folder / name).write_bytes(content)
    status, out, err = verify(folder)
    assert status == 1
    assert [line.split()[2] for line in out.splitlines() if line.startswith("damaged")] == [name]
    assert err.splitlines()[-1] == f"npgemma: not what their names say: {name} ({kind})"
    assert json.loads(verify(folder, "--format", "json")[1])["foreign"] == {name: kind}


def test_a_readme_may_be_html(shards: Path, tmp_path: Path, verify: Verify) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "model"))
    (folder / "README.md").write_text("<html><center>PaliGemma</center>")
    assert verify(folder)[0] == 0


def test_the_files_beside_a_file_are_listed_and_other_weights_are_not_used(shards, tmp_path: Path, verify) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "model"))
    others = ["model.fp16.safetensors", "paligemma.gguf", "pytorch_model.bin", "pt_224.npz"]
    for name in ["vae-oid.npz", "optimizer.bin", *others[1:]]:
        (folder / name).write_bytes(b"any bytes")
    hub.write_model(tmp_path / "whole")
    shutil.copyfile(tmp_path / "whole" / "model.safetensors", folder / others[0])
    for model, unused in ((folder, others), (folder / others[0], [*FILES[1:4], *others[1:]])):
        status, out, err = verify(model)
        assert (status, err) == (0, "")
        lines = out.splitlines()
        assert [line.split()[2] for line in lines[:-2]] == sorted(each.name for each in folder.iterdir())
        assert lines[-1] == f"not used  {', '.join(sorted(unused))}"


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_are_not_finite_are_named(dtype: str, form: str, tmp_path: Path, verify: Verify) -> None:
    names = ["language_model.model.layers.1.mlp.up_proj.weight", "vision_tower.vision_model.post_layernorm.bias"]
    tensors = tiny.random_tensors()
    tensors[names[0]][0, 0], tensors[names[1]][-1] = np.inf, np.nan
    tiny.write_folder(tmp_path)
    tiny.save(tensors, tmp_path / "model.safetensors", dtype)
    status, out, err = verify(tmp_path, "--format", form)
    assert (status, err) == (1, "")
    if form == "json":
        assert sorted(json.loads(out)["not_finite"]) == names
    else:
        assert out.splitlines()[-1] == f"weights   not finite: {', '.join(sorted(names))}"


def test_a_damaged_config_is_listed_before_the_error_it_causes(snapshot: Path, verify: Verify) -> None:
    (snapshot / "config.json").resolve().write_bytes(b"{")
    status, out, err = verify(snapshot)
    assert status == 1
    assert [line.split()[0] for line in out.splitlines()] == ["damaged", "ok", "ok", "ok", "ok"]
    unusable, damaged = err.splitlines()
    assert "config.json" in unusable
    assert damaged.startswith("npgemma: damaged, not as published: config.json; ")
    assert "config.json" in json.loads(verify(snapshot, "--format", "json")[1])["error"]


def test_a_link_out_of_the_folder_is_refused(snapshot: Path, tmp_path: Path, refused) -> None:
    (tmp_path / "secret").write_text("sesame")
    (snapshot / "a.txt").symlink_to(tmp_path / "secret")
    assert refused("verify", snapshot).startswith(f"{snapshot}/a.txt is a link to")


def test_control_characters_of_a_file_name_are_escaped(snapshot: Path, verify: Verify) -> None:
    (snapshot / "\x1b[2J.txt").write_text("hello\n")
    status, out, _ = verify(snapshot)
    assert status == 0
    assert out.splitlines()[0].endswith("  \\x1b[2J.txt")
