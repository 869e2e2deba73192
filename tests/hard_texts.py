"""Texts that tokenizers find hard: many scripts, white space, emoji, special tokens, and random mixtures of them."""

from random import Random

# Code points from .. to, of many scripts; ASCII as often as the rest of an alphabet together.
SCRIPTS = {
    "ascii": (0x20, 0x7E),
    "control": (0x00, 0x1F),
    "latin": (0x7F, 0x24F),
    "combining": (0x300, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x4FF),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE00, 0xE7F),
    "hangul jamo": (0x1100, 0x11FF),
    "punctuation": (0x2000, 0x206F),
    "arrows": (0x2190, 0x21FF),
    "kana": (0x3000, 0x30FF),
    "han": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "private": (0xE000, 0xE0FF),
    "variation selectors": (0xFE00, 0xFE0F),
    "full width": (0xFF00, 0xFFEF),
    "mathematical": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "rare han": (0x20000, 0x200FF),
    "tags": (0xE0000, 0xE01EF),
}
SPECIAL = ("<bos>", "<eos>", "<image>", "<pad>", "<unk>", "<mask>")
PIECES = ("<loc0000>", "<loc0001>", "<loc1023>", "<seg000>", "<seg127>")
NEARLY = ("<loc12", "<loc1024>", "<seg128>", "loc0001>", "<<loc0002>>", "<image", "image>", "<BOS>", "< bos>", "<0x41>")
SPACES = (
    " ",
    "  ",
    " " * 7,
    " " * 15,
    "\n",
    "\n\n",
    "\n" * 31,
    "\n" * 40,
    "\t",
    "\t\t",
    "\r\n",
    " \n ",
    "\u3000",
    "\xa0",
)
WORDS = ("caption en", "detect dog ; tree", "answer en how many?", "0123456789", "3.14", "1,000", "e\u0301", "½", "ﬁ")
EMOJI = ("😗", "👨‍👩‍👧", "🇩🇪", "\u200d", "\ufeff", "\u00ad")
CONTROLS = ("<start_of_turn>", "<end_of_turn>", "<unused42>", "<h1>", "</table>", "[multimodal]", "<2mass>", "\x1b[0m")
PARTS = SPECIAL + PIECES + NEARLY + SPACES + WORDS + EMOJI + CONTROLS


def random_text(rng: Random) -> str:
    """One to eight parts: of PARTS, or a run of characters of one script."""
    parts = []
    for _ in range(rng.randint(1, 8)):
        if rng.random() < 0.5:
            parts.append(rng.choice(PARTS))
        else:
            first, last = SCRIPTS["ascii"] if rng.random() < 0.25 else rng.choice(list(SCRIPTS.values()))
            parts.append("".join(chr(rng.randint(first, last)) for _ in range(rng.randint(1, 12))))
    return "".join(parts)
