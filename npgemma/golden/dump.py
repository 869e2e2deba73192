"""A port's dump as arrays by name: a .safetensors or .npz file, a folder of .npy files, or what transformers' model
debugger left in a folder. Everything in it is held to be wrong until it is seen to be right; nothing in it is run.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.errors import BadGolden, BadModel
from npgemma.io import npz
from npgemma.io.safetensors import open_file
from npgemma.io.system_memory import available_memory
from npgemma.layers.bits import widen
from npgemma.layers.shapes import Array

# bfloat16 is told from real uint16 by its name here and widened at once.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "V2",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
# What a debugger's tree is called: the class of the model, then this.
TREE = "_debug_tree_FULL_TENSORS.json"


class Dump(Mapping[str, Array]):
    """Tensors by the port's names. `dtypes` says what each was stored in: a bfloat16 one is given as float32."""

    def __init__(self, tensors: Mapping[str, Array]) -> None:
        self.dtypes = {name: "bfloat16" if x.dtype == "V2" else x.dtype.name for name, x in tensors.items()}
        self.tensors = tensors

    def __getitem__(self, name: str) -> Array:
        x = self.tensors[name]
        if x.dtype == "V2":
            return widen(np.ascontiguousarray(x).view("<u2"))
        return x.astype(x.dtype.newbyteorder("="), copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def read_dump(path: str | Path) -> Dump:
    """The dump at `path`. BadGolden if it is missing, damaged, empty, or holds what are no numbers."""
    path = Path(path)
    try:
        if path.is_dir():
            trees = sorted(path.glob(f"*{TREE}"))
            tensors = read_debugger(trees) if trees else read_npy_folder(path)
        elif path.suffix == ".npz":
            tensors = read_npz(path)
        elif path.suffix == ".safetensors":
            tensors = open_file(path, DTYPES)
        elif path.exists():
            raise BadGolden(f"{path} is no dump that npgemma reads: .safetensors, .npz, or a folder of .npy files")
        else:
            raise BadGolden(f"{path} is missing: there is no such dump")
    except BadModel as error:
        raise BadGolden(str(error)) from None
    if not tensors:
        raise BadGolden(f"{path} holds no tensors; was the dump written?")
    for name, x in tensors.items():
        if x.dtype.kind not in "fiub" and x.dtype != "V2":
            raise BadGolden(f"{path}: {name!r} is {x.dtype}; a dump holds floats, whole numbers and truth values")
    return Dump(tensors)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file, as far as the memory reaches."""
    try:
        return npz.read_npz(path, available_memory())
    except npz.DAMAGE as error:
        raise BadGolden(unusable(path, error)) from None


def read_npy_folder(folder: Path) -> dict[str, Array]:
    """The .npy files of a folder and of those in it, mapped; `layers/0/out.npy` is 'layers.0.out'."""
    found: dict[str, Array] = {}
    for path in sorted(folder.rglob("*.npy")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        if name in found:
            raise BadGolden(f"{folder} holds {name!r} twice; dump every tensor under a name of its own")
        try:
            found[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise BadGolden(unusable(path, error)) from None
    return found


def unusable(path: Path, error: Exception) -> str:
    if "allow_pickle" in str(error) or "Object arrays" in str(error):
        return f"{path} holds Python objects, which could run anything when read; dump arrays of numbers"
    return f"{path} is not a usable file of arrays ({error}); was it written to its end?"


def read_debugger(trees: list[Path]) -> dict[str, Array]:
    """What transformers.model_debugging_utils.model_addition_debugger_context(use_repr=False) left.

    A module's output has the module's name without that of the model's class; its inputs have `.inputs` and their place
    after it: 'model.language_model.layers.0.inputs.args.0'. What the whole model got is 'inputs.kwargs.pixel_values'.
    """
    if len(trees) > 1:
        raise BadGolden(f"{trees[0].parent} holds {len(trees)} debugger trees; keep one run in a folder")
    try:
        tree = json.loads(trees[0].read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadGolden(f"{trees[0]} is no debugger tree ({error})") from None
    found: dict[str, Array] = {}

    def collect(name: str, value: Any) -> None:
        if isinstance(value, list):
            for i, each in enumerate(value):
                collect(f"{name}.{i}", each)
        elif isinstance(value, dict) and {"shape", "dtype", "value"} <= value.keys():
            if name in found:
                raise BadGolden(f"{trees[0]} holds {name!r} twice; debug one forward pass")
            found[name] = read_value(trees[0].parent, name, value["value"])
        elif isinstance(value, dict):
            for key, each in value.items():
                collect(f"{name}.{key}", each)

    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or not isinstance(node.get("module_path"), str):
            raise BadGolden(f"{trees[0]} is no debugger tree: a node without module_path")
        name = node["module_path"].partition(".")[2]
        collect(name or "outputs", node.get("outputs"))
        collect(f"{name}.inputs".lstrip("."), node.get("inputs"))
        children = node.get("children", [])
        if not isinstance(children, list):
            raise BadGolden(f"{trees[0]} is no debugger tree: children that are no list")
        waiting += children
    return {handed_on(name): x for name, x in found.items()}


def handed_on(name: str) -> str:
    """The input of layer 3 is what layer 2 returned: the debugger keeps no outputs of modules that have modules."""
    match = re.fullmatch(r"(.+\.layers\.)([1-9]\d*)\.inputs\.args\.0", name)
    return f"{match[1]}{int(match[2]) - 1}" if match else name


def read_value(folder: Path, name: str, value: Any) -> Array:
    """The tensor in the file of the folder that a tree names."""
    if not isinstance(value, str):
        raise BadGolden(f"{folder}: {name!r} is text with most of its numbers left out; debug with use_repr=False")
    path = folder / Path(value).name
    if value != f"./{path.name}":
        raise BadGolden(f"{folder}: {name!r} is in {value!r}, which is no plain file name in this folder")
    tensors = open_file(path, DTYPES)
    if tensors.keys() != {"data"}:
        raise BadGolden(f"{path} holds {sorted(tensors)[:5]}; a debugger's file holds 'data'")
    return tensors["data"]
