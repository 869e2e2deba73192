"""No command writes over what it reads, or two outputs into one file: it says so before a model is loaded."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.commands.cli import main
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.io.embeddings import Embeddings, Facts, Key, write_embeddings
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that commands read."""
    made = tmp_path_factory.mktemp("originals")
    shutil.copytree(EMBEDDED, made / "m")
    shutil.copytree(EMBEDDED_LANGUAGE, made / "words")
    for name in ("p.png", "other.png"):
        shutil.copy(npgemma.sample_picture(), made / name)
    for name in ("g.safetensors", "d.safetensors"):
        shutil.copy(EMBEDDED_GOLDEN, made / name)
    shutil.copy(EMBEDDED / "vae-oid.npz", made / "c.npz")
    shutil.copy(EMBEDDED / "tokenizer.model", made / "t.model")
    for folder in ("adapter", "dump"):
        (made / folder).mkdir()
    (made / "adapter" / "adapter_config.json").write_text("{}")
    np.save(made / "dump" / "x.npy", np.zeros(3))
    (made / "map.json").write_text('{"rules": []}')
    (made / "jobs.jsonl").write_text('{"id": "a", "text": "as if it were a result"}\n')
    (made / "texts.txt").write_text("a cat\n")
    row = np.array([1, 0], np.float32)
    rows = {Key("image", name): row for name in ("p.png", "other.png")}
    write_embeddings(made / "e.npz", Embeddings(Facts("tiny-siglip", "siglip", "0", 2), rows))
    return made


@pytest.fixture
def files(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder for one test, as the current one; its files are other names of the same ones."""
    shutil.copytree(originals, tmp_path / "files", copy_function=os.link)
    monkeypatch.chdir(tmp_path / "files")
    return tmp_path / "files"


# A command without the file that it writes, and the files that this may not be.
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "golden": (
        "golden p.png caption -m m -o",
        ["p.png", "m/model.safetensors", "m/config.json", "m/tokenizer.model", "m/README.md"],
    ),
    "golden of words": ("golden hello -m words -o", ["words/model.safetensors", "words/training_log.jsonl"]),
    "detect": ("detect p.png cat -m m --draw", ["p.png"]),
    "segment --masks": (
        "segment p.png cat -m m --codec c.npz --tokenizer t.model --adapter adapter --masks",
        ["p.png", "c.npz", "t.model", "m/vae-oid.npz", "m/config.json", "adapter/adapter_config.json"],
    ),
    "segment of a file": ("segment p.png cat -m m/model.safetensors --masks", ["m/vae-oid.npz", "m/config.json"]),
    "compare --suggest-map": ("compare g.safetensors d.safetensors --suggest-map", ["g.safetensors", "d.safetensors"]),
    "compare of a folder": ("compare g.safetensors dump --suggest-map", ["dump/x.npy"]),
    "batch": ("batch jobs.jsonl -o", ["jobs.jsonl"]),
    "batch with a tokenizer": ("batch jobs.jsonl --tokenizer t.model -o", ["t.model"]),
    "embed": ("embed p.png --text texts.txt -o", ["p.png", "texts.txt"]),
    "search": ("search e.npz p.png --contact-sheet", ["p.png", "other.png"]),
}
CASES = [(command, victim) for command, victims in COMMANDS.values() for victim in victims]


def never(*_: object) -> None:
    raise AssertionError("a model is loaded")


@pytest.mark.parametrize("disguise", ["named", "link", "hard link"])
@pytest.mark.parametrize(("command", "victim"), CASES, ids=[" ".join(case) for case in CASES])
def test_an_input_is_never_an_output(command: str, victim: str, disguise: str, files: Path, capsys) -> None:
    """Whatever it is called: by its name, through a link, or by another name of the same file."""
    output = Path(victim)
    if disguise != "named":
        output = Path("disguised.png" if command.startswith(("detect", "search")) else "disguised")
        output.symlink_to(victim) if disguise == "link" else os.link(victim, output)
    before = Path(victim).read_bytes()
    assert main([*command.split(), str(output)], load=never) == (2 if command.startswith("compare") else 1)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"npgemma: {output} is ")
    assert err.endswith(" and an output; give each output a file of its own\n")
    assert Path(victim).read_bytes() == before


@pytest.fixture
def refused_with(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused_with(status, *arguments): the one sentence of a command that loads no model."""

    def run(status: int, *arguments: str) -> str:
        assert main(list(arguments), load=never) == status
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err.removeprefix("npgemma: ")

    return run


def test_two_outputs_are_two_files(files: Path, refused_with: Callable[..., str]) -> None:
    Path("a.png").touch()
    os.link("a.png", "b.png")
    Path("c.png").symlink_to("a.png")
    Path("d.png").symlink_to("nowhere.png")
    for first, second in (("x.png", "x.png"), ("a.png", "b.png"), ("a.png", "c.png"), ("d.png", "nowhere.png")):
        said = refused_with(1, "segment", "p.png", "cat", "--draw", first, "--masks", second)
        assert said == f"{second} is both outputs; give each output a file of its own\n"


def test_a_chart_is_not_the_mapping(files: Path, refused_with: Callable[..., str]) -> None:
    os.link("map.json", "map.png")
    said = refused_with(2, *["compare", "g.safetensors", "d.safetensors", "--map", "map.json", "--chart", "map.png"])
    assert said.startswith("map.png is the mapping and an output")


WRITERS = {
    "golden p.png caption -o": 1,
    "detect p.png cat --draw": 1,
    "segment p.png cat --masks": 1,
    "demo --draw": 1,
    "search e.npz cat --contact-sheet": 1,
    "compare g.safetensors d.safetensors --chart": 2,
    "compare g.safetensors d.safetensors --suggest-map": 2,
    "batch jobs.jsonl -o": 1,
    "embed p.png -o": 1,
}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other links and pipes")
@pytest.mark.parametrize(("command", "status"), WRITERS.items())
def test_an_output_that_cannot_be_written_is_refused_before_a_model_is_loaded(
    command: str, status: int, files: Path, refused_with: Callable[..., str]
) -> None:
    Path("loop.png").symlink_to("loop.png")
    os.mkfifo("pipe.png")
    os.mkdir("folder.png")
    for output, says in (
        ("loop.png", "it is a link to itself"),
        ("pipe.png", "it is not a regular file"),
        ("folder.png", "it is not a regular file"),
        ("no/x.png", "No such file or directory"),
    ):
        said = refused_with(status, *command.split(), output)
        assert said == f"{output} cannot be written: {says}\n"


def test_what_was_written_may_be_written_again(files: Path) -> None:
    """Into the folder of the model, too: a picture there, and a file that is continued."""
    Path("words/jobs.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
    for _ in range(2):
        assert main(["detect", "p.png", "cat", "-m", "m", "--draw", "m/drawn.png", "--max-new-tokens", "1"]) == 0
        assert main(["batch", "words/jobs.jsonl", "-m", "words", "-o", "words/out.jsonl", "--max-new-tokens", "2"]) == 0
    for _ in range(2):
        assert main(["compare", "g.safetensors", "d.safetensors", "--suggest-map", "new.json"]) == 0


def test_a_file_of_another_kind_is_not_continued(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors", "training_log.jsonl"):
        before = Path("words", name).read_bytes()
        Path("good.jsonl").write_text('{"id": 1, "prompt": "a"}\n')
        assert main(["batch", "good.jsonl", "-m", "words", "-o", f"words/{name}"]) == 1
        assert main(["embed", "p.png", "-o", f"words/{name}"]) == 1
        assert Path("words", name).read_bytes() == before
        assert capsys.readouterr().err.count("\n") == 2
