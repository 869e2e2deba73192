"""Runs of transformers, dumped by forward hooks and by its debugger, are explained; planted bugs are found."""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from random_models import GEMMAS, PALIGEMMA_2, PROMPT, STEPS, load_with_suffix, write_model

import npgemma
from npgemma.api.generation import Model
from npgemma.api.language import LanguageModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden.compare import Report, compare
from npgemma.golden.dump import read_dump
from npgemma.golden.file import Golden, read_golden
from npgemma.golden.mapping import pair
from npgemma.golden.presets import preset
from npgemma.golden.record import record
from npgemma.golden.replay import replay
from npgemma.io.model_folder import EMBEDDED

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from dump_transformers import dump, load_model, make_inputs  # noqa: E402
from port_bugs import HARMLESS, LATE_BUGS, PORT_BUGS  # noqa: E402
from port_study import is_found  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers.model_debugging_utils import model_addition_debugger_context  # noqa: E402
from transformers_bugs import BUGS, BUGS_2, BUGS_3, Bug  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

SAMPLE = npgemma.sample_picture()
DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("eager", "sdpa")
# Mistakes smaller than the errors of rounding to bfloat16: no dump in bfloat16 shows them.
UNSEEN_IN_BFLOAT16 = {"eps"}
# Mistakes that are faint in bfloat16: they may show first in a later block, and the replay finds their own.
FAINT_IN_BFLOAT16 = {*BUGS, "local_theta"}


@dataclass(frozen=True)
class Recorded:
    """A golden file with every tap, and the model that it was recorded from."""

    model: Model
    golden: Golden

    def inputs(self) -> dict[str, torch.Tensor]:
        if not self.golden.has_pictures:
            return make_inputs(self.model.folder, [], PROMPT)
        types = torch.from_numpy(self.golden.truth["prompts.0.token_type_ids"].astype(np.int64))[None]
        return make_inputs(self.model.folder, [SAMPLE], "caption en") | {"token_type_ids": types}

    def report(self, folder: Path, dtype: str, attention: str = "eager", bug: Bug | None = None) -> Report:
        """The report, with a replay, on a dump of transformers that is written to a file and read back."""
        model = load_model(self.model.folder, getattr(torch, dtype), attention)
        ids = self.golden.truth["generated_ids"].tolist()[:-1]
        with ExitStack() as stack:
            inputs = self.inputs()
            if bug:
                bug.plant(model, stack)
                inputs = bug.inputs(inputs, [SAMPLE])
            save_file(dump(model, inputs, ids), folder / "dump.safetensors")
        found = read_dump(folder / "dump.safetensors")
        names = preset("transformers", self.golden)
        return replay(self.model, self.golden, found, compare(self.golden, found, names))


def recorded(model: Model, steps: int, folder: Path) -> Recorded:
    images, prompt = ([SAMPLE], "caption en") if isinstance(model, VisionLanguageModel) else ([], PROMPT)
    record(model, images, prompt, folder / "ops.safetensors", "ops", steps=steps)
    return Recorded(model, read_golden(folder / "ops.safetensors"))


def shortened(case: Recorded, steps: int) -> Recorded:
    """The same case with fewer steps."""
    golden = case.golden
    later = re.compile(r"steps\.(\d+)\.")
    taps = {tap: axes for tap, axes in golden.taps.items() if not (step := later.match(tap)) or int(step[1]) <= steps}
    truth = {**golden.truth, "generated_ids": golden.truth["generated_ids"][: steps + 1]}
    return replace(case, golden=replace(golden, taps=taps, truth=truth))


@pytest.fixture(scope="session")
def embedded_long(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return recorded(npgemma.load(), 4, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def embedded(embedded_long: Recorded) -> Recorded:
    return shortened(embedded_long, 3)


@pytest.fixture(scope="session")
def embedded_step(embedded_long: Recorded) -> Recorded:
    """With one step, in which nearly every bug shows."""
    return shortened(embedded_long, 1)


@pytest.fixture(scope="session")
def paligemma_2(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A window shorter than its prompts, caps that bite, and steps until the window lies after the prompt."""
    model = load_with_suffix(write_model(tmp_path_factory.mktemp("paligemma_2"), PALIGEMMA_2), PALIGEMMA_2)
    return recorded(model, STEPS, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="session")
def paligemma_2_step(paligemma_2: Recorded) -> Recorded:
    return shortened(paligemma_2, 1)


@pytest.fixture(scope="session")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Recorded]:
    """A random language model of each family, with a window shorter than its prompt, and caps that bite."""

    @cache
    def make(number: int) -> Recorded:
        model = LanguageModel.load(write_model(tmp_path_factory.mktemp("gemma"), GEMMAS[number]))
        return recorded(model, STEPS, tmp_path_factory.mktemp("golden"))

    return make


@pytest.fixture(scope="session")
def gemma_1(gemma: Callable[[int], Recorded]) -> Recorded:
    return gemma(1)


@pytest.fixture(scope="session")
def gemma_2(gemma: Callable[[int], Recorded]) -> Recorded:
    return gemma(2)


@pytest.fixture(scope="session")
def gemma_3(gemma: Callable[[int], Recorded]) -> Recorded:
    return gemma(3)


@pytest.fixture(scope="session")
def gemma_3_step(gemma_3: Recorded) -> Recorded:
    return shortened(gemma_3, 1)


@pytest.mark.parametrize(
    ("name", "attention", "verdicts"),
    [
        ("embedded", "eager", 383),
        ("embedded", "sdpa", 363),
        ("paligemma_2", "eager", 664),
        ("paligemma_2", "sdpa", 662),  # the tower's; transformers has none for a decoder with caps
        ("gemma_1", "eager", 568),
        ("gemma_1", "sdpa", 539),
        ("gemma_2", "eager", 632),
        ("gemma_3", "eager", 681),
        ("gemma_3", "sdpa", 652),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_tap_of_transformers_is_explained(
    request: pytest.FixtureRequest, tmp_path: Path, dtype: str, name: str, attention: str, verdicts: int
) -> None:
    report = request.getfixturevalue(name).report(tmp_path, dtype, attention)
    assert report.dtype == dtype
    assert [verdict.name for verdict in report.verdicts if not verdict.explained] == []
    assert [verdict.name for verdict in report.culprits] == []
    assert report.status == 0
    assert len(report.verdicts) == verdicts


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_bfloat16_is_not_explained_as_float32(embedded: Recorded, tmp_path: Path, attention: str) -> None:
    """Of its floats only the pixels are, which are dumped before they are rounded."""
    embedded.report(tmp_path, "bfloat16", attention)
    names = preset("transformers", embedded.golden)
    report = compare(embedded.golden, read_dump(tmp_path / "dump.safetensors"), names, "float32")
    assert report.status == 1
    explained = {verdict.name for verdict in report.verdicts if verdict.explained and verdict.ratios}
    assert explained == {"pixel_values"}


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        *(("embedded_step", bug) for bug in BUGS),
        *(("paligemma_2_step", bug) for bug in BUGS_2),
        *(("gemma_3_step", bug) for bug in BUGS_3),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bug_in_transformers_is_found_in_its_block(
    request: pytest.FixtureRequest, tmp_path: Path, dtype: str, name: str, bug: str
) -> None:
    planted = (BUGS | BUGS_2 | BUGS_3)[bug]
    report = request.getfixturevalue(name).report(tmp_path, dtype, bug=planted)
    if dtype == "bfloat16" and bug in UNSEEN_IN_BFLOAT16:
        assert report.status == 0
        return
    assert report.status == 1
    if dtype == "float32" or bug not in FAINT_IN_BFLOAT16:
        assert report.first_divergence.block == planted.block
    assert report.culprits[0].block == planted.block


@pytest.mark.parametrize("bug", list(PORT_BUGS)[::3])
def test_mistake_of_a_port_is_found_in_its_block(embedded_step: Recorded, tmp_path: Path, bug: str) -> None:
    """Every third; `tools/port_study.py --bugs` tries all."""
    report = embedded_step.report(tmp_path, "float32", bug=PORT_BUGS[bug])
    assert is_found(report, report, PORT_BUGS[bug])


@pytest.mark.parametrize("bug", HARMLESS)
def test_what_makes_no_difference_in_float32_is_explained(embedded_step: Recorded, tmp_path: Path, bug: str) -> None:
    assert embedded_step.report(tmp_path, "float32", bug=HARMLESS[bug]).status == 0


def test_mistake_that_shows_late_is_found_with_more_steps(embedded_long: Recorded, tmp_path: Path) -> None:
    bug = LATE_BUGS["cache_one_off_after_step_3"]
    report = embedded_long.report(tmp_path, "float32", bug=bug)
    assert is_found(report, report, bug)


@pytest.mark.parametrize("name", ["embedded", "paligemma_2", "gemma_1", "gemma_3"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_folder_of_transformers_debugger_is_explained(
    request: pytest.FixtureRequest, tmp_path: Path, dtype: str, name: str
) -> None:
    case = request.getfixturevalue(name)
    model = load_model(case.model.folder, getattr(torch, dtype), "eager")
    with (
        model_addition_debugger_context(model, str(tmp_path), do_prune_layers=False, use_repr=False),
        torch.no_grad(),
    ):
        model(**case.inputs(), logits_to_keep=1)
    report = compare(case.golden, read_dump(tmp_path), preset("transformers-debugger", case.golden))
    assert report.status == 0
    assert len(report.verdicts) > 55
    assert {f"text.layers.{i}.out" for i in range(3)} <= {verdict.name for verdict in report.verdicts}


def test_debugger_folder_of_text_is_refused(embedded: Recorded, tmp_path: Path) -> None:
    model = load_model(EMBEDDED, torch.float32, "eager")
    with model_addition_debugger_context(model, str(tmp_path)), torch.no_grad():
        model(**embedded.inputs(), logits_to_keep=1)
    with pytest.raises(npgemma.NpgemmaError, match="use_repr=False"):
        read_dump(tmp_path)


@pytest.mark.parametrize("name", ["embedded", "paligemma_2", "gemma_1", "gemma_2", "gemma_3"])
def test_preset_maps_every_name_of_the_hooks_to_a_tap(request: pytest.FixtureRequest, name: str) -> None:
    """It also transposes a cache of several heads."""
    case = request.getfixturevalue(name)
    found = dump(load_model(case.model.folder, torch.float32, "eager"), case.inputs())
    pairing = pair(preset("transformers", case.golden), found, case.golden.taps)
    assert pairing.unmapped == []
    assert pairing.unrecorded == []
    keys = pairing.pairs["text.layers.0.attn.segments.0.keys"][1]
    assert keys.apply(np.zeros((1, 2, 40, 32))).shape == (1, 40, 2, 32)
