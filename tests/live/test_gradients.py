"""The gradients of every model against autograd through transformers: every parameter, and named tensors."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.checkpoints import clip, language_model, paligemma, siglip, vit
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE, EMBEDDED_PAIR

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from evaluate_tiny import unseen  # noqa: E402
from paligemma_2_models import CASES as PALIGEMMAS_2  # noqa: E402
from random_paligemmas import random_case  # noqa: E402
from torch_encoders import SIGLIP, clip_batch, clip_config, siglip_batch, vit_batch, vit_config  # noqa: E402
from torch_gemmas import CASES as GEMMAS  # noqa: E402
from torch_gradients import Pair, assert_exact, assert_near, noisy, pictures_batch, ratios, texts_batch  # noqa: E402
from torch_logits import read  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

GEMMA_NAMES = ("Gemma 1, one key head", "Gemma 1, untied", "Gemma 2, odd sizes", "Gemma 3, odd sizes", "Gemma 3, caps")
# A tower of a single patch has nothing to choose among: the gradients of its queries and keys are zero.
PALIGEMMA_CASES = {f"PaliGemma 1, seed {seed}": random_case(seed) for seed in (1, 3, 5, 11)}
PALIGEMMA_CASES |= {
    f"PaliGemma 2, {name}": PALIGEMMAS_2[name]
    for name in ("two pictures, image token beyond the table", "layers listed", "odd sizes")
}


def gemma_of(name: str):
    return GEMMAS[name].kind(GEMMAS[name].config)


def paligemma_of(case):
    return transformers.PaliGemmaForConditionalGeneration(case.config)


@pytest.mark.parametrize("name", GEMMA_NAMES)
def test_gradients_of_a_language_model_are_those_of_torch(name: str, tmp_path: Path) -> None:
    model = noisy(gemma_of(name), 1)
    assert_exact(Pair(model, language_model, tmp_path), texts_batch(model.config, 1))


@pytest.mark.parametrize("name", PALIGEMMA_CASES)
def test_gradients_of_a_paligemma_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """Of a padded batch whose labels are the suffixes; one picture stands in two examples."""
    model = noisy(paligemma_of(PALIGEMMA_CASES[name]), 1)
    assert_exact(Pair(model, paligemma, tmp_path), pictures_batch(model.config, 1))


# What makes a model, its checkpoint, and what makes a batch.
FAMILIES = {
    "Gemma 1": (lambda: gemma_of("Gemma 1"), language_model, texts_batch),
    "Gemma 2": (lambda: gemma_of("Gemma 2"), language_model, texts_batch),
    "Gemma 3": (lambda: gemma_of("Gemma 3"), language_model, texts_batch),
    "PaliGemma 1": (lambda: paligemma_of(random_case(0)), paligemma, pictures_batch),
    "PaliGemma 2": (lambda: paligemma_of(PALIGEMMAS_2["one picture"]), paligemma, pictures_batch),
    "SigLIP": (lambda: transformers.SiglipModel(SIGLIP), siglip, siglip_batch),
    "CLIP, quick_gelu, eos 2": (lambda: transformers.CLIPModel(clip_config("quick_gelu", 2)), clip, clip_batch),
    "CLIP, gelu, eos 49": (lambda: transformers.CLIPModel(clip_config("gelu", 49)), clip, clip_batch),
    "ViT, gelu": (lambda: transformers.ViTForImageClassification(vit_config("gelu", 1e-12)), vit, vit_batch),
}
MODELS = 3


def test_float32_gradients_are_as_near_to_those_in_float64_as_torchs(tmp_path: Path) -> None:
    """Over several models: the errors of all parameters of one share their chance."""
    found = {}
    for name, (make, checkpoint, batch) in FAMILIES.items():
        models = [noisy(make(), seed) for seed in range(MODELS)]
        pairs = [(Pair(model, checkpoint, tmp_path), batch(model.config, i)) for i, model in enumerate(models)]
        found |= {f"{name}: {path}": each for path, each in ratios(pairs).items()}
    assert_near(found)


def test_gradients_of_a_vit_that_finds_several_labels_are_those_of_torch(tmp_path: Path) -> None:
    config = vit_config("gelu", 1e-12, "multi_label_classification")
    model = noisy(transformers.ViTForImageClassification(config), 1)
    assert_exact(Pair(model, vit, tmp_path), vit_batch(model.config, 1))


def test_gradients_of_a_vit_with_the_tanh_form_of_gelu_are_those_of_torch(tmp_path: Path) -> None:
    model = noisy(transformers.ViTForImageClassification(vit_config("gelu_pytorch_tanh", 1e-6)), 1)
    assert_exact(Pair(model, vit, tmp_path), vit_batch(model.config, 1))


@pytest.fixture(scope="module")
def scenes() -> Callable[[int], np.ndarray]:
    """scenes(i): the pixels of three pictures of the shape world. Of noise, the embedded model makes a few badly
    conditioned rows, on which all rests.
    """
    processor = npgemma.load().processor
    images = [scene.image for scene, _ in islice(unseen(9), 9)]
    pixels = processor(images, [""] * len(images)).pixel_values
    return lambda i: pixels[3 * i : 3 * i + 3]


def test_gradients_of_the_embedded_paligemma_are_those_of_torch_and_in_float32_as_near(tmp_path, scenes) -> None:
    model = read(EMBEDDED)
    pair = Pair(model, paligemma, tmp_path)
    assert_near(ratios([(pair, pictures_batch(model.config, i, scenes(i))) for i in range(3)]))


@pytest.mark.parametrize(
    ("folder", "kind", "checkpoint", "batch"),
    [
        (EMBEDDED_LANGUAGE, transformers.Gemma3ForCausalLM, language_model, texts_batch),
        (EMBEDDED_PAIR, transformers.SiglipModel, siglip, siglip_batch),
    ],
    ids=["language model", "pair of towers"],
)
def test_gradients_of_the_other_embedded_models_are_those_of_torch_and_in_float32_as_near(
    folder, kind, checkpoint, batch, tmp_path
) -> None:
    model = read(folder, kind)
    pair = Pair(model, checkpoint, tmp_path)
    assert_near(ratios([(pair, batch(model.config, i)) for i in range(2)]))
