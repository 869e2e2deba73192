"""npgemma against transformers on models that transformers itself saved: logits, greedy ids, names, dtypes, shards."""

from pathlib import Path

import numpy as np
import pytest
import tiny

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import build, greedy, make_inputs  # noqa: E402
from random_paligemmas import random_case  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits, prompt_of, read  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore")]

SEEDS = range(12)
MAX_NEW_TOKENS = 8
PROMPTS = 8


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
