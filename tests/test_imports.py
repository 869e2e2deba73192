"""Imports go one way, so that the mathematics can be read alone; what is imported from outside is what is declared."""

import ast
import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part may import of the package, itself aside. A part is a module or a folder directly under npgemma.
PARTS = {
    "layers": set(),
    "models": {"layers"},
    "errors": set(),
    "io": {"errors", "layers", "models"},
    "sampling": {"errors", "layers", "models"},
    "generate": {"errors", "layers", "models", "sampling"},
    "beams": {"errors", "layers", "models", "generate"},
    "tasks": {"errors", "layers", "models"},
    "masks": {"errors", "layers", "models", "tasks"},
    "scoring": {"generate", "layers", "models"},
    "answers": {"generate"},
    "memory": {"errors", "io"},
    "model": {
        *("errors", "layers", "models", "io", "sampling", "scoring", "answers", "generate", "beams", "memory", "tasks"),
    },
    "batch": {"answers", "errors", "generate", "io", "model", "sampling"},
    "loading": {"io", "memory", "model"},
    "__init__": {"errors", "layers", "io", "answers", "batch", "scoring", "tasks", "masks", "model", "loading"},
    "testing": {"errors", "layers", "models", "io", "model"},
    "golden": {"__init__", "commands", "errors", "layers", "models", "io", "memory", "model", "loading"},
    "commands": {
        "answers",
        "generate",
        "errors",
        "batch",
        "io",
        "loading",
        "masks",
        "memory",
        "model",
        "sampling",
        "tasks",
    },
    "cli": {"commands", "errors", "golden"},
    "__main__": {"cli"},
}
# The same, module by module, where a part has an order of its own.
MODULES = {
    "layers": {
        "__init__": set(),
        "shapes": set(),
        "bfloat16": {"shapes"},
        "taps": {"shapes"},
        "threads": set(),
        "rounding": {"shapes", "bfloat16", "taps"},
        "float16": {"shapes"},
        "matmul": {"shapes", "bfloat16", "float16", "taps", "threads"},
        "ops": {"shapes", "bfloat16", "taps", "threads", "matmul"},
    },
    "models": {
        "__init__": set(),
        "siglip": set(),
        "gemma": set(),
        "paligemma": {"siglip", "gemma"},
        "mask_vqvae": set(),
    },
}
THIRD_PARTY = {"numpy", "PIL", "safetensors", "sentencepiece"}
# What a part may import besides: an extra that only its users install.
EXTRAS = {"testing": {"hypothesis"}}
MATHEMATICS = ("layers", "models")


@functools.cache
def package() -> dict[str, str]:
    """The source of every module of npgemma, by dotted name; a folder's own module ends in __init__."""
    files = (ROOT / "npgemma").rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8") for path in files}


def imported(module: str, source: str) -> Iterator[str]:
    """The dotted names that a module imports when it runs, anywhere in it; `from a import b` is `a.b`.

    What stands under `if TYPE_CHECKING` never runs.
    """
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = [*module.split(".")[: -node.level]] if node.level else []
            yield from (".".join([*home, *filter(None, [node.module]), alias.name]) for alias in node.names)
        else:
            waiting += ast.iter_child_nodes(node)


def part_and_module(name: str, known: Mapping[str, str]) -> tuple[str, str]:
    """npgemma.layers.ops.rope -> (layers, ops); npgemma.load -> (__init__, __init__)."""
    words = name.split(".")
    while words and ".".join(words) not in known and ".".join([*words, "__init__"]) not in known:
        words.pop()
    part, module = [*words[1:3], "__init__", "__init__"][:2]
    return part, module


def offences(sources: Mapping[str, str]) -> list[str]:
    """'importer -> imported' for each import that goes the wrong way."""
    found = []
    for name, source in sources.items():
        part, module = part_and_module(name, sources)
        for target in imported(name, source):
            root = target.partition(".")[0]
            if root == "npgemma":
                other, inner = part_and_module(target, sources)
                order = MODULES.get(part)
                allowed = other in PARTS.get(part, ()) or (
                    other == part and (order is None or inner in order.get(module, ()))
                )
            else:
                third = root not in sys.stdlib_module_names
                known = THIRD_PARTY | EXTRAS.get(part, set())
                allowed = not third or root == "numpy" or (root in known and part not in MATHEMATICS)
            if not allowed:
                found.append(f"{name} -> {target}")
    return found


def third_party(sources: Mapping[str, str]) -> set[str]:
    roots = {
        target.partition(".")[0]
        for name, source in sources.items()
        for target in imported(name, source)
        if target.partition(".")[0] not in EXTRAS.get(part_and_module(name, sources)[0], ())
    }
    return roots - set(sys.stdlib_module_names) - {"npgemma"}


def test_imports_go_one_way() -> None:
    """layers <- models <- io, generate, sampling, tasks <- model <- cli; a new part has to be given its place above."""
    assert offences(package()) == []


def test_third_party_imports_are_the_declared_four() -> None:
    assert third_party(package()) == THIRD_PARTY


def test_the_second_spelling_knows_nothing_of_the_package() -> None:
    """An oracle that called the package would agree with it about anything."""
    roots = {name.partition(".")[0] for name in imported("oracle", (ROOT / "tests" / "oracle.py").read_text("utf-8"))}
    assert roots - set(sys.stdlib_module_names) == {"numpy"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("npgemma.layers.ops", "from npgemma.models.gemma import decoder"),
        ("npgemma.layers.ops", "from npgemma.errors import BadModel"),
        ("npgemma.layers.ops", "from npgemma import load"),
        ("npgemma.layers.ops", "from npgemma.models import gemma"),
        ("npgemma.layers.ops", "import npgemma.io.config"),
        ("npgemma.layers.ops", "from PIL import Image"),
        ("npgemma.layers.ops", "import torch"),
        ("npgemma.layers.ops", "def f():\n    import npgemma.cli"),
        ("npgemma.layers.ops", "from ..models import gemma"),
        ("npgemma.layers.ops", "if TYPE_CHECKING:\n    import torch\nelse:\n    import PIL"),
        ("npgemma.layers.taps", "from npgemma.layers.bfloat16 import widen"),
        ("npgemma.layers.taps", "from . import bfloat16"),
        ("npgemma.layers.shapes", "from npgemma.layers.taps import Tap"),
        ("npgemma.layers.matmul", "from npgemma.layers.ops import gelu"),
        ("npgemma.layers.unheard_of", "from npgemma.layers.ops import gelu"),
        ("npgemma.models.gemma", "from npgemma.models.siglip import Block"),
        ("npgemma.models.siglip", "from npgemma.models import gemma"),
        ("npgemma.models.gemma", "from npgemma.models.paligemma import Prompt"),
        ("npgemma.models.paligemma", "from npgemma.errors import BadPrompt"),
        ("npgemma.io.config", "from npgemma.model import VisionLanguageModel"),
        ("npgemma.sampling", "from npgemma.generate import Token"),
        ("npgemma.errors", "from npgemma.layers.shapes import Array"),
        ("npgemma.model", "from npgemma.cli import main"),
        ("npgemma.__init__", "from npgemma.cli import main"),
        ("npgemma.cli", "import requests"),
        ("npgemma.cli", "import hypothesis"),
        ("npgemma.model", "from npgemma import testing"),
        ("npgemma.unheard_of", "from npgemma.errors import BadModel"),
    ],
)
def test_an_import_that_goes_the_wrong_way_is_found(module: str, line: str) -> None:
    sources = package() | {module: line}
    assert len(offences(sources)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("npgemma.layers.ops", "import math, numpy.linalg\nfrom npgemma.layers.matmul import linear"),
        ("npgemma.layers.ops", "if TYPE_CHECKING:\n    import torch"),
        ("npgemma.models.paligemma", "from npgemma.models import gemma, siglip"),
        (
            "npgemma.io.config",
            "from PIL import Image\nfrom npgemma.io import checkpoint\nfrom npgemma.errors import BadModel",
        ),
        ("npgemma.golden.record", "from npgemma import load"),
    ],
)
def test_an_import_that_goes_the_right_way_is_not(module: str, line: str) -> None:
    assert offences({**package(), module: line}) == []


def test_a_fifth_dependency_and_one_that_is_gone_are_found() -> None:
    assert third_party({"npgemma.cli": "def f():\n    import rich.table\nimport PIL"}) == {"rich", "PIL"}
