"""Small PaliGemma 2 models of transformers, whose every parameter is noise, as folders that npgemma reads."""

import copy
from pathlib import Path
from typing import TypeVar

import torch
from make_fixtures import IMAGE, Case, sizes
from transformers import PaliGemmaForConditionalGeneration, PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)

# Large enough for norms, caps and windows to matter: fresh models have neutral norms, and matrices of std 0.02.
NOISE = 0.5

VISION = sizes(16, 24, 2, 2, image_size=12, patch_size=4)
TEXT = sizes(24, 40, 4, 4, num_key_value_heads=2, head_dim=8, vocab_size=64) | dict(
    model_type="gemma2",
    query_pre_attn_scalar=6,
    sliding_window=5,
    attn_logit_softcapping=2.0,
    final_logit_softcapping=3.0,
)
ODD = sizes(15, 19, 1, 5, image_size=23, patch_size=7, layer_norm_eps=1e-3)
LISTED = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]


def case(
    prompt: tuple[str | int, ...] = (IMAGE, 4),
    *,
    vision: dict = VISION,
    image_token: int = 63,
    stored: torch.dtype = torch.float32,
    **text: object,
) -> Case:
    """A PaliGemma 2 with other values in its text_config. A picture has nine tokens, more than the window."""
    return Case(vision, TEXT | text, prompt, seed=11, suffix=8, image_token=image_token, stored=stored)


CASES = {
    "one picture": case(),
    "two pictures, image token beyond the table": case((IMAGE, IMAGE, 5), image_token=70),
    "text alone": case((12,)),
    "window 1": case(sliding_window=1),
    "window 3": case(sliding_window=3),
    "window 9": case((IMAGE, 3, IMAGE, 2), sliding_window=9),
    "window 30": case(sliding_window=30),
    "layers listed": case(layer_types=LISTED),
    "only sliding layers": case(layer_types=["sliding_attention"] * 4),
    "only full layers, no cap": case(
        layer_types=["full_attention"] * 4, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "no final cap": case(final_logit_softcapping=None),
    "no cap of scores": case(attn_logit_softcapping=None),
    "one key head": case(num_key_value_heads=1),
    "as many key heads as query heads, other angles": case(
        num_key_value_heads=4, rope_parameters=dict(rope_type="default", rope_theta=50.0)
    ),
    "odd sizes": case(
        (IMAGE, 6),
        vision=ODD,
        **sizes(18, 37, 5, 6, num_key_value_heads=3, head_dim=10, vocab_size=67),
        query_pre_attn_scalar=7,
        sliding_window=7,
        attn_logit_softcapping=1.5,
        final_logit_softcapping=2.5,
        rms_norm_eps=1e-3,
    ),
}


def noisy(case: Case, generator: torch.Generator) -> PaliGemmaForConditionalGeneration:
    """A float32 model whose parameters are all noise, rounded to what the case's stored dtype has."""
    return overwritten(PaliGemmaForConditionalGeneration(case.config), generator, case.stored)


def overwritten(model: Model, generator: torch.Generator, stored: torch.dtype) -> Model:
    """A model, after each of its parameters has been replaced by noise that `stored` represents."""
    for parameter in model.eval().parameters():
        noise = NOISE * torch.randn(parameter.shape, generator=generator)
        parameter.data = noise.to(stored).float()
    model.tie_weights()
    if not model.config.tie_word_embeddings:  # so that a token does not choose itself again and again
        model.get_input_embeddings().weight.data /= 8
    return model


def save(model: PreTrainedModel, case: Case, folder: Path) -> Path:
    """The model as transformers saves it, in the case's stored dtype. A copy is cast: its angles become inexact."""
    copy.deepcopy(model).to(case.stored).save_pretrained(folder)
    return folder
