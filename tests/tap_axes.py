"""The taps of a block of each model, in the order of computation, with the axes that they claim."""

SCORES = dict.fromkeys(("dots", "scores", "exp", "probs"), "N T S")
ROPE = {"frequencies": "J", "angle": "T J", "cos": "T J", "sin": "T J", "x_cos": "T N H", "x_sin": "T N H"}


def under(scope: str, taps: dict[str, str]) -> dict[str, str]:
    return {f"{scope}.{name}": axes for name, axes in taps.items()}


def vit_block(pictures: int) -> dict[str, str]:
    return {
        "attn_norm": "B P D",
        **under("attn", dict.fromkeys("qkv", "B P N H")),
        **{name: axes for i in range(pictures) for name, axes in under(f"attn.pictures.{i}", SCORES).items()},
        "attn.heads": "B P N H",
        "attn.out": "B P D",
        "mid": "B P D",
        "mlp_norm": "B P D",
        "mlp.fc1": "B P F",
        "mlp.hidden": "B P F",
        "mlp.out": "B P D",
        "out": "B P D",
    }


def gemma_block(sequences: int) -> dict[str, str]:
    segment = {"keys": "S K H", "values": "S K H", **SCORES}
    return {
        "attn_norm": "T D",
        "attn.q": "T N H",
        **under("attn.q_rope", ROPE),
        "attn.q_rope": "T N H",
        "attn.k": "T K H",
        "attn.v": "T K H",
        **under("attn.k_rope", {name: axes.replace("N", "K") for name, axes in ROPE.items()}),
        "attn.k_rope": "T K H",
        **{name: axes for i in range(sequences) for name, axes in under(f"attn.segments.{i}", segment).items()},
        "attn.heads": "T N H",
        "attn.out": "T D",
        "mid": "T D",
        "mlp_norm": "T D",
        "mlp.gate": "T F",
        "mlp.up": "T F",
        "mlp.act": "T F",
        "mlp.hidden": "T F",
        "mlp.out": "T D",
        "out": "T D",
    }
