"""Small Gemmas 1, 2 and 3 of transformers as language models, whose every parameter is noise, and their folders."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from make_fixtures import sizes
from paligemma_2_models import overwritten
from paligemma_2_models import save as save_as
from transformers import PreTrainedConfig, PreTrainedModel

FAMILIES: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
    "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
    "gemma3_text": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
}


@dataclass(frozen=True)
class Gemma:
    """A config of one family, and how the model is stored."""

    model_type: str
    keys: dict
    stored: torch.dtype = torch.float32

    @property
    def kind(self) -> type[PreTrainedModel]:
        return FAMILIES[self.model_type][1]

    @property
    def config(self) -> PreTrainedConfig:
        return FAMILIES[self.model_type][0](**self.keys, attn_implementation="eager")

    def changed(self, **keys: object) -> "Gemma":
        """The same with other values in its config."""
        return replace(self, keys=self.keys | keys)


def rotations(full: float, sliding: float, factor: float = 8.0) -> dict:
    """rope_parameters of Gemma 3, scaled on its global layers alone."""
    return dict(
        full_attention=dict(rope_type="linear", factor=factor, rope_theta=full),
        sliding_attention=dict(rope_type="default", rope_theta=sliding),
    )


# Widths are pairwise distinct, and the scale of the scores is not that of the heads' width.
SIZES = sizes(24, 40, 4, 4, num_key_value_heads=2, head_dim=10, vocab_size=64)
ODD = sizes(18, 37, 5, 6, num_key_value_heads=3, head_dim=14, vocab_size=67, rms_norm_eps=1e-3)
SCALE = dict(query_pre_attn_scalar=6, sliding_window=5)
CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0)
ROPE = dict(rope_parameters=rotations(1e6, 1e4))

GEMMA = Gemma("gemma", SIZES)
GEMMA_2 = Gemma("gemma2", SIZES | SCALE | CAPS)
GEMMA_3 = Gemma("gemma3_text", SIZES | SCALE | ROPE | dict(num_hidden_layers=7))  # the sixth layer is global
EVERY = {"Gemma 1": GEMMA, "Gemma 2": GEMMA_2, "Gemma 3": GEMMA_3}

SLIDING, FULL = "sliding_attention", "full_attention"
ONE_KEY_HEAD, ALL_KEY_HEADS = dict(num_key_value_heads=1), dict(num_key_value_heads=4)
UNTIED = dict(tie_word_embeddings=False)
THETA = dict(rope_parameters=dict(rope_type="default", rope_theta=50.0))

CASES = EVERY | {
    "Gemma 1, one key head": GEMMA.changed(**ONE_KEY_HEAD),
    "Gemma 1, as many key heads as query heads, other angles": GEMMA.changed(**ALL_KEY_HEADS, **THETA),
    "Gemma 1, odd sizes": GEMMA.changed(**ODD),
    "Gemma 1, untied": GEMMA.changed(**UNTIED),
    "Gemma 2, one key head, window 3": GEMMA_2.changed(**ONE_KEY_HEAD, sliding_window=3),
    "Gemma 2, as many key heads as query heads, window 9": GEMMA_2.changed(**ALL_KEY_HEADS, **THETA, sliding_window=9),
    "Gemma 2, odd sizes": GEMMA_2.changed(**ODD, query_pre_attn_scalar=7, sliding_window=7),
    "Gemma 2, untied": GEMMA_2.changed(**UNTIED),
    "Gemma 2, no cap": GEMMA_2.changed(attn_logit_softcapping=None, final_logit_softcapping=None),
    "Gemma 2, layers listed": GEMMA_2.changed(layer_types=[FULL, FULL, SLIDING, SLIDING]),
    "Gemma 3, one key head, window 3": GEMMA_3.changed(**ONE_KEY_HEAD, sliding_window=3),
    "Gemma 3, as many key heads as query heads, window 9": GEMMA_3.changed(**ALL_KEY_HEADS, sliding_window=9),
    "Gemma 3, odd sizes": GEMMA_3.changed(**ODD | dict(num_hidden_layers=6), query_pre_attn_scalar=7, sliding_window=7),
    "Gemma 3, untied": GEMMA_3.changed(**UNTIED),
    "Gemma 3, caps": GEMMA_3.changed(**CAPS),  # transformers caps the logits alone
    "Gemma 3, other angles": GEMMA_3.changed(rope_parameters=rotations(300.0, 20.0, factor=2.5)),
    "Gemma 3, layers listed": GEMMA_3.changed(layer_types=[FULL, SLIDING, SLIDING, FULL, SLIDING, FULL, FULL]),
}


def noisy(case: Gemma, generator: torch.Generator) -> PreTrainedModel:
    """A float32 model whose parameters are all noise, rounded to what the case's stored dtype has."""
    return overwritten(case.kind(case.config), generator, case.stored)


def save(case: Gemma, folder: Path, generator: torch.Generator) -> Path:
    """A folder with a noisy model; returns it."""
    return save_as(noisy(case, generator), case, folder)


def inputs_of(ids: torch.Tensor | list[int]) -> dict[str, torch.Tensor]:
    """What transformers receives for one prompt."""
    return {"input_ids": torch.as_tensor(ids)[None]}


def random_ids(case: Gemma, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(3, case.keys["vocab_size"], (count,), generator=generator)
