"""The embedded models as training reads examples for them, and two pictures."""

from pathlib import Path

import pytest
from pictures import NOISE

import npgemma
from npgemma.training.encoding import PictureEncoder, TextEncoder

MOST_TOKENS = 80


@pytest.fixture(scope="session")
def encoder() -> PictureEncoder:
    return PictureEncoder(npgemma.load().processor, MOST_TOKENS)


@pytest.fixture(scope="session")
def text_encoder() -> TextEncoder:
    return TextEncoder(npgemma.load("tiny-gemma").processor, MOST_TOKENS, eos_id=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the pictures a.png and b.png, which differ, and cut.png, whose second half is missing."""
    NOISE.save(tmp_path / "a.png")
    NOISE.rotate(180).save(tmp_path / "b.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    return tmp_path
