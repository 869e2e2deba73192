"""Read a port's dump as arrays by name: a .safetensors or .npz file, a folder of .npy files, or a folder written by
transformers' model debugger. Dumps are not trusted: everything is checked, and no pickle is loaded.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from npgemma.errors import BadGolden, BadModel, shortened, why
from npgemma.io import npz
from npgemma.io.foreign import Damaged
from npgemma.io.safetensors import LONGEST_NAME, open_file
from npgemma.io.strict_json import read_json
from npgemma.io.system_memory import available_memory
from npgemma.layers.bits import widen
from npgemma.layers.shapes import Array

# bfloat16 is V2 here, so that it differs from uint16; `Dump` widens it.
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
ENVELOPE = "envelope."
KINDS = "a .safetensors or .npz file, or a folder of .npy files"
SAVE = "save a dictionary of arrays with safetensors.numpy.save_file, or with np.savez"
TORCH = "load it in torch, and save a dictionary of tensors with safetensors.torch.save_file"
HOW_TO_SAVE = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".pkl"), TORCH),
    ".npy": "move it into a folder, under the name of its tensor",
}
# The name of a debugger's tree: the class of the model, then this.
TREE = "_debug_tree_FULL_TENSORS.json"


class Dump(Mapping[str, Array]):
    """Tensors by the port's names. `dtypes` says how each is stored; a bfloat16 tensor is returned as float32."""

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
    """Read the dump at `path`. BadGolden if it is missing, damaged, empty, or holds anything but numbers."""
    path = Path(path)
    if not path.exists():
        raise BadGolden(f"{path} does not exist; give the file or folder of a dump")
    try:
        if path.is_dir():
            trees = sorted(path.glob(f"*{TREE}"))
            tensors = read_debugger(trees) if trees else read_npy_folder(path)
        elif path.suffix == ".npz":
            tensors = npz_arrays(path)
        elif path.suffix == ".safetensors":
            tensors = open_file(path, DTYPES)
        else:
            raise BadGolden(f"{path} is not a dump that npgemma reads: {KINDS}; {HOW_TO_SAVE.get(path.suffix, SAVE)}")
    except BadModel as error:
        raise BadGolden(str(error)) from None
    if any(name.startswith(ENVELOPE) for name in tensors):  # a golden file: its truth is compared
        tensors = {name: x for name, x in tensors.items() if not name.startswith(ENVELOPE)}
    if not tensors:
        raise BadGolden(f"{path} holds no tensors; check that the port wrote its dump there")
    for name, x in tensors.items():
        if len(name) > LONGEST_NAME:
            raise BadGolden(f"{path} holds a tensor whose name is too long: {shortened(name)}")
        if x.dtype.kind not in "fiub" and x.dtype != "V2":
            raise BadGolden(f"{path}: {name!r} has the dtype {x.dtype}; a dump may hold floats, integers and booleans")
    return Dump(tensors)


def npz_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file. BadGolden if it is damaged or unpacks to more than the available memory."""
    try:
        return npz.read_npz(path, available_memory())
    except (Damaged, FileNotFoundError) as error:
        raise BadGolden(unusable(path, error)) from None


def read_npy_folder(folder: Path) -> dict[str, Array]:
    """The .npy files in a folder and its subfolders, mapped; `layers/0/out.npy` is 'layers.0.out'."""
    found: dict[str, Array] = {}
    for path in sorted(folder.rglob("*.npy")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        if name in found:
            raise BadGolden(f"{folder} holds {name!r} twice; give every tensor its own name")
        try:
            found[name] = npz.read_npy(path)
        except (Damaged, FileNotFoundError) as error:
            raise BadGolden(unusable(path, error)) from None
    return found


def unusable(path: Path, error: Exception) -> str:
    """The message about a file of arrays that NumPy cannot read."""
    if "Python objects" in str(error) or "Object arrays" in str(error):
        return f"{path} holds Python objects, which can run any code when they are loaded; dump arrays of numbers"
    return f"{path} is not a usable file of arrays ({why(error)}); it may be damaged or incomplete"


# Its tables are not activations. Gemma 3 calls it for each kind of layer, and the debugger keeps the last call alone.
ROTARY = "rotary_emb"


def read_debugger(trees: list[Path]) -> dict[str, Array]:
    """The tensors written by transformers.model_debugging_utils.model_addition_debugger_context(use_repr=False).

    A module's output has the module's name without the class of the model; its inputs add `.inputs` and their place:
    'model.language_model.layers.0.inputs.args.0'. The inputs of the whole model are 'inputs.kwargs.pixel_values' etc.
    """
    if len(trees) > 1:
        raise BadGolden(f"{trees[0].parent} holds {len(trees)} debugger trees; write each run to its own folder")
    try:
        tree = read_json(trees[0])
    except BadModel as error:
        raise BadGolden(f"{error}; it is not a debugger tree: write it again") from None
    found: dict[str, Array] = {}

    def collect(name: str, value: Any) -> None:
        for inner, each in tensors_in(name, value):
            if inner in found:
                raise BadGolden(f"{trees[0]} holds {inner!r} twice; debug a single forward pass")
            found[inner] = read_value(trees[0].parent, inner, each)

    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or not isinstance(node.get("module_path"), str):
            raise BadGolden(f"{trees[0]} is not a debugger tree: a node lacks module_path; write it again")
        name = node["module_path"].partition(".")[2]
        if name.endswith(ROTARY):
            continue
        collect(name or "outputs", node.get("outputs"))
        collect(f"{name}.inputs".lstrip("."), node.get("inputs"))
        children = node.get("children", [])
        if not isinstance(children, list):
            raise BadGolden(
                f"{trees[0]} is not a debugger tree: the children of {name!r} are not a list; write it again"
            )
        waiting += children
    return {returned_as(name): x for name, x in found.items()}


def tensors_in(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a tree has of each tensor among the inputs or outputs of a module, at any depth, in their order."""
    waiting = [(name, value)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict) and {"shape", "dtype", "value"} <= value.keys():
            yield name, value["value"]
        elif isinstance(value, (dict, list)):
            inner = list(value.items() if isinstance(value, dict) else enumerate(value))
            waiting += [(f"{name}.{key}", each) for key, each in reversed(inner)]
            if len(name) > LONGEST_NAME:
                raise BadGolden(f"a debugger tree holds {shortened(name)}, which is nested too deeply")


def returned_as(name: str) -> str:
    """The input of layer 3 as the output of layer 2: the debugger keeps no output of a module that has submodules."""
    match = re.fullmatch(r"(.+\.layers\.)([1-9]\d{0,5})\.inputs\.args\.0", name)
    return f"{match[1]}{int(match[2]) - 1}" if match else name


def read_value(folder: Path, name: str, value: Any) -> Array:
    """The tensor that a tree names, from its file in `folder`."""
    if not isinstance(value, str):
        raise BadGolden(
            f"{folder}: {name!r} is abbreviated text instead of a tensor; run the debugger with use_repr=False"
        )
    path = folder / Path(value).name
    if value != f"./{path.name}":
        raise BadGolden(
            f"{folder}: {name!r} is said to be in {value!r}, which is not the name of a file in this folder"
        )
    tensors = open_file(path, DTYPES)
    if tensors.keys() != {"data"}:
        raise BadGolden(f"{path} holds {sorted(tensors)[:5]} instead of 'data'; it is not a file of the debugger")
    return tensors["data"]
