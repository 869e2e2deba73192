"""The mappings in the package, in the form of mapping files (see mapping). Each was checked with real dumps.

`transformers` is for dumps of forward hooks on the modules of transformers' PaliGemma or Gemma, or of an encoder (see
encoder_presets), as tools/dump_transformers.py writes them; `transformers-debugger` is for folders that its
model_addition_debugger_context(use_repr=False) writes.

Two names mean different tensors in decoders of Gemma 1 and of later families. post_attention_layernorm is the norm
before the MLP in the first, and in the others the norm of what attention writes; lm_head returns the logits in the
first, and in Gemma 2 what they are before their cap. The policy in a golden file says which of them its model has.
"""

from typing import Any

from npgemma.errors import BadGolden
from npgemma.golden.encoder_presets import ENCODERS
from npgemma.golden.file import Golden
from npgemma.golden.mapping import NameMap
from npgemma.golden.mapping_file import mapping_of
from npgemma.golden.port_presets import PORTS, port_preset

_STEP = r"(steps\.\d+\.)?"
_VISION = r"model\.vision_tower\.(?:vision_model\.)?"
_VISION_LAYER = _VISION + r"encoder\.layers\.(\d+)"
_TEXT = _STEP + r"model\.(?:language_model\.)?"  # this level is PaliGemma's
_TEXT_LAYER = _TEXT + r"layers\.(\d+)"

# The outputs of a layer's modules: the end of the module's name and that of the tap's.
_VISION_MODULES = {
    "layer_norm1": "attn_norm",
    "layer_norm2": "mlp_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.activation_fn": "mlp.hidden",
    "mlp.fc2": "mlp.out",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.out_proj": "attn.out",
}
_TEXT_MODULES = {
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.act_fn": "mlp.act",
    "mlp.down_proj": "mlp.out",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.out",
}
# The other norms of a layer: in a decoder that norms what it adds to the residual stream, and in one that does not.
_POST_NORMS = {
    "post_attention_layernorm": "attn_post_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_post_norm",
}
_NORMS = {"post_attention_layernorm": "mlp_norm"}


def _modules() -> list[dict[str, Any]]:
    """Rules for the outputs of modules."""
    vision = [(_VISION_LAYER + rf"\.{theirs}", rf"vision.layers.\1.{ours}") for theirs, ours in _VISION_MODULES.items()]
    text = [(_TEXT_LAYER + rf"\.{theirs}", rf"\1text.layers.\2.{ours}") for theirs, ours in _TEXT_MODULES.items()]
    layers = [(_VISION_LAYER, r"vision.layers.\1.out"), (_TEXT_LAYER, r"\1text.layers.\2.out")]
    rest = [
        (_VISION + "post_layernorm", "vision.norm"),
        (_TEXT + "norm", r"\1text.norm"),
    ]
    return [
        *({"theirs": theirs, "ours": ours} for theirs, ours in (*vision, *text, *layers, *rest)),
        {"theirs": _VISION + r"embeddings\.patch_embedding", "ours": "vision.embedding.patches"}
        | {"transpose": [0, 2, 3, 1]},
        {"theirs": _TEXT_LAYER + r"\.self_attn\.([qk]_norm)", "ours": r"\1text.layers.\2.attn.\3"}
        | {"transpose": [0, 2, 1, 3]},
    ]


def _inputs(of: str) -> list[dict[str, Any]]:
    """Rules for tensors that are only inputs of modules, not outputs; `of` ends the names of inputs."""
    return [
        {"theirs": _VISION_LAYER + r"\.layer_norm2" + of, "ours": r"vision.layers.\1.mid"},
        {"theirs": _VISION_LAYER + r"\.self_attn\.out_proj" + of, "ours": r"vision.layers.\1.attn.heads"},
        {"theirs": _TEXT_LAYER + r"\.self_attn\.o_proj" + of, "ours": r"\1text.layers.\2.attn.heads"},
        {"theirs": _TEXT_LAYER + r"\.mlp\.down_proj" + of, "ours": r"\1text.layers.\2.mlp.hidden"},
    ]


def _norms(names: dict[str, str], of: str) -> list[dict[str, Any]]:
    """Rules for the outputs of the norms `names`, and for the input of the one before the MLP."""
    before_mlp = next(theirs for theirs, ours in names.items() if ours == "mlp_norm")
    return [
        *({"theirs": _TEXT_LAYER + rf"\.{name}", "ours": rf"\1text.layers.\2.{tap}"} for name, tap in names.items()),
        {"theirs": _TEXT_LAYER + rf"\.{before_mlp}" + of, "ours": r"\1text.layers.\2.mid"},
    ]


def _scores(names: dict[str, str]) -> list[dict[str, Any]]:
    """Rules for the scores of the vocabulary, of which the last row is compared."""
    return [{"theirs": _STEP + name, "ours": rf"\1{tap}", "slice": [0, [-1, None]]} for name, tap in names.items()]


# Taps that no module of transformers returns, or not with every attention; they are compared if they are dumped.
_INSIDE = [
    *("pictures.*", "generated_ids", "*text.scale", "*.dots", "*.scores", "*.over_cap", "*.tanh", "*.capped"),
    *("*.exp", "*.probs", "*.keys", "*.values", "*_rope", "*_rope.*"),
    *("*prompts.0.mask", "*prompts.0.near", "*positions"),
]

TRANSFORMERS = {
    "rules": [
        *_modules(),
        *_inputs(r"\.input"),
        {"theirs": _VISION + "embeddings", "ours": "vision.embedding"},
        {"theirs": r"steps\.(\d+)\.input_ids", "ours": r"steps.\1.input_ids"},
        {"theirs": r"model\.multi_modal_projector", "ours": "projector"},
        {"theirs": "input_ids", "ours": "prompts.0.input_ids"},
        {"theirs": "token_type_ids", "ours": "prompts.0.token_type_ids"},
        {"theirs": "pixel_values", "ours": "pixel_values"},
        {"theirs": _STEP + "position_ids", "ours": r"\1positions"},
        {"theirs": _STEP + "inputs_embeds", "ours": r"\1text.embedding"},
        {"theirs": r"attention_mask(\.full_attention)?", "ours": "prompts.0.mask", "slice": [0, 0]},
        {"theirs": r"attention_mask\.sliding_attention", "ours": "prompts.0.near", "slice": [0, 0]},
        *(
            {
                "theirs": _STEP + rf"past_key_values\.(\d+)\.{theirs}",
                "ours": rf"\1text.layers.\2.attn.segments.0.{ours}",
            }
            | {"transpose": [0, 2, 1, 3]}
            for theirs, ours in (("key", "keys"), ("value", "values"))
        ),
        {"theirs": _TEXT_LAYER + r"\.self_attn\.([qk]_rope)", "ours": r"\1text.layers.\2.attn.\3"}
        | {"transpose": [0, 2, 1, 3]},
        {
            "theirs": _TEXT_LAYER + r"\.self_attn\.probs",
            "ours": r"\1text.layers.\2.attn.segments.0.probs",
            "slice": [0],
        },
        {
            "theirs": _VISION_LAYER + r"\.self_attn\.probs",
            "ours": r"vision.layers.\1.attn.pictures.0.probs",
            "slice": [0],
        },
    ],
    # the same tensors under other names, and tables, which are not activations
    "ignore": [
        *(
            "*.self_attn",
            "*.mlp",
            "*.fc2.input",
            "*.multi_modal_projector.linear",
            "*.rotary_emb*",
            "*.position_embedding",
        ),
        *("*.embed_tokens", "steps.*.attention_mask*", "model.language_model", "model.vision_tower", "model"),
        *("model.vision_tower.vision_model", "*.encoder", "logits", "steps.*.logits"),
        *("*.post_attention_layernorm.input", "*.post_layernorm.input"),
    ],
    "absent": _INSIDE,
}

TRANSFORMERS_DEBUGGER = {
    "rules": [
        *_modules(),
        *_inputs(r"\.inputs\.args\.0"),
        {"theirs": _VISION + r"encoder\.inputs\.kwargs\.inputs_embeds", "ours": "vision.embedding"},
        {"theirs": r"model\.multi_modal_projector\.linear", "ours": "projector"},
        {"theirs": r"inputs\.kwargs\.input_ids", "ours": "prompts.0.input_ids"},
        {"theirs": r"inputs\.kwargs\.token_type_ids", "ours": "prompts.0.token_type_ids"},
        {"theirs": r"inputs\.kwargs\.pixel_values", "ours": "pixel_values"},
        {"theirs": r"model\.language_model\.inputs\.kwargs\.position_ids", "ours": "positions"},
        {"theirs": r"model\.language_model\.inputs\.kwargs\.inputs_embeds", "ours": "text.embedding"},
        {"theirs": r"model\.embed_tokens", "ours": "text.embedding"},  # of a language model
    ],
    "ignore": ["*.inputs.*", "*.position_embedding", "*.embed_tokens", "outputs.*", "inputs.*"],
    # the debugger sees a single forward pass, and not the output of the last layer
    "absent": [*_INSIDE, "steps.*", "*.layers.*.out"],
}

# The mapping of each preset, without what depends on the decoder, and how it ends the name of a module's input.
PRESETS: dict[str, tuple[dict[str, Any], str]] = {
    "transformers": (TRANSFORMERS, r"\.input"),
    "transformers-debugger": (TRANSFORMERS_DEBUGGER, r"\.inputs\.args\.0"),
}


def preset(name: str, golden: Golden) -> NameMap:
    """The mapping with this name, a key of PRESETS or PORTS, for dumps of the model that `golden` was recorded from.

    BadGolden if there is none.
    """
    encoder = golden.metadata["model"].get("type")
    if encoder and name != "transformers":
        raise BadGolden(f"the preset {name!r} is not for a {encoder}; dump it with hooks and use 'transformers'")
    if encoder:
        return mapping_of(ENCODERS[encoder], name)
    if name in PORTS:
        return port_preset(name, golden)
    policy = golden.metadata["policy"]
    found, of = PRESETS[name]
    capped = policy["soft_caps"] and policy["soft_caps"]["logits"]
    norms = _norms(_POST_NORMS if "post_norms" in policy else _NORMS, of)
    scores = _scores({"lm_head": "logits.uncapped", "logits": "logits"} if capped else {"lm_head": "logits"})
    more = ["*logits"] if capped else []  # no module returns them
    rules, absent = [*norms, *scores, *found["rules"]], [*found["absent"], *more]
    return mapping_of(found | {"rules": rules, "absent": absent}, name)
