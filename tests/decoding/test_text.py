"""Stop strings: an answer ends before them, and a stream sends only text that no later token can change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgemma
from npgemma.commands.cli import main
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.text import before_stop, settled
from npgemma.io.model_folder import EMBEDDED

SAMPLE = EMBEDDED.parent / "sample.png"
TEXTS = st.text("ab. ", max_size=12)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)


@given(TEXTS, STOPS)
def test_before_stop_is_the_longest_text_without_a_stop_string(text: str, stops: list[str]) -> None:
    cut = before_stop(text, stops)
    assert text.startswith(cut)
    assert not any(text.startswith(stop, i) for stop in stops for i in range(len(cut)))
    assert cut == text or any(text.startswith(stop, len(cut)) for stop in stops)


@given(TEXTS, STOPS, TEXTS)
def test_settled_text_stays_whatever_follows(text: str, stops: list[str], more: str) -> None:
    sure = settled(before_stop(text, stops), stops)
    assert before_stop(text + more, stops).startswith(sure)


def test_text_that_cannot_begin_a_stop_string_is_settled() -> None:
    assert settled("one two", [". "]) == "one two"
    assert settled("one two.", [". "]) == "one two"
    assert settled("one two", []) == "one two"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [3], (None,)])
def test_an_invalid_stop_string_is_refused(stop) -> None:
    with pytest.raises(ValueError, match="stop is"):
        GenerationOptions(stop=stop)


@pytest.mark.parametrize("stop", [",", ["xyz", " an"], " or", ", an"])
def test_an_answer_and_a_stream_end_before_the_stop_string(stop) -> None:
    model = npgemma.load()
    whole = model.generate(SAMPLE, "caption en").text
    found = model.generate(SAMPLE, "caption en", stop=stop)
    assert found.text == before_stop(whole, GenerationOptions(stop=stop).stops)
    assert found.text != whole
    assert found.finish_reason == "stop"
    assert len(found.logprobs) == len(found.token_ids) < len(model.generate(SAMPLE, "caption en").token_ids)
    assert "".join(model.stream(SAMPLE, "caption en", stop=stop)) == found.text


def test_a_stop_string_that_never_comes_changes_nothing() -> None:
    model = npgemma.load()
    assert model.generate(SAMPLE, "caption en", stop="zebra") == model.generate(SAMPLE, "caption en")


def test_the_command_takes_stop_strings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(SAMPLE), "--stop", "zebra", "--stop", ","]) == 0
    assert capsys.readouterr().out == "a blue star\n"
