"""PaliGemma on disk: config.json, the names of its tensors, and the memory that a run needs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

from npgemma.checkpoints import gemma, siglip
from npgemma.checkpoints.footprint import Footprint, Run
from npgemma.checkpoints.gemma import GemmaConfig
from npgemma.checkpoints.layout import Layout, Part, make_layout, name_of, table
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.errors import BadModel
from npgemma.io.model_folder import member
from npgemma.io.safetensors import open_model
from npgemma.io.strict_json import Section, read_json
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
# Tensors that some checkpoints hold and PaliGemma does not use.
NOT_USED = re.compile(r"vision_tower\.head\..*|.*\.position_ids|.*\.rotary_emb\.inv_freq")


@dataclass(frozen=True)
class PaliGemmaConfig:
    """Vision tower, decoder, whether the head is the embedding table, and the tokens that the processor needs."""

    vision: SiglipConfig
    text: GemmaConfig
    tied: bool = True
    image_token_index: int = 257152
    bos_token_id: int = 2
    eos_token_ids: tuple[int, ...] = (1,)


def read_config(folder: Path) -> PaliGemmaConfig:
    """The config of a model folder. BadModel, with file and key, for a value that npgemma cannot compute.

    The hub's configs are sparse: they leave out values that equalled a default of transformers when they were written.
    A missing key has PaliGemma's value, which is not always today's default in transformers.
    """
    path = member(folder, "config.json")
    return parse(Section(read_json(path), str(path)))


def parse(s: Section) -> PaliGemmaConfig:
    """The config of the whole config.json. BadModel as for `read_config`."""
    if s.values.get("model_type") != "paligemma":
        raise BadModel(f"{s.where}: model_type is {s.values.get('model_type')!r}, not 'paligemma'")
    vision, text = siglip.read(s.section("vision_config")), gemma.read(s.section("text_config"))
    d = PaliGemmaConfig(vision, text)
    return PaliGemmaConfig(
        vision=vision,
        text=text,
        tied=s.flag("tie_word_embeddings", d.tied),
        # may be beyond the vocabulary: the image token is never looked up, and some models have no row for it
        image_token_index=s.token("image_token_index", d.image_token_index, 1 << 24),
        bos_token_id=s.token("bos_token_id", d.bos_token_id, text.vocab_size - 1),
        eos_token_ids=s.tokens("eos_token_id", d.eos_token_ids[0], text.vocab_size - 1),
    )


def config_json(c: PaliGemmaConfig) -> dict[str, object]:
    """The content of config.json for Hugging Face."""
    return {
        "model_type": "paligemma",
        "image_token_index": c.image_token_index,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": c.eos_token_ids[0],
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


def saved_name(name: str) -> str:
    """A name as transformers 5 saves it, from any of the four spellings that its releases have written.

    hub files           language_model.model.layers.0.…     vision_tower.vision_model.encoder.…
    in memory, 4.52     model.language_model.layers.0.…     model.vision_tower.vision_model.encoder.…
    in memory, 5.6      model.language_model.layers.0.…     model.vision_tower.encoder.…
    saved by 5.x        language_model.model.layers.0.…     vision_tower.encoder.…
    """
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", name)
    name = re.sub(r"^language_model\.lm_head\.", "lm_head.", name)
    return re.sub(r"^language_model\.(?!model\.)", "language_model.model.", name)


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
    would run and give wrong answers. BadModel as for `Layout.check` and `open_model`.
    """
    tensors: dict[str, Array] = {}
    spelled: dict[str, str] = {}
    for stored, array in open_model(model).items():
        name = saved_name(stored)
        if NOT_USED.fullmatch(name):
            continue
        if name in tensors:
            raise BadModel(f"{model}: {spelled[name]!r} and {stored!r} are two spellings of the same tensor")
        tensors[name], spelled[name] = array, stored
    layout_of(tensors, c).check(tensors, model)
    return tensors


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
