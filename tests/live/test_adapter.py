"""Adapters that PEFT makes and saves, compared with PEFT's unmerged model in float64, or refused."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.merging import merged
from npgemma.checkpoints.names import paligemma_name
from npgemma.checkpoints.paligemma import read_config, read_tensors
from npgemma.errors import BadModel
from npgemma.io.model_folder import EMBEDDED
from npgemma.testing import tolerance

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from dump_transformers import load_model, make_inputs  # noqa: E402
from peft.tuners.lora import config as lora_config  # noqa: E402
from peft_models import adapted, logits_of  # noqa: E402
from torch_logits import logits  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

SAMPLE = EMBEDDED.parent / "sample.png"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# An adapter must change a logit by this much; otherwise the test would pass without it.
MOVED = 0.1
# The error of a float32 run is about 1e-5; that of a wrong formula is 1 or more.
FLOAT32 = 1e-3


@dataclass(frozen=True)
class Case:
    """The arguments of a LoraConfig, and the dtype in which the adapter is saved."""

    config: dict
    saved: str


def case(targets: list[str] | str, saved: str = "float32", **config: object) -> Case:
    return Case({"target_modules": targets, "r": 4, "lora_alpha": 6} | config, saved)


PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 7, "mlp.up_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 3, "down_proj": 11, "v_proj": 1},
}
EXPRESSIONS = {
    "rank_pattern": {r"layers\.[01]\.self_attn\.(q|k)_proj": 3, r".*\.3\..*": 5},
    "alpha_pattern": {
        r"^model\.language_model\.layers\.0\..*": 2,
        r"layers\.\d\.self_attn\.(q|v)_proj": 9,
        "up_proj|gate_proj": 13,
        "_proj": 40,
    },
}
CASES = {
    "the decoder": case(LINEAR),
    "only the queries": case(["language_model.layers.0.self_attn.q_proj"]),
    "the tower": case(["fc1", "fc2", "out_proj", "vision_tower.encoder.layers.2.self_attn.k_proj"], lora_alpha=1),
    "the projector": case(["multi_modal_projector.linear"]),
    "all linear layers": case("all-linear"),
    "by expression": case(r".*layers\.[13]\..*(q_proj|fc1)"),
    "some layers": case(["q_proj", "v_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
    "rank-stabilised": case(LINEAR, use_rslora=True),
    "rank and alpha patterns": case(LINEAR, **PATTERNS),
    "patterns, rank-stabilised": case(LINEAR, use_rslora=True, **PATTERNS),
    "patterns that are expressions": case(LINEAR, **EXPRESSIONS),
    "gaussian initialisation": case(["q_proj"], init_lora_weights="gaussian"),
    "orthogonal initialisation": case(["q_proj"], init_lora_weights="orthogonal"),
    "parameters by name": case([], target_parameters=["q_proj.weight"]),
    "the table saved": case(["q_proj"], modules_to_save=["embed_tokens"]),
    "the head saved": case(["q_proj"], modules_to_save=["lm_head"]),
    "table and head saved": case(["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "norms saved": case(["q_proj"], modules_to_save=["input_layernorm", "post_layernorm", "layer_norm2"]),
    "the last norm saved": case(["down_proj"], modules_to_save=["language_model.norm"]),
    "the projector saved": case(["q_proj"], modules_to_save=["multi_modal_projector"]),
    "patches and positions saved": case(["fc1"], modules_to_save=["patch_embedding", "position_embedding"]),
    "a linear layer saved": case(["q_proj"], modules_to_save=["fc1"]),
    "the table": case(["embed_tokens"]),
    "the table, rank-stabilised": case(["embed_tokens", "q_proj"], use_rslora=True, alpha_pattern={"embed_tokens": 3}),
    "the head": case(["lm_head", "v_proj"]),
    "table and head": case(["embed_tokens", "lm_head"]),
    "all biases": case(["q_proj", "fc1"], bias="all"),
    "biases of adapted layers": case(["q_proj", "fc1"], bias="lora_only"),
    "saved in bfloat16": case([*LINEAR, "fc1"], "bfloat16"),
    "saved in float16": case([*LINEAR, "fc1"], "float16"),
}
# Other formulas: npgemma refuses them or computes them correctly.
OTHERS = {
    "DoRA": case(["q_proj"], use_dora=True),
    "biases of B": case(["fc1"], lora_bias=True),
    "certain tokens": case(["q_proj"], trainable_token_indices=[3, 5]),
    "tied explicitly": case(["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "the patches": case(["patch_embedding"]),
    "only after certain tokens": case(LINEAR, alora_invocation_tokens=[108]),
    "QALoRA": case(["q_proj"], use_qalora=True),
    "PiSSA": case(LINEAR, init_lora_weights="pissa"),
    "OLoRA": case(LINEAR, init_lora_weights="olora"),
    "MiCA": case(LINEAR, init_lora_weights="mica"),
    "EVA": case(LINEAR, init_lora_weights="eva"),
    "KaSA": case(LINEAR, kasa_config=lora_config.KasaConfig()),
    "VeLoRA": case(LINEAR, velora_config=lora_config.VeloraConfig()),
    "MonteCLoRA": case(LINEAR, monteclora_config=lora_config.MontecloraConfig()),
}
METHODS = {
    "LoHa": lambda: peft.LoHaConfig(target_modules=["q_proj"]),
    "LoKr": lambda: peft.LoKrConfig(target_modules=["q_proj"]),
    "AdaLoRA": lambda: peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10),
    "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj"]),
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "OFT": lambda: peft.OFTConfig(target_modules=["q_proj"], oft_block_size=4),
    "LN tuning": lambda: peft.LNTuningConfig(target_modules=["input_layernorm"]),
}


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    return make_inputs(EMBEDDED, [SAMPLE], "caption en")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_equal_peft(case: Case, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Up to the rounding of float64: `tolerance` is 100 units in the last place of the largest logit.

    That allows ten roundings per layer. Merging adds one for each element of W + scale B A, and PEFT, which keeps B and
    A apart here, adds one for each of two products.
    """
    model = adapted(peft.LoraConfig(**case.config), wide=True, saved=case.saved)
    expected = logits_of(model, inputs, wide=True)
    model.to(getattr(torch, case.saved)).save_pretrained(tmp_path)
    found = logits(npgemma.load(None, "float64", adapter=tmp_path), inputs)
    assert np.abs(logits(npgemma.load(None, "float64"), inputs) - expected).max() > MOVED
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(expected), strict=True)


def test_an_update_of_the_positions_is_correct_in_float32(inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """`load` converts the position table to float32 for every dtype of a run."""
    model = adapted(peft.LoraConfig(target_modules=["position_embedding"]), wide=True)
    expected = logits_of(model, inputs, wide=True)
    model.to(torch.float32).save_pretrained(tmp_path)
    found = logits(npgemma.load(None, "float64", adapter=tmp_path), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(expected, 2.0**-24), strict=True)
    assert np.abs(logits(npgemma.load(None, "float64"), inputs) - expected).max() > MOVED


@pytest.mark.parametrize("resident", [False, True])
def test_float32_logits_equal_peft(resident: bool, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """The bfloat16 model with an adapter, mapped or resident: the usual way to run one."""
    model = adapted(peft.LoraConfig(**CASES["all linear layers"].config), wide=False)
    expected = logits_of(model, inputs, wide=False)
    model.save_pretrained(tmp_path)
    found = logits(npgemma.load(resident=resident, adapter=tmp_path), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32, strict=True)


def test_merged_matrices_equal_peft(tmp_path: Path) -> None:
    """merge_and_unload in float64, tensor by tensor: W plus a product of matrices of a rank of up to 7."""
    model = adapted(peft.LoraConfig(**CASES["patterns, rank-stabilised"].config), wide=True)
    names = [
        name.removesuffix(".lora_A.default") for name, _ in model.named_modules() if name.endswith("lora_A.default")
    ]
    assert len(names) == 4 * (
        7 + 3
    )  # four layers of the decoder, and of the tower, which also has q_proj, k_proj, v_proj
    with torch.no_grad():
        whole = {paligemma_name(name): x.numpy().copy() for name, x in model.merge_and_unload().state_dict().items()}
    adapter = adapted(peft.LoraConfig(**CASES["patterns, rank-stabilised"].config), wide=True)
    adapter.to(torch.float32).save_pretrained(tmp_path)
    tensors = read_tensors(EMBEDDED, read_config(EMBEDDED))
    found = merged(tensors, read_adapter(tmp_path), np.dtype(np.float64))
    changed = [paligemma_name(f"{name.removeprefix('base_model.model.')}.weight") for name in names]
    for name in changed:
        scale = float(np.abs(whole[name]).max())
        np.testing.assert_allclose(found[name], whole[name], rtol=0, atol=8 * 2.0**-52 * scale, strict=True)
    assert {name for name in tensors if found[name] is not tensors[name]} == set(changed)


def test_the_answer_equals_peft(inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Greedy ids, decoded with a cache."""
    model = adapted(peft.LoraConfig(**CASES["the decoder"].config | {"lora_alpha": 30}), wide=False)
    model.save_pretrained(tmp_path)
    ones = torch.ones_like(inputs["input_ids"])
    ids = model.generate(**inputs, attention_mask=ones, max_new_tokens=8, do_sample=False)[0, ones.shape[1] :]
    found = npgemma.load(adapter=tmp_path).generate(SAMPLE, "caption en", max_new_tokens=8)
    assert found.token_ids == ids.tolist()
    assert found.token_ids != npgemma.load().generate(SAMPLE, "caption en", max_new_tokens=8).token_ids


def test_the_head_stays_tied_as_in_peft(inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """If only the table is trained, PEFT's head keeps the original matrix; if neither is, they stay one matrix."""
    for name, untied in (("the table saved", True), ("the decoder", False)):
        adapted(peft.LoraConfig(**CASES[name].config), wide=False).save_pretrained(tmp_path / name)
        assert (npgemma.load(adapter=tmp_path / name).weights.text.head is not None) == untied


@pytest.mark.parametrize("case", OTHERS.values(), ids=OTHERS)
def test_other_formulas_are_refused_or_correct(case: Case, inputs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Compared with what PEFT computes after reading the files, since some initialisations change the base model."""
    adapted(peft.LoraConfig(**case.config), wide=False).save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(load_model(EMBEDDED, torch.float32, "eager"), tmp_path).eval()
    expected = logits_of(again, inputs, wide=False)
    with contextlib.suppress(BadModel):
        found = npgemma.load(adapter=tmp_path)
        np.testing.assert_allclose(logits(found, inputs), expected, rtol=0, atol=FLOAT32, strict=True)


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_other_methods_are_refused(config, tmp_path: Path) -> None:
    adapted(config(), wide=False).save_pretrained(tmp_path)
    with pytest.raises(BadModel, match=r"adapter_config\.json: peft_type is '\w+', which npgemma does not support"):
        npgemma.load(adapter=tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    adapted(peft.LoraConfig(target_modules=["q_proj"]), wide=False).save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(BadModel, match=r"adapter_model\.bin is a pickle"):
        npgemma.load(adapter=tmp_path)
