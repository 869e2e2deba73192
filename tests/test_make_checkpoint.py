"""tools/make_checkpoint.py writes folders in the layouts of the published models."""

import math
import sys
from pathlib import Path

import hub_configs
import hub_encoders
import make_checkpoint
import numpy as np
import pytest

import npgemma
from npgemma.checkpoints.paligemma import read_config, read_tensors
from npgemma.io.safetensors import open_folder
from npgemma.layers.bits import widen
from npgemma.layers.norms import LayerNorm
from npgemma.layers.tree import leaves

# PaliGemma 2's files on the hub have 64 rows more than the .npz files, which the papers count.
ELEMENTS = {
    "paligemma-3b": 2_923_466_480,
    "paligemma2-3b": 3_032_094_960 + 64 * 2304,
    "paligemma2-10b": 9_662_409_456 + 64 * 3584,
    "paligemma2-28b": 27_650_192_112 + 64 * 4608,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "vit-base-patch16-224": 86_567_656,
    "vit-large-patch16-224": 304_326_632,
    "clip-vit-base-patch32": 151_277_313,
    "clip-vit-base-patch16": 149_620_737,
    "clip-vit-large-patch14": 427_616_513,
    "siglip-base-patch16-224": 203_155_970,
    "siglip-so400m-patch14-384": 877_960_498,
    "siglip2-base-patch16-224": 375_187_970,
}
DECODER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "vocab_size": 99}
TOWER = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "image_size": 28}


@pytest.mark.parametrize("name", make_checkpoint.NAMES)
def test_a_layout_has_as_many_elements_as_the_published_model(name: str) -> None:
    shapes = make_checkpoint.tensor_shapes(make_checkpoint.config(name))
    assert sum(map(math.prod, shapes.values())) == ELEMENTS[name]


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str, vision: dict, text: dict) -> None:
    """What the command line does, with small sizes."""
    sizes = [f"vision.{key}={number}" for key, number in vision.items()]
    sizes += [f"text.{key}={number}" for key, number in text.items()]
    settings = [word for size in sizes for word in ("--set", size)]
    monkeypatch.setattr(sys, "argv", ["make_checkpoint", str(folder), "--model", name, "--dtype", dtype, *settings])
    make_checkpoint.main()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", ["paligemma-3b", "paligemma2-28b"])
def test_a_paligemma_loads_and_its_matrices_are_scaled_by_their_fan_in(name, dtype, tmp_path, monkeypatch) -> None:
    make(tmp_path, monkeypatch, name, dtype, TOWER, DECODER)
    config = read_config(tmp_path)
    assert (config.text.hidden_size, config.vision.num_patches) == (24, 4)
    tensors = read_tensors(tmp_path, config)
    gate = tensors["language_model.model.layers.2.mlp.gate_proj.weight"]
    deviation = float(np.std(widen(gate) if dtype == "bfloat16" else gate, dtype=np.float64)) * math.sqrt(24)
    assert abs(deviation - 1) < 0.1  # four standard deviations of that of 960 normal numbers


@pytest.mark.parametrize("name", ["gemma-2b", "gemma-2-27b", "gemma-3-270m"])
def test_a_language_model_has_the_tensors_of_its_config(name, tmp_path, monkeypatch) -> None:
    make(tmp_path, monkeypatch, name, "bfloat16", {}, DECODER)
    content = hub_configs.content(name, text=DECODER)
    shapes = {key: x.shape for key, x in open_folder(tmp_path).items()}
    assert shapes == make_checkpoint.tensor_shapes(content)
    assert shapes["model.embed_tokens.weight"] == (99, 24)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["vit-base-patch16-224", "clip-vit-base-patch16", "siglip-so400m-patch14-384"])
def test_an_encoder_loads_and_its_layer_norms_are_near_one(name, dtype, tmp_path, monkeypatch) -> None:
    small = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 49408, "num_hidden_layers": 2}
    text = {} if name in hub_encoders.CLASSIFIERS else small
    if name.startswith("siglip"):
        text["projection_size"] = 32  # the hub leaves it out where both towers have the default width
    make(tmp_path, monkeypatch, name, dtype, TOWER | {"num_attention_heads": 4}, text)
    model = npgemma.load(tmp_path)
    assert model.config.vision.num_patches == (28 // model.config.vision.patch_size) ** 2
    norms = [leaf for leaf in leaves(model.weights) if leaf.owner is LayerNorm]
    about = {"weight": 1, "bias": 0}
    for leaf in norms:
        assert abs(leaf.value - about[leaf.path.rpartition(".")[2]]).max() < 0.12  # six standard deviations
    matrix = model.weights.blocks[0].mlp.fc1 if name.startswith("vit") else model.weights.vision.blocks[0].mlp.fc1
    assert matrix.dtype == {"bfloat16": np.uint16, "float32": np.float32}[dtype]
