"""PaliGemma on disk: config.json, the names of its tensors, and the memory that a run needs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import gemma, generation_config, siglip
from npgemma.checkpoints.config_keys import check_common
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.gemma import GemmaConfig
from npgemma.checkpoints.generation_config import GENERATION_CONFIG, read_generation_config
from npgemma.checkpoints.image_processor import read_image_processor
from npgemma.checkpoints.layout import Layout, Part, make_layout, name_of, table
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.checkpoints.spellings import is_used, saved_names
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.pixels import PALIGEMMA, PixelSettings
from npgemma.io.safetensors import open_model
from npgemma.io.strict_json import Section, read_section, words
from npgemma.layers.shapes import Array
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

    vision: SiglipConfig
    text: GemmaConfig
    tied: bool = True
    image_token_index: int = 257152
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)
    pixels: PixelSettings = PALIGEMMA


# Keys that do not matter: transformers takes these two sizes from text_config, and the loss is not computed.
HARMLESS = words("hidden_size vocab_size _vocab_size pad_token_id ignore_index _ignore_index")


def read_config(folder: Path) -> PaliGemmaConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute.

    The hub's configs are sparse: they leave out values that equalled a default of transformers when they were written.
    A missing key has PaliGemma's value, which is not always today's default in transformers.
    """
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[PaliGemmaConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`.

    Only without a generation_config.json are the settings for generation in config.json in force.
    """
    s = read_section(member(folder, "config.json"))
    config, generation = parse(s), read_generation_config(folder)
    pixels, files = read_image_processor(folder, config.vision)
    if generation is None:
        generation_config.check(s)
        generation_config.check(s.section("text_config"))
    for each in (s, s.section("text_config"), s.section("vision_config")):
        each.ignore(generation_config.KEYS)
    ends = config.eos_token_ids
    if generation is not None:
        files[GENERATION_CONFIG] = generation
        ends = generation.tokens("eos_token_id", ends, config.text.vocab_size - 1)
    return replace(config, eos_token_ids=ends, pixels=pixels), {"config.json": s} | files


def parse(s: Section) -> PaliGemmaConfig:
    """The config of the whole config.json. BadModel as for `read_config`."""
    kind = s.get("model_type")
    if kind != "paligemma":
        found = "missing" if kind is None else repr(kind)
        raise BadModel(f"{s.where}: model_type is {found}; npgemma reads models with the model_type 'paligemma'")
    check_common(s)
    s.ignore(HARMLESS)
    tower, inner = s.section("vision_config"), s.section("text_config")
    vision, text = siglip.read(tower), gemma.read(inner)
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
        "model_type": "paligemma",
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
        "text_config": {"model_type": "gemma"} | asdict(c.text),
    }


@lru_cache(maxsize=8)
def blank(c: PaliGemmaConfig) -> PaliGemma:
    """The weights with a Slot in place of each array."""
    projector = sized(Projector(SLOT, SLOT), {"D": c.text.hidden_size, "E": c.vision.hidden_size})
    return PaliGemma(siglip.blank(c.vision), projector, gemma.blank(c.text, c.tied), c.image_token_index)


def hf_parts(c: PaliGemmaConfig) -> tuple[Part, ...]:
    return (
        Part(siglip.HF, siglip.sizes(c.vision), "vision.", "vision_tower."),
        Part(HF_PROJECTOR, {"D": c.text.hidden_size, "E": c.vision.hidden_size}),
        Part(gemma.HF, gemma.sizes(c.text), "text.", "language_model."),
        Part(gemma.HF_HEAD, gemma.sizes(c.text), "text."),
    )


@lru_cache(maxsize=8)
def hf_layout(c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The names that transformers 5 saves."""
    return make_layout(blank(c), *hf_parts(c))


def npz_layout(c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The names of big_vision's files, without the `params/` that some have before every name. The head is tied."""
    return make_layout(
        blank(replace(c, tied=True)),
        Part(siglip.NPZ, siglip.sizes(c.vision), "vision.", "img/"),
        Part(NPZ_PROJECTOR, {"D": c.text.hidden_size, "E": c.vision.hidden_size}),
        Part(gemma.NPZ, gemma.sizes(c.text), "text.", "llm/"),
    )


def resized(c: PaliGemmaConfig, rows: int) -> PaliGemmaConfig:
    """The config with another number of rows in the embedding table."""
    return c if rows == c.text.vocab_size else replace(c, text=replace(c.text, vocab_size=rows))


def head_and_table(c: PaliGemmaConfig) -> tuple[str, str]:
    """The names of the output head, which tied checkpoints lack, and of the embedding table."""
    parts = hf_parts(c)
    return name_of("text.head", parts), name_of("text.embedding", parts)


def layout_of(tensors: Mapping[str, Array], c: PaliGemmaConfig) -> Layout[PaliGemma]:
    """The layout of tensors that may include a head although the config says that it is tied."""
    head, _ = head_and_table(c)
    return hf_layout(replace(c, tied=c.tied and head not in tensors))


def read_tensors(model: Path, c: PaliGemmaConfig) -> dict[str, Array]:
    """A model's tensors by the names that transformers 5 saves, mapped and checked.

    Every tensor that the config asks for must exist with its shape, and no other may: a checkpoint that almost fits
    would run and give wrong answers. A tied head is one tensor with the embedding table, stored under either name. Two
    different ones are used as they are, as in transformers. BadModel as for `Layout.check` and `open_model`.
    """
    stored = open_model(model, is_used)
    tensors = {name: stored[spelled] for name, spelled in saved_names(stored, model).items()}
    head, table = head_and_table(c)
    if c.tied and head in tensors and table not in tensors:
        tensors[table] = tensors.pop(head)
    kernel = name_of("vision.embedding.weight", hf_parts(c))
    expected = hf_layout(c).shapes[kernel]
    if kernel in tensors and tensors[kernel].shape != expected:
        tensors[kernel] = channels_first(tensors[kernel], expected)
    layout_of(tensors, c).check(tensors, model)
    return tensors


def channels_first(x: Array, expected: tuple[int, ...]) -> Array:
    """A convolution's kernel [D C h w], which MLX stores as [D h w C]; another shape stays unchanged."""
    moved = np.moveaxis(x, -1, 1) if x.ndim == 4 else x
    return np.ascontiguousarray(moved) if moved.shape == expected else x


def weights(tensors: Mapping[str, Array], c: PaliGemmaConfig) -> PaliGemma:
    """The weights, from tensors by the names that transformers 5 saves."""
    return layout_of(tensors, c).fill(tensors)


def names_of(p: PaliGemma, c: PaliGemmaConfig) -> dict[str, str]:
    """The names that transformers 5 saves, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(replace(c, tied=p.text.head is None)).stored}


def footprint(c: PaliGemmaConfig, run: Run) -> Footprint:
    """The memory for a run that answers all prompts at the same time.

    Activations peak in an MLP: of the vision tower for all pictures, or of the decoder for all prompts. Logits come on
    top: those of a step and of the step before, one row per answer or `logit_rows`, and one row in float64.
    """
    v, t = c.vision, c.text
    patches, rows, sequences = run.pictures * v.num_patches, sum(run.prompts), run.samples * len(run.prompts)
    pixels = run.pictures * 3 * v.image_size**2
    vision = pixels + patches * (3 * v.hidden_size + 2 * v.intermediate_size + t.hidden_size)
    text = rows * (4 * t.hidden_size + 3 * t.intermediate_size)
    logits = 2 * max(sequences, run.logit_rows) * t.vocab_size * run.itemsize + 4 * 8 * t.vocab_size
    caches = (run.samples * rows + sequences * run.new_tokens) * gemma.cache_numbers(blank(c).text)
    return Footprint(run.weights, caches * run.itemsize, max(vision, text) * run.itemsize + logits)
