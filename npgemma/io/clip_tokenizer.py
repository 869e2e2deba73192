"""CLIP's tokenizer: byte-pair encoding of lower-case words, equal to transformers' CLIPTokenizer.

    text --NFC, lower case--> words --> pieces --UTF-8--> signs, the last with </w> --merges--> tokens

OpenAI's own code repairs broken encodings (ftfy) and HTML entities first, and pads with 0; transformers does neither.
Source: clip/simple_tokenizer.py of openai/CLIP; Sennrich et al. 2016, algorithm 1.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise

from npgemma.io.token_matching import AddedToken, Matcher, lower_case
from npgemma.io.tokenizers import check_unicode

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CACHED_WORDS = 1 << 16

# A word is what lies between white space. Python's own counts the separators U+001C to U+001F, too.
WORD = re.compile(r"[\S\x1c-\x1f]+")
# A piece is one of these or, by the first letter of each character's category, a run.
WHOLE = re.compile(rf"{re.escape(START)}|{re.escape(END)}|'(?:s|t|re|ve|m|ll|d)")
RUN = re.compile("L+|N|[^LN]+")
# What was no token before it was lower case is cut again, as GPT-2 cuts text.
RECUT = {text: (text[:2], text[2:-2], text[-2:]) for text in (START, END)}


def byte_signs() -> tuple[str, ...]:
    """A printable sign for each byte: its Latin-1 character where that is visible, else one from U+0100 on (GPT-2)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    signs = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return tuple(signs[byte] for byte in range(256))


SIGNS = byte_signs()
# In the order of their ids: visible signs first.
ALPHABET = (*sorted(SIGNS), *(sign + WORD_END for sign in sorted(SIGNS)))

Pair = tuple[str, str]


class ClipTokenizer:
    """Text -> ids: the start token, the tokens of the text, the end token, which also pads."""

    def __init__(self, ids: Mapping[str, int], merges: Iterable[Pair], added: Iterable[AddedToken]) -> None:
        """`ids` has the signs, what the merges make, and the added tokens; the first merge is the most wanted."""
        self.ids = ids
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start_id, self.end_id = ids[START], ids[END]
        self.pad_id = self.end_id
        tokens = list(added)
        self.raw = Matcher({token.content: token for token in tokens if not token.normalized})
        self.normalized = Matcher({normalize(token.content): token for token in tokens if token.normalized})
        self.word_ids = lru_cache(CACHED_WORDS)(self.encode_word)

    def __len__(self) -> int:
        """The number of ids."""
        return len(self.ids)

    def encode(self, text: str) -> list[int]:
        """The ids of `text` between the start and the end token. An added token in the text becomes its id.

        BadPrompt for text that is not valid Unicode (a lone surrogate).
        """
        check_unicode(text)
        parts = (self.ids_of(part) for part in self.parts(text))
        return [self.start_id, *chain.from_iterable(parts), self.end_id]

    def parts(self, text: str) -> Iterator[str | AddedToken]:
        """`text` cut at its added tokens, normalised between them."""
        for part in self.raw.cut(text):
            if isinstance(part, AddedToken):
                yield part
            else:
                yield from self.normalized.cut(normalize(part))

    def ids_of(self, part: str | AddedToken) -> Iterable[int]:
        """The ids of an added token, or of normalised text."""
        if isinstance(part, AddedToken):
            return (self.ids[part.content],)
        return chain.from_iterable(map(self.word_ids, WORD.findall(part)))

    def encode_word(self, word: str) -> tuple[int, ...]:
        """The ids of one word."""
        return tuple(self.ids[token] for piece in pieces(word) for token in merged(signs(piece), self.ranks))


def normalize(text: str) -> str:
    """Composed characters, white space as one space, lower case."""
    return lower_case(" ".join(re.split(r"[^\S\x1c-\x1f]+", unicodedata.normalize("NFC", text))))


def pieces(word: str) -> Iterator[str]:
    """Contractions, runs of letters, single numbers and runs of other characters, in the order of a word."""
    kinds = "".join(unicodedata.category(character)[0] for character in word)
    at = 0
    while at < len(word):
        match = WHOLE.match(word, at) or RUN.match(kinds, at)
        assert match
        piece, at = word[at : match.end()], match.end()
        yield from RECUT.get(piece, (piece,))


def signs(piece: str) -> list[str]:
    """The signs of a piece's bytes; the last says that the piece ends."""
    found = [SIGNS[byte] for byte in piece.encode()]
    return [*found[:-1], found[-1] + WORD_END]


def merged(parts: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Neighbours joined, the pair of lowest rank first, of equal pairs the leftmost, while any pair has a rank.

    The rest of a joined pair's place is empty, so that the places of others stay; a heap keeps long words fast.
    """
    tokens, count = list(parts), len(parts)
    before, after = list(range(-1, count - 1)), list(range(1, count + 1))
    heap = [(ranks[pair], i, pair) for i, pair in enumerate(pairwise(tokens)) if pair in ranks]
    heapify(heap)
    while heap:
        _, left, pair = heappop(heap)
        right = after[left]
        if right == count or (tokens[left], tokens[right]) != pair:
            continue  # one of the two is part of another token by now
        tokens[left], tokens[right] = "".join(pair), ""
        after[left] = following = after[right]
        if following < count:
            before[following] = left
        for first in (before[left], left):
            if first >= 0 and after[first] < count:
                new = tokens[first], tokens[after[first]]
                if new in ranks:
                    heappush(heap, (ranks[new], first, new))
    return [token for token in tokens if token]
