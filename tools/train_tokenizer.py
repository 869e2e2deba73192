"""Train the tokenizer of an embedded model: a small SentencePiece BPE in the form of Gemma's, or SigLIP's unigrams.

    python tools/train_tokenizer.py npgemma/assets/tiny/tokenizer.model
    python tools/train_tokenizer.py npgemma/assets/tiny-gemma/tokenizer.model
    python tools/train_tokenizer.py npgemma/assets/tiny-siglip/spiece.model

The ids of a BPE follow Gemma: pad 0, eos 1, bos 2, unk 3, mask 4, for the language model the tokens that begin and end
a turn, runs of newlines, 256 bytes, then the words of the model's world. For PaliGemma, the location and segmentation
pieces are appended as its tokenizer has them. SigLIP's ids follow T5: pad 0, which nothing uses, eos 1, unk 2, then
words and letters.
"""

from __future__ import annotations

import argparse
import io
import math
from collections import Counter
from pathlib import Path
from random import Random
from string import ascii_lowercase, ascii_uppercase, digits

import sentencepiece
from capital_world import ask_unknown, converse, statements
from pair_world import say
from shape_world import CHARACTERS, ask, draw_scene

from npgemma.io.sentencepiece_model import CONTROL, NORMAL, UNKNOWN, message, number, serialised
from npgemma.io.siglip_tokenizer import canonical
from npgemma.io.tokenizer_json import SPACE
from npgemma.io.tokenizers import LOCATIONS, SEGMENTS, append_pieces
from npgemma.tasks.chat import END, START

UNIGRAM = 1
NEWLINES = 8  # the longest run of newlines that is one piece


def shape_lines(scenes: int) -> list[str]:
    """Prompts and suffixes, but not the words drawn in pictures: their characters are to stay single pieces."""
    rng = Random(0)
    lines = []
    for _ in range(scenes):
        for question in ask(draw_scene(rng, side=64), rng, 4):
            lines.append(question.prompt)
            lines.append(question.prompt.replace("detect", "segment"))  # a task PaliGemma has and this model may learn
            if question.family != "ocr":
                lines.append(question.suffix.rsplit(">", 1)[-1])
    return [line for line in lines if line]


def capital_lines(conversations: int) -> list[str]:
    """Statements, and what is said in conversations. Names appear equally often."""
    rng = Random(0)
    lines = [prompt + rest for prompt, rest in statements()] * 10
    for _ in range(conversations):
        lines += [message["content"] for message in converse(rng, 4).messages(3)] + [ask_unknown(rng).question]
    return lines


def train(lines: list[str], pieces: int, letters: str, symbols: tuple[str, ...] = ()) -> bytes:
    """The bytes of a tokenizer.model with about so many pieces. `letters` and `symbols` are pieces in any case."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=pieces,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<mask>", *symbols] + ["\n" * n for n in range(1, NEWLINES + 1)],
        required_chars=letters + "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'-",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()


def paligemma_tokenizer() -> bytes:
    return append_pieces(train(shape_lines(3000), 640, CHARACTERS), LOCATIONS + SEGMENTS)


def gemma_tokenizer() -> bytes:
    return train(capital_lines(3000), 1024, ascii_uppercase, (START, END))


def siglip_tokenizer() -> bytes:
    """Unigrams: the words of texts about pictures, each with the logarithm of its share of them, and letters.

    They are counted here, since SentencePiece's trainer takes no whole word that is not a part of another. A letter
    scores less than the rarest word, so a word is never spelled that need not be. Nothing normalises: T5's tables for
    that have 240,000 bytes.
    """
    rng = Random(0)
    texts = [text.words for _ in range(3000) for text in say(rng, draw_scene(rng, side=64).things, 4)]
    words = Counter(word for text in texts for word in canonical(text).split())
    known = [(word, count) for word, count in words.most_common() if count >= 5]
    total, rarest = sum(words.values()), known[-1][1]
    pieces = [(SPACE + word, math.log(count / total), NORMAL) for word, count in known]
    letters = [(letter, math.log(rarest / total) - 1, NORMAL) for letter in SPACE + ascii_lowercase + digits]
    listed = [("<pad>", 0.0, CONTROL), ("</s>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN), *pieces, *letters]
    special = number(40, 2) + number(41, -1 + (1 << 64)) + number(42, 1) + number(43, 0)  # unk, bos, eos and pad
    return serialised(listed) + message(2, number(3, UNIGRAM) + special) + message(3, message(1, b"identity"))


WORLDS = {"tiny": paligemma_tokenizer, "tiny-gemma": gemma_tokenizer, "tiny-siglip": siglip_tokenizer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help=f"a file in a folder named {' or '.join(WORLDS)}")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(WORLDS[arguments.out.resolve().parent.name]())


if __name__ == "__main__":
    main()
