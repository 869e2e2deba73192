"""Dump what keras-hub's PaliGemma computes, under its own names, without a change of its source.

    pip install keras-hub jax
    KERAS_BACKEND=jax python tools/dump_keras_hub.py npgemma/assets/tiny npgemma/assets/sample.png "caption en" \\
        -o dump.npz
    npgemma compare embedded dump.npz --preset keras-hub --replay

The output of each layer is kept under the names of the layers that call it and its own, joined by dots; a second output
gets `.extra`. The heads after RoPE, which no layer returns, are `q_rot` and `k_rot`. This script adds what a call is
given and returns: `images`, `token_ids`, `kv_cache`, `logits`. The prompt is padded for the tokens to come, as generate
pads it. Names in a step of decoding follow `step1.` and so on. The weights pass through keras-hub's own converter,
whose width of a head is replaced: it takes the number of image tokens for it, which is right at 224 pixels alone.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
from keras_hub.models import PaliGemmaBackbone, PaliGemmaCausalLM
from keras_hub.src.models.gemma.gemma_attention import CachedGemmaAttention
from keras_hub.src.utils.transformers.convert_pali_gemma import convert_backbone_config, convert_weights

import npgemma
from npgemma.golden import read_dump

Tensors = dict[str, np.ndarray]


class Loader:
    """What keras-hub's converter takes weights from: the files of a folder, under the names of the hub."""

    def __init__(self, folder: Path) -> None:
        self.tensors: Tensors = {}
        for path in sorted(folder.glob("*.safetensors")):
            dump = read_dump(path)
            self.tensors |= {hub_name(name): dump[name] for name in dump}

    def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
        """Assign a tensor to a variable, changed by `hook_fn`."""
        x = self.tensors[hf_weight_key]
        keras_variable.assign(hook_fn(x, list(keras_variable.shape)) if hook_fn else x)


def hub_name(name: str) -> str:
    """The name in a checkpoint of the hub, which has one level more in the tower than transformers writes today."""
    short = "vision_tower."
    name = name.removeprefix("model.")
    is_short = name.startswith(short) and not name.startswith(f"{short}vision_model.")
    return f"{short}vision_model.{name.removeprefix(short)}" if is_short else name


def load_model(folder: Path, dtype: str) -> PaliGemmaCausalLM:
    """The model of a folder."""
    config = json.loads((folder / "config.json").read_text())
    settings = convert_backbone_config(config) | {"head_dim": config["text_config"]["head_dim"]}
    backbone = PaliGemmaBackbone(**settings, dtype=dtype)
    convert_weights(backbone, Loader(folder), config)
    return PaliGemmaCausalLM(preprocessor=None, backbone=backbone)


@contextmanager
def kept_outputs(found: Tensors, before: str) -> Iterator[None]:
    """While it is active, the outputs of layers are kept in `found`, under `before` and the names of the layers."""
    names: list[str] = []
    call, rotate = keras.layers.Layer.__call__, CachedGemmaAttention._apply_rope

    def keep(name: str, x: Any) -> None:
        if keras.ops.is_tensor(x):
            found[before + name] = array(x)

    def keeping(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        names.append(layer.name)
        name = ".".join(names)
        outputs = call(layer, *args, **kwargs)
        names.pop()
        for suffix, x in zip(
            ("", ".extra"), outputs if isinstance(outputs, (tuple, list)) else [outputs], strict=False
        ):
            keep(name + suffix, x)
        return outputs

    def rotating(layer: keras.layers.Layer, x: Any, *args: Any, **kwargs: Any) -> Any:
        turned = rotate(layer, x, *args, **kwargs)
        name = f"{'.'.join(names)}."
        keep(f"{name}k_rot" if f"{before}{name}q_rot" in found else f"{name}q_rot", turned)  # q comes first
        return turned

    with (
        mock.patch.object(keras.layers.Layer, "__call__", keeping),
        mock.patch.object(CachedGemmaAttention, "_apply_rope", rotating),
    ):
        yield


def array(x: Any) -> np.ndarray:
    """A tensor as NumPy's; bfloat16, which .npz lacks, as float32."""
    x = keras.ops.cast(x, "float32") if keras.backend.standardize_dtype(x.dtype) == "bfloat16" else x
    return np.array(keras.ops.convert_to_numpy(x))


def dump(model: PaliGemmaCausalLM, inputs: Any, steps: int) -> Tensors:
    """Every tensor of the prefill and of so many steps, by name."""
    backbone = model.backbone
    rows = backbone.image_sequence_length
    text = np.asarray(inputs.input_ids[0][rows:], np.int32)
    ids = np.pad(text, (0, steps + 1))[None]
    images = np.asarray(inputs.pixel_values).transpose(0, 2, 3, 1)
    found: Tensors = {"images": images, "token_ids": text[None]}
    shape = (1, backbone.num_layers, 2, rows + ids.shape[1], backbone.num_key_value_heads, backbone.head_dim)
    with kept_outputs(found, ""):
        features = backbone.vit_encoder(keras.ops.convert_to_tensor(images))
        cache = keras.ops.zeros(shape, model.compute_dtype)
        mask = (np.arange(ids.shape[1]) < len(text)).astype(np.int32)[None]
        logits, _, cache = model.call_with_cache(ids, cache, 0, features, mask)
    found |= {"logits": array(logits), "kv_cache": array(cache)}
    token = int(found["logits"][0, rows + len(text) - 1].argmax())
    for step in range(1, steps + 1):
        before = f"step{step}."
        given = np.array([[token]], np.int32)
        with kept_outputs(found, before):
            logits, _, cache = model.call_with_cache(given, cache, rows + len(text) + step - 1)
        found |= {f"{before}token_ids": given, f"{before}logits": array(logits), f"{before}kv_cache": array(cache)}
        token = int(found[f"{before}logits"][0, -1].argmax())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    a = parser.parse_args()
    inputs = npgemma.load(a.folder).processor([[a.picture]], [a.prompt])
    np.savez(a.output, **dump(load_model(a.folder, a.dtype), inputs, a.steps))


if __name__ == "__main__":
    main()
