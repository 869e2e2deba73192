"""The mappings in the package, in the form of mapping files (see mapping). Each was checked with real dumps.

`transformers` is for dumps of forward hooks on the modules of transformers' PaliGemma, as tools/dump_transformers.py
writes them; `transformers-debugger` is for folders that its model_addition_debugger_context(use_repr=False) writes.
"""

from typing import Any

from npgemma.golden.mapping import NameMap, mapping_of

_STEP = r"(steps\.\d+\.)?"
_VISION = r"model\.vision_tower\.(?:vision_model\.)?"
_VISION_LAYER = _VISION + r"encoder\.layers\.(\d+)"
_TEXT = _STEP + r"model\.language_model\."
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
    "post_attention_layernorm": "mlp_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.act_fn": "mlp.act",
    "mlp.down_proj": "mlp.out",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.out",
}


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
        {"theirs": _STEP + "lm_head", "ours": r"\1logits", "slice": [0, [-1, None]]},
    ]


def _inputs(of: str) -> list[dict[str, Any]]:
    """Rules for tensors that are only inputs of modules, not outputs; `of` ends the names of inputs."""
    return [
        {"theirs": _VISION_LAYER + r"\.layer_norm2" + of, "ours": r"vision.layers.\1.mid"},
        {"theirs": _VISION_LAYER + r"\.self_attn\.out_proj" + of, "ours": r"vision.layers.\1.attn.heads"},
        {"theirs": _TEXT_LAYER + r"\.post_attention_layernorm" + of, "ours": r"\1text.layers.\2.mid"},
        {"theirs": _TEXT_LAYER + r"\.self_attn\.o_proj" + of, "ours": r"\1text.layers.\2.attn.heads"},
        {"theirs": _TEXT_LAYER + r"\.mlp\.down_proj" + of, "ours": r"\1text.layers.\2.mlp.hidden"},
    ]


_MASK = {"ours": "prompts.0.mask", "slice": [0, 0]}
# Taps that no module of transformers returns, or not with every attention; they are compared if they are dumped.
_INSIDE = [
    *("pictures.*", "generated_ids", "*text.scale", "*.dots", "*.scores", "*.exp", "*.probs", "*.keys", "*.values"),
    *("*_rope", "*_rope.*", "*prompts.0.mask", "*positions"),
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
        {"theirs": "attention_mask", **_MASK},
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
        *("*.embed_tokens", "steps.*.attention_mask", "model.language_model", "model.vision_tower", "model"),
        *("model.vision_tower.vision_model", "*.encoder"),
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
    ],
    "ignore": ["*.inputs.*", "*.rotary_emb.*", "*.position_embedding", "*.embed_tokens", "outputs.*", "inputs.*"],
    # the debugger sees a single forward pass, and not the output of the last layer
    "absent": [*_INSIDE, "steps.*", "*.layers.*.out"],
}

PRESETS: dict[str, NameMap] = {
    "transformers": mapping_of(TRANSFORMERS, "transformers"),
    "transformers-debugger": mapping_of(TRANSFORMERS_DEBUGGER, "transformers-debugger"),
}
