"""LoRA adapters for the small model of `tiny`, as PEFT saves them, and the merged tensors."""

import json
from pathlib import Path

import numpy as np
import tiny

from npgemma.checkpoints.adapter import read_adapter
from npgemma.checkpoints.merging import merged, prepared
from npgemma.checkpoints.paligemma import HEAD, TABLE
from npgemma.io.model_folder import EMBEDDED

PICTURE = EMBEDDED.parent / "sample.png"
LAYER_1 = "language_model.model.layers.1"
QUERY = f"{LAYER_1}.self_attn.q_proj"
UP = "vision_tower.vision_model.encoder.layers.0.mlp.fc1"
BIAS = "vision_tower.vision_model.encoder.layers.1.mlp.fc2.bias"
NORM = "language_model.model.layers.2.input_layernorm.weight"
LINEAR = "multi_modal_projector.linear"
Halves = dict[str, tuple[np.ndarray, np.ndarray]]


def halves(module: str, rank: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A [r, in] and B [out, r] for a matrix of the small model; float32 numbers, whose products are not float32."""
    shape = tiny.random_tensors()[f"{module}.weight"].shape
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(each).astype(np.float32) for each in ((rank, shape[1]), (shape[0], rank)))


def stored_tensors(lora: Halves, replaced: dict[str, np.ndarray] = {}, spelling: str = "saved 5.x") -> dict:  # noqa: B006
    """As PEFT saves them; the halves of an embedding table are transposed and swapped."""
    tensors = {}
    for module, (a, b) in lora.items():
        name = f"base_model.model.{tiny.spell(module, spelling)}"
        if "embed_tokens" in module:
            tensors |= {f"{name}.lora_embedding_A": b.T, f"{name}.lora_embedding_B": a.T}
        else:
            tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    for name, x in replaced.items():
        tensors[f"base_model.model.{tiny.spell(name, spelling)}"] = x
    return tensors


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], dtype: str = "float32", **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny.save(tensors, folder / "adapter_model.safetensors", dtype)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8, "lora_alpha": 8} | config))
    return folder


def updated(w: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """W + scale B A, element by element, in float64."""
    w, a, b = (x.astype(np.float64) for x in (w, a, b))
    expected = w.copy()
    for out in range(w.shape[0]):
        for column in range(w.shape[1]):
            expected[out, column] += scale * sum(b[out, r] * a[r, column] for r in range(len(a)))
    return expected


def assert_rounded_once(found: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """`found` is `expected` rounded to `dtype`; the order of up to 8 float64 terms below 100 may differ."""
    atol = 8 * 100 * 2.0**-53 + (0 if dtype == "float64" else 100 * 2.0**-24)
    np.testing.assert_allclose(found, expected.astype(dtype), rtol=0, atol=atol, strict=True)


def merge(folder: Path, dtype: str = "float32", tensors: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    adapter = read_adapter(folder)
    return merged(prepared(tensors or tiny.random_tensors(), adapter), adapter, np.dtype(dtype))


LORA = {QUERY: 3, UP: 4, TABLE.removesuffix(".weight"): 2}


def all_kinds(seed: int = 0) -> tuple[Halves, dict[str, np.ndarray]]:
    """Updates of a decoder's matrix, a tower's, and the table; a bias and a norm replaced."""
    tensors = tiny.random_tensors(seed=seed + 100)
    lora = {module: halves(module, rank, seed + i) for i, (module, rank) in enumerate(LORA.items())}
    return lora, {name: tensors[name] for name in (BIAS, NORM)}


def expected_tensors(lora: Halves, replaced: dict[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """The merged tensors of the small model, in float64 where they change."""
    tensors = tiny.random_tensors()
    tensors[HEAD] = tensors[TABLE]
    for module, (a, b) in lora.items():
        tensors[f"{module}.weight"] = updated(tensors[f"{module}.weight"], a, b, alpha / len(a))
    return tensors | {name: x.astype(np.float64) for name, x in replaced.items()}
