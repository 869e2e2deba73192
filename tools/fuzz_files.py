"""The good files that tools/fuzz.py changes: a small one of every kind and format."""

import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from fuzz_changes import Files
from fuzz_readers import SHARD
from PIL import Image
from safetensors.numpy import save

import npgemma
from npgemma.golden import record
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.safetensors import open_file
from npgemma.io.unusable import INDEX

FORMATS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "WEBP": "webp", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}


def pictures() -> list[Files]:
    """A picture in every format, and in the modes of PNG and GIF."""
    rgb = Image.fromarray(np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8))
    found = [(rgb, kind) for kind in FORMATS]
    found += [(rgb.convert(mode), "PNG") for mode in ("RGBA", "P", "L", "LA", "1", "I;16")] + [
        (rgb.convert("P"), "GIF")
    ]
    return [{f"x.{FORMATS[kind]}": encoded(image, kind)} for image, kind in found]


def encoded(image: Image.Image, kind: str) -> bytes:
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, kind, **({"transparency": 0} if image.mode == "P" else {}))
    return file.getvalue()


TENSORS = {
    "logits": np.arange(1792, dtype="f4")[None],
    "blk.0.k": np.ones((4, 1, 8), "f4"),
    "text.layers.0.out": np.ones((40, 128), "f2"),
    "prompts.0.input_ids": np.arange(40, dtype="i4"),
}


def npz(tensors: dict[str, np.ndarray], pack: Callable[..., None] = np.savez) -> bytes:
    """The bytes of an .npz file."""
    file = io.BytesIO()
    pack(file, **tensors)
    return file.getvalue()


def npy(x: np.ndarray) -> bytes:
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


def dumps() -> list[Files]:
    """A dump of each format, each in a folder or a file named dump."""
    entry = {"shape": "torch.Size([1, 3])", "dtype": "torch.float32", "value": "./a.safetensors"}
    node = {"module_path": "M.model.layers.1", "inputs": {"args": [entry], "kwargs": {}}, "outputs": entry}
    tree = {"module_path": "M", "inputs": {}, "outputs": None, "children": [node | {"children": []}]}
    return [
        {"dump.safetensors": save(TENSORS)},
        {"dump.npz": npz(TENSORS)},
        {"dump.npz": npz(TENSORS, np.savez_compressed)},
        {f"dump/{name}.npy": npy(x) for name, x in TENSORS.items()},
        {
            "dump/M_debug_tree_FULL_TENSORS.json": json.dumps(tree).encode(),
            "dump/a.safetensors": save({"data": np.ones((1, 3), "f4")}),
        },
    ]


def goldens() -> list[Files]:
    """The embedded golden file, and three times as often a small one; the suffix says what may be changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.safetensors"
        record(npgemma.load(), [npgemma.sample_picture()], "ocr", path, level="io", steps=1)
        small = {"g.golden": path.read_bytes()}
    return [{"g.golden": EMBEDDED_GOLDEN.read_bytes()}, small, small, small]


def mappings() -> list[Files]:
    """A mapping with every key."""
    rule = {"theirs": r"blk\.(\d+)\.k", "ours": r"text.layers.\1.attn.k_rope", "transpose": [1, 0, 2]}
    parts = [{"ours": "logits", "slice": [0, [None, 5]], "reshape": [-1], "scale": 2.0, "rows": [0, 1]}, "positions"]
    stacked = {"theirs": ".*keys", "ours": "text.layers.{i}.attn.segments.0.keys", "slice": ["{i}", "..."]}
    more = {"theirs": "m", "ours": "prompts.0.mask", "mask": "additive", "interleaved": False}
    rules = [rule, {"theirs": "(q|k)v.+", "ours": parts}, stacked, more]
    return [{"map.json": json.dumps({"rules": rules, "ignore": ["debug.*"], "absent": ["*.out"]}).encode()}]


def adapters() -> list[Files]:
    """Adapters of PEFT: two matrices, with another alpha for one; and a table that was trained whole."""
    modules = [f"base_model.model.model.language_model.layers.{i}.self_attn.q_proj" for i in range(2)]
    halves = (("A", (2, 8)), ("B", (8, 2)))
    rng = np.random.default_rng(0)
    tensors = {f"{name}.lora_{half}.weight": rng.random(shape, "f4") for name in modules for half, shape in halves}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "alpha_pattern": {r"layers\.1\..*q_proj": 3}}
    config |= {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"], "use_dora": False, "use_rslora": True}
    head = {"base_model.model.lm_head.weight": np.ones((3, 8), "f4")}
    return [
        {"adapter_config.json": json.dumps(config | more).encode(), "adapter_model.safetensors": save(tensors | whole)}
        for more in ({}, {"use_rslora": False, "alpha_pattern": {}})
        for whole in ({}, head)
    ]


def lines() -> list[Files]:
    """Jobs and results."""
    jobs = [{"id": i, "image": "x.png", "prompt": "caption en"} for i in range(3)]
    results = [job | {"text": "a", "score": {"total": 1.5}} for job in jobs]
    return [{"lines.jsonl": b"".join(json.dumps(line).encode() + b"\n" for line in each)} for each in (jobs, results)]


def model(*names: str, base: Path = EMBEDDED) -> list[Files]:
    """An embedded model; the files `names` are changed."""
    return [{name: (base / name).read_bytes() for name in names}]


def configs() -> list[Files]:
    """What says how the embedded PaliGemma computes; one of them is changed in each case."""
    settings = {"eos_token_id": [1, 108], "do_sample": False, "max_new_tokens": 20}
    found = model("config.json", "preprocessor_config.json", "tokenizer_config.json")
    return [*found, {"generation_config.json": json.dumps(settings).encode()}]


def indexes() -> list[Files]:
    """An index of the embedded PaliGemma, as if its weights were in shards."""
    names = list(open_file(EMBEDDED / "model.safetensors"))
    index = {"metadata": {"total_size": 4_000_000}, "weight_map": dict.fromkeys(names, SHARD)}
    return [{INDEX: json.dumps(index).encode()}]
