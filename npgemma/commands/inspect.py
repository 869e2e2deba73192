"""inspect: the sizes of a model and the memory it needs, without reading its weights."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from npgemma.api.dual_encoder import KINDS
from npgemma.checkpoints import language_model, paligemma, vit
from npgemma.checkpoints.footprint import Run
from npgemma.checkpoints.gemma import cache_numbers
from npgemma.checkpoints.gemma_config import SLIDING, GemmaConfig
from npgemma.checkpoints.known_keys import unknown_keys
from npgemma.checkpoints.language_model import LanguageModelConfig
from npgemma.checkpoints.mask_vqvae import CODEC
from npgemma.checkpoints.model_types import module_of
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.checkpoints.towers import DualEncoderConfig, VisionConfig
from npgemma.checkpoints.vit import ViTConfig
from npgemma.commands.flags import AddParser
from npgemma.commands.output import as_json, say
from npgemma.commands.verify import weight_names
from npgemma.errors import listed
from npgemma.io.model_folder import find_model, folder_of
from npgemma.io.system_memory import available_memory, size
from npgemma.io.tokenizers import read_tokenizer, tokenizer_of
from npgemma.layers.shapes import Array
from npgemma.layers.tree import leaves

PROMPT_TOKENS, NEW_TOKENS = 32, 256  # the prompt and the answer for which inspect computes the memory
MOST_LABELS = 3  # how many labels are shown as examples
Config: TypeAlias = PaliGemmaConfig | LanguageModelConfig | DualEncoderConfig | ViTConfig


def add_inspect(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    text = "show the sizes of a model and the memory it needs, without reading its weights"
    parser = add_parser("inspect", parents=[form], help=text)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for -m (default: the embedded PaliGemma)")
    parser.set_defaults(run=run_inspect)


class Inspected(NamedTuple):
    """The facts about a model, by their names in JSON. An unknown key may ask for what npgemma does not do.

    The caches of layers with a window stop growing: `cache_bytes_at_most` is for as many tokens as there are positions.
    A language model has no tokens per image, a model that does not write has no caches, and a ViT has no tokenizer.
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
        say(as_json(found._asdict()))
    else:
        say(*described(found, config), sep="\n")


def inspect(model: Path, checkpoint: ModuleType, config: Config) -> Inspected:
    """The facts about a model: counts and sizes from its files and its config."""
    folder, tensors = folder_of(model), checkpoint.read_tensors(model, config)
    stored = Counter[str]()
    for x in tensors.values():
        stored["bfloat16" if x.dtype == "uint16" else x.dtype.name] += x.size
    parameters, mapped = stored.total(), sum(x.nbytes for x in tensors.values())

    def needed(weights: int, itemsize: int) -> int:
        total: int = checkpoint.footprint(config, usual_run(checkpoint, config, weights, itemsize)).total
        return total

    per_token, at_most = cache_bytes(config)
    return Inspected(
        folder=str(folder),
        model_type=model_type(config),
        weight_files=weight_names(model),
        parameters=parameters,
        stored_as=dict(stored),
        bytes=mapped,
        tokens_per_image=vision.num_patches if (vision := vision_of(config)) else 0,
        cache_bytes_per_token=per_token,
        cache_bytes_at_most=at_most,
        tokenizer_pieces=count_pieces(folder, checkpoint, config),
        mask_decoder=(folder / CODEC).exists(),
        memory_needed={
            "float32": needed(mapped, 4),
            "float32 auto": needed(mapped + 4 * numbers_of_steps(config, tensors.values()), 4),
            "float32 resident": needed(4 * parameters, 4),
            "float64": needed(mapped, 8),
        },
        memory_available=available_memory(),
        config=asdict(config),
        unknown_keys=unknown_keys(folder),
    )


def numbers_of_steps(config: Config, tensors: Iterable[Array]) -> int:
    """How many numbers of a model each step would widen: those of its decoder, if they are stored as bfloat16."""
    if isinstance(config, DualEncoderConfig | ViTConfig) or all(x.dtype != np.uint16 for x in tensors):
        return 0
    decoder = paligemma.blank(config).text if isinstance(config, PaliGemmaConfig) else language_model.blank(config)
    return sum(leaf.value.size for leaf in leaves(decoder) if leaf.kind == "weight")


def vision_of(config: Config) -> VisionConfig | None:
    """The vision tower; None for a language model."""
    return None if isinstance(config, LanguageModelConfig) else config.vision


def model_type(config: Config) -> str:
    """The model_type that transformers has for what npgemma reads of a model."""
    match config:
        case PaliGemmaConfig():
            return paligemma.MODEL_TYPE
        case LanguageModelConfig():
            return config.text.model_type
        case DualEncoderConfig():
            return config.model_type
        case ViTConfig():
            return vit.MODEL_TYPE


def usual_run(checkpoint: ModuleType, config: Config, weights: int, itemsize: int) -> Run:
    """A picture and an answer to a prompt, or one picture and one text for an encoder."""
    if isinstance(config, DualEncoderConfig | ViTConfig):
        run: Run = checkpoint.shortest_run(config, weights, itemsize)
        return run
    vision = vision_of(config)
    patches = vision.num_patches if vision else 0
    return Run(weights, itemsize, int(patches > 0), [patches + PROMPT_TOKENS], NEW_TOKENS)


def cache_bytes(config: Config) -> tuple[int, int]:
    """How large the caches are in float32: for one token, and for as many as there are positions."""
    if isinstance(config, DualEncoderConfig | ViTConfig):
        return 0, 0
    decoder = paligemma.blank(config).text if isinstance(config, PaliGemmaConfig) else language_model.blank(config)
    return 4 * cache_numbers(decoder, 1), 4 * cache_numbers(decoder, config.text.max_position_embeddings)


def count_pieces(folder: Path, checkpoint: ModuleType, config: Config) -> int:
    """The number of ids that the tokenizer knows; 0 without one."""
    if isinstance(config, ViTConfig):
        return 0
    if isinstance(config, DualEncoderConfig):
        kind = KINDS[config.model_type]
        found = any((folder / name).exists() for name in kind.tokenizer_files)
        return len(kind.read_tokenizer(folder, config.text.vocab_size, None)) if found else 0
    if not tokenizer_of(folder).exists():
        return 0
    return len(read_tokenizer(folder, checkpoint.family(config), config.text.vocab_size))


def described(found: Inspected, config: Config) -> Iterator[str]:
    """The facts as lines for people."""
    needed = ", ".join(f"{size(number)} {name}" for name, number in found.memory_needed.items())
    available = "an unknown amount" if found.memory_available is None else size(found.memory_available)
    yield found.folder
    yield f"weights    {found.parameters:,} parameters, {found.bytes:,} bytes in {', '.join(found.stored_as)}"
    yield f"files      {listed(found.weight_files)}"
    if v := vision_of(config):
        yield f"picture    {v.image_size} x {v.image_size} pixels, {v.num_patches} {patches_are(config)}"
        heads = f"{v.num_attention_heads} heads of {v.head_dim}"
        yield f"vision     {v.num_hidden_layers} layers, width {v.hidden_size}, {heads}"
    yield from described_words(found, config)
    if isinstance(config, PaliGemmaConfig):
        yield f"masks      {f'{CODEC} found' if found.mask_decoder else f'{CODEC} is missing; segment needs it'}"
    yield f"memory     {needed}; {available} available"
    for key in found.unknown_keys:
        yield f"unknown    {key}"


def patches_are(config: Config) -> str:
    """What the parts of a picture are called."""
    return "tokens" if isinstance(config, PaliGemmaConfig) else "patches"


def described_words(found: Inspected, config: Config) -> Iterator[str]:
    """The lines about the texts that a model reads, or the labels that it has."""
    if isinstance(config, ViTConfig):
        examples = listed(config.labels, MOST_LABELS)
        yield f"labels     {len(config.labels):,}: {examples}"
        return
    t = config.text
    layers = f"text       {t.num_hidden_layers} layers, width {t.hidden_size}"
    if isinstance(config, DualEncoderConfig):
        heads = f"{config.text.num_attention_heads} heads of {config.text.head_dim}"
        yield f"{layers}, {heads}, {t.max_position_embeddings} tokens"
        yield f"embedding  {config.embedding_size:,} numbers for a picture or a text"
    else:
        yield f"{layers}, {heads_and_windows(config.text)}"
        most = f"{size(found.cache_bytes_at_most)} for {t.max_position_embeddings:,} tokens"
        yield f"cache      {found.cache_bytes_per_token:,} bytes per token in float32, {most}"
    yield f"tokenizer  {found.tokenizer_pieces:,} pieces, embedding of {t.vocab_size:,} rows"


def heads_and_windows(t: GemmaConfig) -> str:
    """The heads of a decoder, and in how many layers they see a window only."""
    heads = f"{t.num_attention_heads} query and {t.num_key_value_heads} key heads of {t.head_dim}"
    windows = t.layer_kinds.count(SLIDING)
    return f"{heads}, a window of {t.sliding_window:,} tokens in {windows} of them" if windows else heads
