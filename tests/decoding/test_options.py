"""Options of decoding: their ranges, and those that exclude each other."""

import pytest

from npgemma.decoding.options import GenerationOptions, Sampling


def test_the_defaults_are_greedy() -> None:
    assert GenerationOptions().temperature == 0
    assert GenerationOptions().num_beams == GenerationOptions().num_return_sequences == 1


@pytest.mark.parametrize("name", ["max_new_tokens", "num_beams", "num_return_sequences", "top_k"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3"])
def test_a_count_must_be_a_whole_number_above_0(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; it must be a whole number, 1 or more"):
        GenerationOptions(**{name: value})


@pytest.mark.parametrize("value", [None, 1, 10, "no"])
def test_lookup_is_true_or_false(value: object) -> None:
    assert GenerationOptions().lookup
    with pytest.raises(ValueError, match=f"lookup is {value!r}; it must be True or False"):
        GenerationOptions(lookup=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2, "temperature": 1.0}, "beam search does not sample"),
        ({"num_beams": 2, "repetition_penalty": 1.5}, "beam search does not sample"),
        ({"num_beams": 2, "num_return_sequences": 3}, "2 beams cannot return 3 sequences"),
        ({"num_return_sequences": 2}, "greedy decoding has one result"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**options)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3, "num_return_sequences": 3}, {"num_return_sequences": 5, "temperature": 0.1}]
)
def test_beams_and_samples_may_return_several_sequences(options: dict) -> None:
    assert GenerationOptions(**options).num_return_sequences == options["num_return_sequences"]


def test_stop_is_one_string_or_several() -> None:
    assert GenerationOptions().stops == ()
    assert GenerationOptions(stop="a").stops == ("a",)
    assert GenerationOptions(stop=["a", "b"]).stops == ("a", "b")


def test_single_refuses_options_for_several_answers() -> None:
    plain = GenerationOptions(temperature=1.0, stop="x")
    assert plain.single() is plain
    for several in (GenerationOptions(num_beams=2), GenerationOptions(temperature=1.0, num_return_sequences=2)):
        with pytest.raises(ValueError, match="one answer is written at a time"):
            several.single()


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="top_q"):
        Sampling(top_q=1)
