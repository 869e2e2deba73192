"""Gradients of transformers, dumped by the recipe of golden/README.md, are explained; a planted mistake is found."""

import inspect
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
from gradient_study import two_pictures
from random_models import PALIGEMMA_2, write_model

import npgemma
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.golden import Golden, Report, read_dump, read_golden
from npgemma.golden.gradient_compare import compare_gradients
from npgemma.golden.gradient_presets import gradient_preset
from npgemma.golden.gradient_record import record_gradients
from npgemma.golden.gradient_replay import replay_gradients

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

import dump_gradients as recipe  # noqa: E402
from dump_transformers import load_model  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers.models.gemma2 import modeling_gemma2  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

README = Path(npgemma.__file__).parent / "golden" / "README.md"
ANSWERS = ["a red star above a blue square", "two green circles and a star"]
Case = tuple[VisionLanguageModel, Path, Golden]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A random PaliGemma 2, two pictures, an answer to each."""
    folder = tmp_path_factory.mktemp("gradients")
    model, path = npgemma.load(write_model(folder / "model", PALIGEMMA_2)), folder / "case.safetensors"
    record_gradients(model, two_pictures(), "caption en", ANSWERS, path, "ops")
    return model, path, read_golden(path)


def report_on(case: Case, folder: Path, dtype: str, attention: str) -> Report:
    model, path, golden = case
    save_file(
        recipe.dump_gradients(load_model(model.folder, getattr(torch, dtype), attention), path),
        folder / "d.safetensors",
    )
    dump = read_dump(folder / "d.safetensors")
    report = compare_gradients(golden, dump, gradient_preset("transformers", golden))
    return replay_gradients(model, golden, dump, report)


@pytest.mark.parametrize(("dtype", "attention"), [("float32", "eager"), ("bfloat16", "sdpa")])
def test_transformers_is_explained(case: Case, tmp_path: Path, dtype: str, attention: str) -> None:
    report = report_on(case, tmp_path, dtype, attention)
    assert (report.dtype, report.status, report.culprits) == (dtype, 0, [])
    assert (report.pairing.missing, report.pairing.unmapped) == ([], [])
    assert len(report.verdicts) > 250


def test_a_mistake_in_transformers_is_found_in_its_block(case: Case, tmp_path: Path) -> None:
    """The gradient of what the MLP takes is one percent too large."""

    class Louder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, dy):
            return 1.01 * dy

    original = modeling_gemma2.Gemma2MLP.forward
    with ExitStack() as stack:
        stack.callback(setattr, modeling_gemma2.Gemma2MLP, "forward", original)
        modeling_gemma2.Gemma2MLP.forward = lambda self, x: original(self, Louder.apply(x))
        report = report_on(case, tmp_path, "float32", "eager")
    assert report.first_divergence.name == "grad.text.layers.3.mlp_norm"
    assert {verdict.block for verdict in report.culprits} >= {f"text.layers.{i}" for i in range(4)}


def test_the_recipe_of_the_guide_is_the_function_that_dumps_and_has_at_most_30_lines() -> None:
    (block,) = [each for each in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if "retain_grad" in each]
    assert block.rstrip().endswith(inspect.getsource(recipe.dump_gradients).rstrip())
    assert len(block.splitlines()) <= 30
    namespace: dict[str, object] = {}
    exec(block, namespace)
    assert callable(namespace["dump_gradients"])
