"""Dump what mlx-vlm's PaliGemma computes, under its own names, without a change of its source.

    pip install "mlx[cpu]" mlx-vlm
    python tools/dump_mlx_vlm.py npgemma/assets/tiny npgemma/assets/sample.png "caption en" -o dump.safetensors
    npgemma compare embedded dump.safetensors --preset mlx-vlm --replay

The class of every module gets a __call__ that keeps the output under the path of the module; a module that is called
twice, as rope is, keeps the last one. What no module returns is kept by this script: the ids, pixels and embeddings
that the decoder starts from, the mask, the cache and the logits. Names in a step of decoding follow `decode_1.` etc.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import mlx.nn as nn
from mlx_vlm.models.cache import KVCache
from mlx_vlm.models.paligemma import Model, ModelConfig

import npgemma

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
Keep = Callable[[str, Any], None]


def load_model(folder: Path, dtype: mx.Dtype) -> Model:
    """The model of a folder, its weights cast to `dtype`."""
    config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = Model(config)
    weights: dict[str, mx.array] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= {hub_name(name): x.astype(dtype) for name, x in mx.load(str(path)).items()}
    weights = model.language_model.sanitize(model.vision_tower.sanitize(weights))
    weights.pop("language_model.lm_head.weight", None)  # the head is the embedding
    model.load_weights(list(weights.items()), strict=True)
    return model


def hub_name(name: str) -> str:
    """The name in a checkpoint of the hub, which has one level more in the tower than transformers writes today."""
    short = "vision_tower."
    name = name.removeprefix("model.")
    is_short = name.startswith(short) and not name.startswith(f"{short}vision_model.")
    return f"{short}vision_model.{name.removeprefix(short)}" if is_short else name


@contextmanager
def kept_outputs(model: nn.Module, keep: Keep) -> Iterator[None]:
    """While it is active, each module's output is kept under its path."""
    paths = {id(module): name for name, module in model.named_modules() if name}

    def keeping(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = call(self, *args, **kwargs)
            first = found[0] if isinstance(found, tuple) else found
            if id(self) in paths and isinstance(first, mx.array):
                keep(paths[id(self)], first)
            return found

        return wrapped

    with ExitStack() as stack:
        for kind in {type(module) for _, module in model.named_modules()}:
            if "__call__" in vars(kind):  # a list of layers is not called
                stack.enter_context(mock.patch.object(kind, "__call__", keeping(vars(kind)["__call__"])))
        yield


def dump(model: Model, inputs: Any, steps: int, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Every tensor of the prefill and of so many steps, by name."""
    found: dict[str, mx.array] = {}
    before = ""

    def keep(name: str, x: mx.array) -> None:
        found[before + name] = x

    decoder = model.language_model
    ids, pixels = mx.array(inputs.input_ids[0])[None], mx.array(inputs.pixel_values).astype(dtype)
    cache = [KVCache() for _ in decoder.layers]
    with kept_outputs(model, keep):
        merged = model.get_input_embeddings(ids, pixels, mask=mx.ones(ids.shape, mx.int32))
        found |= {"input_ids": ids, "pixel_values": pixels, "inputs_embeds": merged.inputs_embeds}
        found["attention_mask_4d"] = merged.attention_mask_4d
        logits = decoder(ids, inputs_embeds=merged.inputs_embeds, mask=merged.attention_mask_4d, cache=cache).logits
        tokens = []
        for step in range(steps + 1):
            keep("logits", logits)
            for i, layer in enumerate(cache):
                keys, values = layer.state
                found |= {f"{before}cache.{i}.keys": keys + 0, f"{before}cache.{i}.values": values + 0}
            tokens.append(int(logits[0, -1].argmax()))
            mx.eval(found)
            if step < steps:
                before = f"decode_{step + 1}."
                token = mx.array([[tokens[-1]]])
                keep("input_ids", token)
                logits = decoder(token, cache=cache).logits
    return found | {"generated": mx.array(tokens)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    a = parser.parse_args()
    inputs = npgemma.load(a.folder).processor([[a.picture]], [a.prompt])
    dtype = DTYPES[a.dtype]
    mx.save_safetensors(str(a.output), dump(load_model(a.folder, dtype), inputs, a.steps, dtype))


if __name__ == "__main__":
    main()
