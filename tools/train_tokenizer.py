"""Train the embedded model's tokenizer: a small SentencePiece BPE in the form of Gemma's.

    python tools/train_tokenizer.py npgemma/assets/tiny/tokenizer.model

The ids follow Gemma: pad 0, eos 1, bos 2, unk 3, mask 4, runs of newlines, 256 bytes, then the words of the shape
world; the location and segmentation pieces are appended as PaliGemma's tokenizer has them.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from random import Random

import sentencepiece
from shape_world import CHARACTERS, ask, draw_scene

from npgemma.io.tokenizers import LOCATIONS, SEGMENTS, append_pieces

NEWLINES = 8  # the longest run of newlines that is one piece


def corpus(scenes: int) -> list[str]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus(3000)),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=["<mask>"] + ["\n" * n for n in range(1, NEWLINES + 1)],
        required_chars=CHARACTERS + "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'-",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=1,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_bytes(append_pieces(model.getvalue(), LOCATIONS + SEGMENTS))


if __name__ == "__main__":
    main()
