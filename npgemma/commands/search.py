"""search: which pictures of a file of embeddings fit a text, or look like a picture."""

import argparse
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from npgemma.api.dual_encoder import DualEncoder
from npgemma.commands.embed import facts_of
from npgemma.commands.flags import AddParser, WrongUsage, encoder_flags, load_dual_encoder, positive, strict_flag
from npgemma.commands.notes import note_embedded, note_truncated
from npgemma.commands.output import as_json, say, tell, working
from npgemma.commands.outputs import Input, check_apart, model_files
from npgemma.commands.streams import PICTURE, given, shown
from npgemma.errors import BadEmbeddings, BadModel, BadPicture, BadPrompt
from npgemma.io.embeddings import Embeddings, read_embeddings
from npgemma.io.picture import write_picture, written_format
from npgemma.io.picture_kinds import SUFFIXES
from npgemma.layers.shapes import Array, Float
from npgemma.tasks.contact_sheet import contact_sheet, tile

TOP = 5
MOST_TILES = 400  # on a contact sheet: 20 rows of 20


class Hit(NamedTuple):
    """A picture, and the cosine of its row and the query's."""

    image: str
    score: float


def add_search(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    search = add_parser(
        "search",
        parents=[form, encoder_flags(), strict_flag("text")],
        help="rank the pictures of npgemma embed by a text or a picture",
    )
    search.add_argument("embeddings", type=Path, metavar="EMBEDDINGS", help="a file that npgemma embed has written")
    search.add_argument("query", metavar="QUERY", help="a text, or a picture to find similar ones")
    search.add_argument("--top", type=positive, default=TOP, metavar="N", help=f"how many (default: {TOP})")
    search.add_argument(
        "--contact-sheet", type=Path, metavar="FILE", help="also draw them side by side, to a .png, .jpg, .webp or .bmp"
    )
    search.set_defaults(
        run=run_search,
        stdin={"query": (PICTURE,)},
        stdout={"contact_sheet": ".png"},
        reads={"embeddings": "the file of embeddings", "query": "the picture"},
    )


def run_search(a: argparse.Namespace) -> None:
    """A line a picture, the best first: score and name, with a tab between; or one JSON object."""
    if a.contact_sheet is not None:
        written_format(a.contact_sheet)
        if a.top > MOST_TILES:
            raise WrongUsage(f"--contact-sheet shows at most {MOST_TILES} pictures; use a smaller --top")
    embeddings, query = read_embeddings(a.embeddings), given(a.query)
    names = embeddings.named("image")
    if not names:
        raise BadEmbeddings(f"{a.embeddings} has no pictures; add some with npgemma embed")
    if a.contact_sheet is not None:
        pictures = [Input(found(name, a.embeddings), "a picture") for name in names]
        check_apart([a.contact_sheet], chain(pictures, model_files(a.model or embeddings.facts.model)))
    model = model_of(a, embeddings)
    with working("reading the query"):
        scores = embeddings.stacked("image") @ query_row(a, model)
    best = np.argsort(-scores, kind="stable")[: a.top]
    hits = [Hit(names[i], float(scores[i])) for i in best]
    if a.format == "json":
        say(as_json({"model": a.model, "query": query, "hits": [hit._asdict() for hit in hits]}))
    else:
        for hit in hits:
            say(f"{hit.score:.4f}", " ".join(hit.image.split()), sep="\t")
    if a.contact_sheet is not None:
        write_sheet(a, hits, model.processor.read)
    note_embedded(model, [hit.image for hit in hits])


def model_of(a: argparse.Namespace, embeddings: Embeddings) -> DualEncoder:
    """The model that made the file, unless the user names another place of it. BadEmbeddings for another model."""
    named, a.model = a.model, a.model or embeddings.facts.model
    try:
        model = load_dual_encoder(a)
    except BadModel as error:
        if named:
            raise
        raise BadModel(f"{error} (the model of {a.embeddings}; if it is elsewhere, name it with -m)") from None
    embeddings.facts.check(facts_of(model, a.model), a.embeddings)
    return model


def query_row(a: argparse.Namespace, model: DualEncoder) -> Float[Array, "E"]:
    """The row of the query: a picture if there is such a file, or its name says so. BadPicture, BadPrompt."""
    path = Path(a.query)
    if path.suffix.lower() in SUFFIXES or is_file(path):
        (row,) = model.encode_images(path)
    else:
        rows, nothing = model.text_rows(a.query, a.strict), model.text_rows("")
        if np.array_equal(rows.ids, nothing.ids):
            raise BadPrompt(f"the query {a.query!r} has nothing that the model reads; write it in words")
        note_truncated("query", [a.query], rows)
        (row,) = model.encode_texts(a.query)
    return row.astype(np.float32, copy=False)


def is_file(path: Path) -> bool:
    """Whether there is a file; False for a text that no file can be called."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def write_sheet(a: argparse.Namespace, hits: list[Hit], read: Callable[[Path], Image.Image]) -> None:
    """Draw the hits side by side; one line on stderr if some of the pictures are no longer there."""
    tiles, missing = [], []
    for hit in hits:
        picture = None
        try:
            picture = read(found(hit.image, a.embeddings))
        except BadPicture as error:
            missing.append(str(error))
        tiles.append(tile(picture, hit.image, f"{hit.score:.4f}"))
    write_picture(contact_sheet(tiles), a.contact_sheet)
    if missing:
        lacks = f"{shown(a.contact_sheet)} lacks {len(missing)} of {len(hits)} pictures: {missing[0]}"
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        hint = "run search in the folder where embed ran, or embed them again where they are"
        tell(f"{lacks}{more}; {hint}")


def found(name: str, embeddings: Path) -> Path:
    """Where a picture is: its path as embed was given it, or the same path from the folder of the embeddings."""
    beside = embeddings.parent / name
    return beside if not Path(name).exists() and beside.exists() else Path(name)
