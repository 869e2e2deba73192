"""The table of taps: every name that a run can speak, with its axes, its level and its meaning.

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
    ("frequencies", "J", "theta^(-2j/H), float64 in every run; J = H/2"),
    ("angle", "T J", "position * frequency"),
    ("cos", "T J", "cosine of the angle"),
    ("sin", "T J", "sine of the angle"),
    ("x_cos", "T N H", "each number times the cosine of its pair"),
    ("x_sin", "T N H", "the other number of its pair times the sine, negative in the first half"),
)
ATTEND = (
    ("dots", "N T S", "q . k of each query head"),
    ("scores", "N T S", "q . k / sqrt(H), before the mask"),
    ("exp", "N T S", "exp(score - largest score), 0 where masked"),
    ("probs", "N T S", "softmax of the scores"),
)


@dataclass(frozen=True)
class TapName:
    """`pattern` is the name with {i}, {b}, {n} for numbers; `axes` the letters of its shape, one a size."""

    pattern: str
    axes: str
    level: str
    meaning: str

    @property
    def row_axes(self) -> tuple[int, ...]:
        """The axes along which tensors are judged row by row: pictures, patches and tokens."""
        letters = self.axes.split()
        return tuple(i for i, letter in enumerate(letters) if letter in "BPT" or (letter == "S" and i == 0))


def _inside(scope: str, level: str, rows: tuple[tuple[str, str, str], ...]) -> list[TapName]:
    return [TapName(f"{scope}.{name}", axes, level, meaning) for name, axes, meaning in rows]


_VISION = "vision.layers.{i}"
_TEXT = "text.layers.{i}"
_SEGMENT = f"{_TEXT}.attn.segments.{{b}}"

TABLE: tuple[TapName, ...] = (
    TapName("pictures.{b}.resized", "Y X C", "io", "the picture, squashed to a square, 8 bits"),
    TapName("pixel_values", "B C Y X", "io", "the pixels in -1 .. 1"),
    TapName("vision.embedding.patches", "B P D", "ops", "the patch convolution with its bias"),
    TapName("vision.embedding", "B P D", "blocks", "patches + position table"),
    TapName(f"{_VISION}.attn_norm", "B P D", "ops", "layer norm before attention"),
    *(TapName(f"{_VISION}.attn.{x}", "B P N H", "ops", f"{x} projection with its bias") for x in "qkv"),
    *_inside(f"{_VISION}.attn.pictures.{{b}}", "ops", ATTEND),
    TapName(f"{_VISION}.attn.heads", "B P N H", "ops", "what each head mixed of the values"),
    TapName(f"{_VISION}.attn.out", "B P D", "ops", "output projection with its bias"),
    TapName(f"{_VISION}.mid", "B P D", "ops", "residual stream after attention"),
    TapName(f"{_VISION}.mlp_norm", "B P D", "ops", "layer norm before the MLP"),
    TapName(f"{_VISION}.mlp.fc1", "B P F", "ops", "first linear layer with its bias"),
    TapName(f"{_VISION}.mlp.hidden", "B P F", "ops", "gelu(fc1)"),
    TapName(f"{_VISION}.mlp.out", "B P D", "ops", "second linear layer with its bias"),
    TapName(f"{_VISION}.out", "B P D", "blocks", "residual stream after the layer"),
    TapName("vision.norm", "B P D", "blocks", "last layer norm of the tower"),
    TapName("projector", "B P D", "io", "image features: the rows that image tokens are replaced with"),
    TapName("prompts.{b}.input_ids", "T", "io", "token ids of the prompt"),
    TapName("prompts.{b}.token_type_ids", "T", "io", "0 for prefix, 1 for suffix"),
    TapName("prompts.{b}.mask", "T S", "io", "1 where row t may look at row s"),
    TapName("input_ids", "T", "io", "the token that a step is fed, one a sequence"),
    TapName("positions", "T", "io", "position of each row; the first is 1"),
    TapName("text.scale", "", "ops", "sqrt(D), which text embeddings are multiplied with"),
    TapName("text.embedding", "T D", "blocks", "rows entering the decoder: image features, text scaled by sqrt(D)"),
    TapName(f"{_TEXT}.attn_norm", "T D", "ops", "RMS norm before attention"),
    TapName(f"{_TEXT}.attn.q", "T N H", "ops", "q projection"),
    *_inside(f"{_TEXT}.attn.q_rope", "ops", ROPE),
    TapName(f"{_TEXT}.attn.q_rope", "T N H", "ops", "q, rotated"),
    TapName(f"{_TEXT}.attn.k", "T K H", "ops", "k projection"),
    TapName(f"{_TEXT}.attn.v", "T K H", "ops", "v projection"),
    *_inside(f"{_TEXT}.attn.k_rope", "ops", tuple((name, axes.replace("N", "K"), what) for name, axes, what in ROPE)),
    TapName(f"{_TEXT}.attn.k_rope", "T K H", "ops", "k, rotated"),
    TapName(f"steps.{{n}}.{_SEGMENT}.keys", "S K H", "ops", "the cache after the step: keys, rotated"),
    TapName(f"steps.{{n}}.{_SEGMENT}.values", "S K H", "ops", "the cache after the step: values"),
    TapName(f"{_SEGMENT}.keys", "S K H", "blocks", "the cache after the prefill: keys, rotated"),
    TapName(f"{_SEGMENT}.values", "S K H", "blocks", "the cache after the prefill: values"),
    *_inside(_SEGMENT, "ops", ATTEND),
    TapName(f"{_TEXT}.attn.heads", "T N H", "ops", "what each head mixed of the values"),
    TapName(f"{_TEXT}.attn.out", "T D", "ops", "output projection"),
    TapName(f"{_TEXT}.mid", "T D", "ops", "residual stream after attention"),
    TapName(f"{_TEXT}.mlp_norm", "T D", "ops", "RMS norm before the MLP"),
    TapName(f"{_TEXT}.mlp.gate", "T F", "ops", "gate projection"),
    TapName(f"{_TEXT}.mlp.up", "T F", "ops", "up projection"),
    TapName(f"{_TEXT}.mlp.act", "T F", "ops", "gelu(gate)"),
    TapName(f"{_TEXT}.mlp.hidden", "T F", "ops", "gelu(gate) * up"),
    TapName(f"{_TEXT}.mlp.out", "T D", "ops", "down projection"),
    TapName(f"{_TEXT}.out", "T D", "blocks", "residual stream after the layer"),
    TapName("text.norm", "T D", "blocks", "last RMS norm"),
    TapName("logits", "B V", "io", "scores of the token after the last row"),
    TapName("generated_ids", "T", "io", "the likeliest token after each of the logits"),
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
