"""Files are opened to be read in io/regular_files.py alone: every other call that opens one is in a table here."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOME = "io/regular_files.py"
# Calls that open a file by its name, or that some library has for it: bare ones, and those of an object or a module.
BARE = {"open", "safe_open", "ZipFile", "GzipFile"}
OF_OBJECTS = {"open", "read_text", "read_bytes", "fromfile", "memmap", "open_memmap", "loadtxt", "genfromtxt"} | BARE
OF_NUMPY = {"np.load", "numpy.load"}

CHECKED = "`regular` has opened the path before the library does"
OPEN = "the file is open already"
OWN = "the process has made the file"
WRITTEN = "the file is written, in a temporary folder"
NO_FILE = "this opens no file"
ALLOWED: Mapping[str, Mapping[str, str]] = {
    "__main__.py": {
        "open(own, 'w', 1, usual.encoding, usual.errors)": OPEN,
        "os.open(os.devnull, os.O_WRONLY)": "nothing is read",
    },
    "checkpoints/clip.py": {"towers.read_text(inner, TEXT)": NO_FILE},
    "checkpoints/convert.py": {
        "members[name].open(folder)": NO_FILE,
        "np.memmap(file, dtypes[name], 'r+', starts[name], shape)": OPEN,
    },
    "checkpoints/siglip.py": {"towers.read_text(inner, TextConfig(), *TANH_GELU)": NO_FILE},
    "commands/cli.py": {
        "open(os.devnull, 'w')": "nothing is read",
        "os.open(os.devnull, os.O_WRONLY)": "nothing is read",
    },
    "commands/objects.py": {"temporary.open('wb')": WRITTEN},
    "commands/streams.py": {"path.open('wb')": WRITTEN, "path.open('rb')": OWN},
    "golden/file.py": {"np.memmap(self.file, np.uint8, 'r')": OPEN},
    "io/atomic_write.py": {
        "os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)": "a folder, to lock it",
        "temporary.open('rb+')": OWN,
        "os.open(path, os.O_RDONLY)": "nothing is read",
    },
    "io/clip_vocabulary.py": {"GzipFile(fileobj=packed)": OPEN},
    "io/embeddings.py": {"temporary.open('wb')": WRITTEN},
    "io/npz.py": {
        "zipfile.ZipFile(file)": OPEN,
        "archive.open(entry)": OPEN,
        "np.lib.format.open_memmap(regular(path), mode='r')": CHECKED,
    },
    "io/npz_members.py": {
        "zipfile.ZipFile(file)": OPEN,
        "archive.open(info)": OPEN,
        "archive.open(self.info)": OPEN,
        "np.memmap(path, self.dtype, 'r', begin, shape, order)": "`mapped` has read the header before",
    },
    "io/picture.py": {"Image.open(file, formats=FORMATS)": OPEN},
    "io/results.py": {"temporary.open('wb')": WRITTEN},
    "io/safetensors.py": {
        "safe_open(regular(path), framework='numpy', backend='pread')": CHECKED,
        "np.memmap(path, np.uint8, 'r')": "`open_any` has read the header before",
        "np.fromfile(path, np.uint8)": "`open_any` has read the header before",
    },
    "layers/packed.py": {"file.read_text()": "the kernel has made the file"},
    "training/features.py": {"np.memmap(file, dtype, 'r+', shape=shape)": OPEN},
}


def openings(source: str) -> Iterator[str]:
    """The calls in a module that may open a file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            is_bare = isinstance(node.func, ast.Name) and called in BARE
            is_of_object = isinstance(node.func, ast.Attribute) and node.func.attr in OF_OBJECTS
            if is_bare or is_of_object or called in OF_NUMPY:
                yield ast.unparse(node)


def sources() -> dict[str, str]:
    """The source of every module, by its path in the package."""
    package = ROOT / "npgemma"
    return {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")}


def offences(modules: Mapping[str, str]) -> list[str]:
    """The calls that are neither at home nor in the table."""
    return [
        f"{name}: {call}"
        for name, source in modules.items()
        if name != HOME
        for call in openings(source)
        if call not in ALLOWED.get(name, ())
    ]


def test_files_are_opened_in_one_place() -> None:
    """Read a file with open_regular or read_regular; a call that cannot needs an entry in the table, and a reason."""
    assert offences(sources()) == []


def test_every_entry_of_the_table_is_needed() -> None:
    found = {name: set(openings(source)) for name, source in sources().items()}
    assert [(name, call) for name, calls in ALLOWED.items() for call in calls if call not in found[name]] == []


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open()",
        "Path(path).read_text('utf-8')",
        "path.read_bytes()",
        "np.load(path)",
        "np.fromfile(path)",
        "np.lib.format.open_memmap(path)",
        "zipfile.ZipFile(path)",
        "with safe_open(path) as file: pass",
        "PIL.Image.open(path)",
        "io.open(path)",
        "gzip.open(path)",
    ],
)
def test_a_bare_opening_is_found(line: str) -> None:
    assert len(offences({"io/picture.py": f"def f(path):\n    {line}"})) == 1
