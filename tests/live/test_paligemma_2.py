"""PaliGemma 2 against transformers: logits, masks, greedy ids past the window, and the folders it comes in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

import npgemma

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

from make_fixtures import greedy, in_float64, make_inputs, truth  # noqa: E402
from paligemma_2_models import CASES, noisy, save  # noqa: E402
from torch_logits import FLOAT32_RATIO, compare_logits, prompt_of  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

PROMPTS = 4
STEPS = 40
# The cases whose caches differ. With a window of 1 transformers' own cache keeps all rows (`[-sliding_window + 1 :]`).
DECODED = ("one picture", "two pictures", "window 3", "layers listed", "no cap of scores", "one key head", "odd sizes")


@contextmanager
def wide(model: torch.nn.Module, inputs: dict) -> Iterator[tuple[torch.nn.Module, dict]]:
    """transformers' model and its inputs in float64, in a context in which it computes all in float64."""
    with truth():
        yield in_float64(model), {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path, ratios: dict[str, float]) -> None:
    """With a suffix: in float64 up to rounding, and in float32 as near to the truth as transformers."""
    case, generator = CASES[name], torch.Generator().manual_seed(CASES[name].seed)
    save(noisy(case, generator), case, tmp_path)
    prompts = [make_inputs(case, generator) for _ in range(PROMPTS)]
    ratio = ratios[f"PaliGemma 2, {name}"] = compare_logits(tmp_path, prompts)
    assert ratio <= FLOAT32_RATIO


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", DECODED)
def test_greedy_ids_equal_those_of_transformers_past_the_window(name: str, dtype: str, tmp_path: Path) -> None:
    """A prefill of more than the window, then steps through caches that keep `window` rows on sliding layers."""
    case, generator = replace(CASES[name], tied=False), torch.Generator().manual_seed(CASES[name].seed)
    model = noisy(case, generator)
    model.generation_config.eos_token_id = None
    save(model, case, tmp_path)
    prompt = prompt_of(make_inputs(case, generator))
    with wide(model, prompt) if dtype == "float64" else nullcontext((model, prompt)) as (theirs, inputs):
        expected = greedy(theirs, inputs, STEPS).tolist()
    ids, pixels = prompt["input_ids"][0].numpy(), prompt["pixel_values"].numpy()
    assert npgemma.load(tmp_path, dtype).generate_ids(ids, pixels, STEPS, eos_ids=()) == expected
    assert len(set(expected)) > 3  # otherwise equal ids would say little
