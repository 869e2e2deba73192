"""transformers reads the folders that `npgemma convert` writes, and makes the same pixel values and outputs."""

from dataclasses import replace

import encoder_configs
import npz_checkpoints
import numpy as np
import pytest
from PIL import Image

import npgemma
from npgemma import testing
from npgemma.checkpoints import siglip, vit
from npgemma.checkpoints.convert import convert
from npgemma.io.pixels import pixel_values

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

# Big enough that the kernels differ.
VISION = replace(encoder_configs.VISION, image_size=48, patch_size=12)
SIGLIP = replace(encoder_configs.SIGLIP, vision=VISION)
VIT = replace(encoder_configs.VIT, vision=replace(VISION, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh"))
LAYOUTS = {
    "SigLIP 1": siglip.npz_layout(SIGLIP, stacked=False),
    "SigLIP 2": siglip.npz_layout(SIGLIP, stacked=True),
    "ViT": vit.npz_layout(VIT),
}
KERNELS = {"SigLIP 1": 3, "SigLIP 2": 2, "ViT": 2}
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 91, 3), np.uint8))


@pytest.fixture(params=[*LAYOUTS, "PaliGemma"])
def model(request, tmp_path):
    """The kind of a model, and its converted folder."""
    kind = request.param
    arrays = npz_checkpoints.arrays() if kind == "PaliGemma" else testing.layout_tensors(LAYOUTS[kind])
    convert(npz_checkpoints.write(tmp_path / "model.npz", arrays), tmp_path / "folder")
    return kind, tmp_path / "folder"


def test_auto_image_processor_makes_the_same_pixel_values(model):
    kind, folder = model
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    assert int(theirs.resample) == KERNELS.get(kind, 3)
    expected = theirs(IMAGE, return_tensors="np").pixel_values
    config = npgemma.load(folder).config
    np.testing.assert_array_equal(pixel_values([IMAGE], config.vision.image_size, config.pixels), expected, strict=True)


@pytest.mark.parametrize("kind", ["SigLIP 1", "SigLIP 2"])
def test_auto_model_computes_the_logits_of_a_converted_siglip(kind, tmp_path):
    convert(npz_checkpoints.write(tmp_path / "model.npz", testing.layout_tensors(LAYOUTS[kind])), tmp_path / "folder")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "folder", dtype=torch.float64).eval()
    ours = npgemma.DualEncoder.load(tmp_path / "folder", dtype="float64")
    pixels, ids = ours.processor([IMAGE, IMAGE.rotate(90)]), np.arange(21).reshape(3, 7)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(pixels).double()).logits_per_image.numpy()
    f = ours.functions
    rows = f.encode_images(ours.weights, pixels.astype(np.float64)), f.encode_texts(ours.weights, ids, ours.dtype)
    found = f.logits(ours.weights, *rows)
    # both are float64 runs of the same weights: 100 roundings of the largest logit
    np.testing.assert_allclose(found, expected, rtol=0, atol=testing.tolerance(expected, 2.0**-53), strict=True)


def test_auto_model_computes_the_logits_of_a_converted_vit(tmp_path):
    convert(npz_checkpoints.write(tmp_path / "model.npz", testing.layout_tensors(LAYOUTS["ViT"])), tmp_path / "folder")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "folder", dtype=torch.float64)
    ours = npgemma.Classifier.load(tmp_path / "folder", dtype="float64")
    pixels = ours.processor(IMAGE)
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(pixels).double()).logits.numpy()
    found = ours.forward(pixels)
    # both are float64 runs of the same weights: 100 roundings of the largest logit
    np.testing.assert_allclose(found, expected, rtol=0, atol=testing.tolerance(expected, 2.0**-53), strict=True)
