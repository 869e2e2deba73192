"""embed: pictures and texts as rows in a file, each batch on the disk as soon as it is there."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from npgemma.api.dual_encoder import DualEncoder
from npgemma.api.embedding import digest, image_rows
from npgemma.api.encoding import BATCH
from npgemma.commands.flags import AddParser, WrongUsage, encoder_flags, load_dual_encoder, positive, strict_flag
from npgemma.commands.notes import note_embedded, note_truncated
from npgemma.commands.output import INTERRUPTED, tell
from npgemma.commands.progress import Progress
from npgemma.errors import BadPrompt
from npgemma.io.embedding_rows import Rows, open_rows
from npgemma.io.embeddings import Embeddings, Facts, Key, partial, read_embeddings, write_embeddings
from npgemma.io.model_folder import EMBEDDED_PAIR
from npgemma.io.picture_folder import pictures_in
from npgemma.io.regular_files import read_argument
from npgemma.layers.shapes import Array, Float

MOST_BYTES = 100_000_000  # of a file of texts
MOST_CHARACTERS = 10_000  # of a text: NumPy gives every text the space of the longest


def add_embed(add_parser: AddParser) -> None:
    embed = add_parser(
        "embed",
        parents=[encoder_flags(), strict_flag("text")],
        help="turn pictures and texts into rows to compare, for npgemma search",
    )
    embed.add_argument("images", nargs="*", metavar="IMAGE", help="pictures, or folders of pictures (not of folders)")
    embed.add_argument("--text", type=Path, metavar="FILE", help="texts as well, one a line")
    embed.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="an .npz file; rows that it has are kept, and others are added",
    )
    embed.add_argument(
        "--batch-size",
        type=positive,
        default=BATCH,
        metavar="N",
        help=f"how many run at a time (default: {BATCH}); the memory that is needed grows with it",
    )
    embed.set_defaults(run=run_embed, continued="output", reads={"images": "a picture", "text": "the file of texts"})


def run_embed(a: argparse.Namespace) -> int:
    """Embed what has no row yet. Returns 1 if a picture cannot be read."""
    unfinished = partial(a.output)
    asked, others = asked_for(a, [a.output, unfinished])
    a.model = a.model or EMBEDDED_PAIR.name
    model = load_dual_encoder(a)
    facts = facts_of(model, a.model)
    done = finished(a.output, facts)
    with open_rows(unfinished, facts) as rows:
        left = [key for key in asked if key not in done and key not in rows.done]
        texts = [key.name for key in (asked if a.strict else left) if key.kind == "text"]
        if texts:
            note_truncated("text", texts, model.text_rows(texts, a.strict))
        note_embedded(model, (key.name for key in left if key.kind == "image"))
        progress = Progress(len(asked), len(asked) - len(left))
        try:
            for results, errors in embed_all(model, left, rows, a.batch_size):
                for error in errors:
                    progress.wipe()
                    tell(str(error))
                progress.count(results, len(errors))
        except KeyboardInterrupt:
            progress.end("interrupted; the same command continues from here")
            return INTERRUPTED
        except BaseException:
            progress.wipe()
            raise
        if done | rows.done:
            write_embeddings(a.output, Embeddings(facts, done | rows.done))
        rows.needed = False
    failures = f"{progress.failed} of them errors, left out; the same command retries them" if progress.failed else ""
    progress.end("; ".join(note for note in (others, failures) if note))
    return 1 if progress.failed else 0


def asked_for(a: argparse.Namespace, besides: Sequence[Path]) -> tuple[list[Key], str]:
    """The texts and the pictures to embed, each once, and a sentence about files in folders that are not pictures.

    WrongUsage if there is nothing to do; BadJobs for a folder without pictures, BadPrompt for a bad file of texts.
    """
    if "-" in (*a.images, str(a.text), str(a.output)):
        raise WrongUsage("embed reads from files and writes to a file, to continue it later; name them")
    if not a.images and a.text is None:
        raise WrongUsage("embed needs pictures, or --text with a file of texts")
    keys = [Key("text", text) for text in ([] if a.text is None else read_texts(a.text))]
    notes = []
    for image in a.images:
        if not Path(image).is_dir():
            keys.append(Key("image", image))
            continue
        names, others = pictures_in(Path(image), besides)
        keys += [Key("image", str(Path(image) / name)) for name in names]
        notes += [f"{image}: {others}"] if others else []
    return list(dict.fromkeys(keys)), "; ".join(notes)


def read_texts(path: Path) -> list[str]:
    """The lines of a file that are not empty. BadPrompt if there are none, or the file is not text."""
    try:
        texts = [line.strip() for line in read_argument(path, MOST_BYTES).decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError as error:
        raise BadPrompt(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from None
    except OSError as error:
        raise BadPrompt(f"{path} cannot be read: {error.strerror}") from None
    for number, text in enumerate(texts, 1):
        if len(text) > MOST_CHARACTERS or "\0" in text:
            wrong = f"is longer than {MOST_CHARACTERS:,} characters" if "\0" not in text else "has a NUL character"
            raise BadPrompt(f"{path}: line {number} {wrong}; give a text a line")
    if not any(texts):
        raise BadPrompt(f"{path} has no texts; give a text a line")
    return [text for text in texts if text]


def facts_of(model: DualEncoder, name: str) -> Facts:
    """What made the rows. `name` is what the user calls the model; of a path, the absolute one."""
    called = str(Path(name).resolve()) if Path(name).exists() else name
    return Facts(called, model.config.model_type, digest(model), model.config.embedding_size)


def finished(path: Path, facts: Facts) -> dict[Key, Float[Array, "E"]]:
    """The rows of a file that exists already. BadEmbeddings if it is another model's, or something else."""
    if not path.exists():
        return {}
    found = read_embeddings(path)
    found.facts.check(facts, path)
    return found.rows


def embed_all(model: DualEncoder, left: Sequence[Key], rows: Rows, batch_size: int) -> Iterator[tuple[int, list[str]]]:
    """Write the rows of texts and pictures, batch by batch; yields the size of each, and the errors in it."""
    texts = [key for key in left if key.kind == "text"]
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        rows.write(batch, model.encode_texts([key.name for key in batch]))
        yield len(batch), []
    images = [key.name for key in left if key.kind == "image"]
    for names, found, errors in image_rows(model, images, batch_size):
        rows.write([Key("image", name) for name in names], found)
        yield len(names) + len(errors), list(map(str, errors))
