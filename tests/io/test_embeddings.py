"""Files of embeddings, finished and unfinished: what is written is read, and nothing else is."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from npgemma.errors import BadEmbeddings
from npgemma.io.embedding_rows import open_rows
from npgemma.io.embeddings import Embeddings, Facts, Key, read_embeddings, write_embeddings

FACTS = Facts("org/name", "siglip", "ab" * 32, 3)
PICTURES = [Key("image", "cat.jpg"), Key("image", "katze ü\udcff\n.jpg")]
TEXTS = [Key("text", "a cat"), Key("text", "ein Kätzchen")]
UNIT = np.array([[1, 0, 0], [0, 0.6, -0.8], [-0.28, 0, 0.96], [0, -1, 0]], np.float32)
MADE = Embeddings(FACTS, dict(zip([*PICTURES, *TEXTS], UNIT, strict=True)))


def assert_equal(found: dict[Key, np.ndarray], expected: dict[Key, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for key, row in found.items():
        np.testing.assert_array_equal(row, expected[key], strict=True)


# ----------------------------------------------------------------------------------------------------------- finished


def test_a_file_has_the_documented_arrays_and_needs_no_pickle(tmp_path):
    write_embeddings(tmp_path / "made.npz", MADE)
    with np.load(tmp_path / "made.npz", allow_pickle=False) as file:
        arrays = dict(file)
    np.testing.assert_array_equal(arrays.pop("images"), UNIT[:2], strict=True)
    np.testing.assert_array_equal(arrays.pop("texts"), UNIT[2:], strict=True)
    assert arrays.pop("image_names").tolist() == [key.name for key in PICTURES]
    assert arrays.pop("text_names").tolist() == [key.name for key in TEXTS]
    assert json.loads(str(arrays.pop("facts"))) == asdict(FACTS)
    assert not arrays


@pytest.mark.parametrize("kinds", [("image",), ("text",), ("image", "text")], ids="-".join)
def test_what_is_written_is_read(kinds, tmp_path):
    made = replace(MADE, rows={key: row for key, row in MADE.rows.items() if key.kind in kinds})
    write_embeddings(tmp_path / "made.npz", made)
    found = read_embeddings(tmp_path / "made.npz")
    assert found.facts == FACTS
    assert_equal(found.rows, made.rows)


def test_a_file_that_ends_anywhere_is_refused(tmp_path):
    path = tmp_path / "made.npz"
    write_embeddings(path, MADE)
    content = path.read_bytes()
    for end in range(0, len(content), 41):
        path.write_bytes(content[:end])
        with pytest.raises(BadEmbeddings, match=r"made.npz is (cut short or damaged \(|not a file of embeddings)"):
            read_embeddings(path)


def test_a_changed_byte_of_a_row_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "made.npz"
    write_embeddings(path, MADE)
    content = path.read_bytes()
    path.write_bytes(content.replace(UNIT[1].tobytes(), UNIT[3].tobytes()))
    with pytest.raises(BadEmbeddings, match=r"is cut short or damaged \(Bad CRC"):
        read_embeddings(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": None}, "is not a file of embeddings: it holds facts, image_names, images, text_names;"),
        ({"other": UNIT}, "is not a file of embeddings: it holds facts, image_names, images, other, text_names and 1"),
        ({"images": UNIT[:1]}, r"images are float32 \[1, 3\] for .* \[2\], not float32 rows of 3"),
        ({"images": UNIT[:2, :2]}, r"images are float32 \[2, 2\]"),
        ({"images": UNIT[:2].astype(np.float64)}, r"images are float64 \[2, 3\]"),
        ({"images": UNIT[0]}, r"images are float32 \[3\]"),
        ({"text_names": np.arange(2)}, r"texts are float32 \[2, 3\] for int64 \[2\]"),
        ({"text_names": np.array(["a", "a"])}, "texts have a name twice"),
        ({"images": 1.01 * UNIT[:2]}, "images: the row of 'cat.jpg' does not have length 1"),
        (
            {"texts": UNIT[2:] * np.array([[1], [np.nan]], np.float32)},
            "texts: the row of 'ein Kätzchen' does not have length 1",
        ),
        ({"texts": UNIT[2:] * np.float32(1e38)}, "texts: the row of 'a cat' does not have length 1"),
        ({"facts": np.array("{")}, "the facts about its model are damaged"),
        ({"facts": np.array("[]")}, "the facts about its model are damaged"),
        ({"facts": np.array(json.dumps(asdict(FACTS) | {"width": "3"}))}, "the facts about its model are damaged"),
        ({"facts": np.array(json.dumps(asdict(FACTS) | {"more": 3}))}, "the facts about its model are damaged"),
        ({"text_names": np.array(["a", None])}, r"damaged \(Object arrays cannot be loaded"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_other_arrays_are_refused(change, message, tmp_path):
    path = tmp_path / "made.npz"
    write_embeddings(path, MADE)
    with np.load(path) as file:
        arrays = dict(file) | change
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    with pytest.raises(BadEmbeddings, match=message):
        read_embeddings(path)


def test_a_compressed_file_is_refused_since_it_may_unpack_to_any_size(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((1000, 1000), np.float32))
    with pytest.raises(BadEmbeddings, match="it unpacks to 4,000,128 bytes; the limit is"):
        read_embeddings(tmp_path / "bomb.npz")


def test_a_file_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    with pytest.raises(BadEmbeddings, match=r"no/made\.npz cannot be written: No such file or directory"):
        write_embeddings(tmp_path / "no" / "made.npz", MADE)


@pytest.mark.parametrize("change", [{"digest": "cd" * 32}, {"model_type": "clip"}, {"width": 4}], ids=str)
def test_facts_of_another_model_differ_whatever_it_is_called(change):
    FACTS.check(replace(FACTS, model="/elsewhere/name"), Path("made.npz"))
    with pytest.raises(BadEmbeddings, match=r"made\.npz was made with the model org/name"):
        FACTS.check(replace(FACTS, **change), Path("made.npz"))


# --------------------------------------------------------------------------------------------------------- unfinished


def write_partial(path: Path) -> list[int]:
    """Two batches of rows; returns the size of the file after its header and after each line."""
    with open_rows(path, FACTS) as rows:
        rows.write(PICTURES, UNIT[:2])
        rows.write(TEXTS, UNIT[2:])
        assert_equal(rows.done, MADE.rows)
    return np.cumsum([len(line) for line in path.read_bytes().splitlines(keepends=True)]).tolist()


def test_an_unfinished_file_that_ends_anywhere_continues_with_its_complete_rows(tmp_path):
    path = tmp_path / "made.npz.partial"
    lines = write_partial(path)
    content = path.read_bytes()
    for end in {*range(0, len(content), 17), *lines, *(line - 1 for line in lines)}:
        path.write_bytes(content[:end])
        kept = sum(end >= line for line in lines[1:])
        with open_rows(path, FACTS) as rows:
            assert_equal(rows.done, dict([*MADE.rows.items()][:kept]))
            rows.write([*MADE.rows][kept:], UNIT[kept:])
        assert path.read_bytes() == content


def test_rows_of_float64_are_kept_as_float32(tmp_path):
    with open_rows(tmp_path / "rows", FACTS) as rows:
        rows.write(TEXTS[:1], np.array([[1 / 3, 2 / 3, 2 / 3]]))
    with open_rows(tmp_path / "rows", FACTS) as rows:
        expected = np.array([1 / 3, 2 / 3, 2 / 3], np.float32)
        np.testing.assert_array_equal(rows.done[TEXTS[0]], expected, strict=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"my notes", "line 1 is not what npgemma embed writes"),
        (lambda content: b"my notes\n", "line 1 is not what npgemma embed writes"),
        (lambda content: content.replace(b'"width": 3', b'"width": 0'), "the facts about its model are damaged"),
        (lambda content: content.replace(b'"text"', b'"sound"'), "line 4 is not what npgemma embed writes"),
        (lambda content: content.replace(b'"row": "', b'"row": "!', 1), "line 2 is not what npgemma embed writes"),
        (lambda content: content.replace(b'"row": "AACA', b'"row": "AACB'), "line 2 is not what npgemma embed writes"),
        (lambda content: content.replace(b'"cat.jpg"', b"7"), "line 2 is not what npgemma embed writes"),
        (lambda content: content + b"\n", "line 6 is not what npgemma embed writes"),
        (lambda content: content.replace(b"siglip", b"clip"), "made with the model org/name (clip, 3 wide)"),
    ],
)
def test_other_content_is_refused_and_left_as_it_is(damage: Callable[[bytes], bytes], message, tmp_path):
    path = tmp_path / "made.npz.partial"
    write_partial(path)
    content = damage(path.read_bytes())
    path.write_bytes(content)
    with pytest.raises(BadEmbeddings) as error, open_rows(path, FACTS):
        pass
    assert message in str(error.value)
    assert path.read_bytes() == content


def test_two_processes_cannot_write_one_file(tmp_path):
    pytest.importorskip("fcntl")
    path = tmp_path / "made.npz.partial"
    with (
        open_rows(path, FACTS),
        pytest.raises(BadEmbeddings, match="partial is being written by another process"),
        open_rows(path, FACTS),
    ):
        pass
