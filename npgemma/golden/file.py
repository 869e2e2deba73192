"""The golden file: one safetensors file that holds named tensors of one run, and everything that determines the run.

    <tap>                     the float64 truth: F64 for a small model, rounded once to F32 for a real one; ids,
                              types and positions I32, masks and 8-bit pictures U8
    envelope.<dtype>/<tap>    [2 R] F32: for each of the R rows of the tap, the rms and the largest absolute error, the
                              larger of several runs in that precision: float32, tf32, bfloat16, or float16 if it
                              overflows nowhere
    __metadata__              one string of JSON, "npgemma.golden": format, case, model, preprocessing, tokenizer,
                              policy, schedules, taps (in execution order, with axes), versions, and the sha256 of
                              all this. It is one string because safetensors writes several in random order

Two recordings have the same bytes: the file holds no time, host name or path. A row is a picture, a patch or a token
(see names.row_axes).
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from npgemma.errors import BadGolden, BadModel
from npgemma.golden.contents import check_contents
from npgemma.golden.names import is_tap
from npgemma.io.atomic_write import replace_file
from npgemma.io.safetensors import open_with_metadata
from npgemma.io.strict_json import parse_json
from npgemma.layers.shapes import Array, Float

ASSETS = Path(__file__).parents[1] / "assets"
# The golden files in the package, of the embedded model: the sample picture, 'caption en', 3 steps; and 8 pictures with
# a longer prompt, 300 rows and 8 steps, where mistakes show that a short run hides.
EMBEDDED_GOLDEN = ASSETS / "golden.safetensors"
EMBEDDED = {"embedded": EMBEDDED_GOLDEN, "embedded-long": ASSETS / "golden-long.safetensors"}
KEY = "npgemma.golden"
FORMAT = 1
# The dtypes in a golden file, by their names in safetensors.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "I32": np.dtype("<i4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),  # signs
}


@dataclass(frozen=True)
class Golden:
    """A golden file, mapped into memory: truth and envelopes by tap. `taps` gives axes, in execution order."""

    metadata: dict[str, Any]
    taps: dict[str, str]
    truth: Mapping[str, Array]
    envelopes: Mapping[str, Mapping[str, Float[Array, "2 R"]]]

    def envelope(self, dtype: str, tap: str) -> Float[Array, "2 R"] | None:
        """The honest errors of a tap's rows; None for integers."""
        return self.pooled[dtype].get(tap)

    @cached_property
    def pooled(self) -> dict[str, dict[str, Float[Array, "2 R"]]]:
        """The envelopes, in which the errors of single rows are pooled over steps."""
        return {dtype: pooled(envelopes) for dtype, envelopes in self.envelopes.items()}

    @property
    def floats(self) -> Set[str]:
        """The taps that have honest errors."""
        return self.envelopes["float32"].keys()

    @property
    def has_pictures(self) -> bool:
        """Whether the model reads pictures; a language model does not."""
        return "pixel_values" in self.taps


def pooled(envelopes: Mapping[str, Float[Array, "2 R"]]) -> dict[str, Float[Array, "2 R"]]:
    """Envelopes in which the error of one row alone counts as no less than the rms over all taps of one row that differ
    by the step alone: it is a single draw.
    """
    alone: dict[str, list[Float[Array, "2 1"]]] = {}
    for tap, rows in envelopes.items():
        if rows.shape[1] == 1:
            alone.setdefault(without_step(tap), []).append(rows)
    least = {same: np.sqrt(np.square(np.hstack(rows)).mean(-1, keepdims=True)) for same, rows in alone.items()}
    return {
        tap: np.maximum(rows, least[without_step(tap)]) if rows.shape[1] == 1 else rows
        for tap, rows in envelopes.items()
    }


@cache
def without_step(tap: str) -> str:
    """'steps.2.logits' as 'logits'."""
    return re.sub(r"^steps\.\d+\.", "", tap)


class Spool:
    """Tensors that wait to be written: appended to an unnamed file on the target's disk, read back as memory maps.

    However much is recorded, memory holds one tensor of it. `axes` has those of the tensors that were put with axes.
    """

    def __init__(self, folder: Path, wide: str = "float64") -> None:
        self.wide = np.dtype(wide)  # of the truth
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by __exit__)
        self.mapped = np.empty(0, np.uint8)  # the file as it was when a tensor of it was last needed
        self.entries: dict[str, tuple[int, np.dtype[Any], tuple[int, ...]]] = {}
        self.axes: dict[str, str] = {}

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Array:
        offset, dtype, shape = self.entries[name]
        end = offset + math.prod(shape) * dtype.itemsize
        if end > self.mapped.size:
            self.mapped = np.memmap(self.file, np.uint8, "r").view(np.ndarray)
        return self.mapped[offset:end].view(dtype).reshape(shape)

    def put(self, name: str, x: Array, axes: str | None = None) -> None:
        """Append `x`. ValueError if the name is there already: nothing recorded is ever overwritten."""
        if name in self.entries:
            raise ValueError(f"{name} is recorded twice in one run")
        self.file.seek(0, os.SEEK_END)
        self.file.write(bytes(-self.file.tell() % 64))
        self.entries[name] = (self.file.tell(), x.dtype, x.shape)
        if axes is not None:
            self.axes[name] = axes
        self.file.write(raw(x))
        self.file.flush()

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Leave out the tensors whose names are not wanted."""
        self.entries = {name: entry for name, entry in self.entries.items() if wanted(name)}
        self.axes = {name: axes for name, axes in self.axes.items() if wanted(name)}


def write_golden(spool: Spool, metadata: Mapping[str, Any], path: Path) -> None:
    """Write everything in `spool` as the golden file `path`, which is replaced as a whole or not at all."""
    tensors = {name: spool[name] for name in sorted(spool.entries)}
    facts = {"format": FORMAT, **metadata}
    facts["sha256"] = digest(tensors, facts)
    specs = {
        name: safetensors.TensorSpec(dtype=x.dtype.name, shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in tensors.items()
    }
    with replace_file(path) as temporary:
        safetensors.serialize_file(specs, temporary, metadata={KEY: json.dumps(facts)})


def raw(x: Array) -> memoryview:
    """The bytes of `x` in C order, which safetensors needs: it writes the memory of a view and ignores its strides."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).data


def digest(tensors: Mapping[str, Array], facts: Mapping[str, Any]) -> str:
    """sha256 over the facts, and over the name, dtype, shape and bytes of each tensor, in the order of names."""
    found = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        x = tensors[name]
        found.update(f"{name}\0{x.dtype.str}\0{list(x.shape)}\0".encode())
        found.update(raw(x))
    return found.hexdigest()


def read_golden(path: str | Path) -> Golden:
    """Read a golden file and check it as a whole. BadGolden if it is missing, damaged, or has another format."""
    path = Path(path)
    try:
        tensors, strings = open_with_metadata(path, DTYPES)
    except BadModel as error:
        raise BadGolden(str(error)) from None
    if KEY not in strings:
        raise BadGolden(
            f"{path} is not a golden file: it lacks the metadata {KEY!r}. `npgemma golden` writes golden files; "
            "`npgemma compare` takes the golden file first, then the dump"
        )
    try:
        facts = parse_json(strings[KEY].encode())
        if facts["format"] != FORMAT:
            raise BadGolden(
                f"{path} has golden format {facts['format']}, but this npgemma reads format {FORMAT}; record it again"
            )
        if facts.pop("sha256") != digest(tensors, facts):
            raise BadGolden(f"{path} is damaged: its checksum does not match; record it again or download it again")
        taps = dict(facts["taps"])
        unknown = [name for name in taps if not is_tap(name)]
        if unknown:
            raise BadGolden(f"{path} has a tap that this npgemma does not know: {unknown[0]!r}; record it again")
        truth = {tap: tensors.pop(tap) for tap in taps}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadGolden(
            f"{path} is not a golden file of format {FORMAT}: its metadata is invalid ({error!r}); record it again"
        ) from None
    for tap, axes in taps.items():
        check_axes(f"{path}: tap {tap!r}", axes, truth[tap])
    envelopes: dict[str, dict[str, Array]] = {}
    for name, x in tensors.items():
        kind, _, tap = name.partition("/")
        envelopes.setdefault(kind.removeprefix("envelope."), {})[tap] = x
    check_contents(str(path), facts, taps, truth, envelopes)
    return Golden(facts, taps, truth, envelopes)


def check_axes(where: str, axes: object, x: Array) -> None:
    """BadGolden unless `axes` is a letter for each axis of `x`, such as "T N H"."""
    letters = axes.split(" ") if isinstance(axes, str) and axes else []
    if not isinstance(axes, str) or not all(re.fullmatch("[A-Za-z]", letter) for letter in letters):
        raise BadGolden(f"{where} has the invalid axes {axes!r}: expected letters such as 'T N H'; record it again")
    if len(letters) != x.ndim:
        raise BadGolden(f"{where} has the axes {axes!r}, but its tensor has the shape {list(x.shape)}; record it again")
