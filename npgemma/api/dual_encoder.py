"""`DualEncoder`: SigLIP or CLIP, to find out how well pictures and texts match."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeAlias

from npgemma.api.encoding import BATCH, encoded
from npgemma.api.finite import computed
from npgemma.api.guard import DualEncoderGuard
from npgemma.api.lazy import lazy
from npgemma.api.model import LoadedModel
from npgemma.api.processor import Pictures, PixelProcessor, as_pictures
from npgemma.checkpoints import clip, siglip
from npgemma.checkpoints.towers import DualEncoderConfig
from npgemma.errors import BadModel, BadPrompt
from npgemma.io import clip_vocabulary, siglip_tokenizer
from npgemma.io.clip_vocabulary import read_clip_tokenizer
from npgemma.io.model_folder import EMBEDDED_PAIR
from npgemma.io.picture import Picture
from npgemma.io.siglip_tokenizer import read_siglip_tokenizer
from npgemma.io.text_rows import TextRows, TextTokenizer, text_rows
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, silent
from npgemma.models import clip as clip_functions
from npgemma.models import siglip as siglip_functions
from npgemma.models.clip import Clip
from npgemma.models.siglip import Siglip

Texts: TypeAlias = str | Sequence[str]


def as_texts(texts: Texts) -> Sequence[str]:
    """A sequence, of one text if it is one."""
    return [texts] if isinstance(texts, str) else texts


class Kind(NamedTuple):
    """What the two kinds of models differ in: the module that reads one, its functions, its tokenizer and its files."""

    checkpoint: ModuleType
    functions: ModuleType
    read_tokenizer: Callable[[Path, int, Path | None], TextTokenizer]
    tokenizer_files: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    siglip.MODEL_TYPE: Kind(siglip, siglip_functions, read_siglip_tokenizer, siglip_tokenizer.FILES),
    clip.MODEL_TYPE: Kind(clip, clip_functions, read_clip_tokenizer, clip_vocabulary.FILES),
}


class DualEncoder(LoadedModel[DualEncoderConfig, Siglip | Clip]):
    """A SigLIP, a SigLIP 2 of a fixed resolution, or a CLIP; `npgemma.load` makes one.

    Attributes
    ----------
    config : DualEncoderConfig
        The sizes of the model, from config.json.
    tokenizer : SiglipTokenizer, Siglip2Tokenizer or ClipTokenizer
        `encode(text)` gives ids. Raises BadModel if the folder has no tokenizer that fits the config.
    processor : PixelProcessor
        `processor(images)` gives the pixel values that the model reads.
    folder, weights, dtype
        Where the model is, its weights, and the dtype of a run.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.DualEncoder.load()
    >>> model.classify(npgemma.sample_picture(), ["a green circle", "a red square"]) > 0.5
    array([[ True, False]])
    """

    checkpoints = tuple(kind.checkpoint for kind in KINDS.values())
    embedded = EMBEDDED_PAIR
    guard_type = DualEncoderGuard

    @property
    def checkpoint(self) -> ModuleType:
        """The module that reads folders of this model."""
        return KINDS[self.config.model_type].checkpoint

    @property
    def functions(self) -> ModuleType:
        """The module with the functions of this model."""
        return KINDS[self.config.model_type].functions

    @lazy
    def tokenizer(self) -> TextTokenizer:
        c = self.config
        tokenizer = KINDS[c.model_type].read_tokenizer(self.folder, c.text.vocab_size, self.named_tokenizer)
        if tokenizer.end_id != c.eos_token_id:
            ends = f"the tokenizer ends texts with token {tokenizer.end_id}, and the model with {c.eos_token_id}"
            raise BadModel(f"{self.folder}: {ends} (config.json: eos_token_id); the files belong to different models")
        if 2 * len(tokenizer) < (rows := c.text.vocab_size):
            sizes = f"the tokenizer has {len(tokenizer):,} pieces, and the embedding table {rows:,} rows"
            raise BadModel(f"{self.folder}: {sizes} (config.json: vocab_size); the files belong to different models")
        return tokenizer

    @lazy
    def processor(self) -> PixelProcessor:
        return PixelProcessor(self.config.vision.image_size, self.config.pixels, self.guard.budget.left)

    def encode_images(self, images: Pictures, batch_size: int = BATCH, tap: Tap = silent) -> Float[Array, "B E"]:
        """Pictures as rows of length 1, to compare with those of texts: their product is a cosine.

        Parameters
        ----------
        images : picture or sequence of pictures
            Paths, PIL images or uint8 arrays.
        batch_size : int
            How many run at a time; the memory that is needed grows with it, and not with the number of pictures.
        tap : callable, optional
            A function (name, tensor[, axes]) -> tensor, such as a Recorder, that every tensor worth comparing passes
            through, once for each batch; the model continues with what it returns.

        Returns
        -------
        float array [B E]

        Raises
        ------
        BadPicture
            For a picture that cannot be read.
        BadModel, TooLittleMemory
            If the numbers are not finite (unless the tap makes them so), or the run needs more memory than is
            available.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.DualEncoder.load()
        >>> model.encode_images(npgemma.sample_picture()).shape
        (1, 96)
        """
        return encoded(
            self, partial(run_images, self), as_pictures(images), self.config.embedding_size, batch_size, tap
        )

    def encode_texts(
        self, texts: Texts, strict: bool = False, batch_size: int = BATCH, tap: Tap = silent
    ) -> Float[Array, "U E"]:
        """Texts as rows of length 1, to compare with those of pictures: their product is a cosine.

        Parameters
        ----------
        texts : str or sequence of str
        strict : bool
            Refuse a text that is longer than the model's context. Otherwise its end is left out, as in training;
            `text_rows` tells which texts are.
        batch_size, tap
            As for `encode_images`.

        Returns
        -------
        float array [U E]

        Raises
        ------
        BadPrompt
            For a text that is not valid Unicode, or too long if `strict`.
        BadModel, TooLittleMemory
            As for `encode_images`, and if the tokenizer does not fit the model.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.DualEncoder.load()
        >>> model.encode_texts(["a blue star", "a red square"]).shape
        (2, 96)
        """
        ids, width = self.text_rows(texts, strict).ids, self.config.embedding_size
        return encoded(self, partial(run_texts, self), ids, width, batch_size, tap, ids.shape[1])

    def text_rows(self, texts: Texts, strict: bool = False) -> TextRows:
        """The ids of texts as the model reads them, and which texts are truncated.

        Parameters
        ----------
        texts, strict
            As for `encode_texts`.

        Returns
        -------
        TextRows
            `ids` [U T], `lengths` in tokens before truncation, and `truncated`, the places of texts that are too long.

        Raises
        ------
        BadPrompt, BadModel
            As for `encode_texts`.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.DualEncoder.load()
        >>> model.text_rows(["a blue star", "a star " * 20]).truncated
        [1]
        """
        each, context = as_texts(texts), self.config.text.max_position_embeddings
        rows = text_rows(self.tokenizer, each, context)
        if strict and rows.truncated:
            first = rows.truncated[0]
            long = f"the text {each[first][:40]!r} has {rows.lengths[first]} tokens"
            raise BadPrompt(f"{long}, and the model reads {context}, the end token included; use fewer words")
        return rows

    def logits(self, images: Pictures, texts: Texts, strict: bool = False) -> Float[Array, "B U"]:
        """How well each picture matches each text: transformers' logits_per_image.

        Parameters
        ----------
        images, texts, strict
            As for `encode_images` and `encode_texts`.

        Returns
        -------
        float array [B U]

        Raises
        ------
        BadPicture, BadPrompt, BadModel, TooLittleMemory
            As for `encode_images` and `encode_texts`.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.DualEncoder.load()
        >>> model.logits(npgemma.sample_picture(), ["a red square", "a green circle"]).argmax()
        1
        """
        text_embeds = self.encode_texts(texts, strict)
        run = partial(self.functions.logits, self.weights, self.encode_images(images), text_embeds)
        return computed(self, run)

    def classify(self, images: Pictures, texts: Texts, strict: bool = False) -> Float[Array, "B U"]:
        """The probability of each text for each picture.

        For CLIP, that it is this one of the texts, so that they sum to 1. For SigLIP, that it matches the picture,
        whatever the other texts are.

        Parameters
        ----------
        images, texts, strict
            As for `logits`; at least one text.

        Returns
        -------
        float array [B U]

        Raises
        ------
        BadPicture, BadPrompt, BadModel, TooLittleMemory
            As for `logits`, and if there is no text.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.DualEncoder.load()
        >>> model.classify(npgemma.sample_picture(), ["an orange ring", "a red square", "a green circle"]) > 0.5
        array([[ True, False,  True]])
        """
        if not len(as_texts(texts)):
            raise BadPrompt("there are no texts to choose from; give at least one")
        probabilities: Array = self.functions.probabilities(self.logits(images, texts, strict))
        return probabilities

    def loss(self, images: Pictures, texts: Texts, strict: bool = False) -> float:
        """The loss that the model was trained with, of pictures and texts that belong together one by one.

        Parameters
        ----------
        images, texts, strict
            As for `logits`; one text for each picture, and at least one.

        Returns
        -------
        float
            SigLIP's sigmoid loss, or CLIP's contrastive loss.

        Raises
        ------
        BadPicture, BadPrompt, BadModel, TooLittleMemory
            As for `logits`, and if there are not as many texts as pictures.

        Examples
        --------
        >>> import npgemma
        >>> model, picture = npgemma.DualEncoder.load(), npgemma.sample_picture()
        >>> model.loss(picture, "a green circle") < model.loss(picture, "a red square")
        True
        """
        pictures, each = as_pictures(images), as_texts(texts)
        if not len(pictures) == len(each) > 0:
            found = f"there are {len(pictures)} pictures and {len(each)} texts"
            raise BadPrompt(f"{found}; a loss needs a text for each picture, and at least one of both")
        embeds = self.encode_images(pictures), self.encode_texts(each, strict)
        computed(self, partial(self.functions.logits, self.weights, *embeds))  # says so if they are not finite
        loss: float = self.functions.loss(self.weights, *embeds)
        return loss


def run_images(model: DualEncoder, images: Sequence[Picture], tap: Tap) -> Float[Array, "B E"]:
    """The rows of all pictures at once."""
    return run_pixels(model, model.processor(images), tap)


def run_pixels(model: DualEncoder, pixel_values: Float[Array, "B 3 Y X"], tap: Tap) -> Float[Array, "B E"]:
    """The same for what the processor makes of pictures."""
    rows: Array = model.functions.encode_images(model.weights, pixel_values.astype(model.dtype, copy=False), tap)
    return rows


def run_texts(model: DualEncoder, input_ids: Int[Array, "U T"], tap: Tap) -> Float[Array, "U E"]:
    """The rows of all texts at once."""
    rows: Array = model.functions.encode_texts(model.weights, input_ids, model.dtype, tap)
    return rows
