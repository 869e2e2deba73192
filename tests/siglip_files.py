"""A small spiece.model of SigLIP: a unigram model trained on a few captions, with T5's special pieces."""

import io
from functools import cache
from random import Random

import sentencepiece

WORDS = "a photo of the red blue cat dogs running over straße İstanbul don't it's 3.5 日本 < > </s> <unk> k"


@cache
def spiece_model(end: str = "</s>") -> bytes:
    """<pad> is piece 0, `end` 1 and <unk> 2."""
    rng = Random(0)
    captions = [" ".join(rng.choices(WORDS.split(), k=8)) for _ in range(500)]
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=written,
        model_type="unigram",
        vocab_size=100,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        eos_piece=end,
        minloglevel=2,
    )
    return written.getvalue()
