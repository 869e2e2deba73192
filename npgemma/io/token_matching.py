"""Cut added tokens out of a text, as the `tokenizers` library does before it splits what lies between them.

Source: find_matches in tokenizers/src/tokenizer/added_vocabulary.rs of huggingface/tokenizers.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

UNPLACED = -1
SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"


@dataclass(frozen=True)
class AddedToken:
    """A token that is cut out of a text, and how.

    `normalized` tokens are looked for after spaces have become U+2581, the others before. `lstrip` and `rstrip` tokens
    take the white space beside them along; a `single_word` token is not part of a longer word. Decoded text leaves
    `special` tokens out. `id` is what `source`, a file, says; UNPLACED if it says nothing.
    """

    content: str
    id: int = UNPLACED
    special: bool = False
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    source: str = ""


class Matcher:
    """Finds tokens in a text: the first that begins, and of those the longest."""

    def __init__(self, tokens: Mapping[str, AddedToken]) -> None:
        """`tokens` by the text that stands for them."""
        self.tokens = tokens
        longest_first = sorted(tokens, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first))) if tokens else None

    def cut(self, text: str) -> Iterator[str | AddedToken]:
        """The tokens in `text`, and what lies before, between and after them.

        A token may lie in the white space that one before it took along; then it counts, too.
        """
        done = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            token, (start, stop) = self.tokens[match[0]], match.span()
            if token.single_word and (is_word(text[start - 1 : start]) or is_word(text[stop : stop + 1])):
                continue
            if token.lstrip:
                start = max(done, start - white_space(reversed(text[:start])))
            if token.rstrip:
                stop += white_space(iter(text[stop:]))
            if done < start:
                yield text[done:start]
            yield token
            done = stop
        if done < len(text):
            yield text[done:]


def lower_case(text: str) -> str:
    """Each character in lower case by itself, where Python writes a sigma that ends a word differently."""
    return text.replace(SIGMA, SIGMA.lower()).lower()


def white_space(characters: Iterator[str]) -> int:
    """How many of the first characters are white space. Python's own counts the separators U+001C to U+001F, too."""
    count = 0
    for each in characters:
        if not each.isspace() or "\x1c" <= each <= "\x1f":
            break
        count += 1
    return count


def is_word(character: str) -> bool:
    r"""Whether \w of Unicode's regular expressions matches: letters, marks, digits, connectors and joiners."""
    if not character:
        return False
    category = unicodedata.category(character)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or character in "\u200c\u200d" or is_circled(character)


def is_circled(character: str) -> bool:
    """Whether this is a circled or squared letter, which is a symbol and yet alphabetic."""
    return any(first <= ord(character) <= last for first, last in CIRCLED)


CIRCLED = ((0x24B6, 0x24E9), (0x1F130, 0x1F149), (0x1F150, 0x1F169), (0x1F170, 0x1F189))
