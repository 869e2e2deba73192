"""From the ids that a model writes to text, and to where it ends: before the first stop string."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from npgemma.decoding.loop import Token


@dataclass(frozen=True)
class Generation:
    """The answer to one prompt.

    Attributes
    ----------
    text : str
        The answer, without the end token or stop string that ended it.
    token_ids : list of int
        Every token that the model wrote, the end token included.
    finish_reason : str
        'stop' if an end token or a stop string ended the answer, 'length' if max_new_tokens did; '' while it is being
        written, and 'interrupted' in the output of a command that Ctrl-C ended.
    logprobs : list of float
        The natural logarithm of the model's own probability for each token, before any sampling rule.

    Examples
    --------
    >>> import npgemma
    >>> answer = npgemma.load().generate(npgemma.sample_picture(), "answer en what color is the star?")
    >>> answer.text, len(answer.token_ids), answer.finish_reason
    ('blue', 2, 'stop')
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Detokenizer:
    """`decode` turns ids into text, which ends before the first of `stops`."""

    decode: Callable[[Sequence[int]], str]
    stops: tuple[str, ...] = ()

    def has_stopped(self, ids: Sequence[int]) -> bool:
        """Whether the text of `ids` contains a stop string."""
        text = self.decode(ids) if self.stops else ""
        return before_stop(text, self.stops) != text

    def generation(self, ids: Sequence[int], reason: str | None, logprobs: Sequence[float]) -> Generation:
        """A finished answer; or, with no reason to end, the part of it that no later token can change."""
        text = before_stop(self.decode(ids), self.stops)
        if reason is None:  # half a character decodes to a replacement character
            text = settled(text.rstrip("\N{REPLACEMENT CHARACTER}"), self.stops)
        return Generation(text, list(ids), reason or "", list(logprobs))


class Transcript:
    """What each of several sequences has written so far."""

    def __init__(self, detokenizer: Detokenizer, sequences: int) -> None:
        self.detokenizer = detokenizer
        self.sequences = sequences
        self.tokens: defaultdict[int, list[Token]] = defaultdict(list)

    def add(self, token: Token) -> Token:
        """Append a token to its sequence; returns it."""
        self.tokens[token.sequence].append(token)
        return token

    def generation(self, sequence: int) -> Generation:
        tokens = self.tokens[sequence]
        reason = tokens[-1].finish_reason if tokens else None
        return self.detokenizer.generation([token.id for token in tokens], reason, [token.logprob for token in tokens])

    def generations(self) -> list[Generation]:
        return [self.generation(i) for i in range(self.sequences)]


def pieces(detokenizer: Detokenizer, tokens: Iterable[Token]) -> Iterator[str]:
    """The text of one sequence, piece by piece, each as soon as no later token can change it."""
    transcript, sent = Transcript(detokenizer, 1), 0
    for token in tokens:
        transcript.add(token)
        text = transcript.generation(0).text
        if len(text) > sent:
            yield text[sent:]
            sent = len(text)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first place where one of `stops` begins."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(places)] if places else text


def settled(text: str, stops: Sequence[str]) -> str:
    """An unfinished `text` without an end that may turn out to be the beginning of a stop string."""
    for start in range(max(0, len(text) - max(map(len, stops), default=0)), len(text)):
        if any(stop.startswith(text[start:]) for stop in stops):
            return text[:start]
    return text
