"""Lines of people's own data: those that are read, and one sentence about each that is not."""

import json
import re
import shutil
from pathlib import Path

import pytest

from npgemma.errors import BadData
from npgemma.training.encoding import PictureEncoder, TextEncoder
from npgemma.training.examples import Data, data_file, digest_of, read_examples, required, split_file

BOX = "<loc0001><loc0002><loc0003><loc0004>"
GOOD = {"image": "a.png", "prefix": "caption en", "suffix": "a cat"}


def good(**changes: object) -> str:
    return json.dumps(GOOD | changes)


def without(key: str, **others: object) -> str:
    return json.dumps({name: value for name, value in GOOD.items() if name != key} | others)


def found(text: str) -> str:
    """A detection whose answer is the text."""
    return good(prefix="detect cat", suffix=text)


# A line that cannot be learned, and what its sentence says.
MALFORMED = {
    "not JSON": ('{"image": "a.png", "prefix"', "it is not valid JSON: Expecting ':' delimiter at column"),
    "cut": (good()[:-3], "it is not valid JSON"),
    "a list": ("[1]", "it is a JSON list, not an object"),
    "two objects": (good() + good(), "it is not valid JSON: Extra data"),
    "a key twice": (good()[:-1] + ', "suffix": "b"}', "it cannot be read as JSON: a key appears twice"),
    "infinity": (good()[:-1] + ', "x": 1e999}', "1e999 is not a finite number"),
    "deep": (good()[:-1] + ', "x": ' + "[" * 100_000, "nested too deeply"),
    "long": (good(suffix="a" * 1_000_000), "it is longer than 1,000,000 bytes"),
    "no image": (without("image"), "image is missing; a line is such as"),
    "another program's image": (without("image", file_name="a.png"), "'file_name' is not read; rename it to 'image'"),
    "no prefix": (without("prefix"), "prefix is missing; a line is such as"),
    "another program's prefix": (without("prefix", question="?"), "'question' is not read; rename it to 'prefix'"),
    "no suffix": (without("suffix"), "suffix is missing"),
    "a null": (good(suffix=None), "suffix is None, not text"),
    "a number": (good(suffix=7), "suffix is 7, not text"),
    "a list of answers": (good(suffix=["a", "b"]), "suffix is ['a', 'b'], not text"),
    "empty suffix": (good(suffix=" \n"), "suffix is empty: there is nothing to learn"),
    "missing picture": (good(image="c.png"), "c.png was not found"),
    "damaged picture": (good(image="cut.png"), "cut.png cannot be read"),
    "text for a picture": (good(image="data.jsonl"), "data.jsonl is not a picture: it is JSON"),
    "a folder": (good(image="."), "cannot be read"),
    "a URL": (good(image="https://a.b/c.png"), "does not download pictures: save it as a file"),
    "no path": (good(image=[]), "image is [], not a path or a list of paths"),
    "image and images": (good(images=["b.png"]), "image and images are both there"),
    "image token": (good(prefix="<image>caption en"), "prefix contains <image>; leave it out"),
    "end token": (good(suffix="a cat<eos>"), "suffix contains <eos>; leave it out"),
    "not Unicode": (good(suffix="\ud800"), "is not valid text: surrogates not allowed"),
    "location above 1023": (
        found("<loc0001><loc0002><loc0003><loc1024> cat"),
        "'<loc1024>'; a location is <loc0000> to",
    ),
    "location of 3 digits": (
        found("<loc001><loc0002><loc0003><loc0004> cat"),
        "suffix contains '<loc001>'; a location",
    ),
    "open location": (found("<loc0001><loc0002><loc0003><loc0004 cat"), "suffix contains '<loc0004 cat'; a location"),
    "spaced location": (good(prefix="what is at <loc 0001>?"), "prefix contains '<loc 0001>'; a location is"),
    "three locations": (found("<loc0001><loc0002><loc0003> cat"), "suffix has 3 locations in a row; a box has 4"),
    "y1 = y0": (found("<loc0003><loc0002><loc0003><loc0004> cat"), "with y1 = 3, which must be above y0 = 3"),
    "x1 < x0": (found(f"{BOX} cat ; <loc0001><loc0009><loc0003><loc0004> cat"), "x1 = 4, which must be above x0 = 9"),
    "mask code above 127": (found(f"{BOX}{'<seg128>' * 16} cat"), "'<seg128>'; a mask code is <seg000> to <seg127>"),
    "15 mask codes": (found(f"{BOX}{'<seg001>' * 15} cat"), "suffix has 15 mask codes in a row; a mask has 16"),
    "a mask without a box": (found(f"{'<seg001>' * 16} cat"), "suffix has mask codes without a box before them"),
    "too long": (good(suffix="a cat " * 40), re.compile(r"it has \d+ tokens, and the model has positions for 80;")),
}


def read(folder: Path, *lines: str, encoder: PictureEncoder | TextEncoder) -> Data:
    (folder / "data.jsonl").write_text("".join(line + "\n" for line in lines))
    return read_examples(folder / "data.jsonl", encoder)


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_gives_one_sentence(name: str, folder: Path, encoder: PictureEncoder) -> None:
    """It names the file and the line, and the good lines around it are read all the same."""
    line, says = MALFORMED[name]
    data = read(folder, good(), line, good(suffix="a dog"), encoder=encoder)
    assert [each.suffix for each in data.examples] == ["a cat", "a dog"]
    (problem,) = data.problems
    assert str(problem).startswith(f"{folder / 'data.jsonl'}: line 2: ")
    assert says.search(problem.what) if isinstance(says, re.Pattern) else says in problem.what
    assert "\n" not in problem.what
    assert len(problem.what) < 300


@pytest.mark.parametrize(
    "line",
    [
        good(id=7, source={"nested": [1]}, width=640),
        good(prefix=""),
        good(image=["a.png", "b.png"]),
        without("image", images=["a.png", "b.png"]),
        without("image", images="a.png"),
        found(f"{BOX} cat ; {BOX}{'<seg127>' * 16} dog"),
        good(prefix="detect 5 of clubs ; 6 of hearts", suffix="<loc0401><loc0722><loc0702><loc1013> 5 of clubs"),
        found("no cat"),
        good(prefix="point at the cat", suffix="<loc0009><loc0001>"),
        good(prefix=f"what is at {BOX}?"),
        good(suffix="a <location> of <segments>, 1 < 2"),
        good(suffix="“a” · 猫 😗"),
    ],
)
def test_a_good_line_is_read(line: str, folder: Path, encoder: PictureEncoder) -> None:
    data = read(folder, line, encoder=encoder)
    (example,) = required(data)
    values = json.loads(line)
    named = values.get("image", values.get("images"))
    assert example.images == tuple(folder / name for name in (named if isinstance(named, list) else [named]))
    assert (example.prefix, example.suffix) == (values["prefix"], values["suffix"])


def test_empty_lines_and_a_byte_order_mark_are_passed_over(folder: Path, encoder: PictureEncoder) -> None:
    data = read(folder, "\ufeff" + good(), "", "  ", good(), encoder=encoder)
    assert [each.where[-6:] for each in required(data)] == ["line 1", "line 4"]
    assert len(required(read(folder, "\ufeff", good(), encoder=encoder))) == 1


def test_bad_lines_are_refused_or_skipped(folder: Path, encoder: PictureEncoder) -> None:
    data = read(folder, good(), "[]", good(suffix=""), encoder=encoder)
    with pytest.raises(
        BadData, match=r"data.jsonl: line 2: it is a JSON list.* \(and 1 more problem\); correct it.*--skip-bad$"
    ):
        required(data)
    assert required(data, skip_bad=True) == data.examples


@pytest.mark.parametrize(("lines", "says"), [([], "hold no example"), (["[]"], "line 1: it is a JSON list")])
def test_data_without_an_example_are_refused(
    lines: list[str], says: str, folder: Path, encoder: PictureEncoder
) -> None:
    with pytest.raises(BadData, match=says) as caught:
        required(read(folder, *lines, encoder=encoder), skip_bad=True)
    assert "--skip-bad" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[\n" + good().encode() + b"\n]", "is a JSON list; write one JSON object a line"),
        (b'image,prefix,suffix\n"a.png","caption en","a cat"\n', r"is a table \(CSV\)"),
        (b"PK\x03\x04", "zip archive"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(
    content: bytes, says: str, tmp_path: Path, encoder: PictureEncoder
) -> None:
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(BadData, match=says):
        read_examples(tmp_path / "data.jsonl", encoder)


# ------------------------------------------------------------------------------------------------------------- folders

ROBOFLOW = {split: f"dataset/_annotations.{split}.jsonl" for split in ("train", "valid", "test")}
LAYOUTS = {
    "Roboflow": ROBOFLOW,
    "Roboflow's dataset": {split: name.removeprefix("dataset/") for split, name in ROBOFLOW.items()},
    "maestro": {split: f"{split}/annotations.jsonl" for split in ROBOFLOW},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_splits_of_a_folder_are_found(layout: str, folder: Path, encoder: PictureEncoder) -> None:
    """With pictures beside the lines, as those exports have them."""
    for split, name in LAYOUTS[layout].items():
        path = folder / "export" / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(good(suffix=split))
        shutil.copy(folder / "a.png", path.parent)
    for split, name in LAYOUTS[layout].items():
        (example,) = required(read_examples(folder / "export", encoder, split))
        assert example.suffix == split
        assert data_file(folder / "export" / name) == folder / "export" / name
    assert split_file(folder / "export", "held-out") is None


def test_the_only_file_of_lines_in_a_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").touch()
    (tmp_path / "notes.txt").touch()
    assert data_file(tmp_path) == tmp_path / "mine.jsonl"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "holds neither valid/annotations.jsonl nor _annotations.valid.jsonl"),
        (["b.jsonl", "a.jsonl"], r"holds 2 files of lines \(a.jsonl, b.jsonl\); name one of them"),
    ],
)
def test_a_folder_without_a_clear_choice_is_refused(names: list[str], says: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(BadData, match=says):
        data_file(tmp_path, "valid")


def test_pictures_may_be_in_another_folder_than_the_lines(folder: Path, encoder: PictureEncoder) -> None:
    """As big_vision's fopen_keys have it."""
    (folder / "lines").mkdir()
    (folder / "lines" / "data.jsonl").write_text(good())
    assert "lines/a.png was not found" in read_examples(folder / "lines", encoder).problems[0].what
    (example,) = required(read_examples(folder / "lines", encoder, pictures=folder))
    assert example.images == (folder / "a.png",)


# -------------------------------------------------------------------------------------------------------------- digest


def test_the_digest_is_that_of_texts_and_pictures_in_their_order(folder: Path, encoder: PictureEncoder) -> None:
    """Names, other keys and skipped lines do not matter."""

    def digest(*lines: str) -> str:
        return digest_of(read(folder, *lines, encoder=encoder).examples)

    shutil.copy(folder / "a.png", folder / "same.png")
    first = digest(good(), good(suffix="a dog"))
    assert first == digest(good(image="same.png", id=1), "[]", good(suffix="a dog"))
    others = [
        digest(good(suffix="a dog"), good()),
        digest(good(), good(suffix="a dot")),
        digest(good(), good(suffix="a dog", image="b.png")),
        digest(good(), good(suffix="a dog", prefix="caption e")),
        digest(good()),
    ]
    assert len({first, *others}) == 6


# ----------------------------------------------------------------------------------------------------- language models


def test_a_language_model_learns_lines_without_pictures(folder: Path, text_encoder: TextEncoder) -> None:
    data = read(folder, without("image"), good(), encoder=text_encoder)
    assert [each.images for each in data.examples] == [()]
    assert "a language model reads no pictures" in data.problems[0].what
