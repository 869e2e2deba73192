"""Taps: scopes before names, checked results of users' taps, and what a recorder keeps."""

import numpy as np
import pytest

from npgemma.layers.taps import Kept, Recorder, Renamed, at, checked, silent

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_the_silent_tap_returns_the_same_array() -> None:
    assert silent("anything", X, "T D") is X


def test_scopes_come_before_the_name_the_outermost_first() -> None:
    calls = []

    def tap(name: str, x: np.ndarray, axes: str) -> np.ndarray:
        calls.append((name, axes))
        return x + 1

    inner = at(at(tap, "text"), "layers.3")
    np.testing.assert_array_equal(inner("attn.q", X, "T D"), X + 1, strict=True)
    assert calls == [("text.layers.3.attn.q", "T D")]


def test_a_scope_of_the_silent_tap_is_the_silent_tap() -> None:
    """So a model that is not observed builds no names."""
    assert at(silent, "text") is silent


def test_renaming_changes_names_and_letters_the_innermost_first() -> None:
    calls = []

    def tap(name: str, x: np.ndarray, axes: str) -> np.ndarray:
        calls.append((name, axes))
        return x

    texts = Renamed(tap, "pictures", "texts", {"B": "U", "P": "T"})
    attn = at(at(texts, "layers.3"), "attn", Q="P")
    attn("q", X, "B Q")
    at(attn, "pictures.0")("scores", X, "Q P")
    assert calls == [("layers.3.attn.q", "U T"), ("layers.3.attn.texts.0.scores", "T T")]


# what a backward pass keeps


@pytest.mark.parametrize("renamed", [False, True], ids=["plain", "renamed"])
def test_a_part_of_which_nothing_is_needed_has_the_silent_tap(renamed: bool) -> None:
    """So attention leaves the scores of a block in the cache."""
    saw = Kept({"layers.{i}.attn.q"})
    attn = at(Renamed(saw, "pictures", "texts", {}) if renamed else saw, "layers.3.attn")
    assert at(attn, "pictures.0") is silent
    assert attn("q", X, "T D") is X
    assert attn("k", X, "T D") is X
    assert saw["layers.3.attn.q"] is X
    assert list(saw.tensors) == ["layers.3.attn.q"]


# users' taps


def test_checking_the_silent_tap_gives_the_silent_tap() -> None:
    assert checked(silent) is silent


@pytest.mark.parametrize(
    "tap",
    [
        lambda name, x, axes: x + 1,
        lambda name, x: x + 1,
        lambda name, x, axes="": x + 1,
        lambda *arguments: arguments[1] + 1,
        lambda name, x, *, shift=1: x + shift,
    ],
    ids=["name, x, axes", "name, x", "axes have a default", "any number", "keyword besides"],
)
def test_a_tap_may_take_axes_or_not(tap) -> None:
    np.testing.assert_array_equal(checked(tap)("q", X, "T D"), X + 1, strict=True)


def test_a_tap_that_can_take_axes_gets_them() -> None:
    calls = []
    checked(lambda *arguments: calls.append(arguments) or arguments[1])("q", X, "T D")
    assert calls[0][0::2] == ("q", "T D")


def test_a_recorder_may_be_a_users_tap() -> None:
    taps = Recorder()
    checked(taps)("q", X, "T D")
    assert taps.axes == {"q": "T D"}


@pytest.mark.parametrize("tap", [None, 3, lambda: None, lambda x: x, lambda name, x, axes, more: x], ids=str)
def test_a_tap_with_other_parameters_is_refused_at_once(tap) -> None:
    with pytest.raises(TypeError, match=r"is not a tap: it must take \(name, x, axes\)"):
        checked(tap)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (None, "NoneType"),
        (X.tolist(), "list"),
        (X[:1], r"float32 \[1, 3\]"),
        (X.T, r"float32 \[3, 2\]"),
        (X.astype(np.float64), r"float64 \[2, 3\]"),
    ],
    ids=["None", "list", "too few rows", "transposed", "float64"],
)
@pytest.mark.parametrize("takes_axes", [True, False])
def test_a_tap_must_return_an_array_of_the_same_shape_and_dtype(takes_axes: bool, result, found: str) -> None:
    tap = (lambda name, x, axes: result) if takes_axes else (lambda name, x: result)
    with pytest.raises(TypeError, match=rf"the tap returned {found} for text\.q, which is float32 \[2, 3\]"):
        at(checked(tap), "text")("q", X, "T D")


# recorders


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
def test_a_recorder_keeps_the_tensors_that_a_pattern_matches(patterns: tuple[str, ...], kept: list[str]) -> None:
    """In order. Globs match the whole name and its case; `*` matches dots too."""
    taps = Recorder(*patterns)
    for name in ("a.0.q", "a.1.q", "a.1.k", "a.10.q"):
        assert taps(name, X, f"axes of {name}") is X
    assert list(taps) == list(taps.axes) == kept
    assert taps.axes == {name: f"axes of {name}" for name in kept}
    assert len(taps) == len(kept)
    assert ("a.1.k" in taps) == ("a.1.k" in kept)


def test_a_recorder_keeps_a_copy() -> None:
    """The model may later write to the array."""
    taps, x = Recorder(), X.copy()
    taps("x", x, "T D")
    x += 1
    np.testing.assert_array_equal(taps["x"], X, strict=True)


def test_a_repeated_name_replaces_the_earlier_tensor() -> None:
    taps = Recorder()
    taps("x", X, "T D")
    taps("x", X[0], "D")
    np.testing.assert_array_equal(taps["x"], X[0], strict=True)
    assert taps.axes == {"x": "D"}


def test_a_name_that_was_not_recorded_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="nothing"):
        Recorder()["nothing"]
