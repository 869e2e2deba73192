"""Adapters of every kind and in every container, compared with PEFT's unmerged model in float64."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from dump_transformers import make_inputs  # noqa: E402
from peft.tuners.lora import config as lora_config  # noqa: E402
from peft_models import adapted, logits_of  # noqa: E402
from safetensors.torch import save_file, save_model  # noqa: E402
from torch_logits import logits  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

DECODER = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
QUERY = ["language_model.layers.0.self_attn.q_proj"]
TOWER = ["fc1", "fc2", "out_proj", "multi_modal_projector.linear"]
ALPHA = {"layers.1.self_attn.q_proj": 3, r"layers\.[02]\.mlp\.(gate|down)_proj": 11, "fc1": 2}
# An adapter must change a logit by this much; otherwise the test would pass without it.
MOVED = 0.1
# The error of a logit relative to the largest one. 100 roundings of float64 are 2e-14; updates as large as these, of
# matrices whose own numbers are near 0.1, make each of four layers amplify the roundings before it about fourfold.
ROUNDING = 1e-11

KINDS = {
    "DoRA": dict(target_modules=DECODER, use_dora=True),
    "DoRA in the tower": dict(target_modules=TOWER, use_dora=True),
    "DoRA, rank-stabilised, patterns": dict(
        target_modules=[*DECODER, "fc1"], use_dora=True, use_rslora=True, alpha_pattern=ALPHA, rank_pattern={"fc1": 3}
    ),
    "DoRA of the table": dict(target_modules=["embed_tokens"], use_dora=True),
    "DoRA of the head": dict(target_modules=["lm_head"], use_dora=True),
    "DoRA of table and head": dict(target_modules=["embed_tokens", "lm_head", "q_proj"], use_dora=True),
    "DoRA of the patches": dict(target_modules=["patch_embedding"], use_dora=True),
    "the patches": dict(target_modules=["patch_embedding", "fc1"]),
    "biases of B": dict(target_modules=["fc1", "fc2", "out_proj"], lora_bias=True),
    "biases of B, rank-stabilised": dict(target_modules=["fc1", "patch_embedding"], lora_bias=True, use_rslora=True),
    "all biases, one module saved": dict(target_modules=["fc1"], bias="all", modules_to_save=["post_layernorm"]),
    "rows of tokens": dict(target_modules=QUERY, trainable_token_indices=[3, 107, 5]),
    "rows of the table": dict(target_modules=DECODER, trainable_token_indices={"embed_tokens": [2, 1000]}),
    "rows of the head": dict(target_modules=QUERY, trainable_token_indices={"lm_head": [3, 5]}),
    "rows of both, equal": dict(
        target_modules=QUERY, trainable_token_indices={"embed_tokens": [107, 5], "lm_head": [107, 5]}
    ),
    "rows of both, different": dict(
        target_modules=QUERY, trainable_token_indices={"embed_tokens": [107, 5], "lm_head": [4, 6, 7]}
    ),
    "rows, tied explicitly": dict(target_modules=QUERY, trainable_token_indices=[107, 5], ensure_weight_tying=True),
    "rows with DoRA": dict(target_modules=QUERY, trainable_token_indices=[107, 5], use_dora=True),
    "parameters with a pattern": dict(
        target_modules=[],
        target_parameters=["self_attn.q_proj.weight", "mlp.up_proj.weight"],
        alpha_pattern={"q_proj": 40, r"up_proj\.weight": 3},
    ),
    "transposed, which linear layers ignore": dict(target_modules=DECODER, fan_in_fan_out=True),
    "some excluded": dict(target_modules="all-linear", exclude_modules=r".*vision_tower.*"),
    "saved table, tied explicitly": dict(
        target_modules=QUERY, modules_to_save=["embed_tokens"], ensure_weight_tying=True
    ),
    "saved head, tied explicitly": dict(target_modules=QUERY, modules_to_save=["lm_head"], ensure_weight_tying=True),
    "the table, tied explicitly": dict(target_modules=["embed_tokens"], ensure_weight_tying=True),
    "the head, tied explicitly": dict(target_modules=["lm_head"], ensure_weight_tying=True),
    "VeLoRA": dict(target_modules=DECODER, velora_config=lora_config.VeloraConfig()),
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return make_inputs(EMBEDDED, [EMBEDDED.parent / "sample.png"], "caption en")


def lora(**config: object) -> "peft.LoraConfig":
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6} | config)


def save_adapter(model: "peft.PeftModel", folder: Path, how: str, adapter: str = "default") -> None:
    """Save a model's adapter, in float32: as PEFT does, its part of a state_dict, or all of that."""
    model.to(torch.float32).save_pretrained(folder)
    tensors = {name: x.clone().contiguous() for name, x in model.state_dict().items()}
    if how == "parts of a state_dict":
        tensors = {name: x for name, x in tensors.items() if f".{adapter}" in name or name.endswith(".bias")}
    if how != "save_pretrained":
        save_file(tensors, folder / "adapter_model.safetensors")


def assert_equal_to_peft(
    model: "peft.PeftModel", inputs: dict, folder: Path, containers: Sequence[str] = ("save_pretrained",)
) -> None:
    expected = logits_of(model, inputs, wide=True)
    plain = logits(npgemma.load(None, "float64"), inputs)
    rows = min(plain.shape[1], expected.shape[1])
    assert np.abs(plain[:, :rows] - expected[:, :rows]).max() > MOVED
    for how in containers:
        save_adapter(model, folder / how, how)
        found = logits(npgemma.load(None, "float64", adapter=folder / how), inputs)
        atol = ROUNDING * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol, strict=True, err_msg=how)


CONTAINERS = ("save_pretrained", "parts of a state_dict", "a state_dict")


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_logits_equal_peft_from_every_container(config: dict, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Up to the rounding of float64, with parameters far from those before training."""
    assert_equal_to_peft(adapted(lora(**config), wide=True, std=0.5), inputs, tmp_path, CONTAINERS)


RESIZED = {
    "beside an update": dict(target_modules=DECODER),
    "the table updated": dict(target_modules=["embed_tokens"]),
    "the head updated": dict(target_modules=["lm_head"]),
    "both updated": dict(target_modules=["lm_head", "embed_tokens"]),
    "both saved": dict(target_modules=QUERY, modules_to_save=["lm_head", "embed_tokens"]),
    "DoRA of the table": dict(target_modules=["embed_tokens"], use_dora=True),
}


@pytest.mark.parametrize("rows", [1792 + 9, 1792 - 9])
@pytest.mark.parametrize("config", RESIZED.values(), ids=RESIZED)
def test_resized_tables_equal_peft(config: dict, rows: int, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    model = adapted(lora(**config), wide=True, std=0.5, rows=rows)
    expected = logits_of(model, inputs, wide=True)
    model.to(torch.float32).save_pretrained(tmp_path, save_embedding_layers=True)
    found = logits(npgemma.load(None, "float64", adapter=tmp_path), inputs)
    assert expected.shape[1] == rows
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max(), strict=True)


def test_named_adapters_equal_peft(inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Saved together, each in a folder of its own."""
    model = adapted(lora(target_modules=DECODER), wide=True, std=0.5)
    model.add_adapter("second", lora(target_modules=["fc1"], use_dora=True))
    expected = logits_of(model, inputs, wide=True)
    model.to(torch.float32).save_pretrained(tmp_path)
    found = logits(npgemma.load(None, "float64", adapter=tmp_path), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max(), strict=True)
    assert (tmp_path / "second" / "adapter_config.json").exists()
    save_file(
        {name: x.clone().contiguous() for name, x in model.state_dict().items() if "lora_" in name},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(BadModel, match="contains 2 adapters: default, second"):
        npgemma.load(adapter=tmp_path)


REFUSED = {
    "use_qalora": dict(target_modules=["q_proj"], use_qalora=True),
    "kasa_config": dict(target_modules=DECODER, kasa_config=lora_config.KasaConfig()),
    "monteclora_config": dict(target_modules=DECODER, monteclora_config=lora_config.MontecloraConfig()),
    "alora_invocation_tokens": dict(target_modules=DECODER, alora_invocation_tokens=[108]),
    "init_lora_weights": dict(target_modules=DECODER, init_lora_weights="pissa"),
}


@pytest.mark.parametrize(("key", "config"), REFUSED.items(), ids=REFUSED)
def test_other_formulas_are_refused_by_the_name_of_their_option(key: str, config: dict, tmp_path: Path) -> None:
    adapted(lora(**config), wide=False).save_pretrained(tmp_path)
    with pytest.raises(BadModel, match=rf"adapter_config\.json: {key} "):
        npgemma.load(adapter=tmp_path)


@pytest.mark.parametrize("merge", [False, True])
def test_a_whole_model_loads_only_merged(merge: bool, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """As safetensors' save_model writes it, under PEFT's prefix, one of the tied matrices left out."""
    model = adapted(lora(target_modules=DECODER), wide=True, std=0.5)
    expected = logits_of(model, inputs, wide=True)
    if merge:
        model.merge_adapter()
        model = model.unload()
    (tmp_path / "config.json").write_bytes((EMBEDDED / "config.json").read_bytes())
    save_model(model, tmp_path / "model.safetensors")
    if merge:
        found = logits(npgemma.load(tmp_path, "float64"), inputs)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max(), strict=True)
    else:
        with pytest.raises(BadModel, match="holds a PEFT model whose adapter is not merged"):
            npgemma.load(tmp_path)
