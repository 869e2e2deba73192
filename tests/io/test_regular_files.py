"""Only regular files are read: a pipe or a device in the place of a file is one error, at once."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import npgemma
from npgemma.api.load import load
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.chat_template import read_chat_template
from npgemma.checkpoints.convert import convert
from npgemma.commands.embed import read_texts
from npgemma.errors import NpgemmaError
from npgemma.golden.dump import read_dump
from npgemma.golden.file import read_golden
from npgemma.golden.mapping_file import read_mapping
from npgemma.io.clip_vocabulary import read_clip_tokenizer
from npgemma.io.embedding_rows import open_rows
from npgemma.io.embeddings import Facts, read_embeddings
from npgemma.io.jobs import read_jobs
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR
from npgemma.io.picture import read_picture
from npgemma.io.regular_files import open_argument, open_regular, read_argument, read_regular, regular
from npgemma.io.results import open_results
from npgemma.io.safetensors import open_file
from npgemma.io.siglip_tokenizer import read_siglip_tokenizer
from npgemma.io.strict_json import read_json
from npgemma.io.tokenizers import GEMMAS, read_tokenizer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
SECONDS = 5  # a reader that waits for a pipe waits for ever


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """A test that waits for longer fails."""

    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"it waits for more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ----------------------------------------------------------------------------------------------------- the one opening


@pytest.mark.parametrize("opens", [open_regular, open_argument, regular, lambda path: read_regular(path, 9)])
def test_pipes_devices_sockets_and_folders_are_refused(opens: Callable[[Path], object], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(OSError, match="it is not a regular file"):
            opens(path)
    with pytest.raises(IsADirectoryError):
        opens(tmp_path)
    with pytest.raises(FileNotFoundError):
        opens(tmp_path / "nowhere")


def test_a_file_of_at_most_so_many_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_regular(path, 5) == read_argument(path, 5) == b"12345"
    for read in (read_regular, read_argument, open_regular):
        with pytest.raises(OSError, match="it is larger than 4 bytes"):
            read(path, 4)


@pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="this machine has no /proc")
def test_a_file_that_does_not_tell_its_size_is_bounded_too() -> None:
    with pytest.raises(OSError, match="it is larger than 100 bytes"):
        read_regular("/proc/self/maps", 100)


def test_a_pipe_of_the_shell_is_an_argument_and_bounded() -> None:
    """As from `--map <(jq ...)`; a picture of a stranger's list that is called so is not one."""
    for content in (b"12345", b"123456"):
        reader, writer = os.pipe()
        os.write(writer, content)
        os.close(writer)
        path = Path(f"/dev/fd/{reader}")
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path, 5)
        if len(content) == 5:
            assert read_argument(path, 5) == content
        else:
            with pytest.raises(OSError, match="it is larger than 5 bytes"):
                read_argument(path, 5)
        os.close(reader)


# --------------------------------------------------------------------------------------------------------- all readers


def rows(path: Path) -> None:
    with open_rows(path, Facts("a", "siglip", "0", 4)):
        pass


def results(path: Path) -> None:
    with open_results(path):
        pass


# What reads a file, and how the file is called.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "picture": ("a.png", read_picture),
    "jobs": ("jobs.jsonl", read_jobs),
    "results": ("results.jsonl", results),
    "rows": ("made.npz.partial", rows),
    "embeddings": ("made.npz", read_embeddings),
    "texts": ("texts.txt", read_texts),
    "json": ("config.json", read_json),
    "tensors": ("model.safetensors", open_file),
    "mask decoder": ("vae-oid.npz", npgemma.read_mask_codec),
    "tokenizer.model": (
        "tokenizer.model",
        lambda path: read_tokenizer(path.parent, next(iter(GEMMAS.values())), file=path),
    ),
    "tokenizer.json": (
        "tokenizer.json",
        lambda path: read_tokenizer(path.parent, next(iter(GEMMAS.values())), file=path),
    ),
    "spiece.model": ("spiece.model", lambda path: read_siglip_tokenizer(path.parent, file=path)),
    "vocab.json": ("vocab.json", lambda path: read_clip_tokenizer(path.parent, file=path)),
    "chat template": ("chat_template.jinja", lambda path: read_chat_template(path.parent)),
    "adapter's config": ("adapter_config.json", lambda path: read_adapter(path.parent)),
    "converted": ("model.npz", lambda path: convert(path, path.parent / "folder")),
    "golden file": ("golden.safetensors", read_golden),
    "dump": ("dump.safetensors", read_dump),
    "dump of arrays": ("dump.npz", read_dump),
    "folder of arrays": ("x.npy", lambda path: read_dump(path.parent)),
    "debugger tree": ("M_debug_tree_FULL_TENSORS.json", lambda path: read_dump(path.parent)),
    "mapping": ("map.json", read_mapping),
}


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
@pytest.mark.parametrize(("name", "read"), READERS.values(), ids=READERS)
def test_no_reader_waits_for_a_pipe_or_an_endless_device(name: str, read, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    with pytest.raises(NpgemmaError, match=r"regular file|a link to /dev/zero, outside") as refusal:
        read(path)
    assert "Errno" not in str(refusal.value)


def ask(folder: Path) -> object:
    """Use everything that a folder may hold."""
    model = load(folder)
    if isinstance(model, npgemma.DualEncoder):
        return model.encode_texts("a cat")
    if isinstance(model, npgemma.LanguageModel):
        return model.generate("a", max_new_tokens=1)
    return model.generate(npgemma.sample_picture(), "ocr", max_new_tokens=1), model.mask_codec


NOT_READ = ("README.md", "training_log.jsonl")
PARTS = [
    (folder, path.name)
    for folder in (EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR)
    for path in sorted(folder.iterdir())
    if path.name not in NOT_READ
]


@pytest.mark.parametrize(("folder", "name"), PARTS, ids=[f"{folder.name}/{name}" for folder, name in PARTS])
def test_a_pipe_in_the_place_of_a_part_of_a_model_is_an_error(folder: Path, name: str, tmp_path: Path) -> None:
    made = tmp_path / "model"
    shutil.copytree(folder, made, ignore=lambda *_: NOT_READ)
    (made / name).unlink()
    os.mkfifo(made / name)
    with pytest.raises(NpgemmaError, match=f"{name}.*(regular file|missing)"):
        ask(made)
