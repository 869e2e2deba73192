"""Dump what transformers' PaliGemma computes, under transformers' own names, as the author of a port would.

    python tools/dump_transformers.py npgemma/assets/tiny npgemma/assets/sample.png "caption en" -o dump.safetensors
    npgemma compare golden.safetensors dump.safetensors --preset transformers

A forward hook on every module keeps its output. For tensors that no module returns, a hook keeps the input of the
module that uses them. With --bug, a mistake that ports have made is planted in transformers' code first: see
transformers_bugs.py.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Cache, PaliGemmaForConditionalGeneration
from transformers_bugs import BUGS, BUGS_2

import npgemma

# Modules whose inputs are kept: the heads before the output projection, the MLP's hidden row, the middle of a layer.
INPUTS = ("o_proj", "out_proj", "down_proj", "fc2", "layer_norm2")
INPUTS += ("post_attention_layernorm", "pre_feedforward_layernorm")


def load_model(folder: Path, dtype: torch.dtype, attention: str) -> PaliGemmaForConditionalGeneration:
    """The model of a folder; `attention` is 'eager' or 'sdpa'.

    transformers prefers sdpa where a part of the model supports it; the decoder of PaliGemma 2 does not, since the
    kernel does not cap scores.
    """
    wanted = None if attention == "sdpa" else attention
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=dtype, attn_implementation=wanted)
    return model.eval()


def make_inputs(folder: Path, picture: Path, prompt: str) -> dict[str, Tensor]:
    """Ids, types and pixels from npgemma's processor, which equal those of transformers."""
    inputs = npgemma.load(folder).processor([[picture]], [prompt])
    return {
        "input_ids": torch.from_numpy(inputs.input_ids[0])[None],
        "token_type_ids": torch.from_numpy(inputs.token_type_ids[0])[None],
        "pixel_values": torch.from_numpy(inputs.pixel_values),
    }


@torch.no_grad()
def dump(
    model: PaliGemmaForConditionalGeneration, inputs: dict[str, Tensor], ids: Sequence[int] = ()
) -> dict[str, Tensor]:
    """Every tensor of the prefill, and of a step for each of `ids` under `steps.{n}.`."""
    found, cache = dict(inputs), None
    for n, token in enumerate([None, *ids]):
        scope = f"steps.{n}." if n else ""
        if n:
            inputs = {"input_ids": torch.tensor([[token]])}
            found[f"{scope}input_ids"] = inputs["input_ids"]
        with recording(model, found, scope):
            out = model(**inputs, cache=cache, use_cache=True, logits_to_keep=1)
        cache, found[f"{scope}logits"] = out.cache, out.logits
    return {name: x.detach().clone().contiguous() for name, x in found.items()}


class Hooks:
    """Hooks on every module that keep its tensors in `found`, under `scope` and the module's name."""

    def __init__(self, found: dict[str, Tensor], scope: str) -> None:
        self.found, self.scope = found, scope
        self.attention = ""  # the attention that runs: it rotates in a function, which does not know its name

    def keep(self, name: str, x: object) -> None:
        """Copy a tensor. RuntimeError if a module runs twice, since one of its outputs would be lost."""
        if isinstance(x, Tensor):
            if self.scope + name in self.found:
                raise RuntimeError(f"{self.scope + name} was computed twice")
            self.found[self.scope + name] = x.clone()

    def output(self, name: str, module: object, args: tuple, kwargs: dict, output: object) -> None:
        self.keep(name, output[0] if isinstance(output, tuple) else output)
        if name.endswith("self_attn"):
            self.keep(f"{name}.probs", output[1])
        if name.endswith("rotary_emb"):
            self.keep(f"{name}.sin", output[1])

    def input(self, name: str, module: object, args: tuple, kwargs: dict) -> None:
        if name.endswith("self_attn"):
            self.attention = name
        if name.rpartition(".")[2] in INPUTS:
            self.keep(f"{name}.input", args[0])
        if name.endswith("language_model"):
            self.keep("inputs_embeds", kwargs["inputs_embeds"])
            self.keep("position_ids", kwargs["position_ids"])
            masks = kwargs["attention_mask"]
            for kind, mask in masks.items() if isinstance(masks, dict) else [("", masks)]:
                seen = mask if mask is None or mask.dtype == torch.bool else mask == 0
                self.keep(f"attention_mask.{kind}".removesuffix("."), seen)

    def rotate(self, original: Callable, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        rotated = original(*args, **kwargs)
        for name, x in zip(("q_rope", "k_rope"), rotated, strict=True):
            self.keep(f"{self.attention}.{name}", x)
        return rotated

    def extend(self, original: Callable, cache: Cache, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """The keys and values that attention sees: a cache of the last rows may keep fewer of them."""
        seen = original(cache, *args, **kwargs)
        for name, x in zip(("key", "value"), seen, strict=True):
            self.keep(f"past_key_values.{args[2]}.{name}", x)
        return seen


def code_of(model: PaliGemmaForConditionalGeneration) -> ModuleType:
    """transformers' file of the decoder: modeling_gemma or modeling_gemma2."""
    return sys.modules[type(model.model.language_model).__module__]


def recording(model: PaliGemmaForConditionalGeneration, found: dict[str, Tensor], scope: str) -> ExitStack:
    """While it is open, `found` receives the tensors of every module."""
    stack, hooks = ExitStack(), Hooks(found, scope)
    code, update = code_of(model), Cache.update
    rotate = partial(hooks.rotate, code.apply_rotary_pos_emb)
    stack.enter_context(mock.patch.object(code, "apply_rotary_pos_emb", rotate))
    stack.enter_context(mock.patch.object(Cache, "update", lambda *args, **more: hooks.extend(update, *args, **more)))
    for name, module in model.named_modules():
        if name:
            after = module.register_forward_hook(partial(hooks.output, name), with_kwargs=True)
            before = module.register_forward_pre_hook(partial(hooks.input, name), with_kwargs=True)
            stack.callback(after.remove)
            stack.callback(before.remove)
    return stack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("prompt")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument(
        "--ids", type=int, nargs="*", default=[], help="tokens to decode after the prefill, a step each"
    )
    parser.add_argument("--bug", choices=BUGS | BUGS_2, help="plant this mistake first")
    a = parser.parse_args()
    model = load_model(a.model, getattr(torch, a.dtype), a.attention)
    with ExitStack() as stack:
        if a.bug:
            (BUGS | BUGS_2)[a.bug].plant(model, stack)
        tensors = dump(model, make_inputs(a.model, a.picture, a.prompt), a.ids)
    temporary = a.output.with_name(f".{a.output.name}")
    save_file(tensors, temporary)
    temporary.replace(a.output)
    print(f"wrote {len(tensors)} tensors to {a.output}")


if __name__ == "__main__":
    main()
