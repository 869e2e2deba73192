"""`VisionLanguageModel`: weights, tokenizer and processor together, to answer questions about pictures."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Literal, Unpack, overload

from npgemma.api import generation
from npgemma.api.features import FeatureCache
from npgemma.api.finite import computed
from npgemma.api.generative import GenerativeModel
from npgemma.api.guard import PictureGuard
from npgemma.api.lazy import lazy
from npgemma.api.processor import Inputs, PictureProcessor, PictureReader, Pictures, as_pictures
from npgemma.checkpoints import paligemma
from npgemma.checkpoints.mask_vqvae import CODEC, read_mask_codec
from npgemma.checkpoints.paligemma import PaliGemmaConfig
from npgemma.decoding.options import GenerationKeywords, GenerationOptions, SamplingKeywords, StreamKeywords
from npgemma.decoding.scoring import Score
from npgemma.decoding.text import Generation
from npgemma.io.model_folder import EMBEDDED, member
from npgemma.io.picture import Picture
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, checked, silent
from npgemma.models.gemma import Decoder
from npgemma.models.mask_vqvae import MaskVQVAE
from npgemma.models.paligemma import PaliGemma, forward, image_features
from npgemma.models.prefix_lm import Prompt


class VisionLanguageModel(GenerativeModel[PaliGemmaConfig, PaliGemma]):
    """A PaliGemma with its tokenizer and its processor; `npgemma.load` makes one.

    Attributes
    ----------
    config : PaliGemmaConfig
        The sizes of the model, from config.json.
    tokenizer : Tokenizer
        `encode(text)` and `decode(ids)`. Raises BadModel if the folder has no tokenizer that fits the config.
    processor : Processor
        `processor(images, text)` gives the ids and the pixel values that `forward` takes.
    mask_codec : MaskVQVAE
        Turns the codes in an answer into masks. Raises BadModel if the folder has none.
    folder, weights, dtype
        Where the model is, its weights, and the dtype of a run.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.load()
    >>> model.generate(npgemma.sample_picture(), "ocr").text
    'FNY'
    """

    checkpoints: ClassVar[tuple[ModuleType, ...]] = (paligemma,)
    embedded = EMBEDDED
    guard_type = PictureGuard
    guard: PictureGuard

    @property
    def decoder(self) -> Decoder:
        return self.weights.text

    @lazy
    def features(self) -> FeatureCache:
        return FeatureCache(self.dtype, paligemma.pictures_kept(self.config, self.dtype.itemsize))

    @property
    def embed(self) -> Callable[[Inputs, Tap], list[Prompt]]:
        return partial(self.features.prompts, self.weights)

    @lazy
    def mask_codec(self) -> MaskVQVAE:
        return read_mask_codec(member(self.folder, CODEC))

    @lazy
    def processor(self) -> PictureProcessor:
        c = self.config
        return PictureProcessor(
            self.tokenizer,
            c.vision.image_size,
            c.vision.num_patches,
            self.bos_id,
            c.eos_token_ids[0],
            c.pixels,
            self.guard.budget.left,
        )

    def forward(
        self,
        input_ids: Int[Array, "T"],
        pixel_values: Float[Array, "B 3 Y X"] | None = None,
        token_type_ids: Int[Array, "T"] | None = None,
        tap: Tap = silent,
    ) -> Float[Array, "T V"]:
        """Run one sequence and return the logits of every row: row t scores the token after input_ids[t].

        Parameters
        ----------
        input_ids : int array [T]
            Token ids, with the image tokens of every picture.
        pixel_values : float array [B 3 Y X], optional
            Pictures with values in -1 .. 1, as the processor makes them.
        token_type_ids : int array [T], optional
            0 for the prefix, which attends to all of itself (the default), 1 for the suffix, which is causal.
        tap : callable, optional
            A function (name, tensor[, axes]) -> tensor, such as a Recorder, that every tensor worth comparing passes
            through; the model continues with what it returns.

        Returns
        -------
        float array [T V]

        Raises
        ------
        BadPrompt, BadModel, TooLittleMemory
            If ids, types and pixels do not fit the model and each other, the logits are not finite (unless the tap
            makes them so), or the run needs more memory than is available.
        TypeError
            If the tap takes other arguments, or returns something else than an array like its tensor.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.load()
        >>> inputs = model.processor([npgemma.sample_picture()], ["caption en"])
        >>> logits = model.forward(inputs.input_ids[0], inputs.pixel_values)
        >>> logits.shape, model.tokenizer.decode([logits[-1].argmax()])
        ((40, 1792), 'a')
        """
        tap = checked(tap)
        self.guard.check_files()
        (ids,), (types,), pixels, _ = self.guard.check_inputs(input_ids, pixel_values, token_type_ids)
        self.guard.check_memory([len(ids)], len(pixels), 0, logit_rows=len(ids))
        return computed(self, partial(forward, self.weights, ids, pixels.astype(self.dtype, copy=False), types), tap)

    @overload
    def generate(
        self,
        images: Pictures,
        prompts: str,
        *,
        num_return_sequences: Literal[1] = 1,
        **options: Unpack[GenerationKeywords],
    ) -> Generation: ...

    @overload
    def generate(
        self, images: Pictures, prompts: str, *, num_return_sequences: int, **options: Unpack[GenerationKeywords]
    ) -> Generation | list[Generation]: ...

    @overload
    def generate(
        self,
        images: Sequence[Pictures],
        prompts: list[str],
        *,
        num_return_sequences: int = ...,
        **options: Unpack[GenerationKeywords],
    ) -> list[Generation]: ...

    def generate(self, images: Any, prompts: str | list[str], **options: Any) -> Generation | list[Generation]:
        """Answer prompts about pictures.

        Parameters
        ----------
        images : picture or sequence
            For a single prompt, a picture or a list of pictures; for several prompts, a list of those. A picture is a
            path, a PIL image or a uint8 array [H W 3]. An empty list stands for no picture.
        prompts : str or list of str
            Such as "caption en" or "detect cat ; dog".
        **options
            Fields of `decoding.options.GenerationOptions`: max_new_tokens, stop, temperature, top_k, top_p, min_p,
            repetition_penalty, seed, lookup, num_beams, num_return_sequences.

        Returns
        -------
        Generation or list of Generation
            A list for several prompts or several sequences, in which the answers to one prompt are next to each other.

        Raises
        ------
        BadPicture, BadPrompt, BadModel, TooLittleMemory
            If a picture cannot be read, prompts and pictures do not pair up or are too long, the logits are not finite,
            or the run needs more memory than is available.
        ValueError
            If an option is out of range, or options exclude each other.

        Examples
        --------
        >>> import npgemma
        >>> model, picture = npgemma.load(), npgemma.sample_picture()
        >>> model.generate(picture, "caption en", num_beams=4).text
        'a blue star, an orange ring and a green circle'
        >>> questions = ["answer en what color is the star?", "answer en what color is the ring?"]
        >>> [answer.text for answer in model.generate([picture, picture], questions)]
        ['blue', 'orange']
        >>> [answer.text for answer in model.generate(picture, "ocr", temperature=1.0, num_return_sequences=2)]
        ['FNY', 'FNY']
        """
        read = GenerationOptions(**options)
        if isinstance(prompts, str):
            answers = generation.generate(self, [images], [prompts], read)
            return answers[0] if read.num_return_sequences == 1 else answers
        return generation.generate(self, images, prompts, read)

    def stream(self, image: Pictures, prompt: str, **options: Unpack[StreamKeywords]) -> Iterator[str]:
        """Answer one prompt piece by piece: the text of `generate`, each piece once no later token can change it.

        Raises as `generate` does.

        Parameters
        ----------
        image, prompt, **options
            As for `generate`, without num_beams and num_return_sequences.

        Returns
        -------
        iterator of str

        Examples
        --------
        >>> import npgemma
        >>> for piece in npgemma.load().stream(npgemma.sample_picture(), "caption en", max_new_tokens=3):
        ...     print(repr(piece))
        'a'
        ' blue'
        ' star'
        """
        read = GenerationOptions(**options).single()
        return generation.stream(self, image, prompt, read)

    def generate_ids(
        self,
        input_ids: Int[Array, "T"],
        pixel_values: Float[Array, "B 3 Y X"] | None = None,
        max_new_tokens: int = GenerationOptions.max_new_tokens,
        eos_ids: Sequence[int] | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> list[int]:
        """Continue token ids, without a tokenizer: for people with ids and pixels of their own.

        Raises as `generate` does.

        Parameters
        ----------
        input_ids, pixel_values
            As for `forward`.
        max_new_tokens : int
            The most ids to return.
        eos_ids : sequence of int, optional
            The ids that end the answer; by default those of the config. Without any, it runs to max_new_tokens.
        **sampling
            As for `generate`: temperature, top_k, top_p, min_p, repetition_penalty, seed.

        Returns
        -------
        list of int
            The ids that follow, the end token included. Any row of the embedding table may be chosen.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.load()
        >>> inputs = model.processor([npgemma.sample_picture()], ["ocr"])
        >>> model.tokenizer.decode(model.generate_ids(inputs.input_ids[0], inputs.pixel_values))
        'FNY'
        """
        options = GenerationOptions(max_new_tokens=max_new_tokens, **sampling)
        return generation.generate_ids(self, self.guard.check_inputs(input_ids, pixel_values), eos_ids, options)

    @overload
    def score(self, images: Pictures, prompts: str, suffixes: str) -> Score: ...

    @overload
    def score(self, images: Any, prompts: str | list[str], suffixes: list[str]) -> list[Score]: ...

    def score(self, images: Any, prompts: str | list[str], suffixes: str | list[str]) -> Score | list[Score]:
        """Score given answers: how likely the model finds them. Raises as `generate` does.

        Parameters
        ----------
        images, prompts
            As for `generate`: one prompt, or one for each suffix.
        suffixes : str or list of str
            The answers, each scored with the end token after it. Several answers to one prompt share its pictures,
            which then go through the vision tower once.

        Returns
        -------
        Score or list of Score
            The log-probability of each token. One Score for a single suffix.

        Examples
        --------
        >>> import npgemma
        >>> model, picture = npgemma.load(), npgemma.sample_picture()
        >>> scores = model.score(picture, "answer en what color is the star?", ["blue", "red"])
        >>> [round(score.total, 2) + 0 for score in scores]
        [0.0, -14.73]
        """
        if isinstance(suffixes, str):
            return generation.score(self, images, prompts, [suffixes])[0]
        return generation.score(self, images, prompts, suffixes)

    def image_features(self, images: Picture | Sequence[Picture]) -> Float[Array, "B P D"]:
        """Pictures as the decoder sees them: rows of its width, out of SigLIP and the projector.

        Parameters
        ----------
        images : picture or sequence of pictures

        Returns
        -------
        float array [B P D] : P rows of the decoder's width D for each of B pictures.

        Examples
        --------
        >>> import npgemma
        >>> npgemma.load().image_features(npgemma.sample_picture()).shape
        (1, 36, 128)
        """
        self.guard.check_files()
        pictures = as_pictures(images)
        self.guard.check_memory([], len(pictures), 0)
        reader = PictureReader(self.config.vision.image_size, self.config.pixels, self.guard.budget.left)
        pixels = reader.pixel_values(pictures).astype(self.dtype, copy=False)
        return computed(self, partial(image_features, self.weights, pixels))
