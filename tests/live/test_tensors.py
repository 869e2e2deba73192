"""What transformers reads from files in which tensors are tied, renamed, unused or in another dtype."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

import npgemma
from npgemma.errors import BadModel
from npgemma.testing import tolerance

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import in_float64, truth  # noqa: E402
from safetensors.torch import save_file, save_model  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

TABLE, HEAD = "language_model.model.embed_tokens.weight", "lm_head.weight"
STORED = {
    "the table": (True, False),
    "the head": (False, True),
    "both, equal": (True, True),
    "both, different": (True, "other"),
    "neither": (False, False),
}
IDS = np.array([57] * 25 + [2, 9, 8, 30])
TYPES = np.array([0] * 27 + [1] * 2)
PIXELS = np.random.default_rng(0).uniform(-1, 1, (1, 3, 35, 35)).astype(np.float32)


def write(folder: Path, tensors: dict[str, np.ndarray], tied: bool = True, spelling: str = "hub") -> Path:
    """The small model with these tensors, by the names that transformers saves, in float64."""
    tiny.write_folder(folder)
    config = tiny.config_json() | {"tie_word_embeddings": tied}
    config["text_config"]["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config))
    wide = {tiny.spell(name, spelling): torch.from_numpy(x).double().clone() for name, x in tensors.items()}
    save_file(wide, folder / "model.safetensors", {"format": "pt"})
    return folder


def noise() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(0, 0.5, x.shape) for name, x in tiny.random_tensors().items()}


def read(folder: Path) -> tuple[np.ndarray, set[str]]:
    """The logits of transformers in float64, and the tensors that it did not find and drew at random."""
    model, info = transformers.PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", output_loading_info=True
    )
    # in_float64 makes another model from the config, which must say what was tied in fact
    is_tied = model.lm_head.weight is model.model.language_model.embed_tokens.weight
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = is_tied
    with truth(), torch.no_grad():
        inputs = {"input_ids": torch.from_numpy(IDS)[None], "token_type_ids": torch.from_numpy(TYPES)[None]}
        found = in_float64(model).eval()(**inputs, pixel_values=torch.from_numpy(PIXELS).double())
    return found.logits[0].numpy(), set(info["missing_keys"])


def assert_equal(folder: Path, expected: np.ndarray) -> None:
    found = npgemma.load(folder, "float64").forward(IDS, PIXELS, TYPES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=10 * tolerance(expected), strict=True)


@pytest.mark.parametrize("spelling", ["hub", "memory 5.6"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", STORED)
def test_tied_tensors_are_read_as_in_transformers(stored: str, tied: bool, spelling: str, tmp_path: Path) -> None:
    """transformers draws a missing tensor at random, and warns; npgemma refuses.

    If both are stored and differ although the config ties them, transformers uses both.
    """
    tensors = noise()
    matrix = tensors.pop(TABLE)
    has_table, has_head = STORED[stored]
    other = np.random.default_rng(2).normal(0, 0.5, matrix.shape)
    tensors |= ({TABLE: matrix} if has_table else {}) | (
        {HEAD: other if has_head == "other" else matrix} if has_head else {}
    )
    folder = write(tmp_path, tensors, tied, spelling)
    expected, missing = read(folder)
    if missing:
        with pytest.raises(BadModel, match=r"missing"):
            npgemma.load(folder)
    else:
        assert_equal(folder, expected)
    assert bool(missing) == ((not has_table and not has_head) or (not tied and has_table != bool(has_head)))


UNUSED = {
    "vision_tower.vision_model.embeddings.position_ids": torch.arange(25)[None],
    "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5),
    "vision_tower.vision_model.head.probe": torch.ones(1, 1, 12),
    "vision_tower.vision_model.head.layernorm.num_batches_tracked": torch.tensor(3),
    "language_model.model.causal_mask": torch.ones(4, 4, dtype=torch.bool),
    "language_model.model.layers.1.self_attn.masked_bias": torch.tensor(-1e9),
    "language_model.model.layers.1.self_attn._extra_state": torch.zeros(0, dtype=torch.uint8),
}


def test_unused_tensors_change_nothing_as_in_transformers(tmp_path: Path) -> None:
    folder = write(tmp_path, noise())
    expected, _ = read(folder)
    tensors = {tiny.spell(name, "hub"): torch.from_numpy(x).clone() for name, x in noise().items()}
    save_file(tensors | UNUSED, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(read(folder)[0], expected, rtol=0, atol=tolerance(expected))
    assert_equal(folder, expected)


@pytest.mark.parametrize("wrapped", ["", "compiled", "compiled tower", "parallel", "an attribute"])
def test_files_of_save_model_load(wrapped: str, tmp_path: Path) -> None:
    """safetensors' save_model keeps one of two shared tensors; wrappers put their names before or between others."""
    folder = write(tmp_path, noise())
    expected, _ = read(folder)
    model = transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float64)
    if wrapped == "compiled":
        model = torch.compile(model)
    elif wrapped == "compiled tower":
        model.model.vision_tower = torch.compile(model.model.vision_tower)
    elif wrapped == "parallel":
        model = torch.nn.DataParallel(model)
    elif wrapped == "an attribute":
        model = torch.nn.ModuleDict({"paligemma": model})
    save_model(model, folder / "model.safetensors")
    assert_equal(folder, expected)
