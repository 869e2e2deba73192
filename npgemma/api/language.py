"""`LanguageModel`: weights and tokenizer of a Gemma together, to continue texts and to chat."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, Literal, Unpack, overload

from npgemma.api import generation
from npgemma.api.finite import computed
from npgemma.api.generative import GenerativeModel
from npgemma.api.guard import TextGuard
from npgemma.api.lazy import lazy
from npgemma.api.processor import Inputs, TextProcessor, text_inputs
from npgemma.checkpoints import language_model
from npgemma.checkpoints.chat_template import read_chat_template
from npgemma.checkpoints.language_model import LanguageModelConfig
from npgemma.decoding.options import GenerationKeywords, GenerationOptions, SamplingKeywords, StreamKeywords
from npgemma.decoding.scoring import Score
from npgemma.decoding.text import Generation
from npgemma.io.model_folder import EMBEDDED_LANGUAGE
from npgemma.layers.shapes import Array, Float, Int
from npgemma.layers.taps import Tap, checked, silent
from npgemma.models.gemma import Decoder
from npgemma.models.prefix_lm import Prompt, causal_prompt, forward
from npgemma.tasks.chat import chat_prompt, check_template, stop_ids


class LanguageModel(GenerativeModel[LanguageModelConfig, Decoder]):
    """A Gemma 1, 2 or 3 with its tokenizer; `npgemma.load` makes one.

    Attributes
    ----------
    config : LanguageModelConfig
        The sizes of the model, from config.json.
    tokenizer : Tokenizer
        `encode(text)` and `decode(ids)`. Raises BadModel if the folder has no tokenizer that fits the config.
    processor : TextProcessor
        `processor.encode(text)` gives the ids that `forward` takes.
    folder, weights, dtype
        Where the model is, its weights, and the dtype of a run.

    Examples
    --------
    >>> import npgemma
    >>> model = npgemma.LanguageModel.load()
    >>> model.generate("The capital of France is").text
    ' Paris.'
    >>> model.chat([{"role": "user", "content": "And of Italy?"}]).text
    'The capital of Italy is Rome.'
    """

    checkpoints: ClassVar[tuple[ModuleType, ...]] = (language_model,)
    embedded = EMBEDDED_LANGUAGE
    guard_type = TextGuard
    guard: TextGuard

    @property
    def decoder(self) -> Decoder:
        return self.weights

    @lazy
    def processor(self) -> TextProcessor:
        return TextProcessor(self.tokenizer, self.bos_id, self.config.text.vocab_size)

    @property
    def embed(self) -> Callable[[Inputs, Tap], list[Prompt]]:
        return lambda inputs, tap: [causal_prompt(self.weights, ids, self.dtype) for ids in inputs.input_ids]

    def forward(self, input_ids: Int[Array, "T"], tap: Tap = silent) -> Float[Array, "T V"]:
        """Run one sequence and return the logits of every row: row t scores the token after input_ids[t].

        Parameters
        ----------
        input_ids : int array [T]
            Token ids, with <bos> first, as `processor.encode` makes them.
        tap : callable, optional
            A function (name, tensor, axes) -> tensor, or (name, tensor) -> tensor, such as a Recorder, that every
            tensor worth comparing passes through; the model continues with what it returns.

        Returns
        -------
        float array [T V]

        Raises
        ------
        BadPrompt, BadModel, TooLittleMemory
            If the ids are not the model's, the logits are not finite (unless the tap makes them so), or the run needs
            more memory than is available.
        TypeError
            If the tap takes other arguments, or returns something else than an array like its tensor.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.LanguageModel.load()
        >>> logits = model.forward(model.processor.encode("Tokyo is the"))
        >>> logits.shape, model.tokenizer.decode([logits[-1].argmax()])
        ((7, 1024), ' capital')
        """
        tap = checked(tap)
        ids = self.guard.check_ids(input_ids)
        self.guard.check_files()
        self.guard.check_memory([len(ids)], 0, 0, logit_rows=len(ids))
        return computed(self, partial(forward, self.weights, causal_prompt(self.weights, ids, self.dtype)), tap)

    @overload
    def generate(
        self, prompts: str, *, num_return_sequences: Literal[1] = ..., **options: Unpack[GenerationKeywords]
    ) -> Generation: ...

    @overload
    def generate(
        self, prompts: str, *, num_return_sequences: int, **options: Unpack[GenerationKeywords]
    ) -> Generation | list[Generation]: ...

    @overload
    def generate(
        self, prompts: list[str], *, num_return_sequences: int = ..., **options: Unpack[GenerationKeywords]
    ) -> list[Generation]: ...

    def generate(self, prompts: str | list[str], **options: Any) -> Generation | list[Generation]:
        """Continue texts.

        Parameters
        ----------
        prompts : str or list of str
            The texts; <bos> is put before each, unless it is there.
        **options
            Fields of `decoding.options.GenerationOptions`: max_new_tokens, stop, temperature, top_k, top_p, min_p,
            repetition_penalty, seed, lookup, num_beams, num_return_sequences.

        Returns
        -------
        Generation or list of Generation
            A list for several prompts or several sequences, in which those of one prompt are next to each other.

        Raises
        ------
        BadPrompt, BadModel, TooLittleMemory
            If a prompt is too long, the logits are not finite, or the run needs more memory than is available.
        ValueError
            If an option is out of range, or options exclude each other.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.LanguageModel.load()
        >>> [answer.text for answer in model.generate(["The capital of Italy is", "Tokyo is the capital of"])]
        [' Rome.', ' Japan.']
        """
        read, several = GenerationOptions(**options), [prompts] if isinstance(prompts, str) else prompts
        found = generation.generate(self, [()] * len(several), several, read)
        return found[0] if isinstance(prompts, str) and read.num_return_sequences == 1 else found

    def stream(self, prompt: str, **options: Unpack[StreamKeywords]) -> Iterator[str]:
        """Continue a text piece by piece: the text of `generate`, as it is written.

        A piece comes once no later token can change it. Raises as `generate` does.

        Parameters
        ----------
        prompt, **options
            As for `generate`, without num_beams and num_return_sequences.

        Returns
        -------
        iterator of str

        Examples
        --------
        >>> import npgemma
        >>> list(npgemma.LanguageModel.load().stream("The capital of Spain is"))
        [' Mad', 'rid', '.']
        """
        read = GenerationOptions(**options).single()
        return generation.stream(self, (), prompt, read)

    def generate_ids(
        self,
        input_ids: Int[Array, "T"],
        max_new_tokens: int = GenerationOptions.max_new_tokens,
        eos_ids: Sequence[int] | None = None,
        **sampling: Unpack[SamplingKeywords],
    ) -> list[int]:
        """Continue token ids, without a tokenizer. Raises as `generate` does.

        Parameters
        ----------
        input_ids
            As for `forward`.
        max_new_tokens : int
            The most ids to return.
        eos_ids : sequence of int, optional
            The ids that end the text; by default those of the config. An empty one lets it run to max_new_tokens.
        **sampling
            As for `generate`: temperature, top_k, top_p, min_p, repetition_penalty, seed.

        Returns
        -------
        list of int
            The ids that follow, the end token included. Any row of the embedding table may be chosen.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.LanguageModel.load()
        >>> model.tokenizer.decode(model.generate_ids(model.processor.encode("The capital of Italy is")))
        ' Rome.'
        """
        options = GenerationOptions(max_new_tokens=max_new_tokens, **sampling)
        return generation.generate_ids(self, text_inputs([self.guard.check_ids(input_ids)]), eos_ids, options)

    @overload
    def score(self, prompts: str, suffixes: str) -> Score: ...

    @overload
    def score(self, prompts: str | list[str], suffixes: list[str]) -> list[Score]: ...

    def score(self, prompts: str | list[str], suffixes: str | list[str]) -> Score | list[Score]:
        """Score given continuations: how likely the model finds them. Raises as `generate` does.

        Parameters
        ----------
        prompts : str or list of str
            One prompt, or one for each suffix; an empty one scores a whole text.
        suffixes : str or list of str
            The continuations, with the space before them, such as " Paris". The end of the text is not scored.

        Returns
        -------
        Score or list of Score
            The log-probability of each token. One Score for a single suffix.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.LanguageModel.load()
        >>> [round(each.total, 1) + 0 for each in model.score("The capital of France is", [" Paris", " Rome"])]
        [0.0, -17.8]
        """
        images = () if isinstance(prompts, str) else [()] * len(prompts)
        found = generation.score(self, images, prompts, [suffixes] if isinstance(suffixes, str) else suffixes)
        return found[0] if isinstance(suffixes, str) else found

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[StreamKeywords]) -> Generation:
        """Answer the last message of a conversation, as an instruction-tuned model.

        Parameters
        ----------
        messages : sequence of mappings
            Each has a "role", "user" or "model" ("assistant" is the same), by turns from the user, and a "content". In
            Gemma 3, a first message may have the role "system".
        **options
            As for `stream`.

        Returns
        -------
        Generation
            The answer: append {"role": "model", "content": answer.text} and the next message to go on.

        Raises
        ------
        BadPrompt, BadModel, TooLittleMemory
            If roles do not alternate, the model has no chat template, or another than Gemma's; and as for `generate`.

        Examples
        --------
        >>> import npgemma
        >>> model = npgemma.LanguageModel.load()
        >>> messages = [{"role": "user", "content": "What is the capital of France?"}]
        >>> messages.append({"role": "model", "content": model.chat(messages).text})
        >>> messages.append({"role": "user", "content": "And of Italy?"})
        >>> model.chat(messages).text
        'The capital of Italy is Rome.'
        """
        read = GenerationOptions(**options).single()
        (answer,) = generation.generate(self, [()], [self.chat_prompt(messages)], read, self.chat_ends)
        return answer

    def stream_chat(self, messages: Sequence[Mapping[str, Any]], **options: Unpack[StreamKeywords]) -> Iterator[str]:
        """Answer the last message of a conversation piece by piece. Raises as `chat` does.

        Parameters
        ----------
        messages, **options
            As for `chat`.

        Returns
        -------
        iterator of str

        Examples
        --------
        >>> import npgemma
        >>> messages = [{"role": "user", "content": "Who are you?"}]
        >>> list(npgemma.LanguageModel.load().stream_chat(messages))
        ['I', ' only', ' know', ' capitals', '.']
        """
        read = GenerationOptions(**options).single()
        return generation.stream(self, (), self.chat_prompt(messages), read, self.chat_ends)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text of a conversation in Gemma's format, for the model to continue. Raises as `chat` does.

        Parameters
        ----------
        messages
            As for `chat`.

        Returns
        -------
        str

        Examples
        --------
        >>> import npgemma
        >>> npgemma.LanguageModel.load().chat_prompt([{"role": "user", "content": "Hello."}])
        '<bos><start_of_turn>user\\nHello.<end_of_turn>\\n<start_of_turn>model\\n'
        """
        check_template(*read_chat_template(self.folder))
        return chat_prompt(messages, self.config.text.model_type)

    @property
    def chat_ends(self) -> tuple[int, ...]:
        """The tokens that end an answer in a conversation."""
        return stop_ids(self.config.eos_token_ids, self.tokenizer.ids)
