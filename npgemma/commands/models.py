"""inspect and verify: what a model is, what it will need, and whether its files are whole."""

import argparse
import sys
from collections import Counter
from dataclasses import asdict

from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.layout import not_finite
from npgemma.checkpoints.mask_vqvae import CODEC
from npgemma.checkpoints.paligemma import footprint, read_config, read_tensors
from npgemma.commands.flags import AddParser
from npgemma.commands.output import as_json, printable
from npgemma.errors import BadModel
from npgemma.io.digests import verify_files
from npgemma.io.model_folder import find_model, folder_of
from npgemma.io.system_memory import available_memory, size
from npgemma.io.tokenizers import TOKENIZER, read_tokenizer

TEXT_TOKENS, NEW_TOKENS = 32, 256  # what inspect takes a prompt and an answer to be, for the memory they need


def add_models(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    inspect = add_parser("inspect", parents=[form], help="what a model holds, and the memory it needs; nothing is read")
    inspect.add_argument("model", nargs="?", metavar="MODEL", help="as for -m; default: the model inside npgemma")
    inspect.set_defaults(run=run_inspect)

    verify = add_parser("verify", parents=[form], help="whether a model's files are whole and its weights finite")
    verify.add_argument("model", nargs="?", metavar="MODEL", help="as for -m; default: the model inside npgemma")
    verify.set_defaults(run=run_verify)


def run_inspect(a: argparse.Namespace) -> None:
    """What a model holds; its weights are mapped and checked, not read."""
    model = find_model(a.model)
    folder = folder_of(model)
    config = read_config(folder)
    tensors = read_tensors(model, config)
    stored = Counter[str]()
    for tensor in tensors.values():
        stored["bfloat16" if tensor.dtype == "uint16" else tensor.dtype.name] += tensor.size
    v, t = config.vision, config.text
    has_tokenizer = (folder / TOKENIZER).exists()
    mapped, prompt = sum(tensor.nbytes for tensor in tensors.values()), [v.num_patches + TEXT_TOKENS]
    needed = {
        "float32": footprint(config, Run(mapped, 4, 1, prompt, NEW_TOKENS)),
        "float32 resident": footprint(config, Run(4 * stored.total(), 4, 1, prompt, NEW_TOKENS)),
        "float64": footprint(config, Run(mapped, 8, 1, prompt, NEW_TOKENS)),
    }
    available = available_memory()
    facts = {
        "folder": str(folder),
        "parameters": stored.total(),
        "stored_as": dict(stored),
        "bytes": mapped,
        "tokens_per_image": v.num_patches,
        "cache_bytes_per_token": 2 * 4 * t.num_hidden_layers * t.num_key_value_heads * t.head_dim,
        "tokenizer_pieces": len(read_tokenizer(folder, config.image_token_index)) if has_tokenizer else 0,
        "mask_decoder": (folder / CODEC).exists(),
        "memory_needed": {name: plan.total for name, plan in needed.items()},
        "memory_available": available,
        "config": asdict(config),
    }
    if a.format == "json":
        print(as_json(facts))
        return
    room = "an unknown amount" if available is None else size(available)
    print(
        f"{printable(str(folder))}",
        f"weights    {facts['parameters']:,} parameters, {facts['bytes']:,} bytes in {', '.join(stored)}",
        f"picture    {v.image_size} x {v.image_size} pixels, {v.num_patches} tokens",
        f"vision     {v.num_hidden_layers} layers, width {v.hidden_size}, "
        f"{v.num_attention_heads} heads of {v.head_dim}",
        f"text       {t.num_hidden_layers} layers, width {t.hidden_size}, {t.num_attention_heads} query and "
        f"{t.num_key_value_heads} key heads of {t.head_dim}",
        f"cache      {facts['cache_bytes_per_token']:,} bytes a token in float32",
        f"tokenizer  {facts['tokenizer_pieces']:,} pieces, embedding of {t.vocab_size:,} rows",
        f"masks      {'a decoder is there' if facts['mask_decoder'] else f'no {CODEC}, which segment needs'}",
        f"memory     {', '.join(f'{size(plan.total)} {name}' for name, plan in needed.items())}; {room} available",
        sep="\n",
    )


def run_verify(a: argparse.Namespace) -> int:
    """A line a file: ok, damaged, or unknown where it is no blob of a Hugging Face cache; then the weights."""
    model = find_model(a.model)
    folder = folder_of(model)
    words = {True: "ok", False: "damaged", None: "unknown"}
    found = []
    for file in verify_files(model):
        found.append(file)
        if a.format == "text":
            print(f"{words[file.genuine]:<8}  {file.sha256}  {printable(file.name)}", flush=True)
    infinite, unusable = [], None
    try:
        infinite = not_finite(read_tensors(model, read_config(folder)))
    except BadModel as error:
        unusable = str(error)
    damaged = [file.name for file in found if file.genuine is False]
    if a.format == "json":
        files = [file._asdict() for file in found]
        print(as_json({"folder": str(folder), "files": files, "not_finite": infinite, "error": unusable}))
    elif unusable is None:
        weights = f"not finite: {', '.join(map(printable, infinite))}" if infinite else "all finite"
        print(f"weights   {weights}")
    if unusable is not None:
        print(f"npgemma: {printable(unusable)}", file=sys.stderr)
    if damaged:
        hint = "delete what it links to and download it again"
        print(f"npgemma: {', '.join(map(printable, damaged))}: not what was published; {hint}", file=sys.stderr)
    return 1 if damaged or infinite or unusable else 0
