"""The taps of SigLIP, CLIP and ViT: every name of a run, with its axes, its level and its meaning.

A test compares the tables with recordings, in both directions. `{i}` counts layers, `{b}` pictures or texts. B are
pictures, U texts; rows are the patches P of a SigLIP, and T behind a class token or of texts.
"""

from npgemma.golden.tap_table import SOFTMAX, Entry, inside

SCORES = (
    ("dots", "N T S", "q . k of each head"),
    ("scores", "N T S", "q . k / sqrt(H); before the mask"),
)


def _block(scope: str, rows: str, each: str, act: str) -> list[Entry]:
    """One layer of a tower, whose `rows` are those of so many pictures or texts: "B P"."""
    return [
        Entry(f"{scope}.attn_norm", f"{rows} D", "ops", "layer norm before attention"),
        *_attention(f"{scope}.attn", rows, rows, each),
        Entry(f"{scope}.mid", f"{rows} D", "ops", "residual stream after attention"),
        Entry(f"{scope}.mlp_norm", f"{rows} D", "ops", "layer norm before the MLP"),
        *_mlp(f"{scope}.mlp", rows, act),
        Entry(f"{scope}.out", f"{rows} D", "blocks", "residual stream after the layer"),
    ]


def _attention(scope: str, asking: str, seen: str, each: str) -> list[Entry]:
    """Attention of the rows `asking` to the rows `seen`; the scores of each picture or text stand under `each`."""
    row = "Q" if "Q" in asking else "T"
    scores = tuple((name, axes.replace("T", row), meaning) for name, axes, meaning in SCORES + SOFTMAX)
    return [
        Entry(f"{scope}.q", f"{asking} N H", "ops", "q projection with its bias"),
        *(Entry(f"{scope}.{x}", f"{seen} N H", "ops", f"{x} projection with its bias") for x in "kv"),
        *inside(f"{scope}.{each}.{{b}}", scores),
        Entry(f"{scope}.heads", f"{asking} N H", "ops", "probs . values of each head"),
        Entry(f"{scope}.out", f"{asking} D", "ops", "output projection with its bias"),
    ]


def _mlp(scope: str, rows: str, act: str) -> list[Entry]:
    return [
        Entry(f"{scope}.fc1", f"{rows} F", "ops", "first linear layer with its bias"),
        Entry(f"{scope}.hidden", f"{rows} F", "ops", f"{act}(fc1)"),
        Entry(f"{scope}.out", f"{rows} D", "ops", "second linear layer with its bias"),
    ]


_PICTURES = (
    Entry("pictures.{b}.resized", "Y X C", "io", "the picture as the model reads it, 8 bits"),
    Entry("pixel_values", "B C Y X", "io", "the pixels, less the mean of each channel, over its standard deviation"),
)
_IMAGE_ROWS = (
    Entry("image_embeds.length", "B", "ops", "the length of the row of each picture"),
    Entry("image_embeds", "B E", "io", "the row of each picture over its length"),
    Entry("input_ids", "U T", "io", "token ids of each text, with padding"),
    Entry("text.embedding", "U T D", "blocks", "token table + position table"),
)
_TEXT_ROWS = (
    Entry("text_embeds.length", "U", "ops", "the length of the row of each text"),
    Entry("text_embeds", "U E", "io", "the row of each text over its length"),
    Entry("cosine", "B U", "blocks", "image_embeds . text_embeds"),
    Entry("scale", "", "ops", "e to the learned logit_scale"),
)

SIGLIP: tuple[Entry, ...] = (
    *_PICTURES,
    Entry("vision.embedding.patches", "B P D", "ops", "the patch convolution with its bias"),
    Entry("vision.embedding", "B P D", "blocks", "patches + position table"),
    *_block("vision.layers.{i}", "B P", "pictures", "gelu"),
    Entry("vision.norm", "B P D", "blocks", "final layer norm of the tower"),
    *_attention("vision.head.attn", "B Q", "B P", "pictures"),
    Entry("vision.head.norm", "B Q D", "ops", "layer norm before the MLP"),
    *_mlp("vision.head.mlp", "B Q", "gelu"),
    Entry("vision.head.out", "B Q D", "blocks", "the pooled row: attn.out + mlp.out"),
    *_IMAGE_ROWS,
    *_block("text.layers.{i}", "U T", "texts", "gelu"),
    Entry("text.norm", "U T D", "blocks", "final layer norm of the tower"),
    Entry("text.last", "U D", "blocks", "the last row of each text"),
    Entry("text.head", "U E", "blocks", "linear layer with its bias"),
    *_TEXT_ROWS,
    Entry("scaled", "B U", "ops", "cosine * scale"),
    Entry("logits_per_image", "B U", "io", "scaled + the learned logit_bias"),
    Entry("probabilities", "B U", "io", "sigmoid of each score"),
    Entry("loss", "", "io", "the sigmoid loss, of as many texts as pictures"),
)
CLIP: tuple[Entry, ...] = (
    *_PICTURES,
    Entry("vision.embedding.patches", "B P D", "ops", "the patch convolution, which has no bias"),
    Entry("vision.embedding", "B T D", "blocks", "class token, then patches, + position table"),
    Entry("vision.pre_norm", "B T D", "blocks", "layer norm before the first layer"),
    *_block("vision.layers.{i}", "B T", "pictures", "act"),
    Entry("vision.class", "B D", "blocks", "the row of the class token"),
    Entry("vision.post_norm", "B D", "blocks", "layer norm of that row"),
    Entry("vision.projection", "B E", "blocks", "linear layer without bias"),
    *_IMAGE_ROWS,
    *_block("text.layers.{i}", "U T", "texts", "act"),
    Entry("text.norm", "U T D", "blocks", "final layer norm of the tower"),
    Entry("text.end", "U D", "blocks", "the row of the first end token of each text"),
    Entry("text.projection", "U E", "blocks", "linear layer without bias"),
    *_TEXT_ROWS,
    Entry("logits_per_image", "B U", "io", "cosine * scale"),
    Entry("probabilities", "B U", "io", "softmax over the texts"),
    Entry("loss", "", "io", "the contrastive loss, of as many texts as pictures"),
)
VIT: tuple[Entry, ...] = (
    *_PICTURES,
    Entry("embedding.patches", "B P D", "ops", "the patch convolution with its bias"),
    Entry("embedding", "B T D", "blocks", "class token, then patches, + position table"),
    *_block("layers.{i}", "B T", "pictures", "act"),
    Entry("norm", "B T D", "blocks", "final layer norm"),
    Entry("class", "B D", "blocks", "the row of the class token"),
    Entry("logits", "B A", "io", "the score of each label"),
    Entry("probabilities", "B A", "io", "softmax over the labels, or the sigmoid of each logit"),
)
