"""npgemma's tokenizers of SigLIP and SigLIP 2 against transformers'.

The real spiece.model is too large for the repository; a unigram model trained on a few captions runs the same code.
SigLIP 2 has Gemma's 256,000 pieces, which NPGEMMA_TOKENIZERS leads to as for `test_tokenizer_gemma.py`; without it, the
embedded pieces are compared alone. Characters that Python's Unicode does not know are kept out of the second.
"""

import json
import os
import shutil
import unicodedata
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hard_texts import PARTS, random_text
from siglip_files import spiece_model

from npgemma.io.siglip_tokenizer import read_siglip_tokenizer
from npgemma.io.text_rows import TextTokenizer, text_rows

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

EMBEDDED = Path(__file__).parents[2] / "npgemma" / "assets" / "tiny" / "tokenizer.model"
PACKAGES = os.environ.get("NPGEMMA_TOKENIZERS")
STRINGS, CONTEXT = 2000, 64
# Not PaliGemma's <mask>, which is special in Siglip2Tokenizer, too, and </s>, which is special in SiglipTokenizer.
CAPTIONS = (
    "A photo of a cat.",
    "It's 3.5 % OFF!",
    "snake_case",
    "\u0391\u03a3 \u03a3\u03a3",
    "İ ẞ",
    "A\u2581b",
    "\u2581",
)
SPECIAL = ("</s>", "<unk>", "</S>", "<pad>", "<EOS>", "<Mask>")
TEXTS = [frame.format(part) for part in (*PARTS, *CAPTIONS, *SPECIAL) for frame in ("{}", "a{}b", " {} ", "{0} {0}")]
Pair = tuple[TextTokenizer, Any]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("siglip")
    (folder / "spiece.model").write_bytes(spiece_model())
    return read_siglip_tokenizer(folder), transformers.SiglipTokenizer(str(folder / "spiece.model"))


@pytest.fixture(scope="module", params=["embedded", "published"])
def siglip2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """As google/siglip2-base-patch16-224 has it: a tokenizer.json that appends <eos>, and padding on the right."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("siglip2")
    if request.param == "embedded":
        shutil.copy(EMBEDDED, source / "tokenizer.model")
        transformers.GemmaTokenizer.from_pretrained(source).save_pretrained(source)
    else:
        if PACKAGES is None:
            pytest.skip("NPGEMMA_TOKENIZERS does not name a folder with this tokenizer")
        source = Path(PACKAGES) / "gemini" / "package" / "models"
    content = json.loads((source / "tokenizer.json").read_text("utf-8"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    settings = {"tokenizer_class": "Siglip2Tokenizer", "padding_side": "right", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
    return read_siglip_tokenizer(folder), transformers.Siglip2Tokenizer.from_pretrained(folder)


def compare(pair: Pair, texts: list[str]) -> None:
    """The ids of each text alone, and the rows of all."""
    ours, theirs = pair
    for text in texts:
        assert ours.encode(text) == theirs(text).input_ids, ascii(text)
    rows = text_rows(ours, texts, CONTEXT)
    expected = theirs(texts, padding="max_length", truncation=True, max_length=CONTEXT).input_ids
    assert rows.ids.tolist() == expected
    assert rows.truncated


def test_texts_of_siglip_become_the_same_ids(siglip: Pair) -> None:
    rng = Random(0)
    mixed = [random_text(rng) + rng.choice(["", *SPECIAL]) + random_text(rng) for _ in range(STRINGS)]
    compare(siglip, [*TEXTS, *mixed])


def test_texts_of_siglip_2_become_the_same_ids(siglip2: Pair) -> None:
    """Without U+2581 beside spaces, which `test_tokenizer.py` explains, and without whole pieces in upper case."""
    rng = Random(1)
    mixed = [text for _ in range(STRINGS) if "Cn" not in map(unicodedata.category, text := random_text(rng))]
    alike = [text for text in TEXTS if not any(each in text for each in ("\u2581", "</S>", "<Mask>"))]
    compare(siglip2, [*alike, *mixed])


def test_a_whole_piece_in_upper_case_differs(siglip2: Pair) -> None:
    """SentencePiece, which the model was trained with, gets text in lower case; transformers cuts out tokens before."""
    ours, theirs = siglip2
    whole = ours.encode("</s>")
    assert whole == theirs("</s>").input_ids
    if len(whole) == 2:  # a piece of Gemma's, not of the embedded model's
        assert ours.encode("</S>") == whole
        assert theirs("</S>").input_ids != whole


def test_rows_are_those_of_the_processor(siglip2: Pair) -> None:
    """Siglip2Processor pads and truncates to 64 by default."""
    ours, theirs = siglip2
    processor = transformers.Siglip2Processor(transformers.Siglip2ImageProcessorPil(), theirs)
    texts = ["A Cat.", "dog " * 100]
    assert text_rows(ours, texts, 64).ids.tolist() == processor(text=texts).input_ids
