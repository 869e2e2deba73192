"""A model that was changed, written as a folder in Hugging Face layout: tensors, and the other files of its folder."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from npgemma.io.model_folder import member
from npgemma.io.regular_files import read_regular
from npgemma.io.tokenizer_json import MAX_BYTES, TOKENIZER_JSON
from npgemma.io.tokenizers import TOKENIZER, is_json
from npgemma.io.weight_writing import write_shards
from npgemma.layers.bits import pack
from npgemma.layers.shapes import Array

# The files of a model's folder that belong to the model whatever its weights are.
KEPT = re.compile(
    r"(config|generation_config|preprocessor_config|processor_config|special_tokens_map|added_tokens|vocab"
    r"|chat_template|tokenizer\w*)\.json|tokenizer\.model|spiece\.model|merges\.txt|chat_template\.jinja|vae-oid\.npz"
    r"|(LICENSE|NOTICE|USE_POLICY)(\.\w+)?"
)


def write_model(folder: Path, tensors: Mapping[str, Array], source: Path, tokenizer: Path | None = None) -> None:
    """Write tensors by the names on the hub, and copies of what else is in the folder `source`.

    `tokenizer` is a file in place of the folder's. OSError or SafetensorError if something cannot be written.
    """
    for path in sorted(source.iterdir()):
        if KEPT.fullmatch(path.name) and path.is_file():
            (folder / path.name).write_bytes(read_regular(member(source, path.name), MAX_BYTES))
    if tokenizer is not None:
        content = read_regular(tokenizer, MAX_BYTES)
        (folder / (TOKENIZER_JSON if is_json(content) else TOKENIZER)).write_bytes(content)
    write_shards(tensors, folder)


def as_stored(x: Array, like: Array) -> Array:
    """The numbers of `x` rounded to the dtype that a tensor is stored in, in its shape."""
    if like.dtype == np.uint16:
        return pack(x.astype(np.float32)).reshape(like.shape)
    return x.astype(like.dtype).reshape(like.shape)
