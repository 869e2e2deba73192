"""npgemma's tokenizer of CLIP against transformers' CLIPTokenizer.

OpenAI's list of merges is too large for the repository. NPGEMMA_CLIP_VOCABULARY names the file
bpe_simple_vocab_16e6.txt.gz, which the package open-clip-torch holds, too; without it, a small vocabulary is compared
alone. Characters that Python's Unicode does not know are kept out: the `tokenizers` library may know their category.
"""

import json
import os
import shutil
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from clip_files import write
from hard_texts import PARTS, random_text

from npgemma.io.clip_tokenizer import ClipTokenizer
from npgemma.io.clip_vocabulary import OPENAI, read_clip_tokenizer
from npgemma.io.text_rows import text_rows

pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

OPENAI_FILE = os.environ.get("NPGEMMA_CLIP_VOCABULARY")
STRINGS = {"small": 500, "OpenAI's": 5000}
CONTRACTIONS = ("it's", "IT'S", "they'll", "don't", "'s", "''s", "!'s", "'still", "'S", "you\u2019re", "we've 'd", "''")
ENDS = ("<|startoftext|>", "<|endoftext|>", "<|STARTOFTEXT|>", "<|endoftext", "|>", "<|endoftext|><|endoftext|>")
SIGNS = ("½", "²", "ⅷ", "三", "٣", "①", "_", "-", "…", "¡", "\x1c", "\x85", "\u200b", "\u2028", "\xad", "\x00", "&amp;")
CASES = (
    "\u0391\u03a3",
    "İ",
    "ẞ",
    "ǅ",
    "Å",
    "\u212b",
    "e\u0301",
    "\u1e9b\u0323",
    "가",
    "\u1100\u1161",
    "\uff21",
    "\U0001d400",
    "\u13a0",
)
HAND_MADE = [
    frame.format(part)
    for part in (*PARTS, *CONTRACTIONS, *ENDS, *SIGNS, *CASES)
    for frame in ("{}", "a{}b", " {} ", "{0}{0}", "A photo of {}'s", "1{}!2")
]


@dataclass(frozen=True)
class Pair:
    """npgemma's and transformers' tokenizer of one folder."""

    ours: ClipTokenizer
    theirs: Any

    def compare(self, text: str) -> None:
        assert self.ours.encode(text) == self.theirs(text).input_ids, ascii(text)


def pair(folder: Path) -> Pair:
    return Pair(read_clip_tokenizer(folder), transformers.CLIPTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vocab.json and a merges.txt."""
    return write(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module", params=STRINGS)
def both(request: pytest.FixtureRequest, small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, int]:
    """The tokenizers of a folder, and how many random texts to compare."""
    if request.param == "small":
        return pair(small), STRINGS["small"]
    if OPENAI_FILE is None:
        pytest.skip("NPGEMMA_CLIP_VOCABULARY does not name OpenAI's list of merges")
    folder = tmp_path_factory.mktemp("openai")
    shutil.copy(OPENAI_FILE, folder / OPENAI)
    tokenizer = read_clip_tokenizer(folder)
    write(folder, tokenizer.ids, "\n".join(["#version: 0.2", *map(" ".join, tokenizer.ranks)]))
    return pair(folder), STRINGS[request.param]


def test_hand_made_texts_become_the_same_ids(both: tuple[Pair, int]) -> None:
    assert len(HAND_MADE) > 500
    for text in HAND_MADE:
        both[0].compare(text)


def test_random_texts_become_the_same_ids(both: tuple[Pair, int]) -> None:
    rng, done = Random(0), 0
    while done < both[1]:
        text = random_text(rng) if done % 2 else anything(rng)
        if "Cn" not in map(unicodedata.category, text):
            both[0].compare(text)
            done += 1


def anything(rng: Random) -> str:
    """A few characters from everywhere."""
    return "".join(chr(rng.choice(rng.choice([range(0x250), range(0xD800), range(0xE000, 0x20000)]))) for _ in range(5))


def test_rows_of_texts_are_the_same(both: tuple[Pair, int]) -> None:
    texts = ["", "cat", "the cat's " * 20, "x" * 76, "1" * 75, "1" * 76, f"a{ENDS[1]}" * 40]
    theirs = both[0].theirs(texts, padding="max_length", truncation=True, max_length=77).input_ids
    rows = text_rows(both[0].ours, texts, 77)
    assert rows.ids.tolist() == theirs
    assert rows.truncated == [i for i, text in enumerate(texts) if len(both[0].theirs(text).input_ids) > 77]


ADDED = ["<cat-toy>", "Two Words", " <|startoftext|>", "<CAT-TOY> <cat-toy><cat-toy>", "two words!", "!! !", "a![PAD]"]


@pytest.mark.parametrize("settings", [{}, {"pad_token": "!"}, {"pad_token": "[PAD]"}], ids=str)
def test_tokens_that_a_folder_adds(settings: dict[str, str], small: Path, tmp_path: Path) -> None:
    """As transformers saves them, and as files of 2021 name them: normalised."""
    theirs = transformers.CLIPTokenizer.from_pretrained(small, **settings)
    theirs.add_tokens(["<cat-toy>", "Two Words"])
    theirs.save_pretrained(tmp_path)
    saved = pair(tmp_path)
    for text in (*ADDED, *ENDS):
        saved.compare(text)


def test_normalised_ends(small: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(small / name, tmp_path)
    ends = {
        f"{key}_token": {"__type": "AddedToken", "content": text, "normalized": True}
        for key, text in (("bos", ENDS[0]), ("eos", ENDS[1]), ("unk", ENDS[1]))
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(ends | {"pad_token": ENDS[1]}))
    named = pair(tmp_path)
    for text in (*ENDS, *(f"a {end} B" for end in ENDS)):
        named.compare(text)
