"""The architecture: imports go one way, third-party imports are the declared ones, files and functions are short."""

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What each part may import of the package, itself aside. A part is a module or a folder directly under npgemma.
PARTS = {
    "errors": set(),
    "layers": set(),
    "models": {"layers"},
    "io": {"errors", "layers"},
    "checkpoints": {"errors", "layers", "models", "io"},
    "decoding": {"errors", "layers", "models"},
    "tasks": {"errors", "layers", "models"},
    "training": {"errors", "layers", "models", "io", "decoding", "tasks"},
    "api": {"errors", "layers", "models", "io", "checkpoints", "decoding", "tasks", "training"},
    "golden": {"errors", "layers", "models", "io", "api"},
    "commands": {"__init__", "errors", "layers", "io", "checkpoints", "decoding", "tasks", "training", "api", "golden"},
    "testing": {"errors", "layers", "models", "io", "checkpoints"},
    "__init__": {"errors", "layers", "io", "checkpoints", "decoding", "tasks", "api"},
    "__main__": {"commands"},
}
# The same, module by module, where a part has an order of its own.
MODULES = {
    "layers": {
        "__init__": set(),
        "shapes": set(),
        "threads": {"shapes"},
        "taps": {"shapes"},
        "bits": {"shapes"},
        "tree": {"shapes", "bits"},
        "retained": {"shapes", "tree"},
        "packed": {"shapes", "bits", "threads", "retained"},
        "linear": {"shapes", "bits", "tree", "packed"},
        "norms": {"shapes", "taps", "threads", "tree", "linear"},
        "activations": {"shapes", "taps", "threads"},
        "rope": {"shapes", "taps"},
        "attention": {"shapes", "taps", "threads", "activations"},
        "losses": {"shapes", "activations"},
        "resize": {"shapes"},
        "conv": {"shapes", "linear"},
    },
    "models": {
        "__init__": set(),
        "vit": set(),
        "siglip": {"vit"},
        "clip": {"vit"},
        "gemma": set(),
        "prefix_lm": {"gemma"},
        "paligemma": {"siglip", "gemma", "prefix_lm"},
        "mask_vqvae": set(),
        "vit_grad": {"vit"},
        "siglip_grad": {"siglip", "vit", "vit_grad"},
        "clip_grad": {"clip", "vit", "vit_grad"},
        "mask_vqvae_grad": {"mask_vqvae"},
        "gemma_grad": {"gemma"},
        "prefix_lm_grad": {"prefix_lm", "gemma", "gemma_grad"},
        "paligemma_grad": {"paligemma", "siglip", "gemma", "siglip_grad", "vit_grad", "prefix_lm_grad"},
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


@functools.cache
def imported(module: str, source: str) -> list[str]:
    """The dotted names that a module imports, anywhere in it; `from a import b` is `a.b`.

    Imports under `if TYPE_CHECKING` never run and are left out.
    """
    names = []
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            home = [*module.split(".")[: -node.level]] if node.level else []
            names += [".".join([*home, *filter(None, [node.module]), alias.name]) for alias in node.names]
        else:
            waiting += ast.iter_child_nodes(node)
    return names


def part_and_module(name: str, known: Mapping[str, str]) -> tuple[str, str]:
    """npgemma.layers.rope.rope is (layers, rope); npgemma.load is (__init__, __init__)."""
    words = name.split(".")
    while words and ".".join(words) not in known and ".".join([*words, "__init__"]) not in known:
        words.pop()
    part, module = [*words[1:3], "__init__", "__init__"][:2]
    return part, module


def offences(sources: Mapping[str, str]) -> list[str]:
    """'importer -> imported' for each import that is not allowed."""
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
    """A new part or a new module of the mathematics needs an entry in the tables above."""
    assert offences(package()) == []


def test_third_party_imports_are_the_declared_four() -> None:
    assert third_party(package()) == THIRD_PARTY


@pytest.mark.parametrize("spelling", ["one_page", "one_page_encoders", "one_page_gemma"])
def test_a_second_spelling_imports_no_more_than_numpy(spelling: str) -> None:
    """It would agree with the package about anything if it called it."""
    names = imported(spelling, (ROOT / "tests" / f"{spelling}.py").read_text("utf-8"))
    others = {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert others - {"one_page"} == {"numpy"}


def test_the_mathematics_imports_without_the_other_dependencies() -> None:
    """Every module of layers and models imports where PIL, safetensors and sentencepiece cannot be imported."""
    modules = [name.removesuffix(".__init__") for name in package() if name.split(".")[1] in MATHEMATICS]
    blocked = "import sys\nfor name in ('PIL', 'safetensors', 'sentencepiece'): sys.modules[name] = None\n"
    script = blocked + "".join(f"import {name}\n" for name in modules)
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    for name in ("PIL", "safetensors", "sentencepiece"):
        blocks = subprocess.run([sys.executable, "-c", blocked + f"import {name}"], cwd=ROOT, capture_output=True)
        assert blocks.returncode


def test_only_errors_is_a_module_at_the_top_of_the_package() -> None:
    top = {path.name for path in (ROOT / "npgemma").glob("*.py")}
    assert top == {"__init__.py", "__main__.py", "errors.py"}


def too_long(sources: Mapping[str, str], file_lines: int = 330, function_lines: int = 50) -> list[str]:
    """Every file and function that is longer."""
    found = [name for name, source in sources.items() if len(source.splitlines()) > file_lines]
    for name, source in sources.items():
        functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        found += [f"{name}.{f.name}" for f in functions if f.end_lineno - f.lineno > function_lines]
    return found


def test_files_have_at_most_330_lines_and_functions_50() -> None:
    assert too_long(package()) == []


def test_a_long_file_and_a_long_function_are_found() -> None:
    body = "    pass\n" * 60
    assert too_long({"npgemma.a": "x = 1\n" * 331, "npgemma.b": f"def f():\n{body}"}) == ["npgemma.a", "npgemma.b.f"]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("npgemma.layers.norms", "from npgemma.models.gemma import decoder"),
        ("npgemma.layers.norms", "from npgemma.errors import BadModel"),
        ("npgemma.layers.norms", "from npgemma import load"),
        ("npgemma.layers.norms", "from npgemma.models import gemma"),
        ("npgemma.layers.norms", "import npgemma.io.strict_json"),
        ("npgemma.layers.norms", "from PIL import Image"),
        ("npgemma.layers.norms", "import torch"),
        ("npgemma.layers.norms", "def f():\n    import npgemma.commands.cli"),
        ("npgemma.layers.norms", "from ..models import gemma"),
        ("npgemma.layers.norms", "if TYPE_CHECKING:\n    import torch\nelse:\n    import PIL"),
        ("npgemma.layers.taps", "from npgemma.layers.bits import widen"),
        ("npgemma.layers.taps", "from . import bits"),
        ("npgemma.layers.shapes", "from npgemma.layers.taps import Tap"),
        ("npgemma.layers.linear", "from npgemma.layers.activations import gelu"),
        ("npgemma.layers.new_module", "from npgemma.layers.activations import gelu"),
        ("npgemma.models.gemma", "from npgemma.models.siglip import VisionTower"),
        ("npgemma.models.siglip", "from npgemma.models import gemma"),
        ("npgemma.models.gemma", "from npgemma.models.prefix_lm import Prompt"),
        ("npgemma.models.prefix_lm", "from npgemma.models.paligemma import PaliGemma"),
        ("npgemma.models.paligemma", "from npgemma.errors import BadPrompt"),
        ("npgemma.io.picture", "from npgemma.models import gemma"),
        ("npgemma.io.picture", "from npgemma.checkpoints import layout"),
        ("npgemma.checkpoints.layout", "from npgemma.api.load import load"),
        ("npgemma.decoding.sampling", "from npgemma.io.jobs import Job"),
        ("npgemma.training.batches", "from npgemma.api.processor import PictureProcessor"),
        ("npgemma.training.examples", "from npgemma.checkpoints import layout"),
        ("npgemma.training.examples", "from npgemma.golden import record"),
        ("npgemma.models.paligemma", "from npgemma.training.batches import Batch"),
        ("npgemma.errors", "from npgemma.layers.shapes import Array"),
        ("npgemma.api.load", "from npgemma.commands.cli import main"),
        ("npgemma.api.load", "from npgemma.golden import record"),
        ("npgemma.__init__", "from npgemma.commands.cli import main"),
        ("npgemma.commands.cli", "import requests"),
        ("npgemma.commands.cli", "import hypothesis"),
        ("npgemma.api.load", "from npgemma import testing"),
        ("npgemma.new_module", "from npgemma.errors import BadModel"),
    ],
)
def test_an_import_that_is_not_allowed_is_found(module: str, line: str) -> None:
    sources = package() | {module: line}
    assert len(offences(sources)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("npgemma.layers.linear", "import math, numpy.linalg\nfrom npgemma.layers.bits import widen"),
        ("npgemma.layers.norms", "if TYPE_CHECKING:\n    import torch"),
        ("npgemma.models.paligemma", "from npgemma.models import gemma, siglip"),
        (
            "npgemma.io.picture",
            "from PIL import Image\nfrom npgemma.io import npz\nfrom npgemma.errors import BadModel",
        ),
        ("npgemma.commands.golden", "from npgemma import load"),
    ],
)
def test_an_import_that_is_allowed_is_not_found(module: str, line: str) -> None:
    assert offences({**package(), module: line}) == []


def test_an_undeclared_dependency_and_an_unused_one_are_found() -> None:
    assert third_party({"npgemma.commands.cli": "def f():\n    import rich.table\nimport PIL"}) == {"rich", "PIL"}
