"""Options stand before, between and after the other arguments of a command."""

import pytest

import npgemma
from npgemma.commands.cli import main
from npgemma.commands.parser import CommandParser

PICTURE = str(npgemma.sample_picture())
RANKED = ["a green circle", "a red square"]


def parser() -> CommandParser:
    made = CommandParser("made")
    made.add_argument("image")
    made.add_argument("labels", nargs="*")
    made.add_argument("-m", required=True)
    made.add_argument("--stop", action="append", default=[])
    made.add_argument("--strict", action="store_true")
    return made


@pytest.mark.parametrize(
    "arguments",
    [
        "-m M --stop 1 --stop 2 i a b",
        "i -m M a --stop 1 b --stop 2",
        "i a -m M b --stop=1 --stop 2",
        "i --stop 1 -mM --stop 2 a b",
        "i -m M --stop 1 --stop 2 -- a b",
        "i a -m M --stop 1 --stop 2 -- b",
    ],
)
def test_options_may_stand_anywhere(arguments):
    assert vars(parser().parse_args(arguments.split())) == {
        "image": "i",
        "labels": ["a", "b"],
        "m": "M",
        "stop": ["1", "2"],
        "strict": False,
    }


def test_what_follows_two_hyphens_is_not_an_option():
    a = parser().parse_args(["i", "-m", "M", "--", "--strict", "-m"])
    assert (a.m, a.labels, a.strict) == ("M", ["--strict", "-m"], False)


def test_a_parser_reads_twice_alike():
    made = parser()
    assert made.parse_args(["i", "-m", "M", "a"]) == made.parse_args(["i", "-m", "M", "a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("i a", "the following arguments are required: -m"),
        ("-m M", "the following arguments are required: image, labels"),
        ("i -m M --more a", "unrecognized arguments: --more"),
        ("i a -m", "argument -m: expected one argument"),
    ],
)
def test_wrong_usage_names_every_argument(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(arguments.split())
    err = capsys.readouterr().err.split("\n")
    assert err[0].startswith("usage: made [-h] -m M ")
    assert err[0].endswith("image [labels ...]")
    assert err[1].startswith(f"made: error: {message}")


def test_help_shows_every_argument(capsys):
    with pytest.raises(SystemExit, match="0"):
        parser().parse_args(["i", "--help"])
    assert "image [labels ...]" in capsys.readouterr().out.split("\n")[0]


@pytest.mark.parametrize("at", [0, 1, 3])
def test_classify_takes_its_model_anywhere(at, run):
    arguments: list[object] = [PICTURE, *RANKED]
    arguments[at:at] = ["-m", "tiny-siglip"]
    assert [line.split("\t")[1] for line in run("classify", *arguments).splitlines()] == RANKED


@pytest.mark.parametrize(
    "arguments", [["--max-new-tokens", "9", PICTURE, "ocr"], [PICTURE, "--max-new-tokens=9", "ocr"]]
)
def test_generate_takes_options_before_its_prompt(arguments, run):
    assert run("generate", *arguments) == "FNY\n"


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["classify", PICTURE, "a"], "--num-beams"),
        (["chat"], "--max-pixels"),
        (["embed", PICTURE, "-o", "rows.npz"], "--adapter"),
        (["search", "rows.npz", "a cat"], "--adapter"),
    ],
)
def test_an_option_that_a_command_does_not_have_is_wrong_usage(arguments, option, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, f"{option}=2"])
    assert f"unrecognized arguments: {option}=2" in capsys.readouterr().err
