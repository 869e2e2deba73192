"""What commands say on stderr about an answer: that it was cut off or is empty, and what the embedded model knows."""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from npgemma.api.generation import Model
from npgemma.api.load import sample_picture
from npgemma.api.model import LoadedModel
from npgemma.commands.output import say, tell
from npgemma.decoding.text import Generation
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_PAIR
from npgemma.io.regular_files import read_regular
from npgemma.io.text_rows import TextRows

DRAWN_ONLY = (
    "npgemma: the embedded model knows drawn shapes and words only; for photographs name another model, such as "
    "-m google/paligemma-3b-mix-224"
)
SHAPES_ONLY = (
    "npgemma: the embedded model knows drawn shapes only; for photographs name another model, such as "
    "-m google/siglip2-base-patch16-224"
)
NOTES = {EMBEDDED: DRAWN_ONLY, EMBEDDED_PAIR: SHAPES_ONLY}


def note_answers(a: argparse.Namespace, model: Model, answers: Sequence[Generation], found: bool = True) -> None:
    """At most one line: that answers were cut off, that no object was `found`, or that there is no answer at all."""
    cut = [len(answer.token_ids) for answer in answers if answer.finish_reason == "length"]
    said = [] if found else ["nothing found"]
    if cut:
        which = "the answer was" if len(answers) == 1 else f"{len(cut)} of {len(answers)} answers were"
        said.append(f"{which} cut off after {cut[0]} tokens; --max-new-tokens {2 * cut[0]} gives more")
    elif found and not any(answer.text for answer in answers):
        hint = "; a -pt- checkpoint is made for fine-tuning and answers few prompts: use a -mix- checkpoint"
        is_base = re.search(r"-pt\b", f"{Path(a.model or '').name} {model.folder.name}")
        said.append("the answer is empty" + hint * bool(is_base))
    if said:
        tell(": ".join(said))


def note_embedded(model: LoadedModel[Any, Any], pictures: Iterable[str | Path]) -> None:
    """One line if an embedded model was asked about a picture that is not the package's own, whatever its name."""
    if model.folder in NOTES and any(map(is_foreign, pictures)):
        say(NOTES[model.folder], file=sys.stderr)


def note_truncated(what: str, texts: Sequence[str], rows: TextRows) -> None:
    """At most one line: which texts, called `what`, are longer than the model reads."""
    if rows.truncated:
        first = rows.truncated[0]
        more = len(rows.truncated) - 1
        others = f", and so {'is 1 other' if more == 1 else f'are {more} others'}" if more else ""
        long = f"the {what} {texts[first][:40]!r} is cut off: it has {rows.lengths[first]} tokens"
        tell(f"{long}, and the model reads {rows.ids.shape[1]}{others}")


def is_foreign(picture: str | Path) -> bool:
    """Whether the content of a file is that of none of the package's pictures; False if it cannot be read.

    Files of another size are not read: a pipe could not be read twice.
    """
    with suppress(OSError, ValueError):
        path = Path(picture)
        size = path.stat().st_size
        own = [each for each in sample_picture().parent.glob("*.png") if each.stat().st_size == size]
        return all(read_regular(each, size) != read_regular(path, size) for each in own)
    return False
