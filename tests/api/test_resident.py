"""Models whose weights stay widened in memory answer as others do, and use no more memory than they may."""

from pathlib import Path

import numpy as np
import pytest

import npgemma
from npgemma.api.model import LoadedModel
from npgemma.checkpoints.footprint import BASE
from npgemma.layers.tree import arrays

MB = 1_000_000
PICTURE = npgemma.sample_picture()


def load(**options: object) -> npgemma.VisionLanguageModel:
    """A model that copies at the first step."""
    model = npgemma.VisionLanguageModel.load(**options)  # type: ignore[arg-type]
    if model.guard.copies is not None:
        model.guard.copies.steps = 0
    return model


def logprobs(model: npgemma.VisionLanguageModel, prompts: list[str]) -> list[list[float]]:
    return [answer.logprobs for answer in model.generate([PICTURE] * len(prompts), prompts, max_new_tokens=9)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("prompts", [["caption en"], ["ocr", "caption en", "detect star"]])
def test_answers_have_the_same_bits_with_and_without_copies(dtype: str, prompts: list[str]) -> None:
    auto, packed = load(dtype=dtype, resident="auto"), load(dtype=dtype)
    for _ in range(2):
        assert logprobs(auto, prompts) == logprobs(packed, prompts)
    assert auto.guard.copies is not None
    assert auto.guard.copies.size > sum(w.nbytes for w in arrays(auto.decoder) if w.dtype == np.uint16)


@pytest.mark.parametrize("allowed", [1, 3])
def test_copies_take_no_more_than_a_run_leaves_of_the_memory_allowed(allowed: int) -> None:
    need = load().guard
    model = load(resident="auto", max_memory=BASE + 12 * MB + allowed * MB)
    model.generate(PICTURE, "caption en", max_new_tokens=5)
    assert need.budget.weights < 12 * MB
    assert model.guard.copies is not None
    assert 0 < model.guard.copies.size <= allowed * MB + 12 * MB - need.budget.weights


def test_copies_give_way_to_a_run_that_needs_their_memory() -> None:
    model = load(resident="auto")
    model.generate(PICTURE, "caption en", max_new_tokens=5)
    copies = model.guard.copies
    assert copies is not None
    before = copies.size
    copies.set_limit(before // 2)
    assert 0 < copies.size <= before // 2


@pytest.mark.parametrize("resident", ["Auto", "yes", None, 0, 1, 2])
def test_another_value_is_refused(resident: object) -> None:
    with pytest.raises(ValueError, match="it must be True, False or 'auto'"):
        load(resident=resident)


def test_every_kind_of_model_may_be_auto() -> None:
    for kind in (npgemma.LanguageModel, npgemma.DualEncoder):
        assert isinstance(kind.load(resident="auto"), LoadedModel)
    assert npgemma.DualEncoder.load(resident="auto").encode_texts(["a"]).shape[0] == 1


def test_weights_are_read_only_however_they_are_loaded() -> None:
    """Nothing can change below what is kept of them."""
    for resident in (True, False, "auto"):
        assert not any(w.flags.writeable for w in arrays(load(resident=resident).weights))


def test_the_files_of_copied_weights_are_still_watched(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in npgemma.load().folder.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    model = load(path=folder, resident="auto")
    model.generate(PICTURE, "ocr")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes())
    with pytest.raises(npgemma.BadModel, match="has been written to"):
        model.generate(PICTURE, "ocr")
