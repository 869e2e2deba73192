"""The gradients of the tensors inside PaliGemma, under the names of their taps, against those that torch retains."""

from pathlib import Path

import numpy as np
import pytest

from npgemma.checkpoints import paligemma
from npgemma.io.model_folder import EMBEDDED
from npgemma.layers.taps import Recorder

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import truth  # noqa: E402
from random_paligemmas import random_case  # noqa: E402
from torch_gradients import F64, GRADIENT, Pair, noisy, pictures_batch, widened  # noqa: E402
from torch_logits import read  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

# Tap, module of transformers, and whether the tensor is its input or its output.
OF_A_TEXT_LAYER = """
    attn_norm input_layernorm out           attn.q self_attn.q_proj out      attn.k self_attn.k_proj out
    attn.v self_attn.v_proj out             attn.heads self_attn.o_proj in   attn.out self_attn.o_proj out
    mid post_attention_layernorm in         mlp_norm post_attention_layernorm out
    mlp.gate mlp.gate_proj out              mlp.up mlp.up_proj out           mlp.act mlp.act_fn out
    mlp.hidden mlp.down_proj in             mlp.out mlp.down_proj out
"""
OF_A_VISION_LAYER = """
    attn_norm layer_norm1 out               attn.q self_attn.q_proj out      attn.k self_attn.k_proj out
    attn.v self_attn.v_proj out             attn.heads self_attn.out_proj in attn.out self_attn.out_proj out
    mid layer_norm2 in                      mlp_norm layer_norm2 out         mlp.fc1 mlp.fc1 out
    mlp.hidden mlp.fc2 in                   mlp.out mlp.fc2 out
"""
TEXT, VISION = "model.language_model", "model.vision_tower"
OTHERS = f"""
    text.embedding {TEXT}.layers.0 in       text.norm {TEXT}.norm out        projector model.multi_modal_projector out
    vision.embedding {VISION}.encoder.layers.0 in                            vision.norm {VISION}.post_layernorm out
"""


def places(model: transformers.PreTrainedModel) -> dict[str, tuple[str, str]]:
    """The module of each tap, and the side of it."""

    def lines(table: str) -> list[tuple[str, ...]]:
        words = table.split()
        return list(zip(words[::3], words[1::3], words[2::3], strict=True))

    found = {tap: (module, side) for tap, module, side in lines(OTHERS)}
    for tower, layers, table in (
        ("text", f"{TEXT}.layers", OF_A_TEXT_LAYER),
        ("vision", f"{VISION}.encoder.layers", OF_A_VISION_LAYER),
    ):
        for i in range(len(model.get_submodule(layers))):
            found[f"{tower}.layers.{i}.out"] = f"{layers}.{i}", "out"
            for tap, module, side in lines(table):
                found[f"{tower}.layers.{i}.{tap}"] = f"{layers}.{i}.{module}", side
    return found


def retained(model: transformers.PreTrainedModel, inputs: dict) -> dict[str, np.ndarray]:
    """The gradient of each tensor, by the name of its tap."""
    tensors: dict[str, torch.Tensor] = {}

    def keep(tap: str, x: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        tensors[tap] = x[0] if isinstance(x, tuple) else x
        tensors[tap].retain_grad()

    for tap, (name, side) in places(model).items():
        module = model.get_submodule(name)
        if side == "in":
            module.register_forward_pre_hook(lambda module, arguments, tap=tap: keep(tap, arguments))
        else:
            module.register_forward_hook(lambda module, arguments, result, tap=tap: keep(tap, result))
    with truth():
        model(**inputs).loss.backward()
    return {tap: x.grad.numpy() for tap, x in tensors.items()}


@pytest.mark.parametrize("name", ["random", "embedded"])
def test_gradients_of_named_tensors_are_those_of_torch(name: str, tmp_path: Path) -> None:
    """Rows of padding have none. A picture that two examples ask about is there twice for torch: both count."""
    model = (
        read(EMBEDDED)
        if name == "embedded"
        else noisy(transformers.PaliGemmaForConditionalGeneration(random_case(5).config), 1)
    )
    pair, batch = Pair(model, paligemma, tmp_path), pictures_batch(model.config, 1)
    seen = Recorder("grad.*")
    batch.gradient(pair.weights[F64], F64, seen)
    theirs = retained(pair.wide, widened(batch.inputs))
    real = batch.inputs["attention_mask"].numpy() == 1
    for tap, x in theirs.items():
        ours = seen[f"grad.{tap}"]
        if tap.startswith("text"):
            exact = x[real].reshape(ours.shape)
        else:
            exact = np.zeros_like(ours)
            np.add.at(exact, batch.pictures, x.reshape(-1, *ours.shape[1:]))
        error = np.linalg.norm(ours - exact) / np.linalg.norm(exact)
        assert error <= GRADIENT, tap
