"""PaliGemma on disk: config.json, the names of its tensors, and the memory that a run needs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import gemma, gemma_config, siglip
from npgemma.checkpoints.config_keys import check_common
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.gemma_config import IN_PALIGEMMA, GemmaConfig
from npgemma.checkpoints.generation_config import read_end_tokens
from npgemma.checkpoints.image_processor import read_image_processor
from npgemma.checkpoints.layout import FLOAT32, Layout, Part, Shaped, make_layout, name_of, table
from npgemma.checkpoints.names import BUFFERS, Names, by_saved_name, check_head, paligemma_name
from npgemma.checkpoints.towers import VisionConfig, vision_sizes
from npgemma.errors import BadModel
from npgemma.io.added_tokens import Family, paligemma_family
from npgemma.io.model_folder import member
from npgemma.io.pixels import PALIGEMMA, PixelSettings
from npgemma.io.safetensors import open_any, open_model, readable, weight_files
from npgemma.io.strict_json import Section, read_section, words
from npgemma.layers.shapes import Array
from npgemma.layers.threads import rows_at_a_time
from npgemma.layers.tree import SLOT, sized
from npgemma.models.paligemma import PaliGemma, Projector

HF_PROJECTOR = table("""
    projector.weight     multi_modal_projector.linear.weight     D E
    projector.bias       multi_modal_projector.linear.bias       D
""")
NPZ_PROJECTOR = table("""
    projector.weight     img/head/kernel                         E D
    projector.bias       img/head/bias                           D
""")


@dataclass(frozen=True)
class PaliGemmaConfig:
    """Vision tower, decoder, whether the head is the embedding table, and what the processor needs."""

    vision: VisionConfig
    text: GemmaConfig
    tied: bool = True
    image_token_index: int = 257152
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)
    pixels: PixelSettings = PALIGEMMA


MODEL_TYPE = "paligemma"
FIRST_POSITION = 1  # as in transformers
# Keys that do not matter: transformers takes these sizes from text_config, and the loss is not computed.
HARMLESS = words("""
    hidden_size num_hidden_layers vocab_size _vocab_size pad_token_id ignore_index _ignore_index transformers_weights
""")


def read_config(folder: Path) -> PaliGemmaConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute.

    The hub's configs are sparse: they leave out values that equalled a default of transformers when they were written.
    A missing key has PaliGemma's value, which is not always today's default in transformers.
    """
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[PaliGemmaConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`."""
    s = read_section(member(folder, "config.json"))
    config = parse(s)
    pixels, files = read_image_processor(folder, config.vision)
    sections = s, s.section("text_config"), s.section("vision_config")
    ends, generation = read_end_tokens(folder, sections, config.eos_token_ids, config.text.vocab_size)
    return replace(config, eos_token_ids=ends, pixels=pixels), {"config.json": s} | files | generation


def parse(s: Section) -> PaliGemmaConfig:
    """The config of the whole config.json. BadModel as for `read_config`."""
    if (kind := s.get("model_type")) != MODEL_TYPE:
        raise BadModel(f"{s.where}: model_type is {'missing' if kind is None else repr(kind)}, not {MODEL_TYPE!r}")
    check_common(s)
    s.ignore(HARMLESS)
    tower, inner = s.section("vision_config"), s.section("text_config")
    vision, text = siglip.read_tower(tower), gemma_config.read(inner, IN_PALIGEMMA)
    inner.ignore(["use_bidirectional_attention"])  # transformers sets it, and builds the mask of the prefix anyway
    if (width := s.get("projection_dim")) not in (None, text.hidden_size):
        wrong = f"not the width of the decoder, {inner.named('hidden_size', text.hidden_size)}"
        raise s.fault("projection_dim", width, wrong)
    if (tokens := inner.get("num_image_tokens")) not in (None, vision.num_patches):
        names = [tower.named(key, getattr(vision, key)) for key in ("image_size", "patch_size")]
        wrong = f"not {vision.num_patches}, the number of patches for {' and '.join(names)}"
        raise inner.fault("num_image_tokens", tokens, wrong)
    d = PaliGemmaConfig(vision, text)
    # transformers renames image_token_index to image_token_id, and the new name goes first
    image_token = "image_token_index" if s.get("image_token_id") is None else "image_token_id"
    s.ignore(["image_token_index"])
    # some configs state these tokens for the decoder only
    bos, eos = (inner if s.get(key) is None else s for key in ("bos_token_id", "eos_token_id"))
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        tied=s.flag("tie_word_embeddings", d.tied),
        # may be beyond the vocabulary: the image token is never looked up, and some models have no row for it
        image_token_index=s.token(image_token, d.image_token_index, 1 << 24),
        bos_token_id=bos.token("bos_token_id", d.bos_token_id, text.vocab_size - 1),
        eos_token_ids=eos.tokens("eos_token_id", d.eos_token_ids, text.vocab_size - 1),
    )


def config_json(c: PaliGemmaConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    return {
        "model_type": MODEL_TYPE,
        "image_token_index": c.image_token_index,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_ids[0] if len(c.eos_token_ids) == 1 else list(c.eos_token_ids),
        "pad_token_id": 0,
        "tie_word_embeddings": c.tied,
        "hidden_size": c.text.hidden_size,
        "projection_dim": c.text.hidden_size,
        "vision_config": {"model_type": "siglip_vision_model", "vision_use_head": False}
        | {"projection_dim": c.text.hidden_size}
        | asdict(c.vision),
        "text_config": gemma_config.config_json(c.text),
    }


@lru_cache(maxsize=8)
def blank(c: PaliGemmaConfig) -> PaliGemma:
    """The weights with a Slot in place of each array."""
    projector = sized(Projector(SLOT, SLOT), {"D": c.text.hidden_size, "E": c.vision.hidden_size})
    return PaliGemma(
        siglip.blank_tower(c.vision), projector, gemma.blank(c.text, c.tied, FIRST_POSITION), c.image_token_index
    )


def hf_parts(c: PaliGemmaConfig) -> tuple[Part, ...]:
    return (
        Part(siglip.HF_VISION, vision_sizes(c.vision), "vision.", "vision_tower.vision_model."),
        Part(HF_PROJECTOR, {"D": c.text.hidden_size, "E": c.vision.hidden_size}),
        Part(gemma.hf_lines(c.text), gemma.sizes(c.text), "text.", "language_model."),
        Part(gemma.HF_HEAD, gemma.sizes(c.text), "text."),
    )


# The output head, which tied checkpoints may lack, the embedding table, and the convolution of the vision tower.
HEAD, TABLE, PATCHES = (
    name_of(path, hf_parts(PaliGemmaConfig(VisionConfig(), GemmaConfig())))
    for path in ("text.head", "text.embedding", "vision.embedding.weight")
)
# Some checkpoints hold SigLIP's pooling head.
UNUSED = re.compile(rf"vision_tower\.vision_model\.head\..*|{BUFFERS}")
NAMES = Names(paligemma_name, "multi_modal_projector.", UNUSED, TABLE, HEAD)


@lru_cache(maxsize=8)
def hf_layout(c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The names that the files on the hub have."""
    return make_layout(blank(c), *hf_parts(c))


def npz_layout(c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The names of big_vision's files, without the `params/` that some have before every name. The head is tied."""
    return make_layout(
        blank(replace(c, tied=True)),
        Part(siglip.NPZ_VISION, vision_sizes(c.vision), "vision.", "img/"),
        Part(NPZ_PROJECTOR, {"D": c.text.hidden_size, "E": c.vision.hidden_size}),
        Part(gemma.npz_lines(c.text), gemma.sizes(c.text), "text.", "llm/"),
    )


def layout_of(tensors: Mapping[str, Shaped], c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The layout of tensors that may include a head although the config says that it is tied."""
    return hf_layout(replace(c, tied=c.tied and HEAD not in tensors))


def read_tensors(model: Path, c: PaliGemmaConfig) -> dict[str, Array]:
    """A model's tensors by the names that the files on the hub have, mapped and checked.

    Every tensor that the config asks for must exist with its shape, and no other may: a checkpoint that almost fits
    would run and give wrong answers. BadModel as for `by_saved_name`, `Layout.check`, `readable` and `open_model`.
    """
    tensors = by_saved_name(open_model(model), model, NAMES)
    check_head(tensors, c.tied, NAMES, model)
    patches = tensors.get(PATCHES)
    if isinstance(patches, np.ndarray) and is_channels_last(patches.shape, c.vision, model):
        tensors[PATCHES] = patches.transpose(0, 3, 1, 2)
    gemma.check_family(tensors, c.text, "language_model.", model)
    layout_of(tensors, c).check(tensors, model)
    return readable(tensors)


def is_channels_last(shape: tuple[int, ...], c: VisionConfig, model: Path) -> bool:
    """Whether patches are stored [out, h, w, in], as MLX stores them.

    The shape tells; where both orders have the same shape, a file that MLX wrote says so in its metadata.
    """
    size, channels = c.patch_size, c.num_channels
    if shape != (c.hidden_size, size, size, channels):
        return False
    return size != channels or any(open_any(file)[1].get("format") == "mlx" for file in weight_files(model))


def weights(tensors: Mapping[str, Array], c: PaliGemmaConfig, vectors: np.dtype = FLOAT32) -> PaliGemma:
    """The weights, from tensors by the names on the hub; norms, biases and positions as `vectors`."""
    return layout_of(tensors, c).fill(tensors, vectors)


def with_vocabulary(c: PaliGemmaConfig, rows: int) -> PaliGemmaConfig:
    """The config of the same model with another number of rows in its embedding table."""
    return replace(c, text=replace(c.text, vocab_size=rows))


def names_of(p: PaliGemma, c: PaliGemmaConfig) -> dict[str, str]:
    """The names that the files on the hub have, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(replace(c, tied=p.text.head is None)).stored}


def family(c: PaliGemmaConfig) -> Family:
    """What the tokenizer of the model has beside the files of its folder."""
    return paligemma_family(c.image_token_index)


def footprint(c: PaliGemmaConfig, run: Run) -> Footprint:
    """The memory for a run that answers all prompts at the same time, their pictures before anything else."""
    v = c.vision
    pixels, patches = run.pictures * 3 * v.image_size**2, run.pictures * v.num_patches
    active = rows_at_a_time(run.pictures, v.num_patches)
    tower = pixels + patches * (2 * v.hidden_size + c.text.hidden_size)
    tower += active * (2 * v.hidden_size + 2 * v.intermediate_size)
    needed = gemma.footprint(blank(c).text, c.text, run, tower)
    return replace(needed, caches=needed.caches + pictures_kept(c, run.itemsize) * feature_bytes(c, run.itemsize))


# The features of so many pictures are kept for later questions, at most, and so many bytes of them.
MOST_PICTURES_KEPT, MOST_FEATURE_BYTES = 16, 1 << 27


def pictures_kept(c: PaliGemmaConfig, itemsize: int) -> int:
    """Of how many pictures a model keeps the features."""
    return max(1, min(MOST_PICTURES_KEPT, MOST_FEATURE_BYTES // feature_bytes(c, itemsize)))


def feature_bytes(c: PaliGemmaConfig, itemsize: int) -> int:
    """What the features of one picture take."""
    return c.vision.num_patches * c.text.hidden_size * itemsize


def shortest_run(c: PaliGemmaConfig, weights: int, itemsize: int) -> Run:
    """One picture and one token, with so many bytes of weights."""
    return Run(weights, itemsize, 1, [c.vision.num_patches])
