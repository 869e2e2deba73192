"""Every format gives the same arrays; pickles, damaged files, duplicate names and other data are refused."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors import TensorSpec, serialize
from safetensors.numpy import save_file

from npgemma import BadGolden
from npgemma.golden import compare, read_dump, read_golden
from npgemma.golden.file import EMBEDDED_GOLDEN
from npgemma.layers.bits import pack, round_to_bfloat16

TENSORS = {
    "layers.0.out": np.arange(6, dtype=np.float32).reshape(2, 3) / 7,
    "ids": np.array([3, 4, 5]),
    "mask": np.tri(3, dtype=bool),
    "half": np.ones(2, np.float16),
    "wide": np.array(1 / 3),
}


def as_safetensors(folder: Path) -> Path:
    save_file(TENSORS, folder / "dump.safetensors")
    return folder / "dump.safetensors"


def as_npz(folder: Path) -> Path:
    np.savez(folder / "dump.npz", **TENSORS)
    return folder / "dump.npz"


def as_npy(folder: Path) -> Path:
    (folder / "dump" / "layers" / "0").mkdir(parents=True)
    for name, x in TENSORS.items():
        np.save(folder / "dump" / (name.replace(".", "/") + ".npy"), x)
    return folder / "dump"


def node(name: str, outputs: object = None, inputs: object = None, children: tuple = ()) -> dict:
    return {"module_path": name, "outputs": outputs, "inputs": inputs, "children": list(children)}


def tensor(folder: Path, file: str, x: np.ndarray) -> dict:
    save_file({"data": x}, folder / file)
    return {"shape": "torch.Size", "dtype": "torch.float32", "value": f"./{file}"}


def as_debugger(folder: Path) -> Path:
    folder = folder / "debug"
    folder.mkdir()
    leaves = [node(f"Model.{name}", tensor(folder, f"Model.{name}.safetensors", x)) for name, x in TENSORS.items()]
    (folder / "Model_debug_tree_FULL_TENSORS.json").write_text(json.dumps(node("Model", children=leaves)))
    return folder


@pytest.mark.parametrize("write", [as_safetensors, as_npz, as_npy, as_debugger])
def test_every_format_gives_the_same_arrays(write, tmp_path: Path) -> None:
    dump = read_dump(write(tmp_path))
    assert set(dump) == set(TENSORS)
    assert len(dump) == len(TENSORS)
    for name, x in TENSORS.items():
        np.testing.assert_array_equal(dump[name], x, strict=True)
        assert dump.dtypes[name] == x.dtype.name


def test_bfloat16_is_widened_exactly_and_reported(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    bits = pack(x)
    spec = TensorSpec(dtype="bfloat16", shape=[3, 5], data_ptr=bits.ctypes.data, data_len=bits.nbytes)
    (tmp_path / "dump.safetensors").write_bytes(serialize({"x": spec}))
    dump = read_dump(tmp_path / "dump.safetensors")
    np.testing.assert_array_equal(dump["x"], round_to_bfloat16(x), strict=True)
    assert dump.dtypes["x"] == "bfloat16"


def test_bfloat16_of_ml_dtypes_in_an_npy_file_is_read(tmp_path: Path) -> None:
    """NumPy writes it as V2: two bytes without a type."""
    x = np.array([1.5, -2.0], np.float32)
    np.save(tmp_path / "x.npy", pack(x).view("V2"))
    np.testing.assert_array_equal(read_dump(tmp_path)["x"], x, strict=True)


@pytest.mark.parametrize("write", [np.save, lambda path, x: np.savez(path, x=x)])
def test_other_byte_orders_are_read(write, tmp_path: Path) -> None:
    x = np.array([1.5, -2.25], ">f4")
    path = tmp_path / ("x.npy" if write is np.save else "x.npz")
    write(path, x)
    found = read_dump(tmp_path if write is np.save else path)["x"]
    assert found.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(found, [1.5, -2.25])


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_pickles_are_refused_and_not_loaded(kind: str, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], object)
    folder = tmp_path / "dump"
    folder.mkdir()
    if kind == "npy":
        np.save(folder / "x.npy", trap, allow_pickle=True)
    else:
        np.savez(folder / "x.npz", x=trap)
    with pytest.raises(BadGolden, match="Python objects"):
        read_dump(folder if kind == "npy" else folder / "x.npz")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_bare_pickle_is_refused(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(BadGolden):
        read_dump(tmp_path if suffix == "npy" else path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "x", [np.ones(2, complex), np.array(["a"]), np.zeros(2, [("a", "f4")]), np.array(["2020"], "M8[Y]")]
)
def test_array_of_other_data_is_refused(x: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(BadGolden, match="'x'"):
        read_dump(tmp_path)


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    np.save(data, np.ones(2))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", data.getvalue())
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("x.npy", data.getvalue())
    with pytest.raises(BadGolden, match="same name"):
        read_dump(tmp_path / "x.npz")
    (tmp_path / "folder" / "a").mkdir(parents=True)
    for name in ("a/b.npy", "a.b.npy"):
        np.save(tmp_path / "folder" / name, np.ones(2))
    with pytest.raises(BadGolden, match=r"'a.b' twice"):
        read_dump(tmp_path / "folder")


def test_header_with_a_wrong_shape_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data.replace(b"(2, 3)", b"(9, 3)"))
    with pytest.raises(BadGolden, match=r"x\.npy"):
        read_dump(tmp_path)


@pytest.mark.parametrize("write", [as_safetensors, as_npz])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7, 0.99])
def test_truncated_file_is_refused(write, share: float, tmp_path: Path) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(BadGolden, match=path.name):
        read_dump(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.npz", r"none\.npz"), ("none", "does not exist"), ("x.txt", "not a dump that npgemma reads")],
)
def test_missing_file_and_file_of_another_kind_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1 2 3")
    with pytest.raises(BadGolden, match=message):
        read_dump(tmp_path / name)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadGolden, match="no tensors"):
        read_dump(tmp_path)


# ------------------------------------------------------------------------------------------------------------ debugger


def debugged(folder: Path, tree: object) -> Path:
    (folder / "M_debug_tree_FULL_TENSORS.json").write_text(json.dumps(tree))
    return folder


def test_input_of_a_layer_is_the_output_of_the_one_before(tmp_path: Path) -> None:
    """The debugger keeps no output of a module that has submodules."""
    xs = [np.full(2, i, np.float32) for i in range(3)]
    layers = [
        node(f"M.text.layers.{i}", inputs={"args": [tensor(tmp_path, f"in{i}.safetensors", x)]})
        for i, x in enumerate(xs)
    ]
    dump = read_dump(debugged(tmp_path, node("M", children=layers)))
    assert set(dump) == {"text.layers.0.inputs.args.0", "text.layers.0", "text.layers.1"}
    np.testing.assert_array_equal(dump["text.layers.1"], xs[2])


def test_inputs_of_the_model_and_several_outputs_have_names(tmp_path: Path) -> None:
    inputs = {
        "kwargs": {"pixel_values": tensor(tmp_path, "a.safetensors", np.ones(1, np.float32)), "use_cache": "True"}
    }
    outputs = [tensor(tmp_path, f"{name}.safetensors", np.ones(1, np.float32)) for name in "bc"]
    dump = read_dump(debugged(tmp_path, node("M", inputs=inputs, children=(node("M.rotary", outputs),))))
    assert set(dump) == {"inputs.kwargs.pixel_values", "rotary.0", "rotary.1"}


@pytest.mark.parametrize("value", ["./../x.safetensors", "/etc/passwd", "x.safetensors", "./a/x.safetensors", "./"])
def test_value_outside_the_folder_is_refused(value: str, tmp_path: Path) -> None:
    leaf = node("M.a", {"shape": "", "dtype": "", "value": value})
    with pytest.raises(BadGolden):
        read_dump(debugged(tmp_path, node("M", children=(leaf,))))


def test_numbers_as_text_are_refused_with_advice(tmp_path: Path) -> None:
    leaf = node("M.a", {"shape": "", "dtype": "", "value": ["tensor([1, ..., 2])"]})
    with pytest.raises(BadGolden, match="use_repr=False"):
        read_dump(debugged(tmp_path, node("M", children=(leaf,))))


@pytest.mark.parametrize(
    "tree", [[], 3, {}, {"module_path": 3}, {"module_path": "M", "children": [4]}, {"module_path": "M", "children": 4}]
)
def test_invalid_tree_is_refused(tree: object, tmp_path: Path) -> None:
    with pytest.raises(BadGolden):
        read_dump(debugged(tmp_path, tree))


def test_module_that_gemma_3_calls_twice_is_left_out(tmp_path: Path) -> None:
    table, layer = (tensor(tmp_path, f"{name}.safetensors", np.ones(1, np.float32)) for name in ("table", "layer"))
    twice = [node("M.model.rotary_emb", [table])] * 2
    dump = read_dump(debugged(tmp_path, node("M", children=(*twice, node("M.model.norm", layer)))))
    assert list(dump) == ["model.norm"]


def test_two_trees_and_duplicate_modules_are_refused(tmp_path: Path) -> None:
    leaf = node("M.a", tensor(tmp_path, "a.safetensors", np.ones(1, np.float32)))
    with pytest.raises(BadGolden, match="twice"):
        read_dump(debugged(tmp_path, node("M", children=(leaf, leaf))))
    (tmp_path / "N_debug_tree_FULL_TENSORS.json").write_text("{}")
    with pytest.raises(BadGolden, match="2 debugger trees"):
        read_dump(tmp_path)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.pt", r"safetensors\.torch\.save_file"),
        ("x.bin", r"safetensors\.torch\.save_file"),
        ("x.npy", "move it into a folder"),
        ("x.json", r"safetensors\.numpy\.save_file, or with np\.savez"),
    ],
)
def test_another_format_says_how_to_save_instead(name: str, advice: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(BadGolden, match=advice):
        read_dump(tmp_path / name)


def test_a_golden_file_as_a_dump_is_its_truth() -> None:
    golden = read_golden(EMBEDDED_GOLDEN)
    assert set(read_dump(EMBEDDED_GOLDEN)) == set(golden.taps)
    assert compare(golden, read_dump(EMBEDDED_GOLDEN)).status == 0
