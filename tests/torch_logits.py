"""The logits of a model folder in npgemma and in transformers, compared in float64 and in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from make_fixtures import in_float64, truth
from transformers import PaliGemmaForConditionalGeneration, PreTrainedModel

import npgemma
from npgemma.api.language import LanguageModel

# Both float32 runs round the same sums in another order; an error of up to twice transformers' is rounding alone.
# The ratio is that of the median rows of several prompts: the error of one row is random, and that of a badly
# conditioned row hides the others.
FLOAT32_RATIO = 2.0
# The roundings of a float64 run are 2^29 times smaller than those of a float32 run; 8 for another order of the sums.
FLOAT64_SHARE = 8 * 2.0**-29


def read(folder: Path, kind: type[PreTrainedModel] = PaliGemmaForConditionalGeneration) -> PreTrainedModel:
    """transformers' model of a folder in float32; AssertionError if it misses a tensor or finds an unexpected one."""
    model, report = kind.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@contextmanager
def wide(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """transformers' model in float64, in a context in which it computes all in float64."""
    with truth():
        double = in_float64(model)
        double.generation_config = model.generation_config
        yield double


@torch.no_grad()
def logits_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Those of transformers, or of PEFT."""
    return model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits[0].numpy()


def logits(model: npgemma.VisionLanguageModel | LanguageModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """Those of npgemma."""
    ids = inputs["input_ids"][0].numpy()
    if isinstance(model, LanguageModel):
        return model.forward(ids)
    pixels = inputs["pixel_values"].numpy() if "pixel_values" in inputs else None
    return model.forward(ids, pixels, inputs["token_type_ids"][0].numpy())


def compare_logits(
    folder: Path, prompts: list[dict], kind: type[PreTrainedModel] = PaliGemmaForConditionalGeneration
) -> float:
    """Compare float64 logits up to rounding; returns npgemma's float32 error divided by transformers'."""
    hugging_face = read(folder, kind)
    double_hugging_face = in_float64(hugging_face)
    single, double = npgemma.load(folder), npgemma.load(folder, "float64")
    errors: tuple[list[float], list[float]] = ([], [])
    for inputs in prompts:
        theirs = logits_of(hugging_face, inputs)
        with truth():
            exact = logits_of(double_hugging_face, inputs)
        atol = FLOAT64_SHARE * float(np.abs(theirs - exact).max())
        np.testing.assert_allclose(logits(double, inputs), exact, rtol=0, atol=atol, strict=True)
        ours = logits(single, inputs)
        assert ours.dtype == theirs.dtype == np.float32
        for each, found in zip(errors, (ours, theirs), strict=True):
            each += np.sqrt(np.square(found - exact).mean(-1)).tolist()
    return float(np.median(errors[0]) / np.median(errors[1]))


def prompt_of(inputs: dict) -> dict:
    """The inputs without their suffix."""
    length = int((inputs["token_type_ids"] == 0).sum())
    return inputs | {name: inputs[name][:, :length] for name in ("input_ids", "token_type_ids")}
