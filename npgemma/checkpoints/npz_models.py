"""Which model an .npz file of Google's holds: PaliGemma and SigLIP of big_vision, or a ViT of AugReg.

The file has no config: sizes follow from the shapes of its arrays, and the rest from which arrays it has.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from npgemma.checkpoints import paligemma, siglip, vit
from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, GemmaConfig
from npgemma.checkpoints.image_processor import PREPROCESSOR, preprocessor_json
from npgemma.checkpoints.layout import Layout
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.checkpoints.towers import DualEncoderConfig, TextConfig, VisionConfig
from npgemma.checkpoints.vit import ViTConfig
from npgemma.errors import BadModel
from npgemma.io.npz_members import Member
from npgemma.io.pixels import BICUBIC, BILINEAR
from npgemma.io.siglip_tokenizer import SPIECE
from npgemma.io.strict_json import Section
from npgemma.io.tokenizers import TOKENIZER

CONFIG = "config.json"
PREFIXES = ("params/", "opt/target/")
# The norms that PaliGemma 2 has and PaliGemma 1 has not.
POST_NORMS = {"llm/layers/post_attention_norm/scale", "llm/layers/post_ffw_norm/scale"}
# PaliGemma 2's query_pre_attn_scalar, which leaves no trace in the weights, by hidden_size / heads and head_dim: in 3b
# and 10b it is the width of a head, in 28b it is not.
QUERY_SCALARS: dict[tuple[float, int], int] = {(288, 256): 256, (224, 256): 256, (144, 128): 144}
# An array of a tower whose layers are stacked, and arrays that only SigLIP and only ViT have.
STACKED = "Transformer/encoderblock/LayerNorm_0/scale"
SIGLIP_HAS, VIT_HAS = "txt/Embed_0/embedding", "Transformer/posembed_input/pos_embedding"
# The size of pictures that do not consist of patches alone, by the size of a patch and the patches along a side.
SIZES_WITH_REST = {(14, 27): 384}
UNSUPPORTED = {
    "llm/layers/attn/qkv_einsum/w": "has fused q, k and v (qkv_einsum), as Gemma 7B; npgemma converts PaliGemma 1 "
    "and 2",
    "conv_root/kernel": "is a hybrid of ResNet and ViT (conv_root), which npgemma does not support",
    "pre_logits/kernel": "has a layer before its head (pre_logits), which npgemma does not support; convert a ViT that "
    "was fine-tuned",
}


@dataclass(frozen=True)
class NpzModel:
    """The content of a model's JSON files, the layouts of its two formats, and what its SentencePiece file is called.

    A model without texts needs no such file.
    """

    files: Mapping[str, dict[str, object]]
    source: Layout[Any]
    target: Layout[Any]
    pieces: str | None


def unprefixed(members: Mapping[str, Member], path: Path) -> dict[str, Member]:
    """The arrays by their names without one of PREFIXES. BadModel if two of them then have the same name."""
    found: dict[str, Member] = {}
    for stored, member in members.items():
        prefix = next((each for each in PREFIXES if stored.startswith(each)), "")
        name = stored.removeprefix(prefix)
        if name in found:
            raise BadModel(f"{path} holds {name!r} twice, with and without {prefix or PREFIXES[0]}")
        found[name] = member
    return found


def infer_model(members: Mapping[str, Member], path: Path) -> NpzModel:
    """The model of a file. BadModel for other models than PaliGemma 1 and 2, SigLIP and ViT."""
    for name, why in UNSUPPORTED.items():
        if name in members:
            raise BadModel(f"{path} {why}")
    if VIT_HAS in members:
        return vit_model(infer_vit(members, path))
    if SIGLIP_HAS in members:
        return siglip_model(infer_siglip(members, path), stacked="img/" + STACKED in members)
    if "embedding/kernel" in members:
        of = "is a ViT of big_vision, whose positions leave out the class token"
        raise BadModel(f"{path} {of}; npgemma converts those of vision_transformer, such as AugReg's")
    if "img/embedding/kernel" in members and not any(name.startswith("llm/") for name in members):
        raise BadModel(f"{path} holds a vision tower alone (img/); convert the file of the whole SigLIP or PaliGemma")
    return paligemma_model(infer_paligemma(members, path))


def vit_model(c: ViTConfig) -> NpzModel:
    pixels = preprocessor_json("ViTImageProcessor", c.pixels, c.vision)
    files = {CONFIG: vit.config_json(c), PREPROCESSOR: pixels}
    return NpzModel(files, vit.npz_layout(c), vit.hf_layout(c), None)


def siglip_model(c: DualEncoderConfig, stacked: bool) -> NpzModel:
    """SigLIP 2 if its layers are stacked, else SigLIP 1: the published conversions resize pictures differently."""
    settings = replace(c.pixels, resample=BILINEAR if stacked else BICUBIC)
    pixels = preprocessor_json("SiglipImageProcessor", settings, c.vision)
    files = {CONFIG: siglip.config_json(c), PREPROCESSOR: pixels}
    return NpzModel(files, siglip.npz_layout(c, stacked), siglip.hf_layout(c), TOKENIZER if stacked else SPIECE)


def paligemma_model(c: PaliGemmaConfig) -> NpzModel:
    pixels = preprocessor_json("SiglipImageProcessor", c.pixels, c.vision) | {"image_seq_length": c.vision.num_patches}
    files = {CONFIG: paligemma.config_json(c), PREPROCESSOR: pixels | {"processor_class": "PaliGemmaProcessor"}}
    return NpzModel(files, paligemma.npz_layout(c), paligemma.hf_layout(c), TOKENIZER)


@dataclass(frozen=True)
class Shapes:
    """The shapes of a file's arrays; `kind` says what the file must be."""

    members: Mapping[str, Member]
    path: Path
    kind: str

    def of(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of an array. BadModel unless it has so many axes, none of them empty."""
        found = self.members[name].shape if name in self.members else None
        if found is None or len(found) != axes or min(found) < 1:
            what = "is missing" if found is None else f"has shape {list(found)}"
            raise BadModel(f"{self.path} is not a {self.kind}: {name} {what}")
        return found

    def blocks(self, before: str) -> tuple[int, int, int, int]:
        """Layers, width, heads and width of the MLPs of a tower, whose layers are stacked or stand alone."""
        query, hidden = "MultiHeadDotProductAttention_0/query/kernel", "MlpBlock_0/Dense_0/kernel"
        if f"{before}encoderblock_0/{query}" not in self.members:
            layers, width, heads, _ = self.of(f"{before}encoderblock/{query}", 4)
            return layers, width, heads, self.of(f"{before}encoderblock/{hidden}", 3)[2]
        width, heads, _ = self.of(f"{before}encoderblock_0/{query}", 3)
        return self.layers(before), width, heads, self.of(f"{before}encoderblock_0/{hidden}", 2)[1]

    def layers(self, before: str) -> int:
        """The number of layers that stand alone."""
        return sum(f"{before}encoderblock_{i}/LayerNorm_0/scale" in self.members for i in range(len(self.members)))


def infer_siglip(members: Mapping[str, Member], path: Path) -> DualEncoderConfig:
    """The config of a SigLIP. BadModel for other models."""
    shapes = Shapes(members, path, "SigLIP of big_vision")
    patch, _, channels, width = shapes.of("img/embedding/kernel", 4)
    side = math.isqrt(shapes.of("img/pos_embedding", 3)[1])
    layers, _, heads, mlp_width = shapes.blocks("img/Transformer/")
    size = SIZES_WITH_REST.get((patch, side), side * patch)
    vision = VisionConfig(width, mlp_width, layers, heads, channels, size, patch)
    rows, text_width = shapes.of(SIGLIP_HAS, 2)
    layers, _, heads, mlp_width = shapes.blocks("txt/Encoder_0/")
    positions = shapes.of("txt/pos_embedding", 3)[1]
    text = TextConfig(rows, text_width, mlp_width, layers, heads, positions)
    config = replace(siglip.DEFAULT, vision=vision, text=text, embedding_size=shapes.of("txt/head/kernel", 2)[1])
    # read as it will be once it is written: the sizes must be those of a model that npgemma runs
    return siglip.parse(Section(siglip.config_json(config), str(path)))


def infer_vit(members: Mapping[str, Member], path: Path) -> ViTConfig:
    """The config of a ViT, with the arithmetic that it was trained with. BadModel for other models.

    The file does not say what its labels are called.
    """
    shapes = Shapes(members, path, "ViT of vision_transformer")
    patch, _, channels, width = shapes.of("embedding/kernel", 4)
    side = math.isqrt(shapes.of(VIT_HAS, 3)[1] - 1)
    before = "Transformer/encoderblock_0/"
    _, heads, _ = shapes.of(f"{before}MultiHeadDotProductAttention_1/query/kernel", 3)
    _, mlp_width = shapes.of(f"{before}MlpBlock_3/Dense_0/kernel", 2)
    layers = shapes.layers("Transformer/")
    tower = replace(
        vit.NPZ_VISION,
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_channels=channels,
        image_size=side * patch,
        patch_size=patch,
    )
    labels = tuple(f"LABEL_{i}" for i in range(shapes.of("head/kernel", 2)[1]))
    return vit.parse(Section(vit.config_json(ViTConfig(tower, labels)), str(path)))


def infer_paligemma(members: Mapping[str, Member], path: Path) -> PaliGemmaConfig:
    """The config of a PaliGemma 1 or 2. BadModel for other models."""
    shapes = Shapes(members, path, "PaliGemma of big_vision")
    patch, _, channels, width = shapes.of("img/embedding/kernel", 4)
    _, patches, _ = shapes.of("img/pos_embedding", 3)
    depth, _, heads, mlp_width = shapes.blocks("img/Transformer/")
    side = math.isqrt(patches)
    vision = VisionConfig(width, mlp_width, depth, heads, channels, side * patch, patch)
    rows, text_width = shapes.of("llm/embedder/input_embedding", 2)
    layers, query_heads, _, head_width = shapes.of("llm/layers/attn/q_einsum/w", 4)
    _, _, key_heads, _, _ = shapes.of("llm/layers/attn/kv_einsum/w", 5)
    _, _, _, text_mlp_width = shapes.of("llm/layers/mlp/gating_einsum", 4)
    text = replace(
        IN_PALIGEMMA["gemma2" if POST_NORMS & members.keys() else "gemma"],
        hidden_size=text_width,
        intermediate_size=text_mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=query_heads,
        num_key_value_heads=key_heads,
        head_dim=head_width,
        vocab_size=rows,
    )
    if text.model_type == "gemma2":
        text = replace(text, query_pre_attn_scalar=query_scalar(text, path))
    # read as it will be once it is written: the sizes must be those of a model that npgemma runs
    return paligemma.parse(Section(paligemma.config_json(PaliGemmaConfig(vision, text)), str(path)))


def query_scalar(text: GemmaConfig, path: Path) -> int:
    """The query_pre_attn_scalar of PaliGemma 2. BadModel for sizes that none of its models has."""
    heads, width = text.num_attention_heads, text.hidden_size
    scalar = QUERY_SCALARS.get((width / heads, text.head_dim))
    if scalar is None:
        raise BadModel(
            f"{path} does not say by what its attention scores are scaled (query_pre_attn_scalar), and {heads} heads "
            f"of {text.head_dim} for a width of {width} are not those of PaliGemma 2 3b, 10b or 28b"
        )
    return scalar
