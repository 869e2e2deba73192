"""Adapters that PEFT makes, with random trained parameters, and the logits of PEFT and of npgemma."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import peft
import torch
from dump_transformers import load_model
from make_fixtures import in_float64, truth

import npgemma
from npgemma.io.model_folder import EMBEDDED


def adapted(
    config: peft.PeftConfig,
    wide: bool,
    saved: str = "float32",
    std: float = 0.1,
    rows: int | None = None,
    folder: Path = EMBEDDED,
) -> peft.PeftModel:
    """The model of a folder in PEFT, with random trained parameters, including B, that `saved` represents exactly.

    `rows` is the number of rows that its embedding table is resized to.
    """
    torch.manual_seed(0)  # PEFT draws A
    base = load_model(folder, torch.float32, "eager")
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


def logits(model: npgemma.VisionLanguageModel, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    ids, types = (inputs[name][0].numpy() for name in ("input_ids", "token_type_ids"))
    return model.forward(ids, inputs["pixel_values"].numpy(), types)
