"""The answers of transformers' beam search, and their comparison with npgemma's."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import npgemma
from npgemma.decoding.loop import Limits

# Sums of float64 in another order: totals of a few tens are off by 5e-14, on either kind of model.
ROUNDINGS = 1e-11


class Answer(NamedTuple):
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    total: float


@torch.no_grad()
def transformers_beams(
    model: PreTrainedModel,
    inputs: dict,
    num_beams: int,
    limits: Limits,
    **options: float,
) -> list[Answer]:
    """What generate returns, the likeliest first; `options` are its own.

    The totals are its sequences_scores. With one beam it is greedy and has none, so there they are sums.
    """
    length, size = inputs["input_ids"].shape[1], model.config.get_text_config().vocab_size
    out = model.generate(
        **inputs,
        attention_mask=torch.ones_like(inputs["input_ids"]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        max_new_tokens=limits.max_new_tokens,
        eos_token_id=list(limits.eos_ids),
        pad_token_id=0,
        suppress_tokens=list(range(limits.choices, size)) or None,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        **dict(length_penalty=0.0, early_stopping=False) | options if num_beams > 1 else {},
    )
    written = out.sequences[:, length:]
    if num_beams == 1:
        each = torch.stack(out.logits).log_softmax(-1)[:, 0].gather(1, written.T)[:, 0]
        return [Answer(tuple(written[0].tolist()), tuple(each.tolist()), float(each.sum()))]
    logprobs = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    lengths = (out.beam_indices >= 0).sum(1)
    return [
        Answer(tuple(ids[:n].tolist()), tuple(each[:n].tolist()), float(total))
        for ids, each, n, total in zip(written, logprobs, lengths, out.sequences_scores, strict=True)
    ]


def compare(ours: Sequence[Answer], theirs: Sequence[Answer], rounding: float = ROUNDINGS) -> None:
    """The same ids in the same order, the log-probability of every token, and the totals."""
    assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]
    for our, their in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(our.logprobs, their.logprobs, rtol=0, atol=rounding, strict=True)
        assert our.total == pytest.approx(their.total, rel=0, abs=rounding)


def as_answers(answers: Sequence[npgemma.Generation]) -> list[Answer]:
    return [Answer(tuple(answer.token_ids), tuple(answer.logprobs), sum(answer.logprobs)) for answer in answers]
