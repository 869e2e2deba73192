"""A tap hears every name with its scopes before it; a recorder keeps what its patterns match, as it was."""

import numpy as np
import pytest

from npgemma.layers.taps import Recorder, at, silent

X = np.arange(3.0)


def test_the_silent_tap_hands_back_the_very_array() -> None:
    assert silent("anything", X) is X


def test_a_scope_comes_before_the_name_and_scopes_nest_from_the_outside_in() -> None:
    heard = []

    def tap(name: str, x: np.ndarray) -> np.ndarray:
        heard.append(name)
        return x + 1

    inner = at(at(tap, "text"), "layers.3")
    np.testing.assert_array_equal(inner("attn.q", X), X + 1, strict=True)
    assert heard == ["text.layers.3.attn.q"]


def test_a_scope_of_the_silent_tap_is_the_silent_tap() -> None:
    """So that a model that nobody listens to builds no names."""
    assert at(silent, "text") is silent


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        ((), ["a.0.q", "a.1.q", "a.1.k", "a.10.q"]),
        (("a.1.*",), ["a.1.q", "a.1.k"]),
        (("*.q",), ["a.0.q", "a.1.q", "a.10.q"]),
        (("a.*.k", "a.0.q"), ["a.0.q", "a.1.k"]),
        (("a.?.q",), ["a.0.q", "a.1.q"]),
        (("a.[01].q",), ["a.0.q", "a.1.q"]),
        (("A.*",), []),
        (("q", "a.1"), []),
    ],
)
def test_a_recorder_keeps_what_a_pattern_matches_in_order(patterns: tuple[str, ...], kept: list[str]) -> None:
    """Globs over the whole name, case and all; `*` crosses dots."""
    taps = Recorder(*patterns)
    for name in ("a.0.q", "a.1.q", "a.1.k", "a.10.q"):
        assert taps(name, X) is X
    assert list(taps) == kept
    assert len(taps) == len(kept)
    assert ("a.1.k" in taps) == ("a.1.k" in kept)


def test_a_recorder_keeps_a_copy() -> None:
    """The model may go on to write into the array."""
    taps, x = Recorder(), X.copy()
    taps("x", x)
    x += 1
    np.testing.assert_array_equal(taps["x"], X, strict=True)


def test_a_name_that_comes_again_replaces_the_earlier() -> None:
    taps = Recorder()
    taps("x", X)
    taps("x", X[:2])
    np.testing.assert_array_equal(taps["x"], X[:2], strict=True)
    assert len(taps) == 1


def test_a_name_that_was_not_recorded_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Recorder()["nothing"]
