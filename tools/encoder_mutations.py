"""Mistakes in SigLIP, CLIP and ViT: the third part of the catalogue in mutations.py."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from mutations import Variant, changing, computing, instead
from PIL.Image import Resampling
from random_encoders import CLIP, CONFIGS, IMAGES, VIT

from npgemma.golden.cases import PictureCase
from npgemma.io.picture import read_picture
from npgemma.io.pixels import pixel_values
from npgemma.layers.activations import Activation, gelu, gelu_erf, log_softmax, quick_gelu, softmax
from npgemma.layers.norms import LayerNorm
from npgemma.models.clip import end_rows

Array = np.ndarray
Seen = Mapping[str, Array]
SIGLIP_END, CLIP_END = 1, CONFIGS[CLIP][1].eos_token_id
CLIP_MEAN, CLIP_STD = (np.array(x, np.float32)[:, None, None] for x in CONFIGS[CLIP][1].pixels.mean_and_std)


def activated(glob: str, act: Activation) -> Callable:
    """Makes a tap that gives MLPs another activation."""
    return computing(f"{glob}.mlp.hidden", lambda _, seen: act(seen["fc1"]))


def replaced(p: Any, change: Callable[[LayerNorm], LayerNorm]) -> Any:
    """Weights with every layer norm changed."""
    if isinstance(p, LayerNorm):
        return change(p)
    if isinstance(p, tuple):
        return tuple(replaced(each, change) for each in p)
    if not dataclasses.is_dataclass(p):
        return p
    return dataclasses.replace(p, **{f.name: replaced(getattr(p, f.name), change) for f in dataclasses.fields(p)})


def with_eps(eps: float) -> Callable[[Any], Any]:
    return lambda p: replaced(p, lambda norm: dataclasses.replace(norm, eps=eps))


def within(path: str, change: Callable[[Any], Any], p: Any) -> Any:
    """Weights with the field `path` changed, such as "vision.embedding.position"; `blocks` are all blocks."""
    name, _, rest = path.partition(".")
    inner = getattr(p, name)
    if isinstance(inner, tuple):
        new = tuple(within(rest, change, each) for each in inner)
    else:
        new = within(rest, change, inner) if rest else change(inner)
    return dataclasses.replace(p, **{name: new})


def at(path: str, change: Callable[[Array], Array]) -> Callable[[Any], Any]:
    return partial(within, path, change)


def one_row_on(x: Array) -> Array:
    return np.roll(x, -1, 0)


def channels_last(x: Array) -> Array:
    """The kernel of patches whose flat rows are read as [row, column, channel]."""
    width, channels, height, columns = x.shape
    return x.reshape(width, height, columns, channels).transpose(0, 3, 1, 2)


def interleaved_heads(x: Array) -> Array:
    """Head n takes every N-th row of the projection instead of H neighbours."""
    heads, width, *rest = x.shape
    return x.reshape(width, heads, *rest).swapaxes(0, 1)


def with_heads_interleaved(p: Any) -> Any:
    for name in ("q", "k", "v", "q_bias", "k_bias", "v_bias"):
        p = at(f"text.blocks.attn.{name}", interleaved_heads)(p)
    return p


def first_row_last(x: Array) -> Array:
    return np.roll(x, -1, 1)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def unmasked(_: str, seen: Seen) -> Array:
    return softmax(seen["scores"])


def without_padding(name: str, seen: Seen) -> Array:
    """Rows of a text see its tokens and the first end token alone."""
    ids = seen["input_ids"][int(name.split(".")[-2])]
    return softmax(np.where((ids == SIGLIP_END).cumsum() <= 1, seen["scores"], -np.inf))


def before_the_end(_: str, seen: Seen) -> Array:
    norm = seen["text.norm"]
    return norm[np.arange(len(norm)), end_rows(seen["input_ids"], CLIP_END) - 1]


def with_bias_scaled(_: str, seen: Seen) -> Array:
    bias = seen["logits_per_image"] - seen["scaled"]
    return (seen["cosine"] + bias) * seen["scale"]


def of_pictures_alone(_: str, seen: Seen) -> Array:
    """The cross entropy of the right text for each picture, and not that of the right picture for each text."""
    return -log_softmax(seen["logits_per_image"]).diagonal().mean()


def mean_and_std_of_siglip(x: Array) -> Array:
    return (x * CLIP_STD + CLIP_MEAN - 0.5) / 0.5


def mean_and_std_of_clip(x: Array) -> Array:
    return (x / 2 + 0.5 - CLIP_MEAN) / CLIP_STD


def resampled(resample: Resampling) -> Callable[[PictureCase], PictureCase]:
    """The pictures of the study, resized by another filter."""

    def case(case: PictureCase) -> PictureCase:
        config = CONFIGS[VIT][1]
        settings = dataclasses.replace(config.pixels, resample=resample)
        pixels = pixel_values([read_picture(image) for image in IMAGES], config.vision.image_size, settings)
        return dataclasses.replace(case, pixel_values=pixels)

    return case


SIGLIP_BUGS: dict[str, Variant] = {
    "mean and deviation of CLIP": Variant("pixel_values", changing("pixel_values", mean_and_std_of_clip)),
    "positions of patches one row on": Variant("vision.embedding", weights=at("vision.embedding.position", one_row_on)),
    "erf gelu in the vision tower": Variant("vision.layers.0", activated("vision.layers.*", gelu_erf)),
    "eps of CLIP": Variant("vision.layers.0", weights=with_eps(1e-5)),
    "mean of the rows instead of the probe's attention": Variant(
        "vision.head", computing("vision.head.attn.out", lambda _, seen: seen["vision.norm"].mean(1, keepdims=True))
    ),
    "pooling without its residual": Variant("vision.head", instead("vision.head.out", "vision.head.mlp.out")),
    "rows of pictures not of length 1": Variant(
        "image_embeds", computing("image_embeds", lambda _, seen: seen["vision.head.out"][:, 0])
    ),
    "positions of tokens from 1": Variant("text.embedding", weights=at("text.embedding.position", one_row_on)),
    "padding masked": Variant("text.layers.0", computing("text.*.texts.*.probs", without_padding)),
    "causal mask in the texts": Variant(
        "text.layers.0",
        computing(
            "text.*.texts.*.probs",
            lambda _, seen: softmax(np.where(np.tri(seen["scores"].shape[-1]) > 0, seen["scores"], -np.inf)),
        ),
    ),
    "first row of a text instead of the last": Variant(
        "text.last", computing("text.last", lambda _, seen: seen["text.norm"][:, 0])
    ),
    "bias of the text head missing": Variant("text.head", weights=at("text.head.bias", np.zeros_like)),
    "bias of the scores missing": Variant("logits_per_image", instead("logits_per_image", "scaled")),
    "bias added before the scale": Variant("logits_per_image", computing("logits_per_image", with_bias_scaled)),
    "softmax instead of sigmoid": Variant(
        "probabilities", computing("probabilities", lambda _, seen: softmax(seen["logits_per_image"]))
    ),
    "loss over all pairs instead of pictures": Variant("loss", changing("loss", lambda x: x / len(IMAGES))),
}
CLIP_BUGS: dict[str, Variant] = {
    "mean and deviation of SigLIP": Variant("pixel_values", changing("pixel_values", mean_and_std_of_siglip)),
    "patches flat with their channels last": Variant(
        "vision.embedding", weights=at("vision.embedding.weight", channels_last)
    ),
    "class token after the patches": Variant(
        "vision.embedding", changing("vision.embedding", lambda x: np.roll(x, -1, 1))
    ),
    "norm before the layers missing": Variant("vision.pre_norm", instead("vision.pre_norm", "vision.embedding")),
    "gelu instead of quick gelu": Variant("vision.layers.0", activated("*.layers.*", gelu_erf)),
    "heads are every N-th row of q, k and v": Variant("text.layers.0", weights=with_heads_interleaved),
    "scores over sqrt(D)": Variant(
        "vision.layers.0",
        changing("vision.*.scores", lambda x: x / np.sqrt(3)),  # N = 3 heads
    ),
    "eps of SigLIP": Variant("vision.pre_norm", weights=with_eps(1e-6)),
    "mean of the rows instead of the class token's": Variant(
        "vision.class", computing("vision.class", lambda _, seen: seen["vision.layers.1.out"].mean(1))
    ),
    "norm of the class row missing": Variant("vision.post_norm", instead("vision.post_norm", "vision.class")),
    "rows of pictures not of length 1": Variant("image_embeds", instead("image_embeds", "vision.projection")),
    "causal mask missing in the texts": Variant("text.layers.0", computing("text.*.texts.*.probs", unmasked)),
    "last end token instead of the first": Variant(
        "text.end", computing("text.end", lambda _, seen: seen["text.norm"][:, -1])
    ),
    "row before the end token": Variant("text.end", computing("text.end", before_the_end)),
    "rows of texts not of length 1": Variant("text_embeds", instead("text_embeds", "text.projection")),
    "scale not an exponential": Variant("scale", changing("scale", np.log)),
    "scale applied twice": Variant(
        "logits_per_image", computing("logits_per_image", lambda _, seen: seen["cosine"] * seen["scale"] ** 2)
    ),
    "sigmoid instead of softmax": Variant(
        "probabilities", computing("probabilities", lambda _, seen: sigmoid(seen["logits_per_image"]))
    ),
    "softmax over the pictures": Variant(
        "probabilities", computing("probabilities", lambda _, seen: softmax(seen["logits_per_image"].T).T)
    ),
    "loss of pictures alone": Variant("loss", computing("loss", of_pictures_alone)),
}
VIT_BUGS: dict[str, Variant] = {
    "bicubic instead of bilinear": Variant("pixel_values", case=resampled(Resampling.BICUBIC)),
    "class token without its position": Variant(
        "embedding", weights=at("embedding.position", lambda x: np.concatenate([np.zeros_like(x[:1]), x[1:]]))
    ),
    "tanh gelu": Variant("layers.0", activated("layers.*", gelu)),
    "quick gelu": Variant("layers.0", activated("layers.*", quick_gelu)),
    "eps of CLIP": Variant("layers.0", weights=with_eps(1e-5)),
    "last norm missing": Variant("norm", instead("norm", "layers.1.out")),
    "mean of the patches instead of the class token": Variant(
        "class", computing("class", lambda _, seen: seen["norm"][:, 1:].mean(1))
    ),
    "bias of the head missing": Variant("logits", weights=at("head.bias", np.zeros_like)),
    "sigmoid instead of softmax": Variant(
        "probabilities", computing("probabilities", lambda _, seen: sigmoid(seen["logits"]))
    ),
}
