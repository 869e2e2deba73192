"""The encoders on the hub are read as their names and papers say."""

import json
import math
import re

import pytest
from published_encoders import CLIPS, DEITS, HUB, LAIONS, SIGLIP_2S, SIGLIPS, VITS

from npgemma.checkpoints import clip, siglip
from npgemma.checkpoints.model_types import MODEL_TYPES, module_of
from npgemma.errors import BadModel
from npgemma.io.pixels import BICUBIC, BILINEAR, PixelSettings
from npgemma.io.strict_json import Section

HALF = ((0.5,) * 3, (0.5,) * 3)
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# By family: activation, eps, and how pictures become numbers.
FAMILIES = {
    "SigLIP": (SIGLIPS, "gelu_pytorch_tanh", 1e-6, PixelSettings(BICUBIC, mean_and_std=HALF)),
    "SigLIP 2": (SIGLIP_2S, "gelu_pytorch_tanh", 1e-6, PixelSettings(BILINEAR, mean_and_std=HALF)),
    "CLIP": (CLIPS, "quick_gelu", 1e-5, PixelSettings(BICUBIC, keeps_shape=True, mean_and_std=OPENAI, crop=True)),
    "LAION": (LAIONS, "gelu", 1e-5, PixelSettings(BICUBIC, keeps_shape=True, mean_and_std=OPENAI, crop=True)),
    "ViT": (VITS, "gelu", 1e-12, PixelSettings(BILINEAR, mean_and_std=HALF)),
    "DeiT": (DEITS, "gelu", 1e-12, PixelSettings(BICUBIC, mean_and_std=IMAGENET, edge=256, crop=True)),
}
CASES = [(name, family) for family, (models, *_) in FAMILIES.items() for name in models]
# Its pictures are cropped to 384 pixels from 438.
LARGER_EDGE = {"deit-base-patch16-384": 438}


def patch_and_side(name: str) -> tuple[int, int]:
    """The size of a patch and of a picture that a name gives; 224 pixels if it gives none."""
    found = re.search(r"patch(\d+)(?:-(\d+))?|ViT-\w+-(\d+)", name)
    assert found
    patch, side, laion = found.groups()
    return int(patch or laion), int(side or 224)


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def case(request, tmp_path):
    """The name, the family and the config of a model."""
    name, family = request.param
    (tmp_path / "config.json").write_text(json.dumps(HUB[name].config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(HUB[name].preprocessor))
    return name, FAMILIES[family], module_of(tmp_path), tmp_path


def test_it_is_read_as_its_name_says(case) -> None:
    name, (_, act, eps, pixels), checkpoint, folder = case
    c = checkpoint.read_config(folder)
    assert (c.vision.patch_size, c.vision.image_size) == patch_and_side(name)
    for tower in [c.vision, c.text] if hasattr(c, "text") else [c.vision]:
        assert (tower.hidden_act, tower.layer_norm_eps) == (act, eps)
    assert c.pixels.resample == pixels.resample
    assert (c.pixels.keeps_shape, c.pixels.crop) == (pixels.keeps_shape, pixels.crop)
    assert c.pixels.mean_and_std == pixels.mean_and_std
    assert c.pixels.edge == LARGER_EDGE.get(name, pixels.edge)


def test_it_has_no_unknown_keys(case) -> None:
    name, _, checkpoint, _ = case
    s = Section(HUB[name].config, "config.json")
    checkpoint.parse(s)
    assert s.unknown() == []


# Published counts; the live tests count all of them in transformers.
COUNTED = """
    siglip-base-patch16-224 siglip-so400m-patch14-224 siglip-so400m-patch14-384 siglip2-base-patch16-224
    siglip2-so400m-patch14-384 clip-vit-base-patch32 clip-vit-large-patch14-336 CLIP-ViT-g-14-laion2B-s12B-b42K
    vit-base-patch16-224 vit-large-patch16-224 deit-tiny-patch16-224
"""


@pytest.mark.parametrize("name", COUNTED.split())
def test_it_has_the_published_elements(name) -> None:
    config = HUB[name].config
    checkpoint = MODEL_TYPES[config["model_type"]]
    shapes = checkpoint.hf_layout(checkpoint.parse(Section(config, name))).shapes
    assert sum(map(math.prod, shapes.values())) == HUB[name].elements


@pytest.mark.parametrize("name", SIGLIPS | SIGLIP_2S)
def test_a_siglip_reads_64_tokens_with_one_exception(name) -> None:
    """transformers' default says that texts end with token 49407, which is CLIP's."""
    c = siglip.parse(Section(HUB[name].config, name))
    assert c.text.max_position_embeddings == (16 if name == "siglip-so400m-patch14-224" else 64)
    assert c.eos_token_id == 1


@pytest.mark.parametrize("name", CLIPS | LAIONS)
def test_a_clip_reads_77_tokens(name) -> None:
    """Its files say that texts end with token 2."""
    c = clip.parse(Section(HUB[name].config, name))
    assert (c.text.max_position_embeddings, c.eos_token_id) == (77, 49407)


@pytest.mark.parametrize("name", VITS | DEITS)
def test_classifiers_have_the_labels_of_imagenet(name, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(HUB[name].config))
    labels = module_of(tmp_path).read_config(tmp_path).labels
    assert (len(labels), labels[0], labels[999]) == (1000, "n00000000", "n00000999")


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_vision_model"])
def test_naflex_is_refused_by_name(kind, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": {"num_patches": 256}}))
    with pytest.raises(BadModel, match=r"a SigLIP 2 for pictures of any shape \(NaFlex\), .*; use one of a fixed reso"):
        module_of(tmp_path)
