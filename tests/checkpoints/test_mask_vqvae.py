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
    np.testing.assert_array_equal(p.decoder.up[1].weight, tensors["decoder.6.weight"])
    np.testing.assert_array_equal(p.encoder.blocks[1].convs[2].bias, tensors["encoder.9.net.4.bias"])
    assert decode_mask(p, np.zeros((1, 16), int)).dtype == np.float32


def test_the_names_are_those_of_the_file() -> None:
    assert sorted(tensor_names()) == sorted(random_tensors())


@pytest.mark.parametrize("name", [CODEBOOK, "decoder.0.weight", "encoder.9.net.4.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, name: str) -> None:
    tensors = random_tensors()
    del tensors[name]
    with pytest.raises(BadModel, match=f"'{name}' and 0 others are missing"):
        read_mask_codec(write(tmp_path / "vae.npz", tensors))


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
