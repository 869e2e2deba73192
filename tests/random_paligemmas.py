"""PaliGemmas of random small sizes, for the live tests."""

from random import Random

import torch
from make_fixtures import IMAGE, Case

STORED = ("float32", "bfloat16", "float16")


def random_case(seed: int) -> Case:
    """A PaliGemma of random small sizes; its prompt has one to three pictures, sometimes between parts of the text."""
    rng = Random(seed)
    key_heads = rng.randint(1, 3)
    vision_heads = rng.randint(1, 3)
    patch = rng.randint(2, 7)
    vocab = rng.randint(30, 80)
    vision = dict(
        hidden_size=vision_heads * rng.randint(2, 7),
        intermediate_size=rng.randint(3, 30),
        num_hidden_layers=rng.randint(1, 3),
        num_attention_heads=vision_heads,
        image_size=patch * rng.randint(1, 5) + rng.randrange(patch),
        patch_size=patch,
        layer_norm_eps=rng.choice((1e-6, 1e-5)),
    )
    text = dict(
        hidden_size=rng.randint(6, 20),
        intermediate_size=rng.randint(5, 40),
        num_hidden_layers=rng.randint(1, 4),
        num_attention_heads=key_heads * rng.randint(1, 4),
        num_key_value_heads=key_heads,
        head_dim=2 * rng.randint(2, 8),
        vocab_size=vocab,
        rms_norm_eps=rng.choice((1e-6, 1e-5)),
        rope_parameters=dict(rope_type="default", rope_theta=rng.choice((10000.0, 500.0))),
    )
    prompt = [IMAGE] * rng.randint(1, 3) + [rng.randint(1, 5)]
    if rng.random() < 0.3:
        rng.shuffle(prompt)
    return Case(
        vision,
        text,
        tuple(prompt),
        seed=rng.randrange(1 << 30),
        suffix=rng.randrange(5),
        image_token=rng.choice((vocab - 2, vocab, vocab + 9)),
        tied=rng.random() < 0.7,
        stored=getattr(torch, STORED[seed % len(STORED)]),
    )
