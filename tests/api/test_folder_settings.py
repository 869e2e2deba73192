"""What the JSON files of a folder say is what a loaded model does: end tokens, pictures, the first token of prompts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture
from npgemma.io.pixels import PixelSettings, pixel_values

PROMPT = "caption en"
NEAREST = PixelSettings(Image.Resampling.NEAREST, mean_and_std=((0.5,) * 3, (0.25, 0.5, 1.0)))


def load(folder: Path, **files: dict) -> npgemma.VisionLanguageModel:
    """The embedded model with other JSON files; values replace those of a config.json."""
    files["config"] = json.loads((EMBEDDED / "config.json").read_text()) | files.get("config", {})
    for name in ("model.safetensors", "tokenizer.model"):
        (folder / name).write_bytes((EMBEDDED / name).read_bytes())
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return npgemma.load(folder)


@pytest.mark.parametrize("file", ["generation_config", "config"])
def test_an_answer_ends_at_any_end_token(file, tmp_path):
    whole = npgemma.load().generate(npgemma.sample_picture(), PROMPT).token_ids
    model = load(tmp_path, **{file: {"eos_token_id": [1, whole[5]]}})
    answer = model.generate(npgemma.sample_picture(), PROMPT)
    assert answer.token_ids == whole[: whole.index(whole[5]) + 1]
    assert answer.finish_reason == "stop"


def test_pictures_become_pixels_as_the_folder_says(tmp_path):
    model = load(tmp_path, preprocessor_config={"resample": 0, "image_std": [0.25, 0.5, 1]})
    expected = pixel_values([read_picture(npgemma.sample_picture())], 84, NEAREST)
    made = model.processor([npgemma.sample_picture()], [PROMPT]).pixel_values
    np.testing.assert_array_equal(made, expected, strict=True)
    assert not np.array_equal(expected, pixel_values([read_picture(npgemma.sample_picture())], 84))
    usual = npgemma.load().image_features(npgemma.sample_picture())
    assert not np.array_equal(model.image_features(npgemma.sample_picture()), usual)


def test_a_prompts_first_token_is_the_tokenizers(tmp_path):
    """transformers puts the text <bos> before a prompt, whatever bos_token_id says."""
    model = load(tmp_path, config={"bos_token_id": 3})
    assert model.processor.encode(PROMPT, 1).tolist() == npgemma.load().processor.encode(PROMPT, 1).tolist()


def test_a_picture_that_would_not_fit_is_refused(tmp_path):
    model = load(tmp_path, processor_config={"image_processor": {"do_resize": False}})
    with pytest.raises(npgemma.BadPicture, match=r"do_resize.*84 x 84 pixels"):
        model.generate(Image.new("RGB", (84, 85)), PROMPT)
    assert model.generate(Image.new("RGB", (84, 84)), PROMPT, max_new_tokens=1).token_ids
