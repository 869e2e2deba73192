"""inspect and verify: the sizes of a model and the memory it needs; whether its files and weights are intact."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.gemma import cache_numbers
from npgemma.checkpoints.gemma_config import SLIDING
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.layout import not_finite
from npgemma.checkpoints.mask_vqvae import CODEC
from npgemma.checkpoints.model_types import module_of
from npgemma.checkpoints.paligemma import MODEL_TYPE
from npgemma.commands.flags import AddParser
from npgemma.commands.output import as_json, printable
from npgemma.errors import BadModel, listed
from npgemma.io.added_tokens import Family
from npgemma.io.digests import Verified, verify_files
from npgemma.io.file_kinds import foreign_kind
from npgemma.io.model_folder import find_model, folder_of
from npgemma.io.safetensors import unused_weights, weight_files
from npgemma.io.system_memory import available_memory, size
from npgemma.io.tokenizers import read_tokenizer, tokenizer_of
from npgemma.layers.tree import leaves

PROMPT_TOKENS, NEW_TOKENS = 32, 256  # the prompt and the answer for which inspect computes the memory
STATUS = {True: "ok", False: "damaged", None: "unknown"}
PARTS = (".json", ".model", ".safetensors")  # files whose first bytes tell whether they are what they should be


def add_models(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    commands = (
        ("inspect", run_inspect, "show the sizes of a model and the memory it needs, without reading its weights"),
        ("verify", run_verify, "check that the files of a model are undamaged and its weights finite"),
    )
    for name, run, text in commands:
        parser = add_parser(name, parents=[form], help=text)
        parser.add_argument("model", nargs="?", metavar="MODEL", help="as for -m (default: the embedded PaliGemma)")
        parser.set_defaults(run=run)


# ------------------------------------------------------------------------------------------------------------- inspect


class Inspected(NamedTuple):
    """The facts about a model, by their names in JSON. An unknown key may ask for what npgemma does not do.

    The caches of layers with a window stop growing: `cache_bytes_at_most` is for as many tokens as there are positions.
    A language model has no tokens per image.
    """

    folder: str
    model_type: str
    weight_files: Sequence[str]
    parameters: int
    stored_as: Mapping[str, int]
    bytes: int
    tokens_per_image: int
    cache_bytes_per_token: int
    cache_bytes_at_most: int
    tokenizer_pieces: int
    mask_decoder: bool
    memory_needed: Mapping[str, int]
    memory_available: int | None
    config: Mapping[str, Any]
    unknown_keys: Sequence[str]


def run_inspect(a: argparse.Namespace) -> None:
    """Print the facts about a model. Its weights are mapped and checked, but not read."""
    model = find_model(a.model)
    checkpoint = module_of(folder_of(model))
    config = checkpoint.read_config(folder_of(model))
    found = inspect(model, checkpoint, config)
    if a.format == "json":
        print(as_json(found._asdict()))
    else:
        print(*described(found, config), sep="\n")


def inspect(model: Path, checkpoint: ModuleType, config: Any) -> Inspected:
    """The facts about a model: counts and sizes from the skeleton of its weights, dtypes from its files."""
    folder, tensors = folder_of(model), checkpoint.read_tensors(model, config)
    skeleton, vision = checkpoint.layout_of(tensors, config).skeleton, getattr(config, "vision", None)
    decoder = skeleton.text if vision else skeleton
    stored = Counter[str]()
    for x in tensors.values():
        stored["bfloat16" if x.dtype == "uint16" else x.dtype.name] += x.size
    parameters, mapped = sum(leaf.value.size for leaf in leaves(skeleton)), sum(x.nbytes for x in tensors.values())
    patches = vision.num_patches if vision else 0

    def needed(weights: int, itemsize: int) -> int:
        run = Run(weights, itemsize, int(patches > 0), [patches + PROMPT_TOKENS], NEW_TOKENS)
        total: int = checkpoint.footprint(config, run).total
        return total

    return Inspected(
        folder=str(folder),
        model_type=MODEL_TYPE if vision else config.text.model_type,
        weight_files=weight_names(model),
        parameters=parameters,
        stored_as=dict(stored),
        bytes=mapped,
        tokens_per_image=patches,
        cache_bytes_per_token=4 * cache_numbers(decoder, 1),
        cache_bytes_at_most=4 * cache_numbers(decoder, config.text.max_position_embeddings),
        tokenizer_pieces=count_pieces(folder, checkpoint.family(config), config.text.vocab_size),
        mask_decoder=(folder / CODEC).exists(),
        memory_needed={
            "float32": needed(mapped, 4),
            "float32 resident": needed(4 * parameters, 4),
            "float64": needed(mapped, 8),
        },
        memory_available=available_memory(),
        config=asdict(config),
        unknown_keys=unknown_keys(folder),
    )


def count_pieces(folder: Path, family: Family, rows: int) -> int:
    """The number of ids that the tokenizer knows; 0 without one."""
    return len(read_tokenizer(folder, family, rows)) if tokenizer_of(folder).exists() else 0


def described(found: Inspected, config: Any) -> Iterator[str]:
    """The facts as lines for people."""
    v, t = getattr(config, "vision", None), config.text
    needed = ", ".join(f"{size(number)} {name}" for name, number in found.memory_needed.items())
    available = "an unknown amount" if found.memory_available is None else size(found.memory_available)
    key_heads = f"{t.num_attention_heads} query and {t.num_key_value_heads} key heads of {t.head_dim}"
    windows = t.layer_kinds.count(SLIDING)
    window = f", a window of {t.sliding_window:,} tokens in {windows} of them" if windows else ""
    yield printable(found.folder)
    yield f"weights    {found.parameters:,} parameters, {found.bytes:,} bytes in {', '.join(found.stored_as)}"
    yield f"files      {printable(listed(found.weight_files))}"
    if v:
        yield f"picture    {v.image_size} x {v.image_size} pixels, {v.num_patches} tokens"
        heads = f"{v.num_attention_heads} heads of {v.head_dim}"
        yield f"vision     {v.num_hidden_layers} layers, width {v.hidden_size}, {heads}"
    yield f"text       {t.num_hidden_layers} layers, width {t.hidden_size}, {key_heads}{window}"
    most = f"{size(found.cache_bytes_at_most)} for {t.max_position_embeddings:,} tokens"
    yield f"cache      {found.cache_bytes_per_token:,} bytes per token in float32, {most}"
    yield f"tokenizer  {found.tokenizer_pieces:,} pieces, embedding of {t.vocab_size:,} rows"
    if v:
        yield f"masks      {f'{CODEC} found' if found.mask_decoder else f'{CODEC} is missing; segment needs it'}"
    yield f"memory     {needed}; {available} available"
    for key in found.unknown_keys:
        yield f"unknown    {printable(key)}"


# -------------------------------------------------------------------------------------------------------------- verify


def run_verify(a: argparse.Namespace) -> int:
    """Check the files of a model, then its weights; returns 1 if any of them is damaged, else 0."""
    model = find_model(a.model)
    folder, files, foreign = folder_of(model), list[Verified](), dict[str, str]()
    for file in verify_files(model):
        files.append(file)
        if kind := kind_of_part(folder / file.name):
            foreign[file.name] = kind
        if a.format == "text":
            status = STATUS[False if file.name in foreign else file.genuine]
            print(f"{status:<8}  {file.sha256}  {printable(file.name)}", flush=True)
    weights = verify_weights(model, [file.name for file in files])
    if a.format == "json":
        found = {"folder": str(folder), "files": [file._asdict() for file in files]}
        print(as_json(found | {"foreign": foreign} | weights._asdict()))
    elif weights.error is None:
        names = ", ".join(map(printable, weights.not_finite))
        print(f"weights   {f'not finite: {names}' if names else 'all finite'}")
        if weights.not_used:
            print(f"not used  {', '.join(map(printable, weights.not_used))}")
    damaged = [file.name for file in files if file.genuine is False]
    report = [] if weights.error is None else [weights.error]
    if damaged:
        hint = "delete the blobs that they link to and download them again"
        report.append(f"damaged, not as published: {', '.join(damaged)}; {hint}")
    if foreign:
        report.append(f"not what their names say: {', '.join(f'{name} ({kind})' for name, kind in foreign.items())}")
    for line in report:
        print(f"npgemma: {printable(line)}", file=sys.stderr)
    return 1 if report or weights.not_finite else 0


def kind_of_part(path: Path) -> str | None:
    """In a few words what a file of a model is, if it is not what its name says: a git-lfs pointer, an HTML page."""
    kind = foreign_kind(path) if path.suffix in PARTS and path.is_file() else None
    return kind and re.split("[,;]", kind)[0]


class Weights(NamedTuple):
    """The files that weights are in, those beside them, the tensors with NaN or infinity, and why they are unusable."""

    weight_files: Sequence[str] = ()
    not_used: Sequence[str] = ()
    not_finite: Sequence[str] = ()
    error: str | None = None


def verify_weights(model: Path, names: Sequence[str]) -> Weights:
    """Whether the weights of a model are finite, and which of the files `names` beside them are not used."""
    try:
        used = weight_names(model)
        folder = folder_of(model)
        checkpoint = module_of(folder)
        infinite = not_finite(checkpoint.read_tensors(model, checkpoint.read_config(folder)))
        return Weights(used, unused_weights(model, names), infinite)
    except BadModel as error:
        return Weights(error=str(error))


def weight_names(model: Path) -> list[str]:
    """The files that the weights of a model are in, by their paths in its folder."""
    return [file.relative_to(folder_of(model)).as_posix() for file in weight_files(model)]
