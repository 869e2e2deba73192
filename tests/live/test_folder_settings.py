"""Prompts, pixels and answers of folders whose JSON files are not the embedded model's, against transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

PROMPT, NEW_TOKENS = "caption en", 30
READ = {name: json.loads((EMBEDDED / name).read_text()) for name in ("config.json", "preprocessor_config.json")}


def folder_with(folder: Path, files: dict[str, dict]) -> Path:
    """The embedded model with other JSON files: values replace those of a file that it has."""
    for name in ("model.safetensors", "tokenizer.model", "tokenizer_config.json", *READ):
        if name not in files:
            (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    for name, content in files.items():
        (folder / name).write_text(json.dumps(READ.get(name, {}) | content))
    return folder


def their_answer(folder: Path, inputs: dict, tokens: list[int]) -> list[int]:
    """The greedy answer with the folder's own settings, never one of `tokens`."""
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, suppress_tokens=tokens)
    return ids[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"generation_config.json": {"eos_token_id": [1, 560]}},
        {"generation_config.json": {"eos_token_id": 323, "temperature": 0.2, "max_length": 7}},
        {"config.json": {"eos_token_id": [1, 323], "bos_token_id": 3}},
        {
            "config.json": {
                "eos_token_id": None,
                "text_config": READ["config.json"]["text_config"] | {"eos_token_id": 1},
            }
        },
        {"processor_config.json": {"image_processor": READ["preprocessor_config.json"] | {"resample": 0}}},
        {"preprocessor_config.json": {"resample": 2, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.6, 0.5, 0.4]}},
        {"config.json": {"image_token_id": 1744, "tie_word_embeddings": True}},
    ],
    ids=str,
)
def test_prompts_pixels_and_answers(files: dict[str, dict], tmp_path: Path) -> None:
    folder = folder_with(tmp_path, files)
    ours, image = npgemma.load(folder), Image.open(npgemma.sample_picture()).convert("RGB")
    pictures = SiglipImageProcessorPil.from_pretrained(folder)
    theirs = transformers.PaliGemmaProcessor(pictures, transformers.GemmaTokenizer.from_pretrained(folder))
    expected = theirs(images=[[image]], text=[PROMPT], return_tensors="pt")
    made = ours.processor([image], [PROMPT])
    np.testing.assert_array_equal(made.input_ids[0], expected.input_ids[0].numpy(), strict=True)
    np.testing.assert_array_equal(made.pixel_values, expected.pixel_values.numpy(), strict=True)
    del expected["labels"]
    never = list(range(ours.tokenizer.image_id, ours.config.text.vocab_size))
    answer = ours.generate(image, PROMPT, max_new_tokens=NEW_TOKENS)
    assert answer.token_ids == their_answer(folder, expected, never)
