"""What tools/fuzz.py holds npgemma against can fail: a reader that lies about a file is found."""

import io
import json
import struct

import fuzz_parsers
import numpy as np
import pytest
from fuzz_files import adapters, model
from safetensors.numpy import save

import npgemma
from npgemma.layers.tree import leaves

TENSORS = {"a": np.arange(6, dtype="f4").reshape(2, 3), "b": np.arange(4, dtype="i8")}


def with_header(change) -> bytes:
    """A file of TENSORS with another header."""
    content = save(TENSORS)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def test_the_strict_parser_of_safetensors_finds_names_shapes_and_bytes():
    found = fuzz_parsers.parse_safetensors(save(TENSORS, {"x": "y"}))
    assert {name: (x.dtype, x.shape, x.content) for name, x in found.items()} == {
        "a": ("F32", (2, 3), TENSORS["a"].tobytes()),
        "b": ("I64", (4,), TENSORS["b"].tobytes()),
    }


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["a"].update(shape=[2, 2]),
        lambda header: header["a"].update(shape=[2.0, 3]),
        lambda header: header["a"].update(data_offsets=[0, 24]),
        lambda header: header.pop("a"),
        lambda header: header.update(__metadata__={"x": 1}),
    ],
)
def test_the_strict_parser_refuses(change):
    with pytest.raises(ValueError, match=r".+"):
        fuzz_parsers.parse_safetensors(with_header(change))


@pytest.mark.parametrize("pack", [np.savez, np.savez_compressed])
def test_the_strict_parser_of_npz_reads_what_numpy_writes(pack):
    file = io.BytesIO()
    pack(file, **TENSORS, c=np.asfortranarray(TENSORS["a"]))
    found = fuzz_parsers.parse_npz(file.getvalue())
    for name, x in (TENSORS | {"c": TENSORS["a"]}).items():
        np.testing.assert_array_equal(found[name], x, strict=True)


def test_the_codec_of_the_embedded_model_is_what_its_file_says():
    (files,) = model("vae-oid.npz")
    said = fuzz_parsers.parse_npz(files["vae-oid.npz"])
    codec = npgemma.load().mask_codec
    assert sum(leaf.value.size for leaf in leaves(codec)) == sum(x.size for x in said.values())


def test_the_rules_of_peft_give_scale_and_product():
    files = adapters()[0]
    tensors = fuzz_parsers.parse_safetensors(files["adapter_model.safetensors"])
    found = fuzz_parsers.parse_adapter(tensors, json.loads(files["adapter_config.json"]))
    (first, second), root = found.values(), 2**0.5
    assert (first[1], second[1]) == (4 / root, 3 / root)
    assert first[0].shape == (8, 8)
