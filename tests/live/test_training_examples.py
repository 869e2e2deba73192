"""The ids, types and labels of training examples against transformers' PaliGemmaProcessor(suffix=...)."""

import numpy as np
import pytest
from pictures import NOISE

import npgemma
from npgemma.training.batches import batch_of
from npgemma.training.encoding import PictureEncoder
from npgemma.training.examples import Example

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

UNLEARNED = -100  # the label of a token that transformers takes no loss on
TEXTS = (
    ("caption en", "a red ring"),
    ("caption en", " a red ring "),
    ("", "a"),
    ("a\nb\n", "two\nlines\n"),
    (
        "detect red ring ; star",
        "<loc0012><loc0345><loc0678><loc1023> red ring ; <loc0000><loc0001><loc0002><loc0003> star",
    ),
    ("segment ring", "<loc0012><loc0345><loc0678><loc1023>" + "<seg003><seg127>" * 8 + " ring"),
    ("answer en é😗\t?", "猫 😗\t"),
)


def test_ids_types_and_labels_are_those_of_transformers() -> None:
    """With one picture, and with two."""
    model = npgemma.load()
    theirs = transformers.PaliGemmaProcessor(
        SiglipImageProcessorPil.from_pretrained(model.folder), transformers.GemmaTokenizer.from_pretrained(model.folder)
    )
    encoder = PictureEncoder(model.processor, most_tokens=1024)
    for pictures in (1, 2):
        images = tuple(NOISE.rotate(90 * i) for i in range(pictures))
        ours = batch_of([Example(images, prefix, suffix) for prefix, suffix in TEXTS], encoder)
        for (prefix, suffix), prompt in zip(TEXTS, ours.prompts, strict=True):
            wanted = theirs(
                images=[list(images)], text="<image>" * pictures + prefix, suffix=suffix, return_tensors="np"
            )
            np.testing.assert_array_equal(prompt.input_ids, wanted["input_ids"][0])
            np.testing.assert_array_equal(prompt.token_type_ids, wanted["token_type_ids"][0])
            labels = np.where(prompt.weights > 0, prompt.input_ids, UNLEARNED)
            np.testing.assert_array_equal(labels, wanted["labels"][0])
            rows = ours.pixel_values[list(prompt.pictures)]
            np.testing.assert_array_equal(rows, wanted["pixel_values"])
