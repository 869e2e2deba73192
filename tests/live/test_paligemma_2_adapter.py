"""Adapters that PEFT makes of a PaliGemma 2, compared with PEFT's unmerged model in float64."""

from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.testing import tolerance

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from make_fixtures import make_inputs  # noqa: E402
from paligemma_2_models import CASES, noisy, save  # noqa: E402
from peft_models import adapted, logits_of  # noqa: E402
from torch_logits import logits  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NORMS = ["input", "post_attention", "pre_feedforward", "post_feedforward"]
ADAPTERS = {
    "the decoder": dict(target_modules=LINEAR),
    "all linear layers": dict(target_modules="all-linear", use_rslora=True),
    "DoRA": dict(target_modules=LINEAR, use_dora=True),
    "the last layer": dict(target_modules=["q_proj", "down_proj"], layers_to_transform=[3], layers_pattern="layers"),
    "four norms saved": dict(target_modules=["q_proj"], modules_to_save=[f"{norm}_layernorm" for norm in NORMS]),
    "table and head saved": dict(target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
}
# An adapter must change a logit by this much; otherwise the test would pass without it.
MOVED = 0.1


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_logits_equal_peft(adapter: dict, tmp_path: Path) -> None:
    """Up to the rounding of float64, as for PaliGemma 1."""
    case, generator = CASES["one picture"], torch.Generator().manual_seed(5)
    folder, inputs = save(noisy(case, generator), case, tmp_path / "model"), make_inputs(case, generator)
    model = adapted(peft.LoraConfig(r=4, lora_alpha=6, **adapter), wide=True, folder=folder)
    expected = logits_of(model, inputs, wide=True)
    model.to(torch.float32).save_pretrained(tmp_path / "adapter")
    found = logits(npgemma.load(folder, "float64", adapter=tmp_path / "adapter"), inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance(expected), strict=True)
    assert np.abs(logits(npgemma.load(folder, "float64"), inputs) - expected).max() > MOVED
