"""Pictures and words in, probabilities out, as transformers' models, image processors and tokenizers have them."""

import importlib

import numpy as np
import pytest
from encoder_folders import VIT, write_clip, write_siglip, write_vit
from PIL import Image, ImageDraw

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
pytest.importorskip("google.protobuf", reason="transformers reads a spiece.model with protobuf")
from make_fixtures import truth  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

# What writes a folder; transformers' model, the module of its image processor, and its tokenizer.
KINDS = {
    "siglip": (write_siglip, transformers.SiglipModel, "siglip", transformers.SiglipTokenizer),
    "clip": (write_clip, transformers.CLIPModel, "clip", transformers.CLIPTokenizer),
    "vit": (write_vit, transformers.ViTForImageClassification, "vit", None),
}
SIZES = ((97, 131), (14, 14), (200, 33), (15, 16), (40, 41))
TEXTS = ["a photo of the red cat", "blue", "The DOGS, running?", "over " * 30, "straße İstanbul don't", "!!!"]
NOISE = 0.5
# Both compute in float64 from the same pixel values, so that they differ by the roundings of sums in another order:
# 2e-16 of a number each. The largest scores are about 30, and a hundred roundings may add up.
FLOAT64 = dict(rtol=0, atol=1e-12)


def drawn(columns, rows):
    image = Image.fromarray(np.random.default_rng([columns, rows]).integers(0, 256, (rows, columns, 3), np.uint8))
    ImageDraw.Draw(image).ellipse((columns // 4, rows // 5, columns // 2, rows // 2), fill=(200, 30, 90))
    return image


PICTURES = [drawn(*size) for size in SIZES]


class Theirs:
    """transformers' parts of a folder, whose parameters are overwritten with noise."""

    def __init__(self, kind, folder):
        write, model, module, tokenizer = KINDS[kind]
        write(folder)
        torch.manual_seed(4)
        package = importlib.import_module(f"transformers.models.{module}.image_processing_pil_{module}")
        processor = next(each for each in vars(package) if each.endswith("ImageProcessorPil"))
        edge = VIT.vision.image_size
        square = {"size": {"height": edge, "width": edge}}
        sizes = {"size": {"shortest_edge": edge}, "crop_size": edge} if kind == "clip" else square
        self.processor = getattr(package, processor)(**sizes)
        self.model = model.from_pretrained(folder, attn_implementation="eager").eval()
        with torch.no_grad():
            for x in self.model.parameters():
                x.copy_(torch.randn_like(x) * NOISE)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        self.tokenizer = tokenizer and tokenizer.from_pretrained(folder)

    def outputs(self, texts=None):
        inputs = {"pixel_values": self.processor(PICTURES, return_tensors="pt")["pixel_values"].double()}
        if texts is not None:
            ids = self.tokenizer(texts, padding="max_length", max_length=12, truncation=True, return_tensors="pt")
            inputs |= {"input_ids": ids["input_ids"]}
        with torch.no_grad(), truth():
            return self.model.double()(**inputs)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_probabilities_of_texts_are_those_of_transformers(kind, tmp_path):
    theirs = Theirs(kind, tmp_path)
    model = npgemma.load(tmp_path, "float64")
    expected = theirs.outputs(TEXTS)
    scores = expected.logits_per_image
    probabilities = torch.sigmoid(scores) if kind == "siglip" else scores.softmax(-1)
    for found, truth_of_it in (
        (model.encode_images(PICTURES, 2), expected.image_embeds),
        (model.encode_texts(TEXTS, batch_size=4), expected.text_embeds),
        (model.logits(PICTURES, TEXTS), scores),
        (model.classify(PICTURES, TEXTS), probabilities),
    ):
        np.testing.assert_allclose(found, truth_of_it.numpy(), **FLOAT64)
    assert 3 in model.text_rows(TEXTS).truncated


def test_labels_of_a_vit_are_those_of_transformers(tmp_path):
    theirs = Theirs("vit", tmp_path)
    model = npgemma.load(tmp_path, "float64")
    logits = theirs.outputs().logits
    np.testing.assert_allclose(model.forward(model.processor(PICTURES)), logits.numpy(), **FLOAT64)
    best = logits.softmax(-1).topk(3)
    for labels, names, probabilities in zip(model.classify(PICTURES, 3), best.indices, best.values, strict=True):
        assert [label.name for label in labels] == [theirs.model.config.id2label[int(i)] for i in names]
        np.testing.assert_allclose([label.probability for label in labels], probabilities, **FLOAT64)
