"""What runs really allocate, against the footprint that they are checked with: never more, and not less than half."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors
import tiny
from measure_memory import PICTURE, RUNS, measure
from small_model import config_of, with_tokenizer

from npgemma.checkpoints.footprint import BASE
from npgemma.checkpoints.paligemma import PaliGemmaConfig, hf_layout
from npgemma.layers.bits import pack
from npgemma.testing import write_folder

MB = 10**6
# Blocks of weights and of scores that are worked on, whatever the sizes of a model; some for each of two threads.
BLOCKS = 16 * MB
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc, limits of the address space and their units")
LARGE = config_of(
    dict(hidden_size=192, intermediate_size=500),
    dict(
        hidden_size=1024,
        intermediate_size=2500,
        num_hidden_layers=2,
        num_attention_heads=4,
        head_dim=128,
        vocab_size=34_000,
    ),
)


def parameters(config: PaliGemmaConfig) -> int:
    return sum(int(np.prod(shape)) for shape in hf_layout(config).shapes.values())


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A checkpoint of 107 MB in bfloat16, two thirds of it the table: reading it needs memory, and not much time.

    Its numbers repeat, since 50 million random ones would take seconds.
    """
    numbers = pack(np.random.default_rng(0).normal(0, 0.02, 1 << 16).astype(np.float32))
    tensors = {name: np.resize(numbers, shape) for name, shape in hf_layout(LARGE).shapes.items()}
    folder = with_tokenizer(write_folder(tmp_path_factory.mktemp("large"), LARGE, {}))
    stored = {
        name: safetensors.TensorSpec(dtype="bfloat16", shape=list(x.shape), data_ptr=x.ctypes.data, data_len=x.nbytes)
        for name, x in tensors.items()
    }
    (folder / "model.safetensors").write_bytes(safetensors.serialize(stored))
    return folder


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> dict[str, list[int]]:
    return measure("runs", tmp_path_factory.mktemp("runs"))[0]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_allocates_no_more_than_its_footprint_and_no_less_than_half(name, measured):
    """Caches and activations, but for blocks."""
    peak, needed = measured[name]
    assert peak - BLOCKS <= needed <= 2 * peak


def test_merged_resident_weights_are_in_memory_once(large, tmp_path):
    """A matrix that is merged and then copied would need 12 GB more in a 3B model."""
    shapes, tensors = hf_layout(LARGE).shapes, {}
    for name in ("embed_tokens", "layers.0.mlp.up_proj", "layers.0.mlp.gate_proj", "layers.1.mlp.up_proj"):
        out, width = shapes[f"language_model.model.{name}.weight"]
        a, b = np.ones((1, width), np.float32), np.ones((out, 1), np.float32)
        table = ("lora_embedding_A", b.T, "lora_embedding_B", a.T)
        first, x, second, y = table if "embed" in name else ("lora_A.weight", a, "lora_B.weight", b)
        module = f"base_model.model.language_model.model.{name}"
        tensors |= {f"{module}.{first}": x, f"{module}.{second}": y}
    tiny.save(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 1}')
    found, _ = measure("resident", large, tmp_path)
    head = LARGE.text.vocab_size * LARGE.text.hidden_size * 4  # no longer the table
    assert found["peak"] <= 4 * parameters(LARGE) + head + BLOCKS
    assert found["head"] == "float32"


MEASURED = {"mapped": {}, "mapped, in float64": {"dtype": "float64"}, "resident": {"resident": True}}


@LINUX
@pytest.mark.parametrize("options", MEASURED.values(), ids=MEASURED)
def test_the_kernel_counts_no_more_than_the_footprint_and_no_less_than_half(options, large):
    """The largest resident set of a process that answers two prompts.

    The file of resident weights is mapped until it is read: pages that the kernel may drop at any time.
    """
    found, _ = measure("kernel", large, json.dumps(options))
    file = (large / "model.safetensors").stat().st_size if "resident" in options else 0
    peak = found["peak"] - file
    assert peak <= found["needed"] <= 2 * peak


def ocr(folder: Path, space: int, *flags: str) -> tuple[int, str]:
    """The exit status and stderr of a command under ulimit -v."""
    command = ("ocr", PICTURE, "-m", folder, "--max-new-tokens", 2, *flags)
    found, err = measure("command", space, *command)
    assert "Traceback" not in err
    return found["status"], err


@LINUX
@pytest.mark.parametrize(
    ("space", "flags"),
    [(60 * MB, []), (250 * MB, ["--resident"]), (250 * MB, ["--resident", "--dtype", "float64"])],
    ids=str,
)
def test_too_low_a_limit_of_the_process_is_one_sentence(space, flags, large):
    """The file has 107 MB: it cannot be mapped; or it can, and resident weights need twice or four times that."""
    status, err = ocr(large, space, *flags)
    assert status == 1
    assert err.startswith("npgemma: this needs 0.")
    assert " are available; " in err
    assert err.count("\n") == 1


@LINUX
def test_a_limit_of_the_process_that_is_high_enough_gives_an_answer(large):
    assert ocr(large, 900 * MB, "--resident")[0] == 0


@LINUX
def test_mapped_weights_are_not_needed_twice(large):
    """Under ulimit -v a map counts as used; with space for it once and for the run, the model answers."""
    assert ocr(large, BASE + 170 * MB)[0] == 0
