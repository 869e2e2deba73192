"""ViT on disk: config.json, and the names of its tensors in transformers' files and in the .npz files of AugReg."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import towers
from npgemma.checkpoints.config_keys import check_common
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.image_processor import VIT_KINDS, VIT_PIXELS, read_files
from npgemma.checkpoints.layout import FLOAT32, Layout, Part, make_layout, table, within
from npgemma.checkpoints.names import BUFFERS, HOLDERS, Names, by_saved_name, without_holders
from npgemma.checkpoints.towers import VisionConfig
from npgemma.errors import BadModel
from npgemma.io.pixels import PixelSettings
from npgemma.io.safetensors import open_model, readable
from npgemma.io.strict_json import Section, words
from npgemma.layers.shapes import Array
from npgemma.layers.tree import SLOT, sized
from npgemma.models.vit import Head, PatchEmbedding, ViT

HF_BLOCK = table("""
    attn_norm.weight       layernorm_before.weight                 D
    attn_norm.bias         layernorm_before.bias                   D
    attn.q                 attention.attention.query.weight        (N H) D
    attn.q_bias            attention.attention.query.bias          (N H)
    attn.k                 attention.attention.key.weight          (N H) D
    attn.k_bias            attention.attention.key.bias            (N H)
    attn.v                 attention.attention.value.weight        (N H) D
    attn.v_bias            attention.attention.value.bias          (N H)
    attn.o                 attention.output.dense.weight           D (N H)
    attn.o_bias            attention.output.dense.bias             D
    mlp_norm.weight        layernorm_after.weight                  D
    mlp_norm.bias          layernorm_after.bias                    D
    mlp.fc1                intermediate.dense.weight               F D
    mlp.fc1_bias           intermediate.dense.bias                 F
    mlp.fc2                output.dense.weight                     D F
    mlp.fc2_bias           output.dense.bias                       D
""")
HF = within(HF_BLOCK, "blocks[i].", "vit.encoder.layer.{i}.{}") + table("""
    embedding.weight       vit.embeddings.patch_embeddings.projection.weight    D C h w
    embedding.bias         vit.embeddings.patch_embeddings.projection.bias      D
    embedding.class_token  vit.embeddings.cls_token                             1 1 D
    embedding.position     vit.embeddings.position_embeddings                   1 T D
    norm.weight            vit.layernorm.weight                                 D
    norm.bias              vit.layernorm.bias                                   D
    head.weight            classifier.weight                                    A D
    head.bias              classifier.bias                                      A
""")

# The files of google-research/vision_transformer.
NPZ_NORMS = table("""
    attn_norm.weight       LayerNorm_0/scale                       D
    attn_norm.bias         LayerNorm_0/bias                        D
    mlp_norm.weight        LayerNorm_2/scale                       D
    mlp_norm.bias          LayerNorm_2/bias                        D
""")
NPZ_BLOCK = (
    NPZ_NORMS
    + within(towers.NPZ_ATTENTION, "", "MultiHeadDotProductAttention_1/{}")
    + within(towers.NPZ_MLP, "", "MlpBlock_3/{}")
)
NPZ = within(NPZ_BLOCK, "blocks[i].", "Transformer/encoderblock_{i}/{}") + table("""
    embedding.weight       embedding/kernel                             h w C D
    embedding.bias         embedding/bias                               D
    embedding.class_token  cls                                          1 1 D
    embedding.position     Transformer/posembed_input/pos_embedding     1 T D
    norm.weight            Transformer/encoder_norm/scale               D
    norm.bias              Transformer/encoder_norm/bias                D
    head.weight            head/kernel                                  D A
    head.bias              head/bias                                    A
""")


@dataclass(frozen=True)
class ViTConfig:
    """The tower, the name of each label, how pictures become numbers, and whether several labels may fit a picture."""

    vision: VisionConfig
    labels: tuple[str, ...]
    pixels: PixelSettings = VIT_PIXELS
    multi_label: bool = False


MODEL_TYPE = "vit"
VISION = VisionConfig(768, 3072, 12, 12, patch_size=16, layer_norm_eps=1e-12, hidden_act="gelu")
# The weights of AugReg were trained with this arithmetic. transformers reads them with that of VISION.
NPZ_VISION = replace(VISION, layer_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh")
HAS_DISTILLATION = "deit"
MOST_LABELS = 1 << 20
SINGLE_LABEL, MULTI_LABEL = "single_label_classification", "multi_label_classification"

# Keys that do not matter: nothing is trained, no picture is drawn, and the classifier reads the class token itself.
HARMLESS = words("""
    hidden_dropout_prob attention_probs_dropout_prob encoder_stride pooler_act pooler_output_size
""")


def read_config(folder: Path) -> ViTConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute."""
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[ViTConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`."""
    return read_files(folder, parse, VIT_KINDS)


def parse(s: Section) -> ViTConfig:
    """The config of the whole config.json, in which a missing key has the value of ViT-B/16 at 224 pixels."""
    kind = s.get("model_type")
    if kind == HAS_DISTILLATION:
        what = "a DeiT with a distillation token, which npgemma does not support"
        take = "use one without, such as facebook/deit-base-patch16-224"
        raise BadModel(f"{s.where}: model_type is {kind!r}: this is {what}; {take}")
    if kind != MODEL_TYPE:
        raise BadModel(f"{s.where}: model_type is {'missing' if kind is None else repr(kind)}, not {MODEL_TYPE!r}")
    check_common(s)
    s.ignore(HARMLESS)
    s.ignore(towers.LEFTOVERS)
    s.require("qkv_bias", True)
    s.require("problem_type", SINGLE_LABEL, MULTI_LABEL)
    labels = read_labels(s)
    # as in transformers' pipeline, a single label fits or does not
    multi_label = s.get("problem_type") == MULTI_LABEL or len(labels) == 1
    return ViTConfig(towers.read_vision(s, VISION), labels, multi_label=multi_label)


def read_labels(s: Section) -> tuple[str, ...]:
    """The labels, by id2label or else by num_labels, of which transformers' default is two. BadModel for gaps."""
    s.ignore(["label2id"])
    names = s.section("id2label")
    count = s.count("num_labels", len(names.values) or 2, MOST_LABELS)
    if not names.values:
        return tuple(f"LABEL_{i}" for i in range(count))
    names.ignore(names.values)
    found = [names.values.get(str(i)) for i in range(len(names.values))]
    for i, label in enumerate(found):
        if not isinstance(label, str):
            wrong = "missing" if label is None else f"{label!r}, not a text"
            raise BadModel(f"{names.where}: the label {i} of {len(found)} is {wrong}")
    return tuple(map(str, found))


def config_json(c: ViTConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    labels = {
        "id2label": {str(i): label for i, label in enumerate(c.labels)},
        "label2id": {label: i for i, label in enumerate(c.labels)},
    }
    kind = {"model_type": MODEL_TYPE, "architectures": ["ViTForImageClassification"], "qkv_bias": True}
    problem = {"problem_type": MULTI_LABEL} if c.multi_label else {}
    return kind | problem | asdict(c.vision) | labels


@lru_cache(maxsize=8)
def blank(c: ViTConfig) -> ViT:
    """The weights with a Slot in place of each array."""
    act, norm = towers.ACTIVATIONS[c.vision.hidden_act], towers.blank_norm(c.vision)
    ends = ViT(PatchEmbedding(SLOT, SLOT, SLOT, SLOT), (), act, norm, Head(SLOT, SLOT))
    return replace(sized(ends, sizes(c)), blocks=towers.blank_blocks(c.vision))


def sizes(c: ViTConfig) -> dict[str, int]:
    """The size of each letter of the tables."""
    return towers.vision_sizes(c.vision) | {"A": len(c.labels)}


# What each part of a name in memory is called in the files that transformers saves.
SAVED = (
    (r"^vit\.layers\.", "vit.encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def saved_name(name: str) -> str:
    """A name as transformers 5 saves it, from that or from the one that the model has in memory."""
    name = ".".join(without_holders(name, HOLDERS))
    for memory, saved in SAVED:
        name = re.sub(memory, saved, name)
    return name


# The pooler, which transformers' classifier does not use either, and the mask of pretraining.
UNUSED = re.compile(rf"vit\.(pooler\..*|embeddings\.mask_token)|{BUFFERS}")
NAMES = Names(saved_name, "vit.embeddings.cls_token", UNUSED, "")


@lru_cache(maxsize=8)
def hf_layout(c: ViTConfig) -> Layout[ViT]:
    """The names that transformers 5 saves."""
    return make_layout(blank(c), Part(HF, sizes(c)))


def npz_layout(c: ViTConfig) -> Layout[ViT]:
    """The names of AugReg's files, without the `opt/target/` or `params/` that some have before every name."""
    return make_layout(blank(c), Part(NPZ, sizes(c)))


def read_tensors(model: Path, c: ViTConfig) -> dict[str, Array]:
    """A model's tensors by the names that transformers 5 saves, mapped and checked.

    Every tensor that the config asks for must exist with its shape, and no other may. BadModel as for `by_saved_name`,
    `Layout.check`, `readable` and `open_model`, and for a tower without a classifier.
    """
    stored = open_model(model)
    if not any(name.endswith("classifier.weight") for name in stored):
        raise BadModel(
            f"{model} has no classifier (classifier.weight), so it cannot name what a picture shows; give a ViT that "
            "was trained to classify, such as google/vit-base-patch16-224"
        )
    tensors = by_saved_name(stored, model, NAMES)
    hf_layout(c).check(tensors, model)
    return readable(tensors)


def weights(tensors: Mapping[str, Array], c: ViTConfig, vectors: np.dtype = FLOAT32) -> ViT:
    """The weights, from tensors by the names that transformers 5 saves; norms, biases and positions as `vectors`."""
    return hf_layout(c).fill(tensors, vectors)


def names_of(p: ViT, c: ViTConfig) -> dict[str, str]:
    """The names that transformers 5 saves, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(c).stored}


def footprint(c: ViTConfig, run: Run) -> Footprint:
    """The memory for a run that classifies all pictures at the same time."""
    numbers = towers.vision_numbers(c.vision, run.pictures) + run.pictures * len(c.labels)
    return Footprint(run.weights, 0, numbers * run.itemsize)


def shortest_run(c: ViTConfig, weights: int, itemsize: int) -> Run:
    """One picture, with so many bytes of weights."""
    return Run(weights, itemsize, 1, [])
