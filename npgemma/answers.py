"""What a model has written, and where it ends: an answer ends before the first stop string that it would hold."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Generation:
    """What was written to one prompt.

    `finish_reason` is 'stop' (`token_ids` ends with an end token or a stop string, which `text` leaves out) or
    'length'. `logprobs` are the natural logarithms of the model's own probability for each token.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] = field(default_factory=list)


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first place where one of `stops` begins."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text


def sure_of(text: str, stops: Sequence[str]) -> str:
    """What of an unfinished `text` is part of the answer however it goes on: no end of it may begin a stop string."""
    for start in range(max(0, len(text) - max(map(len, stops), default=0)), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return text[:start]
    return text


def checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One stop string or several as several. ValueError for what is no text, or is empty and so everywhere."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    if not all(isinstance(each, str) and each for each in stops):
        raise ValueError(f"stop is {stop!r}; it is a string, or several, none of them empty")
    return stops
