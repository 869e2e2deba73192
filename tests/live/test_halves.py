"""Folders that transformers saves of one tower, or of a tower with another head, are refused in one sentence."""

import pytest
from encoder_folders import write_clip, write_siglip, write_vit

import npgemma
from npgemma.errors import BadModel

transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
pytest.importorskip("torch", reason="the live tests compare with torch")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

WRITERS = {"CLIP": write_clip, "Siglip": write_siglip, "ViT": write_vit}


@pytest.mark.parametrize(
    ("kind", "head", "message"),
    [
        ("CLIP", "VisionModel", r"config\.json: model_type is 'clip_vision_model': this is the vision tower alone"),
        ("CLIP", "VisionModelWithProjection", "this is the vision tower alone"),
        ("CLIP", "TextModel", r"config\.json: model_type is 'clip_text_model': this is the text tower alone"),
        ("CLIP", "TextModelWithProjection", "this is the text tower alone"),
        ("CLIP", "ForImageClassification", "these are the tensors of the vision tower alone"),
        ("Siglip", "VisionModel", r"config\.json: model_type is 'siglip_vision_model': this is the vision tower alone"),
        ("Siglip", "TextModel", r"config\.json: model_type is 'siglip_text_model': this is the text tower alone"),
        ("Siglip", "ForImageClassification", "these are the tensors of the vision tower alone"),
        ("ViT", "Model", "has no classifier"),
        ("ViT", "ForMaskedImageModeling", "has no classifier"),
    ],
)
def test_half_a_model_is_refused(kind, head, message, tmp_path):
    whole = WRITERS[kind](tmp_path / "whole")
    options = {} if head != "ForMaskedImageModeling" else {"encoder_stride": 4}
    getattr(transformers, kind + head).from_pretrained(whole, **options).save_pretrained(tmp_path / "half")
    with pytest.raises(BadModel, match=message) as error:
        npgemma.load(tmp_path / "half")
    assert "\n" not in str(error.value)
