"""classify: which labels fit a picture. They are the user's for a SigLIP or a CLIP, and the model's own for a ViT."""

import argparse

from npgemma.api.classifier import TOP, Classifier, Label
from npgemma.api.dual_encoder import DualEncoder
from npgemma.checkpoints import clip
from npgemma.commands.flags import AddParser, WrongUsage, encoder_flags, load_any_model, positive, reading, strict_flag
from npgemma.commands.notes import note_embedded, note_truncated
from npgemma.commands.output import as_json, say, working
from npgemma.commands.streams import PICTURE, given
from npgemma.errors import BadModel, BadPrompt
from npgemma.io.model_folder import EMBEDDED_PAIR
from npgemma.io.text_rows import TextRows


def add_classify(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    parser = add_parser(
        "classify",
        parents=[form, encoder_flags(), strict_flag("label")],
        help="rank labels by how well they fit a picture: probability, label",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument(
        "labels", nargs="*", metavar="LABEL", help="what to choose from, in words; none for a ViT, which has its own"
    )
    parser.add_argument(
        "--top",
        type=positive,
        metavar="N",
        help=f"print the N most probable labels only (default: all of yours, {TOP} of a ViT)",
    )
    parser.set_defaults(run=run_classify, stdin={"image": (PICTURE,)})


def run_classify(a: argparse.Namespace) -> None:
    """A line a label, the most probable first: probability and label, with a tab between; or one JSON object."""
    a.model = a.model or EMBEDDED_PAIR.name
    model = load_any_model(a)
    if not isinstance(model, DualEncoder | Classifier):
        raise BadModel(f"{model.folder} writes text and does not rank labels; load a SigLIP, a CLIP or a ViT")
    with working(reading([a.image])):
        labels = own_labels(a, model) if isinstance(model, Classifier) else given_labels(a, model)
    if a.format == "json":
        say(as_json({"model": a.model, "image": given(a.image), "labels": [label._asdict() for label in labels]}))
    else:
        for label in labels:
            say(f"{label.probability:#.4g}", " ".join(label.name.split()), sep="\t")
    note_embedded(model, [a.image])


def own_labels(a: argparse.Namespace, model: Classifier) -> list[Label]:
    """The likeliest labels of a classifier. WrongUsage if the user gives others."""
    if a.labels:
        what = f"{a.model} has {len(model.config.labels)} labels of its own"
        raise WrongUsage(f"{what}; leave yours out, or load a SigLIP or a CLIP")
    if a.strict:
        raise WrongUsage(f"--strict is about labels of yours, and {a.model} has its own; leave it out")
    (labels,) = model.classify(a.image, a.top or TOP)
    return labels


def given_labels(a: argparse.Namespace, model: DualEncoder) -> list[Label]:
    """The user's labels, the likeliest first. WrongUsage if there are none."""
    if not a.labels:
        raise WrongUsage("classify needs labels to choose from after the picture, such as 'a cat' 'a dog'")
    rows = model.text_rows(a.labels, a.strict)
    check_labels(model, a.labels, rows)
    note_truncated("label", a.labels, rows)
    (probabilities,) = model.classify(a.image, a.labels).tolist()
    return sorted(map(Label, a.labels, probabilities), key=lambda label: -label.probability)[: a.top]


def check_labels(model: DualEncoder, labels: list[str], rows: TextRows) -> None:
    """BadPrompt for labels whose rank would mean nothing: one without words, two that are the same, a single one."""
    empty, seen = tuple(model.text_rows("").ids[0].tolist()), dict[tuple[int, ...], str]()
    for i, (label, ids) in enumerate(zip(labels, map(tuple, rows.ids.tolist()), strict=True)):
        if ids == empty:
            raise BadPrompt(f"the label {label!r} has nothing that the model reads; write it in words")
        if ids in seen:
            same = f"the labels {seen[ids]!r} and {label!r} are the same to the model"
            cut = f", which reads {rows.ids.shape[1]} tokens; use fewer words" if i in rows.truncated else ""
            raise BadPrompt(same + (cut or "; leave one of them out"))
        seen[ids] = label
    if len(labels) == 1 and model.config.model_type == clip.MODEL_TYPE:
        raise BadPrompt("a CLIP compares labels, and of a single one the probability is always 1; give two or more")
