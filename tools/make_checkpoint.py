"""Write a checkpoint with random weights in the layout of PaliGemma 3B, to measure without the real weights.

    python tools/make_checkpoint.py FOLDER --image-size 224 --dtype bfloat16
    python tools/make_checkpoint.py FOLDER --set vision.num_hidden_layers=4 --set text.num_key_value_heads=2

Every field of SiglipConfig and GemmaConfig can be set; the defaults are those of the 3B model.

The folder resembles the hub's, without a tokenizer: shards with an index, the hub's spelling of the names, and a
config.json as sparse as the hub's. Weights are normal with a deviation of 1/sqrt(fan-in), so that activations neither
vanish nor explode. One shard is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors

from npgemma.checkpoints.gemma_config import GemmaConfig
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout
from npgemma.checkpoints.siglip import SiglipConfig
from npgemma.layers.bits import pack

SHARD_BYTES = 1_500_000_000
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


def hub_name(name: str) -> str:
    """A name that transformers 5 saves as the files on the hub spell it."""
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def shards(shapes: dict[str, tuple[int, ...]], item_bytes: int) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors in order, cut into groups of about SHARD_BYTES."""
    group: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        nbytes = int(np.prod(shape)) * item_bytes
        if group and size + nbytes > SHARD_BYTES:
            yield group
            group, size = {}, 0
        group[name] = shape
        size += nbytes
    yield group


def random_tensor(rng: np.random.Generator, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Normal numbers of deviation 1/sqrt(fan-in) for a matrix, 0.02 about the neutral value for a vector."""
    neutral = 1.0 if "norm" in name and not name.startswith("language_model.") and name.endswith("weight") else 0.0
    scale = 0.02 if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
    x = np.empty(shape, np.uint16 if dtype == "bfloat16" else dtype)
    rows = max(1, (1 << 22) // int(np.prod(shape[1:])))
    for start in range(0, shape[0], rows):
        block = x[start : start + rows]
        values = rng.standard_normal(block.shape, np.float32) * np.float32(scale) + np.float32(neutral)
        block[:] = pack(values) if dtype == "bfloat16" else values
    return x


def sparse_config(config: PaliGemmaConfig, dtype: str) -> dict:
    """config.json as the hub has it: what equals a default of its day is left out, such as image_size at 224."""
    vision, text = config.vision, config.text
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "model_type": "paligemma",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "hidden_size": text.hidden_size,
        "ignore_index": -100,
        "image_token_index": config.image_token_index,
        "projection_dim": text.hidden_size,
        "torch_dtype": dtype,
        "text_config": {
            "model_type": "gemma",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_attention_heads": text.num_attention_heads,
            "num_hidden_layers": text.num_hidden_layers,
            "num_key_value_heads": text.num_key_value_heads,
            "num_image_tokens": vision.num_patches,
            "torch_dtype": dtype,
            "vocab_size": text.vocab_size,
        }
        | changed(text),
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_attention_heads": vision.num_attention_heads,
            "num_hidden_layers": vision.num_hidden_layers,
            "num_image_tokens": vision.num_patches,
            "patch_size": vision.patch_size,
            "projection_dim": text.hidden_size,
            "projector_hidden_act": "gelu_fast",
            "vision_use_head": False,
        }
        | changed(vision),
    }


def changed(part: SiglipConfig | GemmaConfig) -> dict[str, float]:
    """The sizes that are not 3B's."""
    return {key: value for key, value in asdict(part).items() if value != getattr(type(part)(), key)}


def setting(text: str) -> tuple[str, str, float]:
    """'vision.patch_size=7' as (vision, patch_size, 7)."""
    name, _, number = text.partition("=")
    part, _, key = name.partition(".")
    default = getattr({"vision": SiglipConfig, "text": GemmaConfig}[part](), key)
    return part, key, type(default)(number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-size", type=int, default=224, help="224, 448 or 896 (default: 224)")
    parser.add_argument("--dtype", default="bfloat16", choices=sorted(BYTES))
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="PART.KEY=NUMBER")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    sizes = {part: {key: number for home, key, number in a.set if home == part} for part in ("vision", "text")}
    config = PaliGemmaConfig(
        SiglipConfig(**{"image_size": a.image_size} | sizes["vision"]), GemmaConfig(**sizes["text"])
    )
    a.folder.mkdir(parents=True, exist_ok=True)
    (a.folder / "config.json").write_text(json.dumps(sparse_config(config, a.dtype), indent=2))
    rng = np.random.Generator(np.random.SFC64(a.seed))
    groups = list(shards(hf_layout(config).shapes, BYTES[a.dtype]))
    weight_map = {}
    for i, group in enumerate(groups, 1):
        shard = f"model-{i:05d}-of-{len(groups):05d}.safetensors"
        tensors = {hub_name(name): random_tensor(rng, name, shape, a.dtype) for name, shape in group.items()}
        specs = {
            name: safetensors.TensorSpec(dtype=a.dtype, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
            for name, x in tensors.items()
        }
        safetensors.serialize_file(specs, a.folder / shard, {"format": "np"})
        weight_map |= dict.fromkeys(tensors, shard)
        print(f"{shard}: {len(tensors)} tensors, {sum(x.nbytes for x in tensors.values()):,} bytes", flush=True)
    index = {"metadata": {}, "weight_map": weight_map}
    (a.folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


if __name__ == "__main__":
    main()
