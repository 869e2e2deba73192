"""npgemma against transformers on models that transformers itself saved: logits, greedy ids, names, dtypes, shards."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import tiny

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import IMAGE, Case, build, greedy, make_inputs  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits, prompt_of, read  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SEEDS = range(12)
STORED = ("float32", "bfloat16", "float16")
MAX_NEW_TOKENS = 8
PROMPTS = 8


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


@pytest.mark.parametrize("seed", SEEDS)
def test_random_models_saved_by_transformers(seed: int, tmp_path: Path, ratios: dict[str, float]) -> None:
    """Logits in float64 and float32, and greedy ids; weights in three dtypes, in one file or in several."""
    case = random_case(seed)
    generator = torch.Generator().manual_seed(case.seed)
    model, prompts = build(case, generator), [make_inputs(case, generator) for _ in range(PROMPTS)]
    model.to(case.stored).save_pretrained(tmp_path, max_shard_size="1KB" if seed % 2 else "1GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(seed % 2)

    ratio = ratios[f"random model {seed}, {case.stored}"] = compare_logits(tmp_path, prompts)
    assert ratio <= FLOAT32_RATIO

    ours, theirs = npgemma.load(tmp_path), read(tmp_path)
    for prompt in map(prompt_of, prompts[:2]):
        ids = ours.generate_ids(prompt["input_ids"][0].numpy(), prompt["pixel_values"].numpy(), MAX_NEW_TOKENS)
        assert ids == greedy(theirs, prompt, MAX_NEW_TOKENS).tolist()


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_names_of_every_release_mean_the_same_tensors(spelling: str, tmp_path: Path, ratios: dict[str, float]) -> None:
    """transformers reads every spelling of the names, too, and both compute the same logits."""
    config = tiny.CONFIG
    folder = tiny.write_folder(tmp_path / "model", config, spelling=spelling, dtype="bfloat16", shards=3)
    picture, side = np.full(config.vision.num_patches, config.image_token_index), config.vision.image_size
    rng = np.random.default_rng(0)
    prompts = []
    for length in range(3, 3 + PROMPTS):
        ids = torch.from_numpy(np.concatenate([picture, rng.integers(3, config.image_token_index, length)]))[None]
        pixels = torch.from_numpy(rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32))
        prompts.append(dict(input_ids=ids, token_type_ids=torch.zeros_like(ids), pixel_values=pixels))
    ratio = ratios[f"names as in {spelling}"] = compare_logits(folder, prompts)
    assert ratio <= FLOAT32_RATIO
