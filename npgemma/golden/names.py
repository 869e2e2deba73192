"""The table of taps: every name of a run, with its level and its meaning.

Axes are not in the table: they come from a run (record.axes_by_pattern). A test compares the table with a recording, in
both directions. The steps of decoding have the same names after `steps.{n}.`; `{i}` counts layers, `{b}` the pictures,
prompts or segments of a run.
"""

import re
from dataclasses import dataclass
from functools import cache

LEVELS = ("io", "blocks", "ops")
STEP = r"(steps\.\d+\.)?"

# One rotation of RoPE, and the attention of one picture or sequence; the table below has both in several places.
ROPE = (
    ("frequencies", "theta^(-2j/H), float64 in every run; J = H/2"),
    ("angle", "position * frequency"),
    ("cos", "cosine of the angle"),
    ("sin", "sine of the angle"),
    ("x_cos", "each number times the cosine of its pair"),
    ("x_sin", "the other number of its pair times the sine, negated in the first half"),
)
ATTEND = (
    ("dots", "q . k of each query head"),
    ("scores", "q . k / sqrt(H), before the mask"),
    ("exp", "exp(score - largest score), 0 where masked"),
    ("probs", "softmax of the scores"),
)


@dataclass(frozen=True)
class Entry:
    """`pattern` is the name with {i}, {b}, {n} for numbers. `level` is the first level that holds the tap."""

    pattern: str
    level: str
    meaning: str


def row_axes(axes: str) -> tuple[int, ...]:
    """Which axes count rows, the units that are judged one by one: pictures, patches and tokens.

    In "S K H", a cache, S counts tokens; in "N T S", scores, the rows are those of T.
    """
    return tuple(i for i, letter in enumerate(axes.split()) if letter in "BPT" or (letter == "S" and i == 0))


def _inside(scope: str, level: str, rows: tuple[tuple[str, str], ...]) -> list[Entry]:
    return [Entry(f"{scope}.{name}", level, meaning) for name, meaning in rows]


_VISION = "vision.layers.{i}"
_TEXT = "text.layers.{i}"
_SEGMENT = f"{_TEXT}.attn.segments.{{b}}"

TABLE: tuple[Entry, ...] = (
    Entry("pictures.{b}.resized", "io", "the picture, resized to a square, 8 bits"),
    Entry("pixel_values", "io", "the pixels in -1 .. 1"),
    Entry("vision.embedding.patches", "ops", "the patch convolution with its bias"),
    Entry("vision.embedding", "blocks", "patches + position table"),
    Entry(f"{_VISION}.attn_norm", "ops", "layer norm before attention"),
    *(Entry(f"{_VISION}.attn.{x}", "ops", f"{x} projection with its bias") for x in "qkv"),
    *_inside(f"{_VISION}.attn.pictures.{{b}}", "ops", ATTEND),
    Entry(f"{_VISION}.attn.heads", "ops", "probs . values of each head"),
    Entry(f"{_VISION}.attn.out", "ops", "output projection with its bias"),
    Entry(f"{_VISION}.mid", "ops", "residual stream after attention"),
    Entry(f"{_VISION}.mlp_norm", "ops", "layer norm before the MLP"),
    Entry(f"{_VISION}.mlp.fc1", "ops", "first linear layer with its bias"),
    Entry(f"{_VISION}.mlp.hidden", "ops", "gelu(fc1)"),
    Entry(f"{_VISION}.mlp.out", "ops", "second linear layer with its bias"),
    Entry(f"{_VISION}.out", "blocks", "residual stream after the layer"),
    Entry("vision.norm", "blocks", "final layer norm of the tower"),
    Entry("projector", "io", "image features: the rows that replace the image tokens"),
    Entry("prompts.{b}.input_ids", "io", "token ids of the prompt"),
    Entry("prompts.{b}.token_type_ids", "io", "0 for prefix, 1 for suffix"),
    Entry("prompts.{b}.mask", "io", "1 where row t may look at row s"),
    Entry("input_ids", "io", "the input token of a step, one per sequence"),
    Entry("positions", "io", "position of each row; the first is 1"),
    Entry("text.scale", "ops", "sqrt(D), the factor of text embeddings"),
    Entry("text.embedding", "blocks", "the decoder's input: image features, and text embeddings times sqrt(D)"),
    Entry(f"{_TEXT}.attn_norm", "ops", "RMS norm before attention"),
    Entry(f"{_TEXT}.attn.q", "ops", "q projection"),
    *_inside(f"{_TEXT}.attn.q_rope", "ops", ROPE),
    Entry(f"{_TEXT}.attn.q_rope", "ops", "q, rotated"),
    Entry(f"{_TEXT}.attn.k", "ops", "k projection"),
    Entry(f"{_TEXT}.attn.v", "ops", "v projection"),
    *_inside(f"{_TEXT}.attn.k_rope", "ops", ROPE),
    Entry(f"{_TEXT}.attn.k_rope", "ops", "k, rotated"),
    Entry(f"steps.{{n}}.{_SEGMENT}.keys", "ops", "the cache after the step: keys, rotated"),
    Entry(f"steps.{{n}}.{_SEGMENT}.values", "ops", "the cache after the step: values"),
    Entry(f"{_SEGMENT}.keys", "blocks", "the cache after the prefill: keys, rotated"),
    Entry(f"{_SEGMENT}.values", "blocks", "the cache after the prefill: values"),
    *_inside(_SEGMENT, "ops", ATTEND),
    Entry(f"{_TEXT}.attn.heads", "ops", "probs . values of each head"),
    Entry(f"{_TEXT}.attn.out", "ops", "output projection"),
    Entry(f"{_TEXT}.mid", "ops", "residual stream after attention"),
    Entry(f"{_TEXT}.mlp_norm", "ops", "RMS norm before the MLP"),
    Entry(f"{_TEXT}.mlp.gate", "ops", "gate projection"),
    Entry(f"{_TEXT}.mlp.up", "ops", "up projection"),
    Entry(f"{_TEXT}.mlp.act", "ops", "gelu(gate)"),
    Entry(f"{_TEXT}.mlp.hidden", "ops", "gelu(gate) * up"),
    Entry(f"{_TEXT}.mlp.out", "ops", "down projection"),
    Entry(f"{_TEXT}.out", "blocks", "residual stream after the layer"),
    Entry("text.norm", "blocks", "final RMS norm"),
    Entry("logits", "io", "scores of the token after the last row"),
    Entry("generated_ids", "io", "the likeliest token by each of the logits"),
)


def _regex(entry: Entry) -> re.Pattern[str]:
    pattern = re.sub(r"\\{[ibn]\\}", r"\\d+", re.escape(entry.pattern))
    return re.compile(pattern if entry.pattern.startswith("steps") else STEP + pattern)


_COMPILED = [(_regex(entry), entry) for entry in TABLE]


@cache
def _find(name: str) -> Entry | None:
    return next((entry for regex, entry in _COMPILED if regex.fullmatch(name)), None)


def entry_of(name: str) -> Entry:
    """The entry of the table that describes the tap `name`. KeyError for an unknown name."""
    entry = _find(name)
    if entry is None:
        raise KeyError(name)
    return entry


def is_tap(name: str) -> bool:
    """Whether the table has an entry for `name`."""
    return _find(name) is not None


def is_in_level(name: str, level: str) -> bool:
    """Whether a golden file of `level` ('io', 'blocks' or 'ops') holds `name`. Each level includes those before it."""
    return LEVELS.index(entry_of(name).level) <= LEVELS.index(level)


def block_of(name: str) -> str:
    """The block that computes a tap: 'text.layers.3', 'projector', 'steps.2.text.layers.0' ...

    The layers of a step are blocks of their own. They have the same weights as those of the prefill, so a mistake that
    shows only there is in the cache, the positions or the mask of the step.
    """
    layer = re.match(STEP + r"(vision|text)\.layers\.\d+", name)
    return layer[0] if layer else re.sub(r"\.patches$", "", name).replace("text.scale", "text.embedding")
