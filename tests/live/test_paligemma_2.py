"""PaliGemma 2 against transformers: logits, masks, greedy ids past the window, and the folders it comes in."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest
import tiny

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import IMAGE, greedy, make_inputs  # noqa: E402
from paligemma_2_models import CASES, LISTED, case, noisy, save  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits, prompt_of, wide  # noqa: E402
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

PROMPTS = 3
STEPS = 40
# Prompts longer than the window and shorter, and what else a cached step reads. Not a window of 1: transformers' cache
# then keeps all rows, `keys[:, :, -1 + 1 :]`, and its answers differ from those of its full pass.
DECODED = ("one picture", "text alone", "window 30", "layers listed", "no cap of scores", "one key head", "odd sizes")


def pixels_of(inputs: dict) -> np.ndarray | None:
    return inputs["pixel_values"].numpy() if "pixel_values" in inputs else None


def doubled(inputs: dict) -> dict:
    return {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path, ratios: dict[str, float]) -> None:
    """With a suffix: in float64 up to rounding, and in float32 as near to the truth as transformers."""
    case, generator = CASES[name], torch.Generator().manual_seed(CASES[name].seed)
    save(noisy(case, generator), case, tmp_path)
    prompts = [make_inputs(case, generator) for _ in range(PROMPTS)]
    ratio = ratios[f"PaliGemma 2, {name}"] = compare_logits(tmp_path, prompts)
    assert ratio <= FLOAT32_RATIO


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, "float64") for name in DECODED] + [(name, "float32") for name in DECODED[-3:]]
)
def test_greedy_ids_equal_those_of_transformers_past_the_window(name: str, dtype: str, tmp_path: Path) -> None:
    """A prefill of more than the window, then steps through caches that keep `window` rows on sliding layers."""
    case, generator = replace(CASES[name], tied=False), torch.Generator().manual_seed(CASES[name].seed)
    model = noisy(case, generator)
    model.generation_config.eos_token_id = None
    save(model, case, tmp_path)
    prompt = prompt_of(make_inputs(case, generator))
    inputs = doubled(prompt) if dtype == "float64" else prompt
    with wide(model) if dtype == "float64" else nullcontext(model) as theirs:
        expected = greedy(theirs, inputs, STEPS).tolist()
    ids, pixels = prompt["input_ids"][0].numpy(), pixels_of(prompt)
    assert npgemma.load(tmp_path, dtype).generate_ids(ids, pixels, STEPS, eos_ids=()) == expected
    assert len(set(expected)) > 3  # otherwise equal ids would say little


@pytest.fixture(scope="module", params=[1, 3, 9, 100])
def window(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with that window."""
    window = case(sliding_window=request.param)
    return save(noisy(window, torch.Generator().manual_seed(0)), window, tmp_path_factory.mktemp("window"))


@pytest.mark.parametrize("prompt", [(12,), (IMAGE, 2), (IMAGE, IMAGE, 5), (3, IMAGE, 2)], ids=str)
def test_masks_equal_those_of_transformers(prompt: tuple[str | int, ...], window: Path) -> None:
    """Of a prompt and a suffix, for layers that see everything and for those that slide."""
    inputs = make_inputs(case(prompt), torch.Generator().manual_seed(0))
    ids, types = inputs["input_ids"], inputs["token_type_ids"]
    seen = npgemma.Recorder("prompts.0.mask", "prompts.0.near")
    npgemma.load(window).forward(ids[0].numpy(), pixels_of(inputs), types[0].numpy(), tap=seen)
    config = transformers.PaliGemmaConfig.from_pretrained(window, attn_implementation="eager").text_config
    for name, make in (("mask", create_causal_mask), ("near", create_sliding_window_causal_mask)):
        theirs = make(
            config,
            inputs_embeds=torch.zeros(*ids.shape, 1),
            attention_mask=torch.ones_like(ids),
            cache=None,
            position_ids=1 + torch.arange(ids.shape[1])[None],
            block_sequence_ids=torch.where(types == 0, 0, -1),  # as PaliGemmaModel.forward calls it
        )
        np.testing.assert_array_equal(seen[f"prompts.0.{name}"], (theirs[0, 0] == 0).numpy(), strict=True)


BFLOAT16 = case(stored=torch.bfloat16)


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A folder in bfloat16, as on the hub, and prompts."""
    generator = torch.Generator().manual_seed(1)
    folder = save(noisy(BFLOAT16, generator), BFLOAT16, tmp_path_factory.mktemp("bfloat16"))
    return folder, [make_inputs(BFLOAT16, generator) for _ in range(PROMPTS)]


@pytest.mark.parametrize("spelling", tiny.SPELLINGS)
def test_names_of_every_release(spelling: str, bfloat16: tuple[Path, list[dict]], tmp_path: Path) -> None:
    """transformers reads every spelling of the names, too, and both compute the same logits."""
    folder, prompts = bfloat16
    shutil.copy(folder / "config.json", tmp_path)
    tensors = {tiny.spell(name, spelling): x for name, x in load_file(folder / "model.safetensors").items()}
    assert sum("feedforward_layernorm" in name for name in tensors) == 2 * 4
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    homes = dict(zip(tensors, cycle(names), strict=False))
    for home in names:
        save_file({name: x for name, x in tensors.items() if homes[name] == home}, tmp_path / home, {"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": homes}))
    assert compare_logits(tmp_path, prompts) <= FLOAT32_RATIO


# What the script that converted the models of the hub left in config.json; neither side reads it.
LEFTOVERS = {
    "text_config": {"eos_token_id": [1, 107], "cache_implementation": "hybrid", "torch_dtype": "bfloat16"},
    "vision_config": {"num_positions": 256, "num_image_tokens": 256, "projection_dim": 24},
    "": {"hidden_size": 2048, "num_hidden_layers": 26, "_vocab_size": 64, "ignore_index": -100},
}
# What older releases did not write: transformers derives it, or takes Gemma2Config's defaults.
DERIVED = ("layer_types", "rope_parameters", "use_bidirectional_attention", "hidden_activation", "rms_norm_eps")
DEFAULTS = ("query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping")


@pytest.mark.parametrize("absent", [DERIVED, DERIVED + DEFAULTS], ids=["derived", "all"])
def test_configs_as_on_the_hub(absent: tuple[str, ...], bfloat16: tuple[Path, list[dict]], tmp_path: Path) -> None:
    """With leftovers, and without what has a default."""
    folder, prompts = bfloat16
    shutil.copy(folder / "model.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    for section, keys in LEFTOVERS.items():
        (config[section] if section else config).update(keys)
    config["image_token_index"] = config.pop("image_token_id", BFLOAT16.image_token)
    for key in absent:
        del config["text_config"][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert compare_logits(tmp_path, prompts) <= FLOAT32_RATIO


# Other values than the config's, and what they change a logit by, at least; float32 rounds by less than 1e-4.
NOTICED = 0.01
OTHER_VALUES = {
    "query_pre_attn_scalar": 8,
    "sliding_window": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "layer_types": LISTED,
    "rms_norm_eps": 1e-2,
}


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_every_value_of_the_config_changes_the_logits(key: str, bfloat16: tuple[Path, list[dict]], tmp_path) -> None:
    """So a test above would fail if npgemma read it wrongly."""
    folder, prompts = bfloat16
    shutil.copy(folder / "model.safetensors", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"][key] = OTHER_VALUES[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids, types = (prompts[0][name][0].numpy() for name in ("input_ids", "token_type_ids"))
    found, other = (npgemma.load(each).forward(ids, pixels_of(prompts[0]), types) for each in (folder, tmp_path))
    assert np.abs(found - other).max() > NOTICED
