"""The taps of PaliGemma and Gemma: every name of a run, with its axes, its level and its meaning.

A test compares the table with recordings of PaliGemma 1 and 2 and of Gemma 3, in both directions. The steps of
decoding have the same names after `steps.{n}.`; `{i}` counts layers, `{b}` the pictures, prompts or segments of a run.
A tap that not every model has names those that do.
"""

from dataclasses import dataclass

# One rotation of RoPE, and the attention of one picture or sequence; the table below has both in several places.
ROPE = (
    ("frequencies", "J", "theta^(-2j/H), float64 in every run; J = H/2"),
    ("angle", "T J", "position * frequency"),
    ("cos", "T J", "cosine of the angle"),
    ("sin", "T J", "sine of the angle"),
    ("x_cos", "T N H", "each number times the cosine of its pair"),
    ("x_sin", "T N H", "the other number of its pair times the sine, negated in the first half"),
)
SCORES = (
    ("dots", "N T S", "q . k of each query head"),
    ("scores", "N T S", "q . k times the scale, which is 1 / sqrt(H) in Gemma 1 and in the tower; before the mask"),
)
SOFTMAX = (
    ("exp", "N T S", "exp(score - largest score), 0 where masked"),
    ("probs", "N T S", "softmax of the scores"),
)


@dataclass(frozen=True)
class Entry:
    """`pattern` is the name with {i}, {b}, {n} for numbers. `level` is the first level that holds the tap."""

    pattern: str
    axes: str
    level: str
    meaning: str


def inside(scope: str, rows: tuple[tuple[str, str, str], ...], heads: str = "N") -> list[Entry]:
    """The entries of `rows` under `scope`, with another letter for the heads."""
    return [Entry(f"{scope}.{name}", axes.replace("N", heads), "ops", meaning) for name, axes, meaning in rows]


_VISION = "vision.layers.{i}"
_TEXT = "text.layers.{i}"
_SEGMENT = f"{_TEXT}.attn.segments.{{b}}"

TABLE: tuple[Entry, ...] = (
    Entry("pictures.{b}.resized", "Y X C", "io", "the picture, resized to a square, 8 bits"),
    Entry("pixel_values", "B C Y X", "io", "the pixels in -1 .. 1"),
    Entry("vision.embedding.patches", "B P D", "ops", "the patch convolution with its bias"),
    Entry("vision.embedding", "B P D", "blocks", "patches + position table"),
    Entry(f"{_VISION}.attn_norm", "B P D", "ops", "layer norm before attention"),
    *(Entry(f"{_VISION}.attn.{x}", "B P N H", "ops", f"{x} projection with its bias") for x in "qkv"),
    *inside(f"{_VISION}.attn.pictures.{{b}}", SCORES + SOFTMAX),
    Entry(f"{_VISION}.attn.heads", "B P N H", "ops", "probs . values of each head"),
    Entry(f"{_VISION}.attn.out", "B P D", "ops", "output projection with its bias"),
    Entry(f"{_VISION}.mid", "B P D", "ops", "residual stream after attention"),
    Entry(f"{_VISION}.mlp_norm", "B P D", "ops", "layer norm before the MLP"),
    Entry(f"{_VISION}.mlp.fc1", "B P F", "ops", "first linear layer with its bias"),
    Entry(f"{_VISION}.mlp.hidden", "B P F", "ops", "gelu(fc1)"),
    Entry(f"{_VISION}.mlp.out", "B P D", "ops", "second linear layer with its bias"),
    Entry(f"{_VISION}.out", "B P D", "blocks", "residual stream after the layer"),
    Entry("vision.norm", "B P D", "blocks", "final layer norm of the tower"),
    Entry("projector", "B P D", "io", "image features: the rows that replace the image tokens"),
    Entry("prompts.{b}.input_ids", "T", "io", "token ids of the prompt"),
    Entry("prompts.{b}.token_type_ids", "T", "io", "0 for prefix, 1 for suffix"),
    Entry("prompts.{b}.mask", "T S", "io", "1 where row t may look at row s"),
    Entry("prompts.{b}.near", "T S", "io", "the same in layers with a window; Gemma 2, 3"),
    Entry("input_ids", "T", "io", "the input token of a step, one per sequence"),
    Entry("positions", "T", "io", "position of each row; the first is 1 in PaliGemma, 0 in a language model"),
    Entry("text.scale", "", "ops", "sqrt(D), the factor of text embeddings"),
    Entry("text.embedding", "T D", "blocks", "the decoder's input: image features, and text embeddings times sqrt(D)"),
    Entry(f"{_TEXT}.attn_norm", "T D", "ops", "RMS norm before attention"),
    Entry(f"{_TEXT}.attn.q", "T N H", "ops", "q projection"),
    Entry(f"{_TEXT}.attn.q_norm", "T N H", "ops", "RMS norm of each head of q; Gemma 3"),
    *inside(f"{_TEXT}.attn.q_rope", ROPE),
    Entry(f"{_TEXT}.attn.q_rope", "T N H", "ops", "q, rotated"),
    Entry(f"{_TEXT}.attn.k", "T K H", "ops", "k projection"),
    Entry(f"{_TEXT}.attn.k_norm", "T K H", "ops", "RMS norm of each head of k; Gemma 3"),
    Entry(f"{_TEXT}.attn.v", "T K H", "ops", "v projection"),
    *inside(f"{_TEXT}.attn.k_rope", ROPE, heads="K"),
    Entry(f"{_TEXT}.attn.k_rope", "T K H", "ops", "k, rotated"),
    Entry(f"steps.{{n}}.{_SEGMENT}.keys", "S K H", "ops", "all keys so far, rotated; with a window, the last of them"),
    Entry(f"steps.{{n}}.{_SEGMENT}.values", "S K H", "ops", "all values so far; with a window, the last of them"),
    Entry(f"{_SEGMENT}.keys", "S K H", "blocks", "the keys of the prompt, rotated: the cache after the prefill"),
    Entry(f"{_SEGMENT}.values", "S K H", "blocks", "the values of the prompt: the cache after the prefill"),
    *inside(_SEGMENT, SCORES),
    Entry(f"{_SEGMENT}.over_cap", "N T S", "ops", "score / cap; Gemma 2"),
    Entry(f"{_SEGMENT}.tanh", "N T S", "ops", "tanh(score / cap); Gemma 2"),
    Entry(f"{_SEGMENT}.capped", "N T S", "ops", "cap tanh(score / cap), before the mask; Gemma 2"),
    *inside(_SEGMENT, SOFTMAX),
    Entry(f"{_TEXT}.attn.heads", "T N H", "ops", "probs . values of each head"),
    Entry(f"{_TEXT}.attn.out", "T D", "ops", "output projection"),
    Entry(f"{_TEXT}.attn_post_norm", "T D", "ops", "RMS norm of what attention writes; Gemma 2, 3"),
    Entry(f"{_TEXT}.mid", "T D", "ops", "residual stream after attention"),
    Entry(f"{_TEXT}.mlp_norm", "T D", "ops", "RMS norm before the MLP"),
    Entry(f"{_TEXT}.mlp.gate", "T F", "ops", "gate projection"),
    Entry(f"{_TEXT}.mlp.up", "T F", "ops", "up projection"),
    Entry(f"{_TEXT}.mlp.act", "T F", "ops", "gelu(gate)"),
    Entry(f"{_TEXT}.mlp.hidden", "T F", "ops", "gelu(gate) * up"),
    Entry(f"{_TEXT}.mlp.out", "T D", "ops", "down projection"),
    Entry(f"{_TEXT}.mlp_post_norm", "T D", "ops", "RMS norm of what the MLP writes; Gemma 2, 3"),
    Entry(f"{_TEXT}.out", "T D", "blocks", "residual stream after the layer"),
    Entry("text.norm", "T D", "blocks", "final RMS norm"),
    Entry("logits.uncapped", "T V", "ops", "the logits before their cap, cap tanh(x / cap); Gemma 2"),
    Entry("logits.over_cap", "T V", "ops", "uncapped / cap; Gemma 2"),
    Entry("logits.tanh", "T V", "ops", "tanh(uncapped / cap); Gemma 2"),
    Entry("logits", "B V", "io", "scores of the token after the last row"),
    Entry("generated_ids", "T", "io", "the likeliest token by each of the logits"),
)
