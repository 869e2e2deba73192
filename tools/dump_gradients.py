"""Dump the gradients of a torch port under its own names: of every parameter, and of what its modules take and return.

    python tools/dump_gradients.py npgemma/assets/tiny case.safetensors -o gradients.safetensors
    npgemma compare case.safetensors gradients.safetensors --preset transformers

`dump_gradients` is the recipe of npgemma/golden/README.md; the rest loads transformers' models for it.
"""

import argparse
import json
import re
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence


def dump_gradients(model, case):
    golden, kept, hooks = load_file(case, str(model.device)), {}, []

    def keep(name, x):
        if isinstance(x, torch.Tensor) and x.requires_grad:
            x.retain_grad()
            kept[name] = x

    for name, module in model.named_modules():
        before = lambda _, args, name=name: args and keep(f"{name}.input", args[0])  # noqa: E731
        after = lambda _, args, y, name=name: keep(name, y[0] if isinstance(y, tuple) else y)  # noqa: E731
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    count = sum(name.endswith(".labels") for name in golden)
    batch = lambda name, pad: pad_sequence([golden[f"prompts.{i}.{name}"].long() for i in range(count)], True, pad)  # noqa: E731
    inputs = {"input_ids": batch("input_ids", 0), "attention_mask": (batch("labels", -1) != -1).long()}
    if "pixel_values" in golden:
        shown = torch.cat([golden[f"prompts.{i}.pictures"] for i in range(count)]).long()
        inputs["pixel_values"] = golden["pixel_values"][shown].to(model.dtype)
        inputs["token_type_ids"] = batch("token_type_ids", 1)
    loss = model(**inputs, labels=batch("labels", -100), use_cache=False).loss
    loss.backward()
    [hook.remove() for hook in hooks]
    found = {f"grad.{name}": x.grad for name, x in kept.items() if x.grad is not None}
    found |= {f"grad.weights.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach()} | {name: x.clone(memory_format=torch.contiguous_format) for name, x in found.items()}


def dump_encoder_gradients(model, case):
    """The same for an encoder: of its loss of pairs, or of labels, and of the rows that it returns."""
    golden, kept, hooks = load_file(case, str(model.device)), {}, []

    def keep(name, x):
        if isinstance(x, torch.Tensor) and x.requires_grad:
            x.retain_grad()
            kept[name] = x

    for name, module in model.named_modules():
        before = lambda _, args, name=name: args and keep(f"{name}.input", args[0])  # noqa: E731
        after = lambda _, args, y, name=name: keep(name, y[0] if isinstance(y, tuple) else y)  # noqa: E731
        hooks += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    labels = {"return_loss": True}
    if "labels" in golden:  # a number of each picture, or whether each label fits
        labels = {"labels": golden["labels"].to(torch.long if golden["labels"].ndim == 1 else model.dtype)}
    ids = {"input_ids": golden["input_ids"].long()} if "input_ids" in golden else {}
    out = model(pixel_values=golden["pixel_values"].to(model.dtype), **ids, **labels)
    for name in ("image_embeds", "text_embeds"):
        keep(name, out.get(name))
    out.loss.backward()
    [hook.remove() for hook in hooks]
    found = {f"grad.{name}": x.grad for name, x in kept.items() if x.grad is not None}
    found |= {f"grad.weights.{name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {name: out[name].detach() for name in ("loss", "logits_per_image") if name in out}
    return {name: x.clone(memory_format=torch.contiguous_format) for name, x in found.items()}


def dump_steps(model, case, dump):
    """The losses of the steps that the case has, and the lengths of their gradients; `dump` is a function above.

    Matrices decay, and tables of positions, class tokens, norms and biases do not.
    """
    with safe_open(case, "pt") as file:
        steps = json.loads(file.metadata()["npgemma.golden"])["gradients"]["curve"]
    fixed = re.compile(r".*(position|class_embedding|cls_token|probe).*")
    groups = {True: [], False: []}
    for name, p in model.named_parameters():
        groups[p.ndim > 1 and not fixed.fullmatch(name)].append(p)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": steps["decay"] * decays} for decays, group in groups.items()],
        lr=steps["rate"],
        betas=(steps["beta1"], steps["beta2"]),
        eps=steps["eps"],
    )
    losses, lengths = [], []
    for _ in range(steps["steps"]):
        model.zero_grad()
        losses.append(dump(model, case)["loss"])
        lengths.append(torch.nn.utils.clip_grad_norm_(model.parameters(), steps["clip"]))
        optimizer.step()
    return {"curve.loss": torch.stack(losses), "curve.gradient_norm": torch.stack(lengths)}


def main() -> None:
    from dump_transformers import load_model

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("case", help="a golden file that `npgemma golden --gradients` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="a .safetensors file")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="eager")
    parser.add_argument("--device", default="cpu", help="a torch device, such as cuda (default: cpu)")
    a = parser.parse_args()
    model = load_model(a.model, getattr(torch, a.dtype), a.attention).to(a.device)
    encodes = model.config.model_type in ("siglip", "clip", "vit")
    save_file((dump_encoder_gradients if encodes else dump_gradients)(model, a.case), a.output)


if __name__ == "__main__":
    main()
