"""config.json and preprocessor_config.json of the encoders on the hub, as sparse as there, with the leftovers there."""

from typing import Any, NamedTuple

Content = dict[str, Any]


class Files(NamedTuple):
    """The files of a model, and the number of elements of its weights."""

    config: Content
    preprocessor: Content
    elements: int


def clip_config(width: int, vision: Content, text: Content, dicts: bool, act: str = "quick_gelu") -> Content:
    """OpenAI's and LAION's. Where there is a text_config_dict, it says what counts."""
    junk = {
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "top_k": 50,
        "dropout": 0.0,
        "projection_dim": width,
    }
    said = {} if act == "quick_gelu" else {"hidden_act": act}
    sections = {
        "text_config": junk | {"model_type": "clip_text_model", "hidden_act": act} | text,
        "vision_config": junk | {"model_type": "clip_vision_model", "hidden_act": act} | vision,
    }
    sections |= {
        "text_config_dict": said | text if dicts else None,
        "vision_config_dict": said | vision if dicts else None,
    }
    return {"model_type": "clip", "projection_dim": width, "logit_scale_init_value": 2.6592} | sections


def siglip_config(vision: Content, text: Content) -> Content:
    """Google's, of SigLIP 1 and of SigLIP 2 alike."""
    vision, text = {"model_type": "siglip_vision_model"} | vision, {"model_type": "siglip_text_model"} | text
    return {"model_type": "siglip", "initializer_factor": 1.0, "vision_config": vision, "text_config": text}


def vit_config(sizes: Content) -> Content:
    """Google's and Facebook's, whose thousand labels are those of ImageNet."""
    labels = {str(i): f"n{i:08d}" for i in range(1000)}
    return {"model_type": "vit", "id2label": labels, "label2id": {label: i for i, label in labels.items()}} | sizes


def clip_pixels(side: int) -> Content:
    """Of the first releases, whose sizes are numbers."""
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    steps = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": mean, "image_std": std}
    kind = {"feature_extractor_type": "CLIPFeatureExtractor"}
    return steps | kind | {"crop_size": side, "resample": 3, "size": side}


def siglip_pixels(side: int, kernel: int) -> Content:
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392156862745098}
    steps = {"do_normalize": True, "do_rescale": True, "do_resize": True, "do_convert_rgb": None}
    kind = {"image_processor_type": "SiglipImageProcessor", "processor_class": "SiglipProcessor"}
    return half | steps | kind | {"resample": kernel, "size": {"height": side, "width": side}}


def vit_pixels(side: int) -> Content:
    """Google's do not name a class or a kernel."""
    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    return {"do_normalize": True, "do_resize": True, "size": side} | half


def deit_pixels(side: int, resized: int) -> Content:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "image_mean": mean, "image_std": std}
    return steps | {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "crop_size": side,
        "resample": 3,
        "size": resized,
    }


def sizes(width: int, mlp: int, layers: int, heads: int) -> Content:
    return dict(hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads)


def siglip(vision: Content, text: Content, elements: int, kernel: int) -> Files:
    return Files(siglip_config(vision, text), siglip_pixels(vision.get("image_size", 224), kernel), elements)


def siglip_1(vision: Content, text: Content, elements: int) -> Files:
    return siglip(vision, text, elements, 3)


def siglip_2(vision: Content, text: Content, elements: int) -> Files:
    return siglip(vision, text | {"vocab_size": 256000}, elements, 2)


def clip(width: int, vision: Content, text: Content, elements: int, dicts: bool = False) -> Files:
    return Files(clip_config(width, vision, text, dicts), clip_pixels(vision.get("image_size", 224)), elements)


def laion(width: int, vision: Content, text: Content, elements: int) -> Files:
    return Files(clip_config(width, vision, text, True, "gelu"), clip_pixels(224), elements)


def vit(model: Content, elements: int) -> Files:
    return Files(vit_config(model), vit_pixels(model.get("image_size", 224)), elements)


def deit(model: Content, elements: int, resized: int = 256) -> Files:
    return Files(vit_config(model), deit_pixels(model.get("image_size", 224), resized), elements)


def at(image: int, patch: int) -> Content:
    return {"image_size": image, "patch_size": patch}


SMALL, LARGE = sizes(384, 1536, 12, 6), sizes(1024, 4096, 24, 16)
SO400M, GIANT = sizes(1152, 4304, 27, 16), sizes(1536, 6144, 40, 16)
GIANT_TEXT = SO400M | {"projection_size": 1536}
MULTILINGUAL = {"vocab_size": 250000}
CLIP_L_TEXT = sizes(768, 3072, 12, 12)

SIGLIPS = {
    "siglip-base-patch16-224": siglip_1({}, {}, 203_155_970),
    "siglip-base-patch16-256": siglip_1(at(256, 16), {}, 203_202_050),
    "siglip-base-patch16-256-multilingual": siglip_1(at(256, 16), MULTILINGUAL, 370_626_050),
    "siglip-base-patch16-384": siglip_1(at(384, 16), {}, 203_447_810),
    "siglip-base-patch16-512": siglip_1(at(512, 16), {}, 203_791_874),
    "siglip-large-patch16-256": siglip_1(LARGE | at(256, 16), LARGE, 652_150_786),
    "siglip-large-patch16-384": siglip_1(LARGE | at(384, 16), LARGE, 652_478_466),
    "siglip-so400m-patch14-224": siglip_1(
        SO400M | {"patch_size": 14}, SO400M | {"max_position_embeddings": 16}, 877_360_306
    ),
    "siglip-so400m-patch14-384": siglip_1(SO400M | at(384, 14), SO400M, 877_960_498),
    "siglip-so400m-patch16-256-i18n": siglip_1(SO400M | at(256, 16), SO400M | MULTILINGUAL, 1_128_758_962),
}
SIGLIP_2S = {
    "siglip2-base-patch16-224": siglip_2({}, {}, 375_187_970),
    "siglip2-base-patch16-256": siglip_2(at(256, 16), {}, 375_234_050),
    "siglip2-base-patch16-384": siglip_2(at(384, 16), {}, 375_479_810),
    "siglip2-base-patch16-512": siglip_2(at(512, 16), {}, 375_823_874),
    "siglip2-base-patch32-256": siglip_2(at(256, 32), {}, 376_856_066),
    "siglip2-large-patch16-256": siglip_2(LARGE | at(256, 16), LARGE, 881_526_786),
    "siglip2-large-patch16-384": siglip_2(LARGE | at(384, 16), LARGE, 881_854_466),
    "siglip2-large-patch16-512": siglip_2(LARGE | at(512, 16), LARGE, 882_313_218),
    "siglip2-so400m-patch14-224": siglip_2(SO400M | at(224, 14), SO400M, 1_135_463_602),
    "siglip2-so400m-patch14-384": siglip_2(SO400M | at(384, 14), SO400M, 1_136_008_498),
    "siglip2-so400m-patch16-256": siglip_2(SO400M | at(256, 16), SO400M, 1_135_670_962),
    "siglip2-so400m-patch16-384": siglip_2(SO400M | at(384, 16), SO400M, 1_136_039_602),
    "siglip2-so400m-patch16-512": siglip_2(SO400M | at(512, 16), SO400M, 1_136_555_698),
    "siglip2-giant-opt-patch16-256": siglip_2(GIANT | at(256, 16), GIANT_TEXT, 1_871_393_906),
    "siglip2-giant-opt-patch16-384": siglip_2(GIANT | at(384, 16), GIANT_TEXT, 1_871_885_426),
}
CLIPS = {
    "clip-vit-base-patch32": clip(512, {}, {}, 151_277_313),
    "clip-vit-base-patch16": clip(512, {"patch_size": 16}, {}, 149_620_737),
    "clip-vit-large-patch14": clip(768, LARGE | {"patch_size": 14}, CLIP_L_TEXT, 427_616_513, True),
    "clip-vit-large-patch14-336": clip(768, LARGE | at(336, 14), CLIP_L_TEXT, 427_944_193, True),
}
LAIONS = {
    "CLIP-ViT-B-32-laion2B-s34B-b79K": laion(512, {}, {}, 151_277_313),
    "CLIP-ViT-B-16-laion2B-s34B-b88K": laion(512, {"patch_size": 16}, {}, 149_620_737),
    "CLIP-ViT-L-14-laion2B-s32B-b82K": laion(768, LARGE | {"patch_size": 14}, CLIP_L_TEXT, 427_616_513),
    "CLIP-ViT-H-14-laion2B-s32B-b79K": laion(1024, sizes(1280, 5120, 32, 16) | {"patch_size": 14}, LARGE, 986_109_441),
    "CLIP-ViT-g-14-laion2B-s12B-b42K": laion(
        1024, sizes(1408, 6144, 40, 16) | {"patch_size": 14}, LARGE, 1_366_678_273
    ),
    "CLIP-ViT-bigG-14-laion2B-39B-b160k": laion(
        1280, sizes(1664, 8192, 48, 16) | {"patch_size": 14}, sizes(1280, 5120, 32, 20), 2_539_567_105
    ),
}
VITS = {
    "vit-base-patch16-224": vit({}, 86_567_656),
    "vit-base-patch16-384": vit({"image_size": 384}, 86_859_496),
    "vit-base-patch32-384": vit(at(384, 32), 88_297_192),
    "vit-large-patch16-224": vit(LARGE, 304_326_632),
    "vit-large-patch16-384": vit(LARGE | {"image_size": 384}, 304_715_752),
    "vit-large-patch32-384": vit(LARGE | at(384, 32), 306_632_680),
}
DEITS = {
    "deit-tiny-patch16-224": deit(sizes(192, 768, 12, 3), 5_717_416),
    "deit-small-patch16-224": deit(SMALL, 22_050_664),
    "deit-base-patch16-224": deit({}, 86_567_656),
    "deit-base-patch16-384": deit({"image_size": 384}, 86_859_496, resized=438),
}
HUB = SIGLIPS | SIGLIP_2S | CLIPS | LAIONS | VITS | DEITS
