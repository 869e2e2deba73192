"""Prompt lookup: which tokens are likely to follow, guessed from what prompt and answer contain already.

The guess is what followed the same context last time: the longest one that has been there before, and of several as
long, the last (prompt lookup decoding, Saxena 2023). Two things make it fit PaliGemma's answers about objects. All
locations are alike in a context, and so are all mask codes, since they hardly ever repeat: so " ; " and four locations
are a context that a label followed last time. And before the prompt stands an answer that it may have, without places:

    detect cat ; dog   -->   <loc> <loc> <loc> <loc> cat ; <loc> <loc> <loc> <loc> dog ; <loc> <loc> <loc> <loc> dog ;

so the first label follows from the prompt, and the next from those before. A guess ends before a location or a code. It
does not change the answer: `loop` keeps of it what it would have chosen itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import TypeAlias

import numpy as np

from npgemma.layers.shapes import Array, Int
from npgemma.models.gemma import MOST_ROWS

# The ids written so far -> ids that are likely to follow.
Draft: TypeAlias = Callable[[Sequence[int]], Sequence[int]]
# The ids of a prompt -> the drafts of an answer to it.
Drafter: TypeAlias = Callable[[Int[Array, "T"]], Draft]

LONGEST = 32  # tokens of a context that are looked at
UNKNOWN = -1  # in place of a token that nothing tells


def no_drafts(input_ids: Int[Array, "T"]) -> Draft:
    """Nothing is guessed: one token in each step."""
    return lambda written: ()


@dataclass(frozen=True)
class ObjectSyntax:
    """How prompts and answers about objects become tokens.

    `alike` has the ids of the locations and those of the mask codes. `tasks` has the first tokens of each kind of
    prompt, and what stands before a label in the answer to it; labels are separated by `between` in a prompt, and
    followed by `after` in an answer. Without tasks, every prompt is a plain text.
    """

    alike: tuple[range, ...] = ()
    bos_id: int = -1
    tasks: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    between: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


PLAIN = ObjectSyntax()
FIRST_AND_LAST = (("<loc0000>", "<loc1023>"), ("<seg000>", "<seg127>"))


def object_syntax(encode: Callable[[str], Sequence[int]], ids: Mapping[str, int], bos_id: int) -> ObjectSyntax:
    """The syntax in the tokens of a tokenizer; PLAIN if it has no locations or codes."""
    if not all(piece in ids for pair in FIRST_AND_LAST for piece in pair):
        return PLAIN
    alike = tuple(range(ids[first], ids[last] + 1) for first, last in FIRST_AND_LAST)
    box, mask = (alike[0].start,) * 4, (alike[1].start,) * 16
    tasks = {tuple(encode("detect")): box, tuple(encode("segment")): box + mask}
    after = tuple(encode(f" ; {FIRST_AND_LAST[0][0]}")[:-1])
    return ObjectSyntax(alike, bos_id, tasks, tuple(encode(" ;")), after)


def lookup(input_ids: Int[Array, "T"], syntax: ObjectSyntax = PLAIN) -> Draft:
    """The drafts of an answer to a prompt."""
    before = np.array([*asked(input_ids.tolist(), syntax), *input_ids], np.int64)
    return partial(continued, before, alike=syntax.alike)


def asked(prompt: Sequence[int], syntax: ObjectSyntax) -> list[int]:
    """An answer with each object that a prompt lists, and the last of them twice, after the last token of the prompt.

    Empty for prompts of another kind.
    """
    text = tuple(prompt[prompt.index(syntax.bos_id) + 1 : -1] if syntax.bos_id in prompt else ())
    for task, places in syntax.tasks.items():
        if text[: len(task)] == task:
            labels = split(text[len(task) :], syntax.between)
            repeated = [*labels, labels[-1]]
            return [prompt[-1], *(i for label in repeated for i in (*places, *label, *syntax.after)), UNKNOWN]
    return []


def split(ids: Sequence[int], separator: Sequence[int]) -> list[Sequence[int]]:
    """The ids between separators."""
    parts, start, width = [], 0, len(separator)
    for i in range(len(ids)):
        if i >= start and ids[i : i + width] == separator:
            parts.append(ids[start:i])
            start = i + width
    return [*parts, ids[start:]]


def continued(before: Int[Array, "T"], written: Sequence[int], alike: Sequence[range] = ()) -> list[int]:
    """What followed the longest context that the ids end with, the last time there was one; empty if there was none.

    A context has two ids or more. Those in one of the ranges `alike` are equal in it, and end what follows; they alone
    are not a context.
    """
    ids = np.concatenate([before, np.array(written, np.int64)])
    kinds = ids.copy()
    for each in alike:
        kinds[(ids >= each.start) & (ids < each.stop)] = each.start
    ends = 1 + np.flatnonzero((kinds[:-2] == kinds[-2]) & (kinds[1:-1] == kinds[-1]))[:, None]  # of contexts, [N 1]
    if not ends.size:
        return []
    back = np.arange(min(LONGEST, len(ids)))
    same = (ends >= back) & (kinds[ends - back] == kinds[-1 - back])
    lengths = np.logical_and.accumulate(same, axis=1).sum(1)
    length = int(lengths.max())
    if {each.start for each in alike}.issuperset(kinds[-length:].tolist()):
        return []
    end = int(ends[lengths == length][-1, 0])
    follows = ids[end + 1 : end + MOST_ROWS].tolist()
    return list(takewhile(lambda i: i != UNKNOWN and not any(i in each for each in alike), follows))
