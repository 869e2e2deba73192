"""generate, caption, answer, ocr and score: what they print, and what Ctrl-C leaves."""

import dataclasses
import itertools
import json

import pytest
from PIL import Image

import npgemma
from npgemma.api import generation
from npgemma.commands.cli import main
from npgemma.commands.output import printable

PICTURE = str(npgemma.sample_picture())


def test_generate_prints_what_the_library_returns(model, run):
    out = run("generate", PICTURE, "caption en")
    assert out == model.generate(PICTURE, "caption en").text + "\n"


def test_caption_answer_and_ocr_are_generate_with_their_prompts(model, run):
    prompts = {
        ("caption", PICTURE): "caption en",
        ("caption", PICTURE, "--language", "de"): "caption de",
        ("answer", PICTURE, "what color is the star?"): "answer en what color is the star?",
        ("answer", PICTURE, "what color is the star?", "--language", "de"): "answer de what color is the star?",
        ("ocr", PICTURE): "ocr",
    }
    for arguments, prompt in prompts.items():
        assert run(*arguments) == model.generate(PICTURE, prompt).text + "\n"


def test_json_is_one_line_with_prompt_text_ids_and_reason(model, run):
    out = run("caption", PICTURE, "--format", "json")
    assert out.count("\n") == 1
    named = {"model": "embedded", "prompt": "caption en"}
    assert json.loads(out) == named | dataclasses.asdict(model.generate(PICTURE, "caption en"))


def test_flags_reach_the_model(model, run):
    flags = ("--max-new-tokens", 3, "--temperature", 5, "--top-k", 40, "--top-p", 0.9, "--seed", 17, "--format", "json")
    found = json.loads(run("ocr", PICTURE, *flags, note="cut off after 3 tokens"))
    options = {"max_new_tokens": 3, "temperature": 5.0, "top_k": 40, "top_p": 0.9, "seed": 17}
    assert found == {"model": "embedded", "prompt": "ocr"} | dataclasses.asdict(
        model.generate(PICTURE, "ocr", **options)
    )
    assert len(found["token_ids"]) <= 3


def test_a_model_folder_answers(folder, run):
    flags = ("-m", folder, "--max-new-tokens", 4, "--format", "json")
    found = json.loads(run("ocr", PICTURE, *flags, note="cut off after 4 tokens; --max-new-tokens 8 gives more"))
    expected = npgemma.load(folder).generate(PICTURE, "ocr", max_new_tokens=4)
    assert found == {"model": str(folder), "prompt": "ocr"} | dataclasses.asdict(expected)


def test_several_pictures_share_a_prompt(folder, tmp_path, run):
    other = tmp_path / "other.png"
    Image.new("RGB", (20, 30), "red").save(other)
    arguments = ("generate", PICTURE, other, "caption en", "-m", folder, "--max-new-tokens", 4, "--format", "json")
    expected = npgemma.load(folder).generate([PICTURE, other], "caption en", max_new_tokens=4)
    assert json.loads(run(*arguments, note="cut off"))["token_ids"] == expected.token_ids


def test_num_beams_prints_the_best_beam(model, run):
    best = model.generate(PICTURE, "ocr", num_beams=3)
    assert run("ocr", PICTURE, "--num-beams", 3) == best.text + "\n"
    assert json.loads(run("ocr", PICTURE, "--num-beams", 3, "--format", "json"))["token_ids"] == best.token_ids
    found = json.loads(run("detect", PICTURE, "blue star", "--num-beams", 3, "--format", "json"))
    assert found["text"] == model.generate(PICTURE, "detect blue star", num_beams=3).text


def test_samples_are_printed_one_a_line(model, run):
    options = ("--samples", 3, "--temperature", 9, "--max-new-tokens", 4, "--seed", 5)
    expected = model.generate(PICTURE, "ocr", num_return_sequences=3, max_new_tokens=4, temperature=9.0, seed=5)
    note = "of 3 answers were cut off after 4 tokens"
    found = run("ocr", PICTURE, *options, "--format", "json", note=note).splitlines()
    assert [json.loads(line)["token_ids"] for line in found] == [each.token_ids for each in expected]
    assert len({tuple(each.token_ids) for each in expected}) == 3
    assert run("ocr", PICTURE, *options, note=note) == "".join(f"{printable(each.text)}\n" for each in expected)


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
def test_flags_without_effect_are_wrong_usage(flags, capsys):
    assert main(["ocr", PICTURE, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"npgemma: {flags[0]}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_model_flags_are_passed_to_load(dtype, capsys):
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return npgemma.load()

    for command in (["ocr", PICTURE, "-m"], ["detect", PICTURE, "cat", "--resident", "--model"]):
        assert main([*command, "somewhere", "--dtype", dtype, "--max-new-tokens", "1"], load) == 0
    assert asked == [("somewhere", dtype, False, None, None, None), ("somewhere", dtype, True, None, None, None)]


def test_control_c_keeps_the_text_so_far(answering, capsys):
    answering("half an answer", interrupted_after=7)
    assert main(["ocr", PICTURE]) == 130
    assert capsys.readouterr() == ("half an\n", "npgemma: interrupted\n")
    assert main(["ocr", PICTURE, "--format", "json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["text"], found["finish_reason"]) == ("half an", "interrupted")


def test_control_c_keeps_what_each_sample_has_so_far(monkeypatch, capsys):
    whole = generation.tokens

    def tokens(*arguments):
        yield from itertools.islice(whole(*arguments), 5)
        raise KeyboardInterrupt

    monkeypatch.setattr(generation, "tokens", tokens)
    options = ("--samples", "2", "--temperature", "9", "--seed", "1", "--format", "json")
    assert main(["ocr", PICTURE, *options]) == 130
    out, err = capsys.readouterr()
    assert err == "npgemma: interrupted\n"
    found = [json.loads(line) for line in out.splitlines()]
    assert [len(each["token_ids"]) for each in found] == [3, 2]
    assert {each["finish_reason"] for each in found} == {"interrupted"}


def test_control_c_while_loading_exits_with_130(capsys):
    def load(*_):
        raise KeyboardInterrupt

    assert main(["ocr", PICTURE], load) == 130
    assert capsys.readouterr() == ("", "npgemma: interrupted\n")


def test_an_empty_stop_string_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["ocr", PICTURE, "--stop", ""])
    assert "none of them empty" in capsys.readouterr().err


def test_an_empty_answer_is_an_empty_line_and_a_note_on_stderr(answering, capsys):
    answering("")
    assert main(["ocr", PICTURE]) == 0
    assert capsys.readouterr() == ("\n", "npgemma: the answer is empty\n")
