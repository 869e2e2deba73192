"""An answer ends before a stop string, and a stream never sends what it would have to take back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npgemma
from npgemma.commands.cli import main
from npgemma.decoding.text import checked_stops, cut_at_stop, sure_of
from npgemma.io.model_folder import EMBEDDED

SAMPLE = EMBEDDED.parent / "sample.png"
TEXTS = st.text("ab. ", max_size=12)
STOPS = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)


@given(TEXTS, STOPS)
def test_a_cut_text_holds_no_stop_and_is_the_longest_such(text: str, stops: list[str]) -> None:
    cut = cut_at_stop(text, stops)
    assert text.startswith(cut)
    assert not any(text.startswith(stop, i) for stop in stops for i in range(len(cut)))
    assert cut == text or any(text.startswith(stop, len(cut)) for stop in stops)


@given(TEXTS, STOPS, TEXTS)
def test_what_is_sure_stays_however_it_goes_on(text: str, stops: list[str], more: str) -> None:
    sure = sure_of(cut_at_stop(text, stops), stops)
    assert cut_at_stop(text + more, stops).startswith(sure)


def test_what_cannot_begin_a_stop_is_sure_at_once() -> None:
    assert sure_of("one two", [". "]) == "one two"
    assert sure_of("one two.", [". "]) == "one two"
    assert sure_of("one two", []) == "one two"


@pytest.mark.parametrize("stop", ["", [""], ["a", ""], [3], (None,)])
def test_what_is_no_stop_string_is_refused(stop) -> None:
    with pytest.raises(ValueError, match="stop is"):
        checked_stops(stop)


@pytest.mark.parametrize("stop", [",", ["xyz", " an"], " or", ", an"])
def test_an_answer_and_a_stream_end_before_it(stop) -> None:
    model = npgemma.load()
    whole = model.generate(SAMPLE, "caption en").text
    found = model.generate(SAMPLE, "caption en", stop=stop)
    assert found.text == cut_at_stop(whole, checked_stops(stop))
    assert found.text != whole
    assert found.finish_reason == "stop"
    assert len(found.logprobs) == len(found.token_ids) < len(model.generate(SAMPLE, "caption en").token_ids)
    assert "".join(model.stream(SAMPLE, "caption en", stop=stop)) == found.text


def test_a_stop_that_never_comes_changes_nothing() -> None:
    model = npgemma.load()
    assert model.generate(SAMPLE, "caption en", stop="zebra") == model.generate(SAMPLE, "caption en")


def test_the_command_stops_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caption", str(SAMPLE), "--stop", "zebra", "--stop", ","]) == 0
    assert capsys.readouterr().out == "a blue star\n"
