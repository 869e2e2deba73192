"""Commands run in this process, and models whose answer a test gives."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

import npgemma
from npgemma.api import generation
from npgemma.commands.cli import main
from npgemma.decoding.loop import Token
from npgemma.decoding.text import Detokenizer
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer


@pytest.fixture(scope="session")
def model() -> npgemma.VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights and the embedded tokenizer."""
    image = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=image + 8)
    config = dataclasses.replace(tiny.CONFIG, text=text, image_token_index=image)
    made = tiny.write_folder(tmp_path_factory.mktemp("model"), config, dtype="bfloat16")
    shutil.copyfile(EMBEDDED / "tokenizer.model", made / "tokenizer.model")
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """run(*arguments): stdout of a command that succeeds and prints nothing on stderr, or one line that has `note`."""

    def run(*arguments: object, note: str = "") -> str:
        assert main([str(argument) for argument in arguments]) == 0
        out, err = capsys.readouterr()
        assert note in err
        assert err.count("\n") == bool(note)
        return out

    return run


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*arguments): the one sentence on stderr of a command that fails with 1 and prints no result."""

    def refused(*arguments: object) -> str:
        assert main([str(argument) for argument in arguments]) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith("npgemma: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("npgemma: ").rstrip("\n")

    return refused


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """answering(text): every model answers with `text`, a character a token; returns the list of prompts it gets.

    With `interrupted_after`, Ctrl-C is pressed after so many characters; `reason` is the finish reason.
    """

    def answer(text: str, interrupted_after: int | None = None, reason: str = "stop") -> list[str]:
        asked: list[str] = []

        def tokens(model, images, prompts, options, ends=None):
            asked.extend(prompts)
            for i in range(len(text[:interrupted_after])):
                yield Token(0, i, reason if i == len(text) - 1 else None, 0.0)
            if interrupted_after is not None:
                raise KeyboardInterrupt

        def detokenizer(model, options):
            return Detokenizer(lambda ids: "".join(text[i] for i in ids), options.stops)

        monkeypatch.setattr(generation, "tokens", tokens)
        monkeypatch.setattr(generation, "detokenizer", detokenizer)
        return asked

    return answer
