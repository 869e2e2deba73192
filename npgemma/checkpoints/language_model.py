"""Gemma 1, 2 and 3 as language models on disk: config.json, the names of their tensors, and the memory of a run."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from npgemma.checkpoints import gemma, gemma_config
from npgemma.checkpoints.config_keys import check_common
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.gemma_config import GEMMA_3, LANGUAGE_MODELS, GemmaConfig
from npgemma.checkpoints.generation_config import read_end_tokens
from npgemma.checkpoints.layout import FLOAT32, Layout, Part, Shaped, make_layout, name_of
from npgemma.checkpoints.names import BUFFERS, Names, by_saved_name, check_head, language_model_name
from npgemma.errors import BadModel
from npgemma.io.added_tokens import GEMMAS, Family
from npgemma.io.model_folder import member
from npgemma.io.safetensors import open_model, readable
from npgemma.io.strict_json import Section, read_section, words
from npgemma.layers.shapes import Array
from npgemma.models.gemma import Decoder

# The model_type of Gemma 3 with a vision tower, whose decoder is read and run alone.
WITH_VISION = "gemma3"
# Keys of such a config that do not matter to the decoder.
VISION_KEYS = words("""
    vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index image_token_id
""")


@dataclass(frozen=True)
class LanguageModelConfig:
    """Decoder, whether the head is the embedding table, and the tokens that begin and end a text."""

    text: GemmaConfig
    tied: bool = True
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)


def read_config(folder: Path) -> LanguageModelConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute.

    A missing key has transformers' default for the family.
    """
    return read_sections(folder)[0]


def read_sections(folder: Path) -> tuple[LanguageModelConfig, dict[str, Section]]:
    """The config of a model folder, and the files that it was read from. BadModel as for `read_config`."""
    s = read_section(member(folder, "config.json"))
    config = parse(s)
    sections = (s, s.section("text_config")) if s.get("model_type") == WITH_VISION else (s,)
    ends, generation = read_end_tokens(folder, sections, config.eos_token_ids, config.text.vocab_size)
    return replace(config, eos_token_ids=ends), {"config.json": s} | generation


def parse(s: Section) -> LanguageModelConfig:
    """The config of the whole config.json. BadModel as for `read_config`."""
    inner = s
    if s.get("model_type") == WITH_VISION:
        check_common(s)
        s.ignore(VISION_KEYS)
        s.ignore(gemma_config.HARMLESS)
        inner = s.section("text_config")
    text = gemma_config.read(inner, {GEMMA_3.model_type: GEMMA_3} if inner is not s else LANGUAGE_MODELS)
    if inner.get("use_bidirectional_attention"):
        what = "a model that embeds texts and does not write them, which npgemma does not support"
        raise BadModel(f"{inner.where}: use_bidirectional_attention is set: this is {what}")
    if "Classification" in str(kind := s.get("architectures")):
        raise BadModel(
            f"{s.where}: architectures is {kind}: this model classifies texts, which npgemma does not support"
        )
    d = LanguageModelConfig(text)
    bos, eos = (inner if s.get(key) is None else s for key in ("bos_token_id", "eos_token_id"))
    return LanguageModelConfig(
        text=text,
        tied=s.flag("tie_word_embeddings", d.tied),
        bos_token_id=bos.token("bos_token_id", d.bos_token_id, text.vocab_size - 1),
        eos_token_ids=eos.tokens("eos_token_id", d.eos_token_ids, text.vocab_size - 1),
    )


def config_json(c: LanguageModelConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    return gemma_config.config_json(c.text) | {
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_ids[0] if len(c.eos_token_ids) == 1 else list(c.eos_token_ids),
        "pad_token_id": 0,
        "tie_word_embeddings": c.tied,
    }


@lru_cache(maxsize=8)
def blank(c: LanguageModelConfig) -> Decoder:
    """The weights with a Slot in place of each array."""
    return gemma.blank(c.text, c.tied)


def hf_parts(c: LanguageModelConfig) -> tuple[Part, ...]:
    return Part(gemma.hf_lines(c.text), gemma.sizes(c.text)), Part(gemma.HF_HEAD, gemma.sizes(c.text))


HEAD, TABLE = (name_of(path, hf_parts(LanguageModelConfig(GEMMA_3))) for path in ("head", "embedding"))
# The decoder of a Gemma 3 with a vision tower has its tower beside it.
UNUSED = re.compile(rf"model\.(vision_tower|multi_modal_projector)\..*|{BUFFERS}")
NAMES = Names(language_model_name, "embed_tokens.", UNUSED, TABLE, HEAD)


@lru_cache(maxsize=8)
def hf_layout(c: LanguageModelConfig) -> Layout[Decoder]:
    """The names that transformers 5 saves."""
    return make_layout(blank(c), *hf_parts(c))


def layout_of(tensors: Mapping[str, Shaped], c: LanguageModelConfig) -> Layout[Decoder]:
    """The layout of tensors that may include a head although the config says that it is tied."""
    return hf_layout(replace(c, tied=c.tied and HEAD not in tensors))


def read_tensors(model: Path, c: LanguageModelConfig) -> dict[str, Array]:
    """A model's tensors by the names that transformers 5 saves, mapped and checked.

    Every tensor that the config asks for must exist with its shape, and no other may. BadModel as for `by_saved_name`,
    `check_head`, `check_family`, `Layout.check`, `readable` and `open_model`.
    """
    tensors = by_saved_name(open_model(model), model, NAMES)
    check_head(tensors, c.tied, NAMES, model)
    gemma.check_family(tensors, c.text, "", model)
    layout_of(tensors, c).check(tensors, model)
    return readable(tensors)


def weights(tensors: Mapping[str, Array], c: LanguageModelConfig, vectors: np.dtype = FLOAT32) -> Decoder:
    """The weights, from tensors by the names that transformers 5 saves; norms as `vectors`."""
    return layout_of(tensors, c).fill(tensors, vectors)


def with_vocabulary(c: LanguageModelConfig, rows: int) -> LanguageModelConfig:
    """The config of the same model with another number of rows in its embedding table."""
    return replace(c, text=replace(c.text, vocab_size=rows))


def names_of(p: Decoder, c: LanguageModelConfig) -> dict[str, str]:
    """The names that transformers 5 saves, by the path of each array of the weights."""
    return {each.leaf.path: each.name for each in hf_layout(replace(c, tied=p.head is None)).stored}


def family(c: LanguageModelConfig) -> Family:
    """What the tokenizer of the model has beside the files of its folder."""
    return GEMMAS[c.text.model_type]


def footprint(c: LanguageModelConfig, run: Run) -> Footprint:
    """The memory for a run that answers all prompts at the same time."""
    return gemma.footprint(blank(c), c.text, run)


def shortest_run(c: LanguageModelConfig, weights: int, itemsize: int) -> Run:
    """One token, with so many bytes of weights."""
    return Run(weights, itemsize, 0, [1])
