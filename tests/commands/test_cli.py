"""The command line: results on stdout alone, one sentence for an error, and the exit status that says which it was."""

import dataclasses
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

import npgemma
from npgemma.checkpoints.paligemma import read_config
from npgemma.commands import flags
from npgemma.commands.cli import main
from npgemma.commands.demo import SAMPLE
from npgemma.commands.output import printable
from npgemma.decoding.text import Generation
from npgemma.io.model_folder import EMBEDDED
from npgemma.io.tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
PICTURE = str(SAMPLE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with random weights and the embedded tokenizer."""
    image = Tokenizer((EMBEDDED / "tokenizer.model").read_bytes()).image_id
    text = dataclasses.replace(tiny.CONFIG.text, vocab_size=image + 8)
    config = dataclasses.replace(tiny.CONFIG, text=text, image_token_index=image)
    made = tiny.write_folder(tmp_path_factory.mktemp("model"), config, dtype="bfloat16")
    shutil.copyfile(EMBEDDED / "tokenizer.model", made / "tokenizer.model")
    return made


@pytest.fixture(scope="module")
def model():
    return npgemma.load()


def run(capsys, *arguments: object) -> str:
    """stdout of a command that must succeed and say nothing on stderr."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(capsys, *arguments: object) -> str:
    """The one sentence on stderr of a command that must fail with 1 and write no result."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("npgemma: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.removeprefix("npgemma: ").rstrip("\n")


class Answering:
    """In a model's place: answers whatever it is asked with `text`."""

    def __init__(self, text: str) -> None:
        self.text = text

    def generate(self, *_, **__):
        return Generation(self.text, [7, 1], "stop")

    def growing(self, *_, **__):
        yield self.generate()

    def stream(self, *_, **__):
        yield from self.text


@pytest.fixture
def answering(monkeypatch):
    """Makes every model that the command line loads answer with a given text."""
    return lambda text: monkeypatch.setattr(flags, "load", lambda *_: Answering(text))


# ------------------------------------------------------------------------------------------------------------- results


def test_generate_says_what_the_library_says(model, capsys):
    out = run(capsys, "generate", PICTURE, "caption en")
    assert out == model.generate(PICTURE, "caption en").text + "\n"


def test_caption_answer_and_ocr_are_generate_with_their_prompts(model, capsys):
    prompts = {
        ("caption", PICTURE): "caption en",
        ("caption", PICTURE, "--language", "de"): "caption de",
        ("answer", PICTURE, "what color is the star?"): "answer en what color is the star?",
        ("answer", PICTURE, "what color is the star?", "--language", "de"): "answer de what color is the star?",
        ("ocr", PICTURE): "ocr",
    }
    for arguments, prompt in prompts.items():
        assert run(capsys, *arguments) == model.generate(PICTURE, prompt).text + "\n"


def test_json_is_one_line_with_prompt_text_ids_and_reason(model, capsys):
    out = run(capsys, "caption", PICTURE, "--format", "json")
    assert out.count("\n") == 1
    assert json.loads(out) == {"prompt": "caption en"} | dataclasses.asdict(model.generate(PICTURE, "caption en"))


def test_flags_reach_the_model(model, capsys):
    flags = ("--max-new-tokens", 3, "--temperature", 5, "--top-k", 40, "--top-p", 0.9, "--seed", 17, "--format", "json")
    found = json.loads(run(capsys, "ocr", PICTURE, *flags))
    options = {"max_new_tokens": 3, "temperature": 5.0, "top_k": 40, "top_p": 0.9, "seed": 17}
    assert found == {"prompt": "ocr"} | dataclasses.asdict(model.generate(PICTURE, "ocr", **options))
    assert len(found["token_ids"]) <= 3


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_model_and_dtype_are_what_is_asked_for(dtype, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(flags, "load", lambda *arguments: asked.append(arguments) or Answering("yes"))
    run(capsys, "ocr", PICTURE, "-m", "somewhere", "--dtype", dtype)
    run(capsys, "detect", PICTURE, "cat", "--model", "somewhere", "--dtype", dtype, "--format", "json", "--resident")
    assert asked == [("somewhere", dtype, False, None, None), ("somewhere", dtype, True, None, None)]


def test_a_folder_of_ones_own_answers(folder, capsys):
    found = json.loads(run(capsys, "ocr", PICTURE, "-m", folder, "--max-new-tokens", 4, "--format", "json"))
    expected = npgemma.load(folder).generate(PICTURE, "ocr", max_new_tokens=4)
    assert found == {"prompt": "ocr"} | dataclasses.asdict(expected)


def test_several_pictures_are_asked_about_together(folder, tmp_path, capsys):
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 30), "red").save(other)
    arguments = ("generate", PICTURE, other, "caption en", "-m", folder, "--max-new-tokens", 4, "--format", "json")
    expected = npgemma.load(folder).generate([PICTURE, other], "caption en", max_new_tokens=4)
    assert json.loads(run(capsys, *arguments))["token_ids"] == expected.token_ids


def test_beams_are_the_likeliest_answer_and_its_ids(model, capsys):
    best, *_ = model.beams(PICTURE, "ocr", 3)
    assert run(capsys, "ocr", PICTURE, "--num-beams", 3) == best.text + "\n"
    assert json.loads(run(capsys, "ocr", PICTURE, "--num-beams", 3, "--format", "json"))["token_ids"] == best.token_ids
    found = json.loads(run(capsys, "detect", PICTURE, "blue star", "--num-beams", 3, "--format", "json"))
    assert found["text"] == model.beams(PICTURE, "detect blue star", 3)[0].text


def test_samples_are_a_line_each(model, capsys):
    options = ("--samples", 3, "--temperature", 9, "--max-new-tokens", 4, "--seed", 5)
    expected = model.samples(PICTURE, "ocr", 3, max_new_tokens=4, temperature=9.0, seed=5)
    found = run(capsys, "ocr", PICTURE, *options, "--format", "json").splitlines()
    assert [json.loads(line)["token_ids"] for line in found] == [each.token_ids for each in expected]
    assert len({tuple(each.token_ids) for each in expected}) == 3
    assert run(capsys, "ocr", PICTURE, *options) == "".join(f"{printable(each.text)}\n" for each in expected)


@pytest.mark.parametrize(
    "flags",
    [
        ("--top-k", "3"),
        ("--top-p", "0.5"),
        ("--min-p", "0.1"),
        ("--samples", "2"),
        ("--num-beams", "2", "--temperature", "1"),
        ("--num-beams", "2", "--repetition-penalty", "2"),
        ("--samples", "2", "--num-beams", "2", "--temperature", "1"),
    ],
)
def test_flags_that_would_do_nothing_are_wrong_usage(flags, capsys):
    assert main(["ocr", PICTURE, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"npgemma: {flags[0]}")
    assert err.count("\n") == 1


class Interrupted(Answering):
    """Ctrl-C after half the text."""

    def growing(self, *_, **__):
        yield Generation(self.text[: len(self.text) // 2], [7], "")
        raise KeyboardInterrupt

    def stream(self, *_, **__):
        yield self.text[: len(self.text) // 2]
        raise KeyboardInterrupt


def test_what_was_written_before_control_c_is_kept(monkeypatch, capsys):
    monkeypatch.setattr(flags, "load", lambda *_: Interrupted("half an answer"))
    assert main(["ocr", PICTURE]) == 130
    assert capsys.readouterr() == ("half an\n", "npgemma: interrupted\n")
    assert main(["ocr", PICTURE, "--format", "json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["finish_reason"]) == ("half an", "interrupted")


def test_what_samples_wrote_before_control_c_is_kept(monkeypatch, model, capsys):
    def tokens(*arguments, **_):
        yield from itertools.islice(real(*arguments), 5)
        raise KeyboardInterrupt

    real = model.tokens
    monkeypatch.setattr(type(model), "tokens", lambda self, *arguments: tokens(*arguments))
    options = ("--samples", "2", "--temperature", "9", "--seed", "1", "--format", "json")
    assert main(["ocr", PICTURE, *options]) == 130
    out, err = capsys.readouterr()
    assert err == "npgemma: interrupted\n"
    found = [json.loads(line) for line in out.splitlines()]
    assert [len(each["token_ids"]) for each in found] == [3, 2]
    assert {each["finish_reason"] for each in found} == {"interrupted"}


def test_boxes_may_be_1023rds(answering, tmp_path, capsys):
    answering(BOXES)
    Image.new("RGB", (1023, 1023)).save(tmp_path / "picture.png")
    assert run(capsys, "detect", tmp_path / "picture.png", "cat", "--bins", 1023).startswith("cat\t256\t0\t1023\t512\n")


def test_an_empty_stop_string_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["ocr", PICTURE, "--stop", ""])
    assert "it is empty" in capsys.readouterr().err


def test_boxes_that_were_whole_before_control_c_are_told(monkeypatch, capsys):
    box = "<loc0000><loc0256><loc0512><loc1023> cat ; "
    monkeypatch.setattr(flags, "load", lambda *_: Interrupted(box + box))
    assert main(["detect", PICTURE, "cat"]) == 130
    assert capsys.readouterr().out.count("cat\t") == 1


def test_an_empty_answer_is_an_empty_line_and_said_on_stderr(answering, capsys):
    answering("")
    assert main(["ocr", PICTURE]) == 0
    assert capsys.readouterr() == ("\n", "npgemma: the model answered with nothing\n")


# -------------------------------------------------------------------------------------------------------------- detect

BOXES = "<loc0000><loc0256><loc0512><loc1023> cat ; <loc0100><loc0100><loc0200><loc0200> big dog"


def test_detect_is_a_line_a_box_with_tabs_between(answering, tmp_path, capsys):
    """label, x0, y0, x1, y1, rounded to pixels of the picture as it is, not as the model saw it."""
    answering(BOXES)
    Image.new("RGB", (512, 1024)).save(tmp_path / "picture.png")
    out = run(capsys, "detect", tmp_path / "picture.png", "cat", "big dog")
    assert out == "cat\t128\t0\t512\t512\nbig dog\t50\t100\t100\t200\n"


def test_detect_in_json_has_boxes_beside_what_generate_has(answering, tmp_path, capsys):
    answering(BOXES)
    Image.new("RGB", (512, 1024)).save(tmp_path / "picture.png")
    found = json.loads(run(capsys, "detect", tmp_path / "picture.png", "cat", "big dog", "--format", "json"))
    assert found.keys() == {"prompt", "text", "token_ids", "finish_reason", "logprobs", "boxes", "objects"}
    assert found["prompt"] == "detect cat ; big dog"
    assert found["boxes"][0] == {"label": "cat", "x0": 128.0, "y0": 0.0, "x1": 511.5, "y1": 512.0}
    assert found["objects"][0] == {"label": "cat", "bins": [0, 256, 512, 1023], "codes": []}


def test_detect_asks_the_model_for_all_things_at_once(model, capsys):
    found = json.loads(run(capsys, "detect", PICTURE, "blue star", "orange ring", "--format", "json"))
    expected = model.generate(PICTURE, "detect blue star ; orange ring")
    with Image.open(PICTURE) as sample:
        boxes = npgemma.parse_boxes(expected.text, *sample.size)
    assert found["text"] == expected.text
    assert found["boxes"] == [dataclasses.asdict(box) for box in boxes]
    assert [box.label for box in boxes] == ["blue star", "orange ring"]


def test_boxes_of_a_photograph_are_those_of_the_upright_picture(answering, tmp_path, capsys):
    answering("<loc0000><loc0000><loc0512><loc0512> cat")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (400, 200)).save(tmp_path / "picture.png", exif=exif)
    assert run(capsys, "detect", tmp_path / "picture.png", "cat") == "cat\t0\t0\t100\t200\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_found_is_no_line_and_no_error(form, answering, tmp_path, capsys):
    answering("nothing")
    assert main(["detect", PICTURE, "cat", "--format", form, "--draw", str(tmp_path / "out.png")]) == 0
    out, err = capsys.readouterr()
    if form == "text":
        assert (out, err) == ("", "npgemma: nothing found\n")
    else:
        assert json.loads(out)["boxes"] == []
    with Image.open(tmp_path / "out.png") as drawn, Image.open(PICTURE) as sample:
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(sample.convert("RGB")), strict=True)


def test_draw_writes_the_picture_with_the_boxes(answering, tmp_path, capsys):
    answering(BOXES)
    out = run(capsys, "detect", PICTURE, "cat", "--draw", tmp_path / "out.png")
    assert len(out.splitlines()) == 2
    with Image.open(PICTURE) as sample, Image.open(tmp_path / "out.png") as drawn:
        expected = npgemma.draw_boxes(sample, npgemma.parse_boxes(BOXES, *sample.size))
        np.testing.assert_array_equal(np.asarray(drawn), np.asarray(expected), strict=True)


@pytest.mark.parametrize("name", ["out.xyz", "out", "out.psd", "", "nowhere/out.png"])
def test_a_picture_that_cannot_be_written_is_one_sentence(name, answering, tmp_path, capsys):
    answering(BOXES)
    path = tmp_path / name if name else ""
    assert "cannot be written" in refused(capsys, "detect", PICTURE, "cat", "--draw", path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("things", [[""], [" "], ["cat", ""], ["cat;dog"]])
def test_a_thing_that_cannot_be_asked_for_is_one_sentence(things, capsys):
    assert "things to detect are words" in refused(capsys, "detect", PICTURE, *things)


# ---------------------------------------------------------------------------------------------------------------- demo


def test_demo_answers_and_writes_its_picture(tmp_path, monkeypatch, capsys):
    """What the first line of README runs: in any folder, with nothing but what is installed."""
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == "wrote npgemma-demo.png, the sample picture with masks and boxes drawn\n"
    assert out.startswith("caption en\n    ")
    assert "a blue star, an orange ring and a green circle" in out
    assert "detect blue star ; orange ring ; green circle\n" in out
    assert "segment blue star ; orange ring ; green circle\n    blue star " in out
    assert [path.name for path in tmp_path.iterdir()] == ["npgemma-demo.png"]
    with Image.open("npgemma-demo.png") as drawn, Image.open(SAMPLE) as sample:
        assert drawn.size == sample.size
        assert not np.array_equal(np.asarray(drawn), np.asarray(sample.convert("RGB")))


@pytest.mark.parametrize("name", ["out.xyz", "nowhere/out.png"])
def test_a_demo_that_cannot_write_its_picture_says_so_and_leaves_nothing(name, tmp_path, capsys):
    assert main(["demo", "--draw", str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"npgemma: {tmp_path / name} cannot be written")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_says_what_the_library_says(model, tmp_path, capsys):
    assert main(["demo", "--draw", str(tmp_path / "out.jpg")]) == 0
    out = capsys.readouterr().out
    for prompt in ("caption en", "answer en what color is the star?", "ocr"):
        assert f"{prompt}\n    {model.generate(SAMPLE, prompt).text}\n" in out
    assert (tmp_path / "out.jpg").exists()


# ------------------------------------------------------------------------------------------------------------- inspect


def test_inspect_tells_a_machine_what_a_folder_holds(folder, capsys):
    found = json.loads(run(capsys, "inspect", folder, "--format", "json"))
    config = read_config(folder)
    count = sum(x.size for x in tiny.random_tensors(config).values())
    assert found["folder"] == str(folder)
    assert found["parameters"] == count
    assert found["stored_as"] == {"bfloat16": count}
    assert found["bytes"] == 2 * count
    assert found["tokens_per_image"] == 25
    assert found["cache_bytes_per_token"] == 2 * 3 * 2 * 10 * 4  # keys and values, layers, heads, width, float32
    assert found["tokenizer_pieces"] == config.image_token_index + 1
    assert found["config"] == json.loads(json.dumps(dataclasses.asdict(config)))


def test_inspect_tells_people_the_same(folder, capsys):
    out = run(capsys, "inspect", folder)
    count = sum(x.size for x in tiny.random_tensors(read_config(folder)).values())
    assert out.splitlines()[0] == str(folder)
    for fact in (f"{count:,} parameters, {2 * count:,} bytes in bfloat16", "35 x 35 pixels, 25 tokens"):
        assert fact in out
    assert "6 query and 2 key heads of 10" in out


def test_inspect_without_a_folder_is_of_the_embedded_model(capsys):
    assert run(capsys, "inspect").splitlines()[0] == str(EMBEDDED)


def test_inspect_needs_no_tokenizer(tmp_path, capsys):
    found = json.loads(run(capsys, "inspect", tiny.write_folder(tmp_path), "--format", "json"))
    assert found["tokenizer_pieces"] == 0


# -------------------------------------------------------------------------------------------------------------- errors


def test_a_missing_picture_is_one_sentence(tmp_path, capsys):
    for command in (["ocr"], ["caption"], ["answer"], ["detect"], ["generate", PICTURE]):
        rest = ["why?"] if command[0] not in ("ocr", "caption") else []
        assert "nowhere.png is missing" in refused(capsys, *command, tmp_path / "nowhere.png", *rest)


def test_a_file_that_is_no_picture_is_one_sentence(tmp_path, capsys):
    (tmp_path / "text.png").write_text("hello")
    assert "text.png is not a picture" in refused(capsys, "ocr", tmp_path / "text.png")
    assert "cannot be read" in refused(capsys, "ocr", tmp_path)


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path, capsys):
    for command in (["ocr", PICTURE, "-m"], ["detect", PICTURE, "cat", "-m"], ["inspect"]):
        assert "is no model here: there is no such folder" in refused(capsys, *command, tmp_path / "nowhere")
        assert "is neither a folder nor" in refused(capsys, *command, PICTURE)
        assert "config.json is missing" in refused(capsys, *command, tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
@pytest.mark.parametrize("content", [b"", b"damaged", None], ids=["empty", "damaged", "cut off"])
def test_a_damaged_model_is_one_sentence_that_names_the_file(name, content, folder, tmp_path, capfd):
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    for command in (["ocr", PICTURE, "-m"], ["inspect"]):
        assert str(path) in refused(capfd, *command, tmp_path / "model")


def test_a_model_that_does_not_fit_its_config_lists_what_does_not(folder, tmp_path, capsys):
    """The one error of several lines: someone who converts a checkpoint needs all of them."""
    shutil.copytree(folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 4
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert main(["inspect", str(tmp_path / "model")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "(9 missing, 0 unexpected, 0 mis-shaped)" in err.splitlines()[0]
    assert len(err.splitlines()) == 10


def test_weights_that_are_not_finite_are_one_sentence(folder, tmp_path):
    """In a process of its own, where NumPy would warn of what it makes of infinity."""
    shutil.copytree(folder, tmp_path / "model")
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors(read_config(folder)).items()}
    tensors["vision_tower.encoder.layers.0.mlp.fc2.weight"][0, 0] = np.inf
    tiny.save(tensors, tmp_path / "model" / "model.safetensors")
    done = process("ocr", PICTURE, "-m", tmp_path / "model")
    assert (done.returncode, done.stdout) == (1, "")
    assert "not finite" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_that_cannot_be_used_is_one_sentence(capsys):
    assert "<image> 2 times" in refused(capsys, "generate", PICTURE, "<image><image>")
    assert "no valid text" in refused(capsys, "generate", PICTURE, "\udcff")


@pytest.mark.parametrize("count", [10**15, 10**30])
def test_more_tokens_than_memory_holds_are_no_traceback(count, model, capsys):
    """The answer ends long before; or the number is refused, in a sentence or as wrong usage."""
    try:
        status = main(["ocr", PICTURE, "--max-new-tokens", str(count)])
    except SystemExit as usage:
        status = usage.code
    out, err = capsys.readouterr()
    assert (status, out) in ((0, model.generate(PICTURE, "ocr").text + "\n"), (1, ""), (2, ""))
    assert "Traceback" not in err


USAGE = [
    [],
    ["draw"],
    ["ocr"],
    ["ocr", PICTURE, PICTURE],
    ["generate", PICTURE],
    ["answer", PICTURE],
    ["detect", PICTURE],
    ["inspect", "a", "b"],
    ["ocr", PICTURE, "--nothing"],
    ["ocr", PICTURE, "--temperature", "-1"],
    ["ocr", PICTURE, "--temperature", "nan"],
    ["ocr", PICTURE, "--temperature", "inf"],
    ["ocr", PICTURE, "--temperature", "warm"],
    ["ocr", PICTURE, "--top-k", "0"],
    ["ocr", PICTURE, "--top-k", "1.5"],
    ["ocr", PICTURE, "--top-p", "0"],
    ["ocr", PICTURE, "--top-p", "1.1"],
    ["ocr", PICTURE, "--seed", "-1"],
    ["ocr", PICTURE, "--seed", "x"],
    ["ocr", PICTURE, "--max-new-tokens", "0"],
    ["ocr", PICTURE, "--max-new-tokens", "-5"],
    ["ocr", PICTURE, "--max-new-tokens", "many"],
    ["ocr", PICTURE, "--dtype", "bfloat16"],
    ["ocr", PICTURE, "--format", "xml"],
    ["inspect", "--format", "xml"],
    ["demo", PICTURE],
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments[2:] or arguments))
def test_wrong_usage_is_2_and_says_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: npgemma")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--temperature", "-1", "temperature is -1.0; it is 0 (greedy) or a positive number"),
        ("--top-k", "0", "top_k is 0; it is a whole number from 1 up"),
        ("--top-p", "2", "top_p is 2.0; it is above 0 and at most 1"),
        ("--max-new-tokens", "0", "'0' is not a whole number from 1 up"),
    ],
)
def test_a_flag_out_of_range_says_its_range(flag, value, says, capsys):
    with pytest.raises(SystemExit):
        main(["ocr", PICTURE, flag, value])
    assert f"argument {flag}: {says}" in capsys.readouterr().err


def test_version_and_help_go_to_stdout(capsys):
    for flag in ("--version", "--help"):
        with pytest.raises(SystemExit) as end:
            main([flag])
        assert end.value.code == 0
    out, err = capsys.readouterr()
    assert "npgemma" in out
    assert err == ""


def test_a_machine_too_small_is_said_so(monkeypatch, capsys):
    """MemoryError often carries no words of its own."""

    def load(*_):
        raise MemoryError

    monkeypatch.setattr(flags, "load", load)
    assert refused(capsys, "ocr", PICTURE) == "out of memory"


def test_an_interruption_is_130_without_a_traceback(monkeypatch, capsys):
    def load(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(flags, "load", load)
    assert main(["ocr", PICTURE]) == 130
    assert capsys.readouterr() == ("", "npgemma: interrupted\n")


def test_an_interruption_while_drawing_leaves_no_picture(answering, monkeypatch, tmp_path, capsys):
    answering(BOXES)

    def save(self, path, *_):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)
    assert main(["detect", PICTURE, "cat", "--draw", str(tmp_path / "out.png")]) == 130
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- control characters


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("\r\x00\x07\x08\x0b\x0c", "\\x0d\\x00\\x07\\x08\\x0b\\x0c"),
        ("\x7f\x80\x9b\x9f\xa0", "\\x7f\\x80\\x9b\\x9f\xa0"),
        ("é😀\N{REPLACEMENT CHARACTER}", "é😀\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_printable_writes_control_characters_out(text, shown):
    assert printable(text) == shown


STEERING = "a\x1b]0:title\x07b\x9b31mc\x7f\r"


def test_what_a_model_writes_cannot_steer_the_terminal(answering, capsys):
    answering(STEERING)
    assert run(capsys, "ocr", PICTURE) == "a\\x1b]0:title\\x07b\\x9b31mc\\x7f\\x0d\n"
    answering("<loc0000><loc0000><loc0512><loc0512>" + STEERING)
    out = run(capsys, "detect", PICTURE, "cat")
    assert out.startswith("a\\x1b]0:title\\x07b\\x9b31mc\\x7f")
    assert not set(STEERING) & set(out) - set("abc]0:title31m")


@pytest.mark.parametrize("command", [["ocr", PICTURE], ["detect", PICTURE, "cat"]], ids=["ocr", "detect"])
def test_what_a_model_writes_cannot_steer_the_terminal_in_json_either(command, answering, capsys):
    """0x9b is a whole escape sequence's beginning to some terminals; JSON can say it as \\u009b."""
    answering("<loc0000><loc0000><loc0512><loc0512>" + STEERING)
    out = run(capsys, *command, "--format", "json")
    assert json.loads(out)["text"].endswith(STEERING)
    assert out.rstrip("\n").isprintable()


@pytest.mark.parametrize("label", ["two\nlines", "two\tfields"])
def test_a_line_a_box_whatever_the_label(label, answering, capsys):
    """What reads the lines splits them at newlines and tabs."""
    answering(f"<loc0000><loc0000><loc0512><loc0512> {label} ; <loc0000><loc0000><loc0512><loc0512> cat")
    out = run(capsys, "detect", PICTURE, "cat")
    assert [len(line.split("\t")) for line in out.splitlines()] == [5, 5]


def test_a_file_name_cannot_steer_the_terminal(tmp_path, capsys):
    for name in ("\x1b[2J.png", "\x9b2J.png"):
        said = refused(capsys, "ocr", tmp_path / name)
        assert said.isprintable()
        assert f"\\x{ord(name[0]):02x}" in said


def test_a_tensors_name_cannot_steer_the_terminal(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "model")
    tensors = {tiny.spell(name, "saved 5.x"): x for name, x in tiny.random_tensors(read_config(folder)).items()}
    tiny.save(tensors | {"\x1b[2J\x9b": np.ones(1, np.float32)}, tmp_path / "model" / "model.safetensors")
    assert main(["inspect", str(tmp_path / "model")]) == 1
    err = capsys.readouterr().err
    assert "\\x1b[2J" in err
    assert err.replace("\n", "").isprintable()


# ----------------------------------------------------------------------------------------------------------- processes


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess:
    """`python -m npgemma` in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"} | options.pop("environment", {})
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    command = [sys.executable, "-m", "npgemma", *map(str, arguments)]
    return subprocess.run(command, timeout=60, check=False, env=environment, **streams | options)


def test_it_runs_as_a_module(model, tmp_path):
    done = process("ocr", PICTURE, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == model.generate(PICTURE, "ocr").text + "\n"


def test_an_error_is_the_exit_status_of_the_process(tmp_path):
    done = process("ocr", "nowhere.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "npgemma: nowhere.png is missing: there is no such picture\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is told otherwise on Windows")
@pytest.mark.parametrize("command", [["inspect"], ["ocr", PICTURE], ["caption", PICTURE, "--format", "json"]])
def test_a_reader_that_has_had_enough_is_141_and_no_traceback(command):
    """npgemma ... | head -0: whether it is noticed while writing or only when the last of it is flushed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(*command, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device here that is always full")
@pytest.mark.parametrize("command", [["inspect"], ["ocr", PICTURE]])
def test_a_full_disk_is_one_sentence(command):
    with open("/dev/full", "w") as full:
        done = process(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("npgemma: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device here that is always full")
@pytest.mark.parametrize("command", [["--version"]])
def test_a_full_disk_is_one_sentence_to_the_version_too(command):
    with open("/dev/full", "w") as full:
        done = process(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("npgemma: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there is no shell here that closes a stream")
@pytest.mark.parametrize("command", ["caption", "detect"])
def test_a_closed_stderr_is_nobody_who_listens(command, model):
    """npgemma ... 2>&-"""
    labels = ["blue star"] if command == "detect" else []
    line = [sys.executable, "-m", "npgemma", command, PICTURE, *labels]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["sh", "-c", '"$@" 2>&-', "sh", *line], stdout=subprocess.PIPE, timeout=60, env=environment)
    assert done.returncode == 0
    assert b"blue star" in done.stdout


def test_an_encoding_that_lacks_a_character_is_no_traceback(tmp_path):
    """As on a Windows console, or in a pipe there: the character is written out or replaced."""
    options = {"environment": {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}}
    done = process("generate", PICTURE, "é猫", "--format", "json", **options)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["prompt"] == "é猫"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
def test_control_c_ends_a_long_answer_at_130_without_a_traceback(folder):
    """Interrupted once it has begun to write: with 900 tokens to go, it has not ended by itself."""
    command = [sys.executable, "-u", "-m", "npgemma", "generate", PICTURE, "x", "-m", str(folder)]
    command += ["--max-new-tokens", "900", "--temperature", "1e6"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert running.stdout.read(1)
        running.send_signal(signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert err.decode() == "npgemma: interrupted\n"
