"""Adapters that PEFT makes of Gemma 1, 2 and 3, compared with PEFT's unmerged model in float64."""

from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.testing import tolerance

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from peft_models import adapted, logits_of  # noqa: E402
from torch_gemmas import EVERY, UNTIED, inputs_of, random_ids, save  # noqa: E402
from torch_logits import logits  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PRE_NORMS = ["input_layernorm", "post_attention_layernorm"]
POST_NORMS = ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
NORMS = {"Gemma 1": PRE_NORMS, "Gemma 2": PRE_NORMS + POST_NORMS}
NORMS["Gemma 3"] = [*NORMS["Gemma 2"], "q_norm", "k_norm"]
ADAPTERS = {
    "every matrix": dict(target_modules=LINEAR),
    "all linear layers, rank-stabilised": dict(target_modules="all-linear", use_rslora=True),
    "DoRA": dict(target_modules=LINEAR, use_dora=True),
    "the last layer": dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[3], layers_pattern="layers"),
    "table and head saved": dict(target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
}
CASES = [(name, adapter) for name in EVERY for adapter in ADAPTERS.values()]
CASES += [(name, dict(target_modules=["q_proj"], modules_to_save=norms)) for name, norms in NORMS.items()]
IDS = [f"{name}, {adapter}" for name in EVERY for adapter in ADAPTERS] + [f"{name}, norms saved" for name in NORMS]
# An adapter must change a logit by this much; otherwise the test would pass without it.
MOVED = 0.1


def reaction(model: npgemma.LanguageModel, inputs: dict) -> float:
    """How far the logits move if every tensor of a run is rounded once more, up or down at random."""
    ids, rng = inputs["input_ids"][0].numpy(), np.random.default_rng(0)

    def rounded(name: str, x: np.ndarray, axes: str) -> np.ndarray:
        return x * (1 + 2.0**-53 * rng.choice([-1, 1], x.shape)) if x.ndim and x.dtype == np.float64 else x

    exact = model.forward(ids)
    return float(max(np.abs(model.forward(ids, tap=rounded) - exact).max() for _ in range(4)))


@pytest.mark.parametrize(("name", "adapter"), CASES, ids=IDS)
def test_logits_equal_peft(name: str, adapter: dict, tmp_path: Path) -> None:
    """Up to the rounding of float64, which some of these random models amplify. The head is a matrix of its own where
    the adapter replaces it.
    """
    own_head = UNTIED if "lm_head" in adapter.get("modules_to_save", ()) else {}
    case, generator = EVERY[name].changed(**own_head), torch.Generator().manual_seed(5)
    folder, inputs = save(case, tmp_path / "model", generator), inputs_of(random_ids(case, 12, generator))
    config = peft.LoraConfig(r=4, lora_alpha=6, task_type="CAUSAL_LM", **adapter)
    model = adapted(config, wide=True, folder=folder, kind=case.kind)
    expected = logits_of(model, inputs, wide=True)
    model.to(torch.float32).save_pretrained(tmp_path / "adapter")
    adapted_model = npgemma.load(folder, "float64", adapter=tmp_path / "adapter")
    allowed = max(tolerance(expected), reaction(adapted_model, inputs))
    np.testing.assert_allclose(logits(adapted_model, inputs), expected, rtol=0, atol=allowed, strict=True)
    assert np.abs(logits(npgemma.load(folder, "float64"), inputs) - expected).max() > MOVED
