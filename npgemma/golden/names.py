"""The table of taps: every name of a run, with its level and its meaning. Its axes come from the run itself.

A test holds a recording against this table, both ways. The steps of decoding speak the same names after `steps.{n}.`;
`{i}` counts layers, `{b}` the pictures, prompts or segments of a run.
"""

import re
from dataclasses import dataclass
from functools import cache

LEVELS = ("io", "blocks", "ops")
STEP = r"(steps\.\d+\.)?"

# One rotation of RoPE, and one attention of one picture or one sequence; both stand at several places below.
ROPE = (
    ("frequencies", "theta^(-2j/H), float64 in every run; J = H/2"),
    ("angle", "position * frequency"),
    ("cos", "cosine of the angle"),
    ("sin", "sine of the angle"),
    ("x_cos", "each number times the cosine of its pair"),
    ("x_sin", "the other number of its pair times the sine, negative in the first half"),
)
ATTEND = (
    ("dots", "q . k of each query head"),
    ("scores", "q . k / sqrt(H), before the mask"),
    ("exp", "exp(score - largest score), 0 where masked"),
    ("probs", "softmax of the scores"),
)


@dataclass(frozen=True)
class TapName:
    """`pattern` is the name with {i}, {b}, {n} for numbers."""

    pattern: str
    level: str
    meaning: str


def row_axes(axes: str) -> tuple[int, ...]:
    """The axes along which tensors are judged row by row: pictures, patches and tokens."""
    return tuple(i for i, letter in enumerate(axes.split()) if letter in "BPT" or (letter == "S" and i == 0))


def _inside(scope: str, level: str, rows: tuple[tuple[str, str], ...]) -> list[TapName]:
    return [TapName(f"{scope}.{name}", level, meaning) for name, meaning in rows]


_VISION = "vision.layers.{i}"
_TEXT = "text.layers.{i}"
_SEGMENT = f"{_TEXT}.attn.segments.{{b}}"

TABLE: tuple[TapName, ...] = (
    TapName("pictures.{b}.resized", "io", "the picture, squashed to a square, 8 bits"),
    TapName("pixel_values", "io", "the pixels in -1 .. 1"),
    TapName("vision.embedding.patches", "ops", "the patch convolution with its bias"),
    TapName("vision.embedding", "blocks", "patches + position table"),
    TapName(f"{_VISION}.attn_norm", "ops", "layer norm before attention"),
    *(TapName(f"{_VISION}.attn.{x}", "ops", f"{x} projection with its bias") for x in "qkv"),
    *_inside(f"{_VISION}.attn.pictures.{{b}}", "ops", ATTEND),
    TapName(f"{_VISION}.attn.heads", "ops", "what each head mixed of the values"),
    TapName(f"{_VISION}.attn.out", "ops", "output projection with its bias"),
    TapName(f"{_VISION}.mid", "ops", "residual stream after attention"),
    TapName(f"{_VISION}.mlp_norm", "ops", "layer norm before the MLP"),
    TapName(f"{_VISION}.mlp.fc1", "ops", "first linear layer with its bias"),
    TapName(f"{_VISION}.mlp.hidden", "ops", "gelu(fc1)"),
    TapName(f"{_VISION}.mlp.out", "ops", "second linear layer with its bias"),
    TapName(f"{_VISION}.out", "blocks", "residual stream after the layer"),
    TapName("vision.norm", "blocks", "last layer norm of the tower"),
    TapName("projector", "io", "image features: the rows that image tokens are replaced with"),
    TapName("prompts.{b}.input_ids", "io", "token ids of the prompt"),
    TapName("prompts.{b}.token_type_ids", "io", "0 for prefix, 1 for suffix"),
    TapName("prompts.{b}.mask", "io", "1 where row t may look at row s"),
    TapName("input_ids", "io", "the token that a step is fed, one a sequence"),
    TapName("positions", "io", "position of each row; the first is 1"),
    TapName("text.scale", "ops", "sqrt(D), which text embeddings are multiplied with"),
    TapName("text.embedding", "blocks", "rows entering the decoder: image features, text scaled by sqrt(D)"),
    TapName(f"{_TEXT}.attn_norm", "ops", "RMS norm before attention"),
    TapName(f"{_TEXT}.attn.q", "ops", "q projection"),
    *_inside(f"{_TEXT}.attn.q_rope", "ops", ROPE),
    TapName(f"{_TEXT}.attn.q_rope", "ops", "q, rotated"),
    TapName(f"{_TEXT}.attn.k", "ops", "k projection"),
    TapName(f"{_TEXT}.attn.v", "ops", "v projection"),
    *_inside(f"{_TEXT}.attn.k_rope", "ops", ROPE),
    TapName(f"{_TEXT}.attn.k_rope", "ops", "k, rotated"),
    TapName(f"steps.{{n}}.{_SEGMENT}.keys", "ops", "the cache after the step: keys, rotated"),
    TapName(f"steps.{{n}}.{_SEGMENT}.values", "ops", "the cache after the step: values"),
    TapName(f"{_SEGMENT}.keys", "blocks", "the cache after the prefill: keys, rotated"),
    TapName(f"{_SEGMENT}.values", "blocks", "the cache after the prefill: values"),
    *_inside(_SEGMENT, "ops", ATTEND),
    TapName(f"{_TEXT}.attn.heads", "ops", "what each head mixed of the values"),
    TapName(f"{_TEXT}.attn.out", "ops", "output projection"),
    TapName(f"{_TEXT}.mid", "ops", "residual stream after attention"),
    TapName(f"{_TEXT}.mlp_norm", "ops", "RMS norm before the MLP"),
    TapName(f"{_TEXT}.mlp.gate", "ops", "gate projection"),
    TapName(f"{_TEXT}.mlp.up", "ops", "up projection"),
    TapName(f"{_TEXT}.mlp.act", "ops", "gelu(gate)"),
    TapName(f"{_TEXT}.mlp.hidden", "ops", "gelu(gate) * up"),
    TapName(f"{_TEXT}.mlp.out", "ops", "down projection"),
    TapName(f"{_TEXT}.out", "blocks", "residual stream after the layer"),
    TapName("text.norm", "blocks", "last RMS norm"),
    TapName("logits", "io", "scores of the token after the last row"),
    TapName("generated_ids", "io", "the likeliest token after each of the logits"),
)


def _regex(entry: TapName) -> re.Pattern[str]:
    pattern = re.sub(r"\\{[ibn]\\}", r"\\d+", re.escape(entry.pattern))
    return re.compile(pattern if entry.pattern.startswith("steps") else STEP + pattern)


_COMPILED = [(_regex(entry), entry) for entry in TABLE]


@cache
def tap_name(name: str) -> TapName:
    """The entry of the table that `name` belongs to. KeyError if there is none."""
    for regex, entry in _COMPILED:
        if regex.fullmatch(name):
            return entry
    raise KeyError(name)


def is_in_level(name: str, level: str) -> bool:
    """Whether a golden file of `level` ('io', 'blocks' or 'ops') holds `name`: each level holds those before it."""
    return LEVELS.index(tap_name(name).level) <= LEVELS.index(level)


def block_of(name: str) -> str:
    """The block that computes a tap: 'text.layers.3', 'projector', 'steps.2.text.layers.0' ...

    A step is a block of its own, since its layers have the weights of the prefill's: what goes wrong there alone is
    the cache, the positions or the mask of a step.
    """
    layer = re.match(STEP + r"(vision|text)\.layers\.\d+", name)
    return layer[0] if layer else re.sub(r"\.patches$", "", name).replace("text.scale", "text.embedding")
