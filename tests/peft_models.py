"""Adapters that PEFT makes, with random trained parameters, and their logits."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import peft
import torch
from make_fixtures import in_float64, truth
from torch_logits import read
from transformers import PaliGemmaForConditionalGeneration, PreTrainedModel

from npgemma.io.model_folder import EMBEDDED


def adapted(
    config: peft.PeftConfig,
    wide: bool,
    saved: str = "float32",
    std: float = 0.1,
    rows: int | None = None,
    folder: Path = EMBEDDED,
    kind: type[PreTrainedModel] = PaliGemmaForConditionalGeneration,
) -> peft.PeftModel:
    """The model of a folder in PEFT, with random trained parameters, including B, that `saved` represents exactly.

    `rows` is the number of rows that its embedding table is resized to.
    """
    torch.manual_seed(0)  # PEFT draws A
    base = read(folder, kind)
    if rows is not None:
        base.resize_token_embeddings(rows)
    model = peft.get_peft_model(in_float64(base) if wide else base, config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            moved = parameter.data + std * torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.data = moved.to(getattr(torch, saved)).to(parameter.dtype)
    return model


@torch.no_grad()
def logits_of(model: torch.nn.Module, inputs: dict[str, torch.Tensor], wide: bool) -> np.ndarray:
    with ExitStack() as stack:
        if wide:
            stack.enter_context(truth())
            inputs = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
        return model(**inputs).logits[0].numpy()
