"""Mask auto-encoders: read from a file of big_vision's names, or refused with the reason."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from mask_codecs import random_codec, random_tensors

from npgemma import BadModel
from npgemma.checkpoints.mask_vqvae import CODEBOOK, read_mask_codec, tensor_names
from npgemma.models.mask_vqvae import decode_mask


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    np.savez(path, **tensors)
    return path


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_file_is_the_auto_encoder_of_its_tensors(tmp_path: Path, dtype: str) -> None:
    tensors = {name: x.astype(np.float16).astype(dtype) for name, x in random_tensors().items()}
    p = read_mask_codec(write(tmp_path / "vae.npz", tensors))
    assert p.codebook.dtype == np.float32
    np.testing.assert_array_equal(p.codebook, tensors[CODEBOOK])
    assert decode_mask(p, np.zeros((1, 16), int)).dtype == np.float32


def test_every_layer_is_in_its_place() -> None:
    """In the order of computation; two layers of one block have kernels of the same shape."""
    p, tensors = random_codec(), random_tensors()
    inner = [[conv for block in part.blocks for conv in block.convs] for part in (p.decoder, p.encoder)]
    first, last = p.decoder.ends
    layers = [first, *inner[0], *p.decoder.up, last, *p.encoder.down, *inner[1], p.encoder.last]
    names = [f"decoder.{name}" for name in ("0", *nets(2, 3), "4", "6", "8", "10", "12")]
    names += [f"encoder.{name}" for name in ("0", "2", "4", "6", *nets(8, 9), "10")]
    for name, layer in zip(names, layers, strict=True):
        np.testing.assert_array_equal(layer.weight, tensors[f"{name}.weight"], name, strict=True)
        np.testing.assert_array_equal(layer.bias, tensors[f"{name}.bias"], name, strict=True)
    assert sorted(tensor_names()) == sorted(tensors)


def nets(*blocks: int) -> list[str]:
    return [f"{block}.net.{i}" for block in blocks for i in (0, 2, 4)]


def test_a_layer_that_does_not_fit_is_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = random_tensors()
    tensors["encoder.2.weight"] = tensors["encoder.2.weight"].transpose(1, 0, 2, 3)
    with pytest.raises(BadModel, match=r"encoder\.2\.weight has shape \[6, 8, 4, 4\]; .* need \[6, 6, 4, 4\]$"):
        read_mask_codec(write(tmp_path / "vae.npz", tensors))


@pytest.mark.parametrize("name", [CODEBOOK, "decoder.0.weight", "encoder.9.net.4.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = random_tensors()
    del tensors[name]
    with pytest.raises(BadModel, match=f"'{name}' is missing"):
        read_mask_codec(write(tmp_path / "vae.npz", tensors))
    with pytest.raises(BadModel, match=r"is not a mask auto-encoder: '\S+' and 46 other tensors are missing"):
        read_mask_codec(write(tmp_path / "vae.npz", {"x": np.ones(1)}))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (CODEBOOK, lambda x: x[:100]),
        (CODEBOOK, lambda x: x[:, :-1]),
        (CODEBOOK, lambda x: x[0]),
        (CODEBOOK, lambda x: x * np.nan),
        ("decoder.0.weight", lambda x: x.transpose(1, 0, 2, 3)),
        ("decoder.0.bias", lambda x: x[:-1]),
        ("decoder.2.net.0.weight", lambda x: x[:, :, :1, :1]),
        ("decoder.6.weight", lambda x: x.transpose(1, 0, 2, 3)),
        ("decoder.12.weight", lambda x: np.concatenate([x, x])),
        ("decoder.4.weight", lambda x: x[0]),
        ("encoder.0.weight", lambda x: x[:, :, :3, :3]),
        ("encoder.10.weight", lambda x: x[:-1]),
        ("encoder.8.net.2.weight", lambda x: x * np.inf),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path: Path, name: str, change) -> None:
    tensors = random_tensors()
    with np.errstate(invalid="ignore"):
        tensors[name] = change(tensors[name])
    with pytest.raises(BadModel, match=r"vae\.npz"):
        read_mask_codec(write(tmp_path / "vae.npz", tensors))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x93NUMPY", b"text"])
def test_a_file_that_is_not_an_npz_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vae.npz").write_bytes(data)
    with pytest.raises(BadModel, match=r"vae\.npz"):
        read_mask_codec(tmp_path / "vae.npz")


def test_a_missing_file_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="missing"):
        read_mask_codec(tmp_path / "vae.npz")
    with pytest.raises(BadModel):
        read_mask_codec(write(tmp_path / "vae.npz", {"x": np.array([{}], object)}))
    with pytest.raises(BadModel):
        read_mask_codec(write(tmp_path / "vae.npz", {"x": np.array(["a"])}))


def test_the_random_codec_of_the_tests_is_accepted() -> None:
    assert random_codec().codebook.shape == (128, 13)


def test_a_file_that_would_unpack_to_a_gigabyte_is_refused_unopened(tmp_path: Path) -> None:
    """A zip bomb: 100 kB that unpack to zeros."""
    with zipfile.ZipFile(tmp_path / "vae.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as x:
        for _ in range(11):
            x.write(bytes(10_000_000))
    with pytest.raises(BadModel, match="unpacks to 110,000,000 bytes"):
        read_mask_codec(tmp_path / "vae.npz")
