"""Tokenizers of model folders against transformers': added tokens, and tokenizer.json without tokenizer.model."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npgemma.io.tokenizers import Tokenizer, paligemma_family, read_tokenizer

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers import AddedToken  # noqa: E402
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SHARED = Path(__file__).parents[3] / "shared" / "data"  # not in the repository
STRINGS = 2000
TOKENS = [
    "<plain>",
    AddedToken("<special>", special=True),
    AddedToken("<left>", lstrip=True, normalized=False),
    AddedToken("<right>", rstrip=True, normalized=False),
    AddedToken("<both>", lstrip=True, rstrip=True),
    AddedToken("word", single_word=True),
    AddedToken("two words", normalized=True),
    AddedToken("raw words", normalized=False),
    AddedToken("three\u2581parts"),
    AddedToken("\n### Answer", special=True),
    AddedToken("<plain>longer"),
    AddedToken("<0x41>"[:-1] + "!>"),
    ">",
    AddedToken("猫", single_word=True, special=True),
]
PARTS = [str(token) for token in TOKENS]
AROUND = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t\t",
    "\u2581",
    "\u2581\u2581",
    "a",
    "é",
    "½",
    "_",
    "\u0301",
    "Ⓐ",
    "\x1c",
    "words",
    "<pla",
]
AROUND += ["<loc0001>", "<seg127>", "<image>", "<bos>", "<eos>", "<mask>", "<unk>", "detect cat", "three parts", "😀"]


def processed(tokenizer: Any) -> Any:
    """A tokenizer as PaliGemmaProcessor hands it out."""
    return transformers.PaliGemmaProcessor(SiglipImageProcessorPil(image_seq_length=1), tokenizer).tokenizer


def save(tokenizer: Any, folder: Path) -> None:
    transformers.PaliGemmaProcessor(SiglipImageProcessorPil(image_seq_length=1), tokenizer).save_pretrained(folder)


def added_before(source: Path, folder: Path) -> None:
    """Tokens that were added when <image> was not there yet: it comes after them."""
    tokenizer = transformers.GemmaTokenizer.from_pretrained(source)
    tokenizer.add_tokens(TOKENS)
    save(tokenizer, folder)


def added_after(source: Path, folder: Path) -> None:
    tokenizer = processed(transformers.GemmaTokenizer.from_pretrained(source))
    tokenizer.add_tokens(TOKENS)
    save(tokenizer, folder)


def two_after(source: Path, folder: Path) -> None:
    tokenizer = processed(transformers.GemmaTokenizer.from_pretrained(source))
    tokenizer.add_tokens(["<a>", "<b>"], special_tokens=True)
    save(tokenizer, folder)


def special_tokens(source: Path, folder: Path) -> None:
    """`additional_special_tokens`, and a pad token of its own."""
    tokenizer = transformers.GemmaTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": PARTS[:3], "pad_token": "<padding>"})
    save(tokenizer, folder)


def merges_as_text(source: Path, folder: Path) -> None:
    """As files were written before 2025: "a b" in place of ["a", "b"], and no pre_tokenizer."""
    added_after(source, folder)
    content = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    content["pre_tokenizer"] = None
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")


def with_model(source: Path, folder: Path) -> None:
    """tokenizer.json and tokenizer.model, as the hub has them."""
    added_after(source, folder)
    shutil.copy(source / "tokenizer.model", folder)


def decoder_in_config(source: Path, folder: Path) -> None:
    """As transformers 4 wrote them: flags in tokenizer_config.json, which win over tokenizer.json's."""
    added_after(source, folder)
    tokens = json.loads((folder / "tokenizer.json").read_text("utf-8"))["added_tokens"]
    decoder = {str(token.pop("id")): token for token in tokens}
    first = next(id_ for id_, token in decoder.items() if token["content"] == "<plain>")
    decoder[first] |= {"special": True, "normalized": False}
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))


def slow_folder(source: Path, folder: Path) -> None:
    """tokenizer.model, added_tokens.json, special_tokens_map.json: as a slow tokenizer of transformers 4 was saved."""
    size = len(transformers.GemmaTokenizer.from_pretrained(source))
    folder.mkdir()
    shutil.copy(source / "tokenizer.model", folder)
    ids = {"<image>": size, "<plain>": size + 1, "<special>": size + 2}
    named = {"bos_token": "<bos>", "additional_special_tokens": ["<image>", "<special>"]}
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GemmaTokenizer"}))


def slow_folder_with_decoder(source: Path, folder: Path) -> None:
    slow_folder(source, folder)
    ids = json.loads((folder / "added_tokens.json").read_text())
    decoder = {id_: {"content": text, "special": text != "<plain>", "rstrip": True} for text, id_ in ids.items()}
    config = {"tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": decoder}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def named_without_ids(source: Path, folder: Path) -> None:
    """Tokens that tokenizer_config.json names, and no file numbers."""
    folder.mkdir()
    shutil.copy(source / "tokenizer.model", folder)
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "sep_token": "<padding>",
        "extra_special_tokens": ["<special>", "<plain>"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"boi_token": "<both>"}))


def unchanged(source: Path, folder: Path) -> None:
    """What PaliGemmaProcessor saves: tokenizer.json, without tokenizer.model."""
    save(transformers.GemmaTokenizer.from_pretrained(source), folder)
    assert not (folder / "tokenizer.model").exists()


FOLDERS: list[Callable[[Path, Path], None]] = [
    unchanged,
    added_before,
    added_after,
    two_after,
    special_tokens,
    merges_as_text,
    with_model,
    decoder_in_config,
    slow_folder,
    slow_folder_with_decoder,
    named_without_ids,
]

Pair = tuple[Tokenizer, Any]


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda make: make.__name__)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """npgemma's and transformers' tokenizer of one folder, with the embedded model's pieces."""
    source = Path(__file__).parents[2] / "npgemma" / "assets" / "tiny"
    alone = tmp_path_factory.mktemp("source")
    shutil.copy(source / "tokenizer.model", alone)
    folder = tmp_path_factory.mktemp("folder") / "tokenizer"
    request.param(alone, folder)
    theirs = processed(transformers.AutoTokenizer.from_pretrained(folder))
    return read_tokenizer(folder, paligemma_family(theirs.convert_tokens_to_ids("<image>"))), theirs


def compare(both: Pair, text: str) -> None:
    ours, theirs = both
    ids = theirs(text, add_special_tokens=False).input_ids
    assert ours.encode(text) == ids, text
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


def test_every_id_is_the_same(both: Pair) -> None:
    ours, theirs = both
    assert len(ours) == len(theirs)
    assert ours.ids == theirs.get_vocab()
    assert {
        text for text, token in theirs.added_tokens_encoder.items() if theirs.added_tokens_decoder[token].special
    } == {*ours.specials}


def test_every_added_token_alone_and_beside_others(both: Pair) -> None:
    for part in [*PARTS, "<a>", "<b>", "<padding>", *AROUND]:
        for text in (part, f" {part} ", f"a{part}b", f"\n\n{part}\n\n", f"{part}{part}", f"  {part} \t {part}  x"):
            compare(both, text)


@given(
    parts=st.lists(st.sampled_from([*PARTS, *AROUND]) | st.text(st.characters(exclude_categories=["Cs"]), max_size=3))
)
@settings(max_examples=400, deadline=None)
def test_mixtures_of_added_tokens_and_text(both: Pair, parts: list[str]) -> None:
    text = "".join(parts)
    if not re.search(r" {32}|\u2581", text):  # the known differences
        compare(both, text)


def test_random_ids_become_the_same_text(both: Pair) -> None:
    """Ids without a piece too, and bytes that are whole characters."""
    ours, theirs = both
    rng = Random(0)
    usable = [i for i in range(len(ours) + 5) if i >= len(ours) or not ours.pieces.is_byte(i)]
    late = list(range(len(ours) - 20, len(ours) + 5))
    for _ in range(STRINGS):
        ids = [rng.choice(usable if rng.random() < 0.5 else late) for _ in range(rng.randint(1, 8))]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), ids


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    """PaliGemma's tokenizer.model, and what transformers saves of it, a tokenizer.json alone."""
    source = SHARED / "tokenizer" / "paligemma.model"
    if not source.exists():
        pytest.skip(f"{source} is not at hand")
    folder = tmp_path_factory.mktemp("paligemma")
    shutil.copy(source, folder / "tokenizer.model")
    unchanged(folder, folder / "saved")
    return Tokenizer(source.read_bytes()), read_tokenizer(folder / "saved", paligemma_family(257152))


def test_paligemmas_tokenizer_json_gives_the_ids_of_its_tokenizer_model(paligemma: tuple[Tokenizer, Tokenizer]) -> None:
    """The published cases, and random text of all scripts."""
    model, saved = paligemma
    cases = json.loads((SHARED / "tokenizer" / "cases.json").read_text("utf-8"))
    assert [saved.encode(text) for text, _ in cases] == [ids for _, ids in cases]
    rng = Random(0)
    letters = [range(0x20, 0x7F), range(0xA0, 0x2580), range(0x2590, 0xD800), range(0xE000, 0x110000)]
    for _ in range(STRINGS):
        text = "".join(chr(rng.choice(rng.choice(letters))) for _ in range(rng.randint(1, 20)))
        assert saved.encode(text) == model.encode(text), text
        assert saved.decode(saved.encode(text)) == text
