"""Dump what transformers' PaliGemma, Gemma, SigLIP, CLIP or ViT computes, under its own names, as a port would.

    python tools/dump_transformers.py npgemma/assets/tiny npgemma/assets/sample.png "caption en" -o dump.safetensors
    python tools/dump_transformers.py gemma-3-1b-it "Why is the sky blue?" -o dump.safetensors
    python tools/dump_transformers.py clip-vit-base-patch16 cat.jpg dog.jpg "a cat" "a dog" -o dump.safetensors
    python tools/dump_transformers.py vit-base-patch16-224 cat.jpg -o dump.safetensors
    npgemma compare golden.safetensors dump.safetensors --preset transformers

A forward hook on every module keeps its output. For tensors that no module returns, a hook keeps the input of the
module that uses them. With --bug, a mistake that ports have made is planted in transformers' code first: see
transformers_bugs.py and port_bugs.py.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest import mock

import torch
import transformers
from port_bugs import HARMLESS, LATE_BUGS, PORT_BUGS
from safetensors.torch import save_file
from torch import Tensor
from transformers import Cache, PreTrainedModel
from transformers_bugs import BUGS, BUGS_2, BUGS_3, Bug, decoder_of
from transformers_encoder_bugs import ENCODER_BUGS

import npgemma
from npgemma.commands.golden import case_of
from npgemma.io.picture import Picture

# Modules whose inputs are kept: the heads before the output projection, the MLP's hidden row, the middle of a layer.
INPUTS = ("o_proj", "out_proj", "down_proj", "fc2", "layer_norm2")
INPUTS += ("post_attention_layernorm", "pre_feedforward_layernorm")
# Those of encoders: the middle of a layer of a ViT, and pooled rows.
INPUTS += ("layernorm_after", "post_layernorm", "text_projection", "classifier", "head")
# What an encoder returns.
OUTPUTS = ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text", "loss", "logits")
ALL_BUGS = BUGS | BUGS_2 | BUGS_3 | ENCODER_BUGS | PORT_BUGS | LATE_BUGS | HARMLESS
Encoder = npgemma.DualEncoder | npgemma.Classifier
# By model_type.
CLASSES = {
    "paligemma": "PaliGemmaForConditionalGeneration",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "siglip": "SiglipModel",
    "clip": "CLIPModel",
    "vit": "ViTForImageClassification",
}


def load_model(folder: Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """The model of a folder; `attention` is 'eager' or 'sdpa'.

    transformers prefers sdpa where a part of the model supports it; the decoder of Gemma 2 does not, since the kernel
    does not cap scores.
    """
    wanted = None if attention == "sdpa" else attention
    kind = getattr(transformers, CLASSES[json.loads((folder / "config.json").read_text())["model_type"]])
    return kind.from_pretrained(folder, dtype=dtype, attn_implementation=wanted).eval()


def make_inputs(folder: Path, pictures: Sequence[Picture], prompt: str) -> dict[str, Tensor]:
    """Ids, and for pictures types and pixels, from npgemma's processor, which equal those of transformers."""
    inputs = npgemma.load(folder).processor([list(pictures)], [prompt])
    ids = {"input_ids": torch.from_numpy(inputs.input_ids[0])[None]}
    if not pictures:
        return ids
    types, pixels = inputs.token_type_ids[0], inputs.pixel_values
    return ids | {"token_type_ids": torch.from_numpy(types)[None], "pixel_values": torch.from_numpy(pixels)}


@torch.no_grad()
def dump(model: PreTrainedModel, inputs: dict[str, Tensor], ids: Sequence[int] = ()) -> dict[str, Tensor]:
    """Every tensor of the prefill, and of a step for each of `ids` under `steps.{n}.`."""
    inputs = {name: x.to(model.device) for name, x in inputs.items()}
    found = dict(inputs)
    for n, token in enumerate([None, *ids]):
        scope = f"steps.{n}." if n else ""
        if n:
            cache = "cache" if "cache" in out else "past_key_values"  # its name before transformers 5.24
            inputs = {"input_ids": torch.tensor([[token]], device=model.device), cache: out[cache]}
            found[f"{scope}input_ids"] = inputs["input_ids"]
        with recording(model, found, scope):
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        found[f"{scope}logits"] = out.logits
    return {name: x.detach().clone().contiguous() for name, x in found.items()}


def make_encoder_inputs(model: Encoder, pictures: Sequence[Picture], texts: Sequence[str]) -> dict[str, Tensor]:
    """Pixels, and ids of texts if there are any, from npgemma's processors, which equal those of transformers."""
    pixels = {"pixel_values": torch.from_numpy(model.processor(list(pictures)))}
    if not texts:
        return pixels
    return pixels | {"input_ids": torch.from_numpy(model.text_rows(list(texts)).ids)}


@torch.no_grad()
def dump_encoder(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor of a run of an encoder, with the loss if there is a text for each picture."""
    inputs = {name: x.to(model.device) for name, x in inputs.items()}
    found = dict(inputs)
    pairs = "input_ids" in inputs and len(inputs["input_ids"]) == len(inputs["pixel_values"])
    with hooked(model, Hooks(found, "")):
        out = model(**inputs, **({"return_loss": True} if pairs else {}))
    found |= {name: out[name] for name in OUTPUTS if out.get(name) is not None}
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

    def output(self, name: str, module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        first, *more = output if isinstance(output, tuple) else [output]
        if name.endswith("rotary_emb"):  # Gemma 3 calls it for each kind of layer, which it names
            for part, x in zip(("cos", "sin"), (first, *more), strict=True):
                self.keep(".".join([name, *args[2:], part]), x)
            return
        self.keep(name, first)
        if name.endswith("self_attn") and name.startswith("model."):
            self.keep(f"{name}.probs", more[0])
        elif name.endswith(("self_attn", "attention")) and more[0] is not None:  # of an encoder
            for i, probs in enumerate(more[0]):
                self.keep(f"{name}.probs.{i}", probs)

    def input(self, name: str, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if name.endswith("self_attn"):
            self.attention = name
        if name.rpartition(".")[2] in INPUTS:
            self.keep(f"{name}.input", args[0])
        if name.endswith("layers.0") and "position_ids" in kwargs:  # the tower's layers have none
            self.keep("inputs_embeds", args[0])
            self.keep("position_ids", kwargs["position_ids"])
        if "position_embeddings" in kwargs and name.endswith("self_attn"):
            self.mask(module, kwargs["attention_mask"])

    def mask(self, attention: torch.nn.Module, mask: Tensor | None) -> None:
        """Keep the mask of the first layer of each kind. There is none where the kernel knows that it is causal."""
        kinds = getattr(attention.config, "layer_types", None)
        name = f"attention_mask.{kinds[attention.layer_idx]}" if kinds else "attention_mask"
        if self.scope + name not in self.found:
            self.keep(name, mask if mask is None or mask.dtype == torch.bool else mask == 0)

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


def code_of(model: PreTrainedModel) -> ModuleType:
    """transformers' file of the decoder: modeling_gemma, modeling_gemma2 or modeling_gemma3."""
    return sys.modules[type(decoder_of(model)).__module__]


def recording(model: PreTrainedModel, found: dict[str, Tensor], scope: str) -> ExitStack:
    """While it is open, `found` receives the tensors of every module."""
    hooks = Hooks(found, scope)
    stack = hooked(model, hooks)
    code, update = code_of(model), Cache.update
    rotate = partial(hooks.rotate, code.apply_rotary_pos_emb)
    stack.enter_context(mock.patch.object(code, "apply_rotary_pos_emb", rotate))
    stack.enter_context(mock.patch.object(Cache, "update", lambda *args, **more: hooks.extend(update, *args, **more)))
    return stack


def hooked(model: PreTrainedModel, hooks: Hooks) -> ExitStack:
    """While it is open, every module calls `hooks`, but dropout, which does nothing and runs twice in a ViT's layer."""
    stack = ExitStack()
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.nn.Dropout):
            after = module.register_forward_hook(partial(hooks.output, name), with_kwargs=True)
            before = module.register_forward_pre_hook(partial(hooks.input, name), with_kwargs=True)
            stack.callback(after.remove)
            stack.callback(before.remove)
    return stack


def dump_case(model: PreTrainedModel, a: argparse.Namespace, bug: Bug) -> dict[str, Tensor]:
    """The tensors of the case that the arguments name, whose inputs a mistake may change."""
    loaded, a.model = npgemma.load(a.model), str(a.model)
    pictures, text = case_of(a, loaded)
    if isinstance(loaded, Encoder):
        return dump_encoder(model, make_encoder_inputs(loaded, pictures, text))
    return dump(model, bug.inputs(make_inputs(loaded.folder, pictures, text), pictures), a.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("case", nargs="+", metavar="IMAGE ... TEXT", help="as for `npgemma golden`")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda (default: cpu)")
    parser.add_argument(
        "--ids", type=int, nargs="*", default=[], help="tokens to decode after the prefill, a step each"
    )
    parser.add_argument("--bug", choices=ALL_BUGS, help="plant this mistake first")
    a = parser.parse_args()
    model = load_model(a.model, getattr(torch, a.dtype), a.attention).to(a.device)
    a.steps = None
    with ExitStack() as stack:
        bug = ALL_BUGS[a.bug] if a.bug else Bug("")
        bug.plant(model, stack)
        tensors = dump_case(model, a, bug)
    temporary = a.output.with_name(f".{a.output.name}")
    save_file(tensors, temporary)
    temporary.replace(a.output)
    print(f"wrote {len(tensors)} tensors to {a.output}")


if __name__ == "__main__":
    main()
