"""The golden file: one safetensors file that holds named tensors of one run, and all that fixes the run.

    <tap>                     the float64 truth: F64 for a small model, rounded once to F32 for a real one; ids,
                              types and positions I32, masks and 8-bit pictures U8
    envelope.<dtype>/<tap>    [2 R] F32: for each of the R rows of the tap, the rms and the largest absolute error of
                              a run in that dtype, which is float32 or bfloat16
    __metadata__              one string, "npgemma.golden", of JSON: format, case, model, preprocessing, tokenizer,
                              policy, schedules, taps (in execution order, with axes), versions, sha256 of all
                              this. One, since safetensors writes several in random order

Two runs write the same bytes: there is no time, host or path in it. A row is a picture, a patch or a token (see
names.TapName.row_axes).
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from npgemma.errors import BadGolden, BadModel
from npgemma.golden.names import tap_name
from npgemma.io.atomic_write import replace_file
from npgemma.io.safetensors import open_with_metadata
from npgemma.layers.shapes import Array, Float

# The golden file that ships with npgemma: its own model on its own sample picture, 'caption en'.
EMBEDDED_GOLDEN = Path(__file__).parents[1] / "assets" / "golden.safetensors"
KEY = "npgemma.golden"
FORMAT = 1
# The dtypes that a golden file is made of, by what safetensors calls them.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
}


@dataclass(frozen=True)
class Golden:
    """A golden file, mapped: the truth and the envelopes by tap, the taps in execution order with their axes."""

    metadata: dict[str, Any]
    taps: dict[str, str]
    truth: Mapping[str, Array]
    envelopes: Mapping[str, Mapping[str, Float[Array, "2 R"]]]


class Spool:
    """Tensors on their way to a file: appended to an unnamed file on the target's disk, read back as a memory map.

    So however much is recorded, memory holds one tensor of it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self.entries: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self.axes: dict[str, str] = {}  # of what was put with its axes

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Array:
        offset, dtype, shape = self.entries[name]
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(self.file, dtype, "r", offset, shape or (1,)).reshape(shape)

    def put(self, name: str, x: Array, axes: str | None = None) -> None:
        """Append `x`. ValueError for a name that is there already: nothing recorded is ever overwritten."""
        if name in self.entries:
            raise ValueError(f"{name} is recorded twice in one run")
        self.file.seek(0, os.SEEK_END)
        self.file.write(bytes(-self.file.tell() % 64))
        self.entries[name] = (self.file.tell(), x.dtype, x.shape)
        if axes is not None:
            self.axes[name] = axes
        self.file.write(raw(x))
        self.file.flush()


def write_golden(spool: Spool, metadata: Mapping[str, Any], path: Path) -> None:
    """Everything in `spool` as the golden file `path`, in place of what was there, at once or not at all."""
    tensors = {name: spool[name] for name in sorted(spool.entries)}
    facts = {"format": FORMAT, **metadata}
    facts["sha256"] = digest(tensors, facts)
    specs = {
        name: safetensors.TensorSpec(dtype=x.dtype.name, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in tensors.items()
    }
    with replace_file(path) as temporary:
        safetensors.serialize_file(specs, temporary, metadata={KEY: json.dumps(facts)})


def checked_axes(name: str, axes: str) -> str:
    """The axes of a tap. KeyError if `name` is not a tap's."""
    tap_name(name)
    return axes


def raw(x: Array) -> memoryview:
    """The bytes of `x` in C order: safetensors would write memory as it lies, whatever the strides say."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def digest(tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> str:
    """sha256 over the facts, and over names, dtypes, shapes and bytes of the tensors in the order of their names."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name]
        found.update(f"{name}\0{x.dtype.str}\0{list(x.shape)}\0".encode())
        found.update(raw(x))
    return found.hexdigest()


def read_golden(path: str | Path) -> Golden:
    """A golden file, checked as a whole. BadGolden if it is missing, damaged, or of another format."""
    path = Path(path)
    try:
        tensors, strings = open_with_metadata(path, DTYPES)
    except BadModel as error:
        raise BadGolden(str(error)) from None
    if KEY not in strings:
        raise BadGolden(f"{path} is no golden file; `npgemma golden` writes one. It comes before the dump")
    try:
        facts = json.loads(strings[KEY])
        if facts["format"] != FORMAT:
            found = f"{path} has golden format {facts['format']}, this npgemma reads {FORMAT}"
            raise BadGolden(f"{found}; record it again")
        if facts.pop("sha256") != digest(tensors, facts):
            raise BadGolden(f"{path} is damaged: it is not what was written; record or fetch it again")
        taps = {name: checked_axes(name, axes) for name, axes in facts["taps"]}
        truth = {tap: tensors.pop(tap) for tap in taps}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadGolden(f"{path} is no golden file of format {FORMAT} ({error!r}); record it again") from None
    envelopes: dict[str, dict[str, Array]] = {}
    for name, x in tensors.items():
        kind, _, tap = name.partition("/")
        envelopes.setdefault(kind.removeprefix("envelope."), {})[tap] = x
    return Golden(facts, taps, truth, envelopes)
