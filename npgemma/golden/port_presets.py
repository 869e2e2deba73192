"""The mappings for ports of PaliGemma 1: keras-hub, mlx-vlm, hkproj/pytorch-paligemma and big_vision.

A line of a table says: name in the port, name of the tap, and the change if there is one (see mapping_file). `{i}` is
the number of a layer, and `*` is anything; a tensor without `{i}` in the port's name holds all layers. What a port
computes in a step of decoding has the same name after `step1.`, `steps.1.` or `decode_1.`. Names that hold what another
one holds are ignored.

    keras-hub   the path of each layer without `pali_gemma_decoder`, and what a call of it is given or returns
    mlx-vlm     the path of each module, and `inputs_embeds`, `attention_mask_4d`, `cache.{i}.keys` of the run
    hkproj      the path of each module (forward hooks), and `inputs_embeds`, `position_ids`, `attention_mask`
    big_vision  the keys of the `out` that a call returns, and the variables of `cache`, flattened with "/"
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from npgemma.errors import BadGolden
from npgemma.golden.file import Golden
from npgemma.golden.mapping import EACH, NameMap
from npgemma.golden.mapping_file import mapping_of

Line = tuple[str, str] | tuple[str, str, dict[str, Any]]
STEP = r"(?:steps?[._/]?|decode_)(?P<n>\d+)[./]"
CHANNELS_LAST = {"transpose": [0, 3, 1, 2]}
HEADS_FIRST = {"transpose": [0, 2, 1, 3]}


_KERAS_VISION = "pali_gemma_vit.image_encoder"
_KERAS_BLOCK = f"{_KERAS_VISION}.encoder_block_{{i}}"
KERAS_HUB: tuple[Line, ...] = (
    ("images", "pixel_values", CHANNELS_LAST),
    (f"{_KERAS_VISION}.encoder_embeddings.embedding_conv", "vision.embedding.patches"),
    (f"{_KERAS_VISION}.encoder_embeddings", "vision.embedding"),
    (f"{_KERAS_BLOCK}.layer_norm_1", "vision.layers.{i}.attn_norm"),
    (f"{_KERAS_BLOCK}.multi_head_attention.query_proj", "vision.layers.{i}.attn.q"),
    (f"{_KERAS_BLOCK}.multi_head_attention.key_proj", "vision.layers.{i}.attn.k"),
    (f"{_KERAS_BLOCK}.multi_head_attention.value_proj", "vision.layers.{i}.attn.v"),
    (f"{_KERAS_BLOCK}.multi_head_attention.extra", "vision.layers.{i}.attn.pictures.0.probs"),
    (f"{_KERAS_BLOCK}.multi_head_attention.out_proj", "vision.layers.{i}.attn.out"),
    (f"{_KERAS_BLOCK}.layer_norm_2", "vision.layers.{i}.mlp_norm"),
    (f"{_KERAS_BLOCK}.mlp_dense_1", "vision.layers.{i}.mlp.fc1"),
    (f"{_KERAS_BLOCK}.mlp_dense_2", "vision.layers.{i}.mlp.out"),
    (_KERAS_BLOCK, "vision.layers.{i}.out"),
    (f"{_KERAS_VISION}.encoder_layer_norm", "vision.norm"),
    ("pali_gemma_vit", "projector"),
    ("token_ids", "input_ids"),
    ("decoder_block_{i}.pre_attention_norm", "text.layers.{i}.attn_norm"),
    ("decoder_block_{i}.attention.query", "text.layers.{i}.attn.q"),
    ("decoder_block_{i}.attention.key", "text.layers.{i}.attn.k"),
    ("decoder_block_{i}.attention.value", "text.layers.{i}.attn.v"),
    ("decoder_block_{i}.attention.q_rot", "text.layers.{i}.attn.q_rope"),
    ("decoder_block_{i}.attention.k_rot", "text.layers.{i}.attn.k_rope"),
    ("decoder_block_{i}.attention.softmax*", "text.layers.{i}.attn.segments.0.probs"),
    ("decoder_block_{i}.attention.attention_output", "text.layers.{i}.attn.out"),
    ("decoder_block_{i}.pre_ffw_norm", "text.layers.{i}.mlp_norm"),
    ("decoder_block_{i}.ffw_gating", "text.layers.{i}.mlp.gate"),
    ("decoder_block_{i}.ffw_gating_2", "text.layers.{i}.mlp.up"),
    ("decoder_block_{i}.ffw_linear", "text.layers.{i}.mlp.out"),
    ("decoder_block_{i}", "text.layers.{i}.out"),
    ("kv_cache", "text.layers.{i}.attn.segments.0.keys", {"slice": [0, EACH, 0]}),
    ("kv_cache", "text.layers.{i}.attn.segments.0.values", {"slice": [0, EACH, 1]}),
    ("final_normalization", "text.norm"),
    ("logits", "logits"),
)

# The modules of transformers, which mlx-vlm and hkproj have in common.
_TOWER = "vision_tower.vision_model"
_TOWER_LAYER = f"{_TOWER}.encoder.layers.{{i}}"
_LAYER = "language_model.model.layers.{i}"
MODULES: tuple[Line, ...] = (
    ("pixel_values", "pixel_values"),
    (f"{_TOWER}.embeddings", "vision.embedding"),
    (f"{_TOWER_LAYER}.layer_norm1", "vision.layers.{i}.attn_norm"),
    *((f"{_TOWER_LAYER}.self_attn.{x}_proj", f"vision.layers.{{i}}.attn.{x}") for x in "qkv"),
    (f"{_TOWER_LAYER}.self_attn.out_proj", "vision.layers.{i}.attn.out"),
    (f"{_TOWER_LAYER}.layer_norm2", "vision.layers.{i}.mlp_norm"),
    (f"{_TOWER_LAYER}.mlp.fc1", "vision.layers.{i}.mlp.fc1"),
    (f"{_TOWER_LAYER}.mlp.fc2", "vision.layers.{i}.mlp.out"),
    (_TOWER_LAYER, "vision.layers.{i}.out"),
    (f"{_TOWER}.post_layernorm", "vision.norm"),
    ("multi_modal_projector", "projector"),
    ("input_ids", "input_ids"),
    ("inputs_embeds", "text.embedding"),
    (f"{_LAYER}.input_layernorm", "text.layers.{i}.attn_norm"),
    *((f"{_LAYER}.self_attn.{x}_proj", f"text.layers.{{i}}.attn.{x}") for x in "qkv"),
    (f"{_LAYER}.self_attn.o_proj", "text.layers.{i}.attn.out"),
    (f"{_LAYER}.post_attention_layernorm", "text.layers.{i}.mlp_norm"),
    (f"{_LAYER}.mlp.gate_proj", "text.layers.{i}.mlp.gate"),
    (f"{_LAYER}.mlp.up_proj", "text.layers.{i}.mlp.up"),
    (f"{_LAYER}.mlp.down_proj", "text.layers.{i}.mlp.out"),
    (_LAYER, "text.layers.{i}.out"),
    ("language_model.model.norm", "text.norm"),
)
MLX_VLM: tuple[Line, ...] = (
    *MODULES,
    (f"{_TOWER}.embeddings.patch_embedding", "vision.embedding.patches"),
    (f"{_TOWER_LAYER}.mlp.activation_fn", "vision.layers.{i}.mlp.hidden"),
    ("attention_mask_4d", "prompts.0.mask"),
    ("language_model.model.embed_tokens", "steps.{n}.text.embedding"),  # the prompt's are without the picture
    (f"{_LAYER}.self_attn.rope", "text.layers.{i}.attn.k_rope", HEADS_FIRST),  # called for q, then for k
    (f"{_LAYER}.mlp.activation", "text.layers.{i}.mlp.act"),
    ("cache.{i}.keys", "text.layers.{i}.attn.segments.0.keys", HEADS_FIRST),
    ("cache.{i}.values", "text.layers.{i}.attn.segments.0.values", HEADS_FIRST),
    ("logits", "logits"),
    ("generated", "generated_ids"),
)
HKPROJ: tuple[Line, ...] = (
    *MODULES,
    (f"{_TOWER}.embeddings.patch_embedding", "vision.embedding.patches", {"transpose": [0, 2, 3, 1]}),
    (f"{_TOWER_LAYER}.self_attn.1", "vision.layers.{i}.attn.pictures.0.probs", {"slice": [0]}),
    ("attention_mask", "prompts.0.mask"),
    ("position_ids", "positions"),
    (f"{_LAYER}.self_attn.1", "text.layers.{i}.attn.segments.0.probs", {"slice": [0]}),
    ("kv_cache.key_cache.{i}", "text.layers.{i}.attn.segments.0.keys", HEADS_FIRST),
    ("kv_cache.value_cache.{i}", "text.layers.{i}.attn.segments.0.values", HEADS_FIRST),
    ("language_model.lm_head", "logits"),
)
BIG_VISION: tuple[Line, ...] = (
    ("image", "pixel_values", CHANNELS_LAST),
    ("text", "input_ids"),
    ("img/stem", "vision.embedding.patches"),
    ("img/with_posemb", "vision.embedding"),
    ("img/encoder/block0{i}/sa", "vision.layers.{i}.attn.out"),
    ("img/encoder/block0{i}/+sa", "vision.layers.{i}.mid"),
    ("img/encoder/block0{i}/mlp", "vision.layers.{i}.mlp.out"),
    ("img/encoder/block0{i}/+mlp", "vision.layers.{i}.out"),
    ("img/encoded", "vision.norm"),
    ("img/zimg", "projector"),
    ("attn_mask", "prompts.0.mask"),
    ("llm/pre_logits", "text.norm"),
    ("llm/logits", "logits"),
    ("logits", "steps.{n}.logits"),
    ("cache/llm/layers/attn/k_cache", "text.layers.{i}.attn.segments.0.keys", {"slice": [0, EACH]}),
    ("cache/llm/layers/attn/v_cache", "text.layers.{i}.attn.segments.0.values", {"slice": [0, EACH]}),
)


# By preset: the table, globs of names that hold what another name holds, and globs of taps that a dump may lack.
PORTS: dict[str, tuple[tuple[Line, ...], tuple[str, ...], tuple[str, ...]]] = {
    "keras-hub": (
        KERAS_HUB,
        (
            *("pali_gemma_vit.image_*", "*.multi_head_attention", "*.multi_head_attention.dropout", "image_embeddings"),
            *("*token_embedding", "*.attention", "*.rotary_embedding*", "*.extra"),
        ),
        (),
    ),
    "mlx-vlm": (
        MLX_VLM,
        (
            *("vision_tower", "*.vision_model", "*.encoder", "*.position_embedding", "*.self_attn", "*.mlp"),
            *("*.linear", "*language_model.model", "*.embed_tokens"),
        ),
        (),
    ),
    "hkproj": (
        HKPROJ,
        (
            *("vision_tower", "*.vision_model", "*.encoder", "*.position_embedding", "*.self_attn*", "*.mlp"),
            *("*.linear", "*language_model", "*language_model.model", "*.embed_tokens", "*.rotary_emb*"),
            *("step*.vision_tower*", "step*.multi_modal_projector*", "step*.pixel_values", "step*.attention_mask"),
        ),
        ("*.probs", "*.keys", "*.values", "*positions", "*.embedding", "*.mask"),
    ),
    "big_vision": (
        BIG_VISION,
        (
            *("img/head_input", "img/*logits*", "img/encoder/pre_ln", "text_logits", "text_tokens", "*/idx", "logits"),
            *("*cache/seq_len", "*cache/cache_begin", "*cache/cache_end"),
        ),
        ("text.norm", "steps.*", "*.keys", "*.values"),
    ),
}


def port_preset(name: str, golden: Golden) -> NameMap:
    """The mapping with this name, a key of PORTS. BadGolden if `golden` was not recorded from a PaliGemma 1."""
    table, ignore, absent = PORTS[name]
    policy = golden.metadata["policy"]
    if policy.get("positions") != "from 1" or "post_norms" in policy:
        raise BadGolden(f"the preset {name!r} is for PaliGemma 1, and the golden file is of another model; use --map")
    lines = [*table, *(of_run(golden) if name == "big_vision" else ())]
    rules = merged(rule for line in lines for rule in rules_of_line(*line))
    named = [pattern_of(part["ours"]) for rule in rules for part in rule["ours"]]
    lacking = [tap for tap in golden.taps if not any(pattern.fullmatch(tap) for pattern in named)]
    return mapping_of({"rules": rules, "ignore": [*ignore], "absent": [*absent, *lacking]}, f"preset {name}")


def of_run(golden: Golden) -> Iterator[Line]:
    """The lines of big_vision that depend on the depth of the decoder and on where the text starts."""
    layers = (re.match(r"text\.layers\.(\d+)\.", tap) for tap in golden.taps)
    yield "llm/encoded", f"text.layers.{max((int(match[1]) for match in layers if match), default=0)}.out"
    ids = golden.truth.get("prompts.0.input_ids")
    if ids is not None:
        yield "llm/ztxt", "text.embedding", {"rows": [int((ids == ids[0]).sum()), None]}


def pattern_of(ours: str) -> re.Pattern[str]:
    """What matches the taps that a rule may name."""
    return re.compile(r"\d+".join(map(re.escape, re.split(r"\\g<\w+>|\{i\}", ours))))


def rules_of_line(theirs: str, ours: str, change: Mapping[str, Any] = MappingProxyType({})) -> Iterator[dict[str, Any]]:
    """The rules that a line of a table stands for: in the prefill, and in a step if the decoder computes it."""
    pattern = re.escape(theirs).replace(r"0\{i\}", r"0*\{i\}").replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\*", ".*")
    ours = ours.replace("{i}", r"\g<i>") if "{i}" in theirs else ours
    if ours.startswith("steps."):
        yield {"theirs": STEP + pattern, "ours": ours.replace("{n}", r"\g<n>"), **change}
        return
    yield {"theirs": pattern, "ours": f"prompts.0.{ours}" if ours == "input_ids" else ours, **change}
    if re.match(r"text\.|logits|input_ids|positions", ours):
        yield {"theirs": STEP + pattern, "ours": rf"steps.\g<n>.{ours}", **change}


def merged(rules: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rules with those for the same names joined to one, which has a list of taps."""
    found: dict[str, dict[str, Any]] = {}
    for rule in rules:
        theirs = rule.pop("theirs")
        found.setdefault(theirs, {"theirs": theirs, "ours": []})["ours"].append(rule)
    return [*found.values()]
