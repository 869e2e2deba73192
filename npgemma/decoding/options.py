"""The options of decoding: each with its default and its range, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict


class SamplingKeywords(TypedDict, total=False):
    """The keyword arguments that make a Sampling."""

    temperature: float
    top_k: int | None
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int


class StreamKeywords(SamplingKeywords, total=False):
    """The keyword arguments of a single answer that is written token by token."""

    max_new_tokens: int
    stop: str | Sequence[str]
    lookup: bool


class GenerationKeywords(StreamKeywords, total=False):
    """The keyword arguments that make GenerationOptions, but for num_return_sequences."""

    num_beams: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. temperature 0 is greedy; the other defaults change nothing.

    Raises ValueError for a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None:
            require_count("top_k", self.top_k)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be from 0 to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; it must be a positive number")
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be a whole number, 0 or more")


@dataclass(frozen=True)
class GenerationOptions(Sampling):
    """All options of `generate`.

    Raises ValueError for a value out of range, and for options that exclude each other.

    Attributes
    ----------
    max_new_tokens : int
        The longest answer.
    stop : str or sequence of str
        An answer ends before the first of these strings that it would contain.
    temperature : float
        0 takes the likeliest token; above 0, tokens are drawn.
    top_k : int, optional
        Draw from the k likeliest tokens.
    top_p : float
        Draw from the fewest tokens whose probabilities reach p.
    min_p : float
        Leave out tokens less likely than p times the likeliest.
    repetition_penalty : float
        Above 1, tokens that were read or written become less likely.
    seed : int
        The seed of the draws.
    lookup : bool
        Guess the next tokens from prompt and answer, and run them in one step: fewer steps, and the same tokens. A beam
        search does not guess.
    num_beams : int
        Above 1, search for the answer that is likeliest as a whole, with so many unfinished answers at a time.
    num_return_sequences : int
        How many answers to each prompt: samples, or the best beams.

    Examples
    --------
    >>> GenerationOptions().max_new_tokens
    256
    >>> GenerationOptions(num_return_sequences=2)
    Traceback (most recent call last):
        ...
    ValueError: greedy decoding has one result: for several, set a temperature above 0, or num_beams
    """

    max_new_tokens: int = 256
    stop: str | Sequence[str] = ()
    lookup: bool = True
    num_beams: int = 1
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "num_beams", "num_return_sequences"):
            require_count(name, getattr(self, name))
        if not all(isinstance(each, str) and each for each in self.stops):
            raise ValueError(f"stop is {self.stop!r}; it must be a string or several strings, none of them empty")
        if type(self.lookup) is not bool:
            raise ValueError(f"lookup is {self.lookup!r}; it must be True or False")
        if self.num_beams > 1 and (self.temperature or self.repetition_penalty != 1):
            raise ValueError("beam search does not sample: set num_beams=1, or temperature=0 and repetition_penalty=1")
        if 1 < self.num_beams < self.num_return_sequences:
            raise ValueError(f"{self.num_beams} beams cannot return {self.num_return_sequences} sequences; use more")
        if self.num_return_sequences > 1 and self.num_beams == 1 and self.temperature == 0:
            raise ValueError("greedy decoding has one result: for several, set a temperature above 0, or num_beams")

    def single(self) -> "GenerationOptions":
        """These options, for one answer that is written token by token. ValueError if they ask for several."""
        if self.num_beams > 1 or self.num_return_sequences > 1:
            raise ValueError("only one answer is written at a time: num_beams and num_return_sequences must be 1")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def require_count(name: str, value: object) -> None:
    """ValueError unless the value is a whole number above 0."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
