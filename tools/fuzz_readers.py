"""What reads the files of a case of tools/fuzz.py, and holds what it has read against what the files say."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from fuzz_parsers import parse_adapter, parse_npz, parse_safetensors

import npgemma
from npgemma.checkpoints.adapter import read_adapter
from npgemma.golden import compare, read_dump, read_golden, read_mapping
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.golden.mapping import SAME_NAMES, pair
from npgemma.golden.report import as_json, as_text
from npgemma.golden.suggest import suggest_map
from npgemma.io.jobs import read_jobs
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.picture import read_picture
from npgemma.io.results import open_results
from npgemma.io.safetensors import open_any
from npgemma.io.unusable import INDEX, WEIGHTS
from npgemma.layers.tree import leaves

PICTURE = npgemma.sample_picture()
SHARD = "model-00001-of-00001.safetensors"


def picture(folder: Path) -> None:
    """A picture, in RGB."""
    assert read_picture(next(folder.iterdir())).mode == "RGB"


def tensors(folder: Path) -> None:
    """A .safetensors file: what is read has the names, shapes and bytes that the strict parser finds."""
    path = folder / "x.safetensors"
    found, metadata = open_any(path)
    assert isinstance(metadata, dict)
    said = parse_safetensors(path.read_bytes())
    assert found.keys() == said.keys(), "other names"
    for name, x in found.items():
        assert x.shape == said[name].shape, "another shape"
        if isinstance(x, np.ndarray):
            assert x.tobytes() == said[name].content, "other bytes"
        else:
            assert x.dtype == said[name].dtype, "another dtype"


def adapter(folder: Path) -> None:
    """An adapter: its updates are those of PEFT's rules, and the rest is in the file."""
    found = read_adapter(folder)
    said = parse_safetensors((folder / "adapter_model.safetensors").read_bytes())
    config = json.loads((folder / "adapter_config.json").read_text())
    updates = parse_adapter(said, config)
    assert len(found.added) == len(updates), "another number of updates"
    for each, (module, (product, scale)) in zip(found.added.values(), updates.items(), strict=True):
        assert each.scale == scale, f"{module} has scale {each.scale}, not {scale}"
        np.testing.assert_array_equal(each.b @ each.a, product)
    stored = {x.content for x in said.values()}
    for name, x in {**found.replaced, **found.tables}.items():
        assert x.tobytes() in stored, f"{name} is not in the file"


def codec(folder: Path) -> None:
    """A mask auto-encoder: each of its tensors is one of the file, in whatever order its axes are."""
    found = npgemma.read_mask_codec(folder / "vae-oid.npz")
    said = parse_npz((folder / "vae-oid.npz").read_bytes())
    known = {np.sort(x.astype("f4"), axis=None).tobytes() for x in said.values()}
    for leaf in leaves(found):
        assert np.sort(leaf.value, axis=None).tobytes() in known, f"{leaf.name} is not in the file"


def dump(folder: Path) -> None:
    """A dump, compared with the embedded golden file, and suggestions for it."""
    golden, found = read_golden(EMBEDDED_GOLDEN), read_dump(next(folder.glob("dump*")))
    report(golden, found)
    suggest_map(golden, found)


def report(golden: npgemma.golden.Golden, found: npgemma.golden.Dump) -> None:
    """Both reports of a comparison."""
    compared = compare(golden, found, SAME_NAMES, "float32", ["*"])
    json.dumps(as_json(compared, golden), allow_nan=False)
    as_text(compared, golden, True)


def golden_file(folder: Path) -> None:
    """A golden file, compared with a dump of its own numbers."""
    golden = read_golden(folder / "g.golden")
    report(golden, npgemma.golden.Dump({tap: np.array(x) for tap, x in golden.truth.items()}))


def mapping(folder: Path) -> None:
    """A mapping, used on names."""
    golden = read_golden(EMBEDDED_GOLDEN)
    pair(read_mapping(folder / "map.json"), ["blk.0.k", "qv1", "a" * 60, "keys"], golden.taps)


def lines(folder: Path) -> None:
    """A file of lines, as jobs and as results."""
    jobs = read_jobs(folder / "lines.jsonl")
    assert len({job.id for job in jobs}) == len(jobs), "two jobs with one id"
    with open_results(folder / "lines.jsonl"):
        pass


def model(folder: Path, base: Path = EMBEDDED) -> None:
    """A model folder, with what the case lacks of an embedded model's; if it loads, it answers."""
    complete(folder, base)
    loaded = npgemma.load(folder)
    if isinstance(loaded, npgemma.VisionLanguageModel):
        loaded.generate(PICTURE, "caption en", max_new_tokens=2)
    elif isinstance(loaded, npgemma.LanguageModel):
        loaded.generate("The capital of France is", max_new_tokens=2)
    elif isinstance(loaded, npgemma.DualEncoder):
        loaded.classify(PICTURE, ["a red square"])


def complete(folder: Path, base: Path) -> None:
    """Link what a folder lacks of a model's files; an index names shards, and replaces the file of all weights."""
    copy = folder.parent / base.name
    if not copy.exists():
        shutil.copytree(base, copy)
    for path in copy.iterdir():
        if not (folder / path.name).exists():
            os.link(path, folder / path.name)
    if (folder / INDEX).exists():
        (folder / WEIGHTS).rename(folder / SHARD)


def tokenizer(folder: Path) -> None:
    """A tokenizer, in the folder of the embedded PaliGemma."""
    complete(folder, EMBEDDED)
    found = npgemma.load(folder).processor.tokenizer
    assert all(type(i) is int and i >= 0 for i in found.encode("caption en\n"))
