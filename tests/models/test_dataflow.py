"""The diagram of npgemma/models/README.md shows every tap of a run, with its axes, and no other."""

import re
from pathlib import Path

import numpy as np
import pytest
from language_models import weights

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.names import TABLES
from npgemma.layers.taps import Recorder, at
from npgemma.models.gemma import Decoder, new_caches
from npgemma.models.paligemma import image_features, make_prompt
from npgemma.models.prefix_lm import Prompt, causal_prompt, start, step

DIAGRAM = (Path(npgemma.__file__).parent / "models" / "README.md").read_text("utf-8")
# One or several names, of which the later ones replace the last word of the first; then, after two spaces, the axes.
ENTRY = re.compile(r"((?:\.?[a-z][\w{}.]*)(?: \.\w+)*)(?::|  +((?:[A-Z] )*[A-Z]|-)(?:  |$))")


# On the right, the families that have a tap, unless all do.
MARKS = re.compile(r"  ([23SCV ]+)$")
OF_PICTURES = re.compile(r"(pictures|pixel_values|vision|projector)\b.*")


def drawn(family: str, diagram: int = 0) -> dict[str, str]:
    """The axes of each tap of a family. An entry that ends in ':' opens a scope for those that are indented more."""
    found: dict[str, str] = {}
    scopes: list[tuple[int, str]] = []
    for line in DIAGRAM.split("```")[1 + 2 * diagram].splitlines():
        body = line.replace("|", " ")
        entry, marks = ENTRY.match(body.strip()), MARKS.search(line)
        if entry is None or (marks and family not in marks[1]):
            continue
        indent = len(body) - len(body.lstrip())
        while scopes and scopes[-1][0] >= indent:
            scopes.pop()
        first, *rest = entry[1].split(" ")
        scope = scopes[-1][1] if first.startswith(".") else ""
        if entry[2] is None:
            scopes.append((indent, scope + first))
            continue
        for name in (first, *(first.rpartition(".")[0] + each for each in rest)):
            found[scope + name] = entry[2].replace("-", "")
    rotation = {name: axes.replace("N", "K") for name, axes in found.items() if ".q_rope." in name}
    return found | {name.replace("q_rope", "k_rope"): axes for name, axes in rotation.items()}  # not drawn again


def of_a_run(p: Decoder, prompt: Prompt, taps: Recorder) -> dict[str, str]:
    """The axes of each tap when a prompt is read and one step is taken."""
    caches = [new_caches(p, len(prompt.input_ids) + 1, prompt.dtype)]
    start(p, [prompt], caches, tap=taps)
    step(p, np.array([5]), caches, tap=at(taps, "steps.1"))
    plain = {name.removeprefix("steps.1."): axes for name, axes in taps.axes.items()}
    counted = {re.sub(r"layers\.\d+", "layers.{i}", name): axes for name, axes in plain.items()}
    return {re.sub(r"(pictures|prompts|segments)\.\d+", r"\1.{b}", name): axes for name, axes in counted.items()}


def test_the_diagram_shows_the_taps_of_a_run_with_their_axes() -> None:
    model: VisionLanguageModel = npgemma.load()
    taps = Recorder()
    inputs = model.processor([npgemma.sample_picture()], ["caption en"], tap=taps)
    features = image_features(model.weights, inputs.pixel_values, taps)
    prompt = make_prompt(model.weights, inputs.input_ids[0], inputs.token_type_ids[0], features)
    assert drawn("1") == of_a_run(model.decoder, prompt, taps)


@pytest.mark.parametrize("number", ["2", "3"])
def test_the_diagram_marks_the_taps_of_gemma_2_and_3(number: str) -> None:
    p = weights(f"Gemma {number}")
    run = of_a_run(p, causal_prompt(p, np.array([2, 5, 7]), np.dtype(np.float32)), Recorder())
    assert {name: axes for name, axes in drawn(number).items() if not OF_PICTURES.fullmatch(name)} == run


def encoder_taps(family: str) -> dict[str, str]:
    """The axes of each tap of an encoder, as the diagram has them: rows of pictures are T, and a tower is `vision`."""
    found = {}
    for entry in TABLES[family]:
        name = entry.pattern
        axes = entry.axes if name == "vision.embedding.patches" else entry.axes.replace("P", "T")
        if family == "ViT" and not name.startswith(("pictures", "pixel", "logits", "probabilities")):
            name, axes = f"vision.{name}", entry.axes
        found[name] = axes.replace("A", "U") if name == "probabilities" else axes
    return {name: axes for name, axes in found.items() if not name.startswith("text.layers.{i}")}


@pytest.mark.parametrize("family", ["SigLIP", "CLIP", "ViT"])
def test_the_diagram_shows_the_taps_of_encoders(family: str) -> None:
    """Those of a text's layers have the names of a picture's."""
    shown = {name: axes for name, axes in drawn(family[0], 1).items() if name != "text.layers.{i}"}
    assert shown == encoder_taps(family)
