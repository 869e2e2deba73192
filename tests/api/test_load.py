"""load: what names a model, which dtype it computes in, and what is read from disk, and when."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from agreement import FLOAT64, assert_agrees
from answers import assert_same
from host_threads import run_script
from small_model import CONFIG, EACH, IMAGE, PICTURES, ids, pixels

import npgemma
from npgemma.api.load import load
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED

SAMPLE = npgemma.sample_picture()
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows does not allow changes to a mapped file")


def test_the_default_is_the_embedded_model():
    model = load()
    assert (model.folder, model.dtype) == (EMBEDDED, np.float32)
    assert model.tokenizer.image_id == model.config.image_token_index < model.config.text.vocab_size


def test_a_path_may_be_a_string_or_a_weight_file(small_folder):
    for path in (small_folder, str(small_folder), small_folder / "model.safetensors"):
        assert load(path).config == CONFIG


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere", "there is no such folder"), ("config.json", "is neither a folder nor a"), ("a\0b", "no such folder")],
)
def test_a_path_that_is_not_a_model_is_refused(name, says, small_folder):
    with pytest.raises(BadModel, match=says):
        load(small_folder / name)


def test_an_empty_folder_lacks_a_config(tmp_path):
    with pytest.raises(BadModel, match=r"config\.json is missing"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "f4", "", None, np.float32, "int32"])
def test_another_dtype_is_refused(dtype, small_folder):
    with pytest.raises(ValueError, match="npgemma computes in 'float32' or 'float64'"):
        load(small_folder, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_but_the_angles_of_positions_is_computed_in_the_dtype(dtype, small_folder):
    """See layers/rope.py for the angles."""
    taps = npgemma.Recorder()
    logits = load(small_folder, dtype=dtype).forward(ids(2, 9), pixels(), tap=taps)
    assert logits.dtype == dtype
    floats = {name: x.dtype for name, x in taps.items() if np.issubdtype(x.dtype, np.floating)}
    assert {found for name, found in floats.items() if "rope." not in name} == {np.dtype(dtype)}


@pytest.mark.parametrize("stored", ["float16", "bfloat16"])
def test_weights_are_widened_and_never_rounded(stored, tmp_path):
    """Random weights are numbers that float16 and bfloat16 hold exactly."""
    row = np.array([tiny.CONFIG.image_token_index] * tiny.CONFIG.vision.num_patches + [2, 9, 33])
    found, expected = (
        load(tiny.write_folder(tmp_path / dtype, dtype=dtype), "float64").forward(row, pixels())
        for dtype in (stored, "float32")
    )
    np.testing.assert_allclose(found, expected, **FLOAT64)


# ------------------------------------------------------------------------------------------------- mapped and resident


def test_weights_are_mapped_and_the_tokenizer_is_read_when_it_is_used(small_folder, tmp_path):
    """A damaged tokenizer does not matter to people who bring ids of their own."""
    shutil.copytree(small_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"damaged")
    model = load(tmp_path / "model")
    mapped = model.weights.text.blocks[0].mlp.up
    while not isinstance(mapped, np.memmap):
        assert mapped.base is not None
        mapped = mapped.base
    assert len(model.generate_ids(ids(2, 9), pixels(), max_new_tokens=2)) == 2
    with pytest.raises(BadModel, match=r"tokenizer\.model"):
        model.generate(PICTURES[0], "ocr")


def test_without_a_tokenizer_ids_work_and_text_needs_one(small_folder, tmp_path):
    shutil.copytree(small_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.model").unlink()
    model = load(tmp_path / "model")
    assert model.forward(ids(2, 9), pixels()).shape == (EACH + 2, CONFIG.text.vocab_size)
    for ask in (lambda: model.generate(PICTURES[0], "ocr"), lambda: next(model.stream(PICTURES[0], "ocr"))):
        with pytest.raises(BadModel, match=r"tokenizer\.model is missing"):
            ask()


def test_a_tokenizer_of_another_model_is_refused_when_it_is_used(tmp_path):
    tiny.write_folder(tmp_path)
    shutil.copyfile(EMBEDDED / "tokenizer.model", tmp_path / "tokenizer.model")
    model = load(tmp_path)
    with pytest.raises(BadModel, match=f"<image> is token {IMAGE}"):
        model.generate(PICTURES[0], "ocr")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_resident_weights_answer_as_mapped_ones_do(dtype):
    """The embedded model is stored as bfloat16, so its resident weights are other arrays of equal numbers."""
    mapped, resident = load(dtype=dtype), load(dtype=dtype, resident=True)
    asked = [[SAMPLE, SAMPLE], ["caption en", "detect circle"]]
    assert_same(resident.generate(*asked, max_new_tokens=40), mapped.generate(*asked, max_new_tokens=40))
    inputs = mapped.processor([SAMPLE], ["caption en"])
    found, expected = (model.forward(inputs.input_ids[0], inputs.pixel_values) for model in (resident, mapped))
    assert found.dtype == resident.dtype == dtype
    assert_agrees(found, expected.astype(np.float64))


# ------------------------------------------------------------------------------------- weight files that change on disk


def after(change: str, use: str, folder: Path, resident: bool) -> subprocess.CompletedProcess:
    """A process that loads a copy of the embedded model, changes its weight file, then prints what it is used for."""
    shutil.copytree(EMBEDDED, folder)
    return run_script(f"""
import os, resource
import npgemma
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
path = {str(folder / "model.safetensors")!r}
model = npgemma.load({str(folder)!r}, resident={resident})
{change}
print({use})
""")


CAPTION = f"model.generate({str(SAMPLE)!r}, 'caption en', max_new_tokens=20).text"
CUT = "os.truncate(path, 4096)"
# as downloaders and package managers do it: a new file, here one of zeros, gets the name of the old one
REPLACE = """
with open(path + ".new", "wb") as new:
    new.truncate(os.path.getsize(path))
os.replace(path + ".new", path)
"""


@POSIX
@pytest.mark.parametrize(
    ("change", "resident"),
    [
        pytest.param(CUT, True, id="resident and cut short"),
        pytest.param(REPLACE, True, id="resident and replaced"),
        pytest.param(REPLACE, False, id="mapped and replaced"),
        pytest.param("os.remove(path)", False, id="mapped and removed"),
    ],
)
def test_these_changes_of_the_weight_file_change_no_answer(change, resident, tmp_path):
    """Resident weights do not need the file; a mapped file exists for as long as it is mapped."""
    done = after(change, CAPTION, tmp_path / "model", resident)
    expected = load().generate(SAMPLE, "caption en", max_new_tokens=20).text
    assert (done.returncode, done.stdout) == (0, expected + "\n"), done.stderr


@POSIX
def test_reading_a_mapped_file_that_was_cut_short_kills_the_process(tmp_path):
    """So the test above would notice resident weights that are still mapped."""
    done = after(CUT, "model.weights.text.embedding.sum()", tmp_path / "model", False)
    assert done.returncode == -signal.SIGBUS


# What happens to the bytes of a file under a model, and what the error says.
WRITTEN = {
    "cut": (lambda content: content[:-1], "has been cut short"),
    "longer": (lambda content: content + b"x", "has been written to"),
    "rewritten": (lambda content: content[:-4] + b"abcd", "has been written to"),
    "the same": (lambda content: content, "has been written to"),
}


@POSIX
@pytest.mark.parametrize(("change", "says"), WRITTEN.values(), ids=WRITTEN)
def test_a_mapped_file_that_is_written_to_is_an_error(change, says, small_folder, tmp_path):
    """At the same size, too, where the answer would be another model's without a word."""
    shutil.copytree(small_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    content = path.read_bytes()
    os.utime(path, ns=(0, 0))  # so that the time differs however coarse the clock of the disk is
    model = load(tmp_path / "model")
    path.write_bytes(change(content))
    for ask in (
        lambda: model.forward(ids(2, 9), pixels()),
        lambda: model.generate_ids(ids(2, 9), pixels(), 2),
        lambda: model.generate(PICTURES[0], "ocr"),
        lambda: model.score(PICTURES[0], "ocr", "a"),
        lambda: model.image_features(PICTURES[0]),
    ):
        with pytest.raises(BadModel, match=rf"model\.safetensors {says} .*load the model again"):
            ask()
    path.write_bytes(content)
    again = load(tmp_path / "model").forward(ids(2, 9), pixels())
    np.testing.assert_array_equal(again, load(small_folder).forward(ids(2, 9), pixels()), strict=True)


@POSIX
def test_a_file_that_is_written_to_during_a_run_is_an_error_in_its_end(small_folder, tmp_path):
    shutil.copytree(small_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    model, content = load(tmp_path / "model"), path.read_bytes()

    def write(name, x, axes):
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        return x

    with pytest.raises(BadModel, match="has been written to since it was loaded"):
        model.forward(ids(2, 9), pixels(), tap=write)
    model = load(tmp_path / "model")
    tokens = model.stream(PICTURES[0], "ocr", max_new_tokens=20)
    next(tokens)
    os.utime(path, ns=(2, 2))
    with pytest.raises(BadModel, match="has been written to since it was loaded"):
        list(tokens)
