"""PaliGemma: pictures as a soft prompt of a language model.

    pixel_values --> SigLIP --> projector --> image rows --.
                                                           |-- one row a token --> Gemma --> logits
    input_ids ---------------------------> text rows ------'

A prompt is [image tokens, bos, prefix, newline | suffix]. The prefix attends to all of itself, pictures included; the
suffix is causal (PaliGemma, Beyer et al. 2024, section 3.2, figure 2).
"""

from dataclasses import dataclass

from npgemma.layers.linear import linear
from npgemma.layers.shapes import Array, Float, Int, Weight
from npgemma.layers.taps import Tap, at, silent
from npgemma.models import prefix_lm
from npgemma.models.gemma import Decoder
from npgemma.models.prefix_lm import Prompt
from npgemma.models.siglip import VisionTower, vision_tower


@dataclass(frozen=True)
class Projector:
    weight: Weight[Array, "D E"]
    bias: Float[Array, "D"]


@dataclass(frozen=True)
class PaliGemma:
    vision: VisionTower
    projector: Projector
    text: Decoder
    image_token: int


def image_features(p: PaliGemma, pixel_values: Float[Array, "B C Y X"], tap: Tap = silent) -> Float[Array, "B P D"]:
    """Each picture as P rows of the decoder's width, which replace its image tokens."""
    pixel_values = tap("pixel_values", pixel_values, "B C Y X")
    x = vision_tower(p.vision, pixel_values, at(tap, "vision"))
    return tap("projector", linear(x, p.projector.weight, p.projector.bias), "B P D")


def make_prompt(
    p: PaliGemma, input_ids: Int[Array, "T"], token_type_ids: Int[Array, "T"], features: Float[Array, "B P D"]
) -> Prompt:
    """The prompt whose image tokens are soft: the features of its pictures replace them, one row each."""
    return Prompt(input_ids, token_type_ids, input_ids == p.image_token, features.reshape(-1, features.shape[-1]))


def forward(
    p: PaliGemma,
    input_ids: Int[Array, "T"],
    pixel_values: Float[Array, "B C Y X"],
    token_type_ids: Int[Array, "T"],
    tap: Tap = silent,
) -> Float[Array, "T V"]:
    """The logits of every row of one sequence in one pass, as in training."""
    prompt = make_prompt(p, input_ids, token_type_ids, image_features(p, pixel_values, tap))
    return prefix_lm.forward(p.text, prompt, tap)
