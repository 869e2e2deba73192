"""A golden file whose checksum is right is not believed: what a comparison relies on is checked."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import npgemma
from npgemma import BadGolden
from npgemma.golden import read_dump, read_golden, replay
from npgemma.golden.compare import compare
from npgemma.golden.file import DTYPES, EMBEDDED_GOLDEN, KEY, digest
from npgemma.golden.mapping import SAME_NAMES
from npgemma.io.safetensors import open_with_metadata

Change = Callable[[dict[str, Any], dict[str, np.ndarray]], Any]
FLOAT = "projector"
OTHERS = {
    "a case that is a list": lambda f, t: f.update(case=[]),
    "a deep case": lambda f, t: f["case"].update(images=json.loads("[" * 300 + "]" * 300)),
    "no case": lambda f, t: f.pop("case"),
    "images that are a number": lambda f, t: f["case"].update(images=3),
    "a prompt that is a number": lambda f, t: f["case"].update(prompt=3),
    "texts that are numbers": lambda f, t: f["case"].update(texts=[3]),
    "a model that is text": lambda f, t: f.update(model="x"),
    "weights that are a list": lambda f, t: f["model"].update(weights=[]),
    "an unknown type": lambda f, t: f["model"].update(type="sigma"),
    "no dtype of the truth": lambda f, t: f["model"].pop("truth_stored_as"),
    "schedules that are a list": lambda f, t: f.update(schedules=[]),
    "a schedule that is text": lambda f, t: f["schedules"].update(float32="x"),
    "rounds to no dtype": lambda f, t: f["schedules"]["float32"].update(rounds={"q": "int3"}),
    "positions from 7": lambda f, t: f["policy"].update(positions="from 7"),
    "caps that are text": lambda f, t: f["policy"].update(soft_caps="x"),
    "rotations of no layer": lambda f, t: f["policy"].update(rotation=[]),
    "a rotation by nothing": lambda f, t: f["policy"].update(rotation=[{"theta": 0, "factor": 1}] * 9),
    "axes of another tap": lambda f, t: next(tap for tap in f["taps"] if tap[0] == FLOAT).__setitem__(1, "T N H"),
    "ids that are floats": lambda f, t: t.update(generated_ids=t["generated_ids"].astype("f8")),
    "floats that are ids": lambda f, t: t.update({FLOAT: t[FLOAT].astype("i4")}),
    "floats of another width": lambda f, t: t.update({FLOAT: t[FLOAT].astype("f4")}),
    "a tap without numbers": lambda f, t: t.update({FLOAT: t[FLOAT][:, :0]}),
    "no prompt": lambda f, t: drop(f, t, "prompts.0.input_ids"),
    "no ids": lambda f, t: drop(f, t, "generated_ids"),
    "no types": lambda f, t: drop(f, t, "prompts.0.token_type_ids"),
    "an error fewer": lambda f, t: t.update({f"envelope.float32/{FLOAT}": t[f"envelope.float32/{FLOAT}"][:, 1:]}),
    "flat errors": lambda f, t: t.update({f"envelope.bfloat16/{FLOAT}": t[f"envelope.bfloat16/{FLOAT}"][0]}),
    "errors below zero": lambda f, t: t.update({f"envelope.float16/{FLOAT}": -t[f"envelope.float16/{FLOAT}"]}),
    "infinite errors": lambda f, t: t.update(
        {f"envelope.float16/{FLOAT}": np.full_like(t[f"envelope.float16/{FLOAT}"], np.inf)}
    ),
    "no errors": lambda f, t: t.pop(f"envelope.float32/{FLOAT}"),
    "errors of a dtype that is none": lambda f, t: t.update({f"envelope.int8/{FLOAT}": t[f"envelope.float32/{FLOAT}"]}),
    "errors of a precision missing": lambda f, t: [
        t.pop(name) for name in [*t] if name.startswith("envelope.bfloat16/")
    ],
    "errors of ids": lambda f, t: t.update({"envelope.float32/generated_ids": np.zeros((2, 1), "f4")}),
    "a tensor of no tap": lambda f, t: t.update(x=t[FLOAT]),
}


def drop(facts: dict[str, Any], tensors: dict[str, np.ndarray], tap: str) -> None:
    """Remove a tap with all that belongs to it."""
    facts["taps"] = [each for each in facts["taps"] if each[0] != tap]
    del tensors[tap]


def changed(path: Path, change: Change) -> Path:
    """The embedded golden file with a change and the checksum that belongs to it."""
    mapped, strings = open_with_metadata(EMBEDDED_GOLDEN, DTYPES)
    tensors, facts = {name: np.array(x) for name, x in mapped.items()}, json.loads(strings[KEY])
    del facts["sha256"]
    change(facts, tensors)
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    save_file(tensors, path, {KEY: json.dumps(facts | {"sha256": digest(tensors, facts)})})
    return path


def test_a_file_without_a_change_is_read(tmp_path: Path) -> None:
    found = read_golden(changed(tmp_path / "g.safetensors", lambda facts, tensors: None))
    assert found.taps == read_golden(EMBEDDED_GOLDEN).taps


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_contents_that_do_not_fit_are_refused(change: Change, tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match=r"g\.safetensors is not a usable golden file: .*; record it again"):
        read_golden(changed(tmp_path / "g.safetensors", change))


UNFIT = {
    "ids beyond the vocabulary": lambda f, t: t["prompts.0.input_ids"].__setitem__(-1, 10**6),
    "an image token more": lambda f, t: t["prompts.0.input_ids"].__setitem__(-1, t["prompts.0.input_ids"][0]),
    "types that are none": lambda f, t: t["prompts.0.token_type_ids"].__setitem__(0, 7),
    "pixels of another size": lambda f, t: (
        t.update({"pixel_values": t["pixel_values"][..., 1:]}),
        [t.update({n: t[n][:, :1]}) for n in t if n.endswith("/pixel_values")],
    ),
    "an answer beyond the vocabulary": lambda f, t: t["generated_ids"].__setitem__(0, -1),
}


@pytest.mark.parametrize("change", UNFIT.values(), ids=UNFIT)
def test_inputs_that_the_model_cannot_read_are_not_replayed(change: Change, tmp_path: Path) -> None:
    golden = read_golden(changed(tmp_path / "g.safetensors", change))
    save_file({"logits": np.array(golden.truth["logits"], np.float32)}, tmp_path / "d.safetensors")
    dump = read_dump(tmp_path / "d.safetensors")
    report = compare(golden, dump, SAME_NAMES, "float32", ["*"])
    with pytest.raises(BadGolden, match=r"the golden file does not fit .*tiny"):
        replay(npgemma.load(), golden, dump, report)
