"""What a model has written, and where it ends: an answer ends before the first stop string that it would hold."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from npgemma.decoding.loop import Token


@dataclass(frozen=True)
class Generation:
    """What was written to one prompt.

    `finish_reason` is 'stop' (`token_ids` ends with an end token or a stop string, which `text` leaves out) or
    'length'; '' while an answer goes on, and 'interrupted' from a command that was. `logprobs` are the natural
    logarithms of the model's own probability for each token.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Answers:
    """How the ids of answers read: `decode` makes them text, which the first of `stops` ends."""

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()

    def ends(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` holds a stop string."""
        text = self.decode(ids) if self.stops else ""
        return cut_at_stop(text, self.stops) != text

    def generation(self, ids: Sequence[int], reason: str | None, logprobs: Sequence[float]) -> Generation:
        """All of one answer; or of one that goes on (no reason to end), what no later token can take back."""
        text = cut_at_stop(self.decode(ids), self.stops)
        if reason is None:  # half a character decodes to a replacement character
            text = sure_of(text.rstrip("\N{REPLACEMENT CHARACTER}"), self.stops)
        return Generation(text, list(ids), reason or "", list(logprobs))

    def generations(self, tokens: Iterable[Token], count: int) -> list[Generation]:
        """What each of `count` rows wrote, or has written so far."""
        rows: list[list[Token]] = [[] for _ in range(count)]
        for token in tokens:
            rows[token.row].append(token)
        reasons = [row[-1].finish_reason if row else None for row in rows]
        return [
            self.generation([token.id for token in row], reason, [token.logprob for token in row])
            for row, reason in zip(rows, reasons, strict=True)
        ]

    def growing(self, tokens: Iterable[Token]) -> Iterator[Generation]:
        """The answer of one row after each of its tokens."""
        ids: list[int] = []
        logprobs: list[float] = []
        for token in tokens:
            ids.append(token.id)
            logprobs.append(token.logprob)
            yield self.generation(ids, token.finish_reason, logprobs)


def pieces(growing: Iterable[Generation]) -> Iterator[str]:
    """What each step adds to the text."""
    sent = ""
    for written in growing:
        if len(written.text) > len(sent):
            yield written.text[len(sent) :]
            sent = written.text


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
