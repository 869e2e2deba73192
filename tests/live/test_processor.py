"""npgemma's processor and its answers against transformers' PaliGemmaProcessor and generate, on the embedded model.

No test here depends on what the model answers, only on equal answers.
"""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from PIL import Image
from shape_world import ask, draw_scene

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SCENES, QUESTIONS = 10, 2
MAX_NEW_TOKENS = 48
I = "<image>"  # noqa: E741

PROMPTS = ("caption en", "caption en ", "  caption en", "caption en\n", "ocr\n\n", "", " ", "\n", "a\nb", "<bos>a")
PROMPTS += ("detect red star ; blue ring", "<loc0012><seg003> é😗\t", "<eos>", "<imag", "what is <pad>?")
# Prompts with <image> for each picture; {} stands for all of them in a row
WITH_IMAGE = (
    "{}caption en",
    "{} caption en",
    "{}",
    "a{}b",
    " {}",
    "{}\n\n",
    "{}<bos>a",
    "a\n{}\nb ",
    "<loc0001>{}<eos>",
)


@pytest.fixture(scope="module")
def ours() -> npgemma.VisionLanguageModel:
    return npgemma.load()


@pytest.fixture(scope="module")
def theirs(ours: npgemma.VisionLanguageModel) -> "transformers.PaliGemmaProcessor":
    return transformers.PaliGemmaProcessor(
        SiglipImageProcessorPil.from_pretrained(ours.folder), transformers.GemmaTokenizer.from_pretrained(ours.folder)
    )


@pytest.fixture(scope="module")
def their_model(ours: npgemma.VisionLanguageModel) -> "transformers.PaliGemmaForConditionalGeneration":
    return transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        ours.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def pictures(count: int) -> list[Image.Image]:
    """Noise of odd sizes."""
    rng = np.random.default_rng(count)
    return [Image.fromarray(rng.integers(0, 256, (31 + 9 * i, 77, 3), np.uint8)) for i in range(count)]


def compare(
    ours: npgemma.VisionLanguageModel,
    theirs: "transformers.PaliGemmaProcessor",
    images: Sequence[Image.Image],
    prompt: str,
) -> None:
    """Ids, types and pixel values of one prompt are the same."""
    expected = theirs(images=[list(images)], text=[prompt], return_tensors="np")
    made = ours.processor([list(images)], [prompt])
    np.testing.assert_array_equal(made.input_ids[0], expected.input_ids[0], strict=True)
    np.testing.assert_array_equal(made.token_type_ids[0], expected.token_type_ids[0], strict=True)
    np.testing.assert_array_equal(made.pixel_values, expected.pixel_values, strict=True)
    assert expected.attention_mask.all()
    assert made.images == [len(images)]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_after_its_pictures(
    ours: npgemma.VisionLanguageModel, theirs: "transformers.PaliGemmaProcessor", prompt: str, count: int
) -> None:
    compare(ours, theirs, pictures(count), prompt)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("pattern", WITH_IMAGE)
def test_a_prompt_that_contains_image(
    ours: npgemma.VisionLanguageModel, theirs: "transformers.PaliGemmaProcessor", pattern: str, count: int
) -> None:
    """In a row and with a word between them; bos comes after the last."""
    compare(ours, theirs, pictures(count), pattern.format(I * count))
    compare(ours, theirs, pictures(count), pattern.format(" and ".join([I] * count)))


def test_greedy_answers_are_the_same_tokens(
    ours: npgemma.VisionLanguageModel,
    theirs: "transformers.PaliGemmaProcessor",
    their_model: "transformers.PaliGemmaForConditionalGeneration",
) -> None:
    """All prompts together in npgemma, one by one in transformers, both without the unused rows of the table."""
    rng = Random(5)
    scenes = [draw_scene(rng) for _ in range(SCENES)]
    asked = [(scene.image, question.prompt) for scene in scenes for question in ask(scene, rng, QUESTIONS)]
    images, prompts = zip(*asked, strict=True)
    answers = ours.generate(list(images), list(prompts), max_new_tokens=MAX_NEW_TOKENS)
    never = list(range(ours.tokenizer.image_id, ours.config.text.vocab_size))
    for (image, prompt), answer in zip(asked, answers, strict=True):
        inputs = theirs(images=[[image]], text=[prompt], return_tensors="pt")
        del inputs["labels"]
        ids = their_model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, suppress_tokens=never)[
            0, inputs["input_ids"].shape[1] :
        ].tolist()
        assert answer.token_ids == ids, prompt
        assert answer.text == theirs.decode(ids, skip_special_tokens=True)
        assert answer.finish_reason == ("stop" if ids[-1] in ours.config.eos_token_ids else "length")
