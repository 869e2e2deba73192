"""verify: whether the files and the weights of a model are intact."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from npgemma.checkpoints.layout import not_finite
from npgemma.checkpoints.model_types import module_of
from npgemma.commands.flags import AddParser
from npgemma.commands.output import as_json, say, tell
from npgemma.errors import BadModel
from npgemma.io.digests import Verified, verify_files
from npgemma.io.file_kinds import foreign_kind
from npgemma.io.model_folder import find_model, folder_of
from npgemma.io.safetensors import unused_weights, weight_files

STATUS = {True: "ok", False: "damaged", None: "unknown"}
PARTS = (".json", ".model", ".safetensors")  # files whose first bytes tell whether they are what they should be


def add_verify(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    text = "check that the files of a model are undamaged and its weights finite"
    parser = add_parser("verify", parents=[form], help=text)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="as for -m (default: the embedded PaliGemma)")
    parser.set_defaults(run=run_verify)


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
            say(f"{status:<8}  {file.sha256}  {file.name}", flush=True)
    weights = verify_weights(model, [file.name for file in files])
    if a.format == "json":
        found = {"folder": str(folder), "files": [file._asdict() for file in files]}
        say(as_json(found | {"foreign": foreign} | weights._asdict()))
    elif weights.error is None:
        names = ", ".join(weights.not_finite)
        say(f"weights   {f'not finite: {names}' if names else 'all finite'}")
        if weights.not_used:
            say(f"not used  {', '.join(weights.not_used)}")
    damaged = [file.name for file in files if file.genuine is False]
    report = [] if weights.error is None else [weights.error]
    if damaged:
        hint = "delete the blobs that they link to and download them again"
        report.append(f"damaged, not as published: {', '.join(damaged)}; {hint}")
    if foreign:
        report.append(f"not what their names say: {', '.join(f'{name} ({kind})' for name, kind in foreign.items())}")
    for line in report:
        tell(line)
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
