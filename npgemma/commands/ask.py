"""generate, caption, answer, ocr and score: text in, text out."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from npgemma.api import generation
from npgemma.api.generation import Model
from npgemma.api.language import LanguageModel
from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.flags import (
    AddParser,
    WrongUsage,
    generate,
    load_model,
    load_vision_language_model,
    model_flags,
    options,
    positive,
    reading,
    search_flags,
)
from npgemma.commands.notes import note_answers, note_embedded
from npgemma.commands.output import (
    INTERRUPTED,
    as_json,
    model_name,
    print_json,
    say,
    score_fields,
    tell,
    working,
)
from npgemma.commands.streams import ANSWERS, PICTURE, PROMPT, Kind
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.text import Generation, Transcript, pieces
from npgemma.errors import BadPrompt
from npgemma.io.model_folder import EMBEDDED_LANGUAGE
from npgemma.tasks.prompts import OCR_PROMPT, answer_prompt, caption_prompt


def add_ask(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    common = search_flags(form)
    common.add_argument(
        "--samples",
        type=positive,
        default=1,
        metavar="N",
        help="with a temperature: N answers (default: 1)",
    )
    generate = add_parser("generate", parents=[common], help="answer any prompt about pictures, or continue a text")
    generate.add_argument("images", nargs="*", metavar="IMAGE", help="pictures; none for a language model")
    generate.add_argument("text", metavar="PROMPT", help="such as 'caption en', or a text to continue")
    generate.set_defaults(run=run_prompt, prompt=lambda a: a.text, stdin={"images": (PICTURE,), "text": (PROMPT,)})

    caption = add_parser("caption", parents=[common], help="describe the picture")
    caption.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    caption.add_argument("--language", default="en", help="default: en")
    caption.set_defaults(run=run_prompt, prompt=lambda a: caption_prompt(a.language), stdin={"images": (PICTURE,)})

    question = add_parser("answer", parents=[common], help="answer a question about the picture")
    question.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    question.add_argument("question", metavar="QUESTION", help="in words")
    question.add_argument("--language", default="en", help="default: en")
    question.set_defaults(
        run=run_prompt,
        prompt=lambda a: answer_prompt(a.question, a.language),
        stdin={"images": (PICTURE,), "question": (PROMPT,)},
    )

    ocr = add_parser("ocr", parents=[common], help="read the text in the picture")
    ocr.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    ocr.set_defaults(run=run_prompt, prompt=lambda a: OCR_PROMPT, stdin={"images": (PICTURE,)})

    score = add_parser(
        "score",
        parents=[form, model_flags()],
        help="score given answers: log P, perplexity, answer, log P of each token",
    )
    score.add_argument("image", metavar="IMAGE", help="a picture; leave it out for a language model")
    score.add_argument("prompt", nargs=1, metavar="PROMPT", help="the prompt that the answers belong to")
    score.add_argument("suffixes", nargs="*", metavar="ANSWER", help="several are ranked")
    score.set_defaults(run=run_score, stdin=stdin_of_score)


def run_prompt(a: argparse.Namespace) -> int:
    """The answer, streamed; or a line for each of several samples; or JSON, one answer a line."""
    chosen = options(a)  # wrong usage is reported before a model is loaded
    prompt = a.prompt(a)
    if not a.images:
        require_text(prompt)
        a.model = a.model or EMBEDDED_LANGUAGE.name
    model = load_vision_language_model(a) if a.images else load_model(a)
    if not a.images and isinstance(model, VisionLanguageModel):
        raise WrongUsage(f"{a.model} answers about pictures; name one before the prompt")
    if a.format == "text" and chosen.num_beams == chosen.num_return_sequences == 1:
        answers, status = stream(model, a.images, prompt, chosen)
    else:
        answers, status = generate(model, a.images, prompt, chosen)
        for answer in answers:
            if a.format == "json":
                print_json(model_name(a), prompt, answer)
            else:
                say(answer.text)
    if status == 0:
        note_answers(a, model, answers)
    note_embedded(model, a.images)
    return status


def require_text(prompt: str) -> None:
    """WrongUsage if the only argument is a file, such as a picture without a prompt."""
    if is_file(prompt):
        raise WrongUsage(f"{prompt} is a file; give a prompt after it, such as 'caption en'")


def is_file(text: str) -> bool:
    """Whether an argument where a prompt belongs is a file, such as a picture."""
    with suppress(OSError, ValueError):
        return Path(text).is_file()
    return False


def stream(
    model: Model, images: list[str], prompt: str, chosen: GenerationOptions, ends: Sequence[int] | None = None
) -> tuple[list[Generation], int]:
    """Each piece of the answer as it comes, and the exit status. After Ctrl-C, the text so far is a line of its own.

    `ends` are the tokens that end the answer, by default those of the model's config.
    """
    transcript, status = Transcript(generation.detokenizer(model, chosen), 1), 0
    written = False
    with working(reading(images)) as done:
        try:
            tokens = map(transcript.add, generation.tokens(model, [images], [prompt], chosen, ends))
            for piece in pieces(transcript.detokenizer, tokens):
                done()
                say(piece, end="", flush=sys.stdout.isatty())
                written = True
        except KeyboardInterrupt:
            status = INTERRUPTED
    if status == 0 or written:
        say()
    if status:
        tell("interrupted")
    return transcript.generations(), status


def stdin_of_score(a: argparse.Namespace) -> dict[str, tuple[Kind]]:
    """What `-` stands for in each argument: two arguments are the prompt and the answer of a language model."""
    first, second = (PICTURE, PROMPT) if a.suffixes else (PROMPT, ANSWERS)
    return {"image": (first,), "prompt": (second,), "suffixes": (ANSWERS,)}


def run_score(a: argparse.Namespace) -> None:
    """A line a suffix, the likeliest first: log-probability, perplexity, suffix, log-probability of each token."""
    model, texts = load_model(a), [a.image, *a.prompt, *a.suffixes]
    pictures = [a.image] if isinstance(model, VisionLanguageModel) else []
    prompt, *suffixes = texts[len(pictures) :]
    if not pictures and is_file(prompt):
        raise BadPrompt("a language model reads no pictures; leave them out, or load a PaliGemma")
    if not suffixes:
        raise WrongUsage("score needs a picture, a prompt, and at least one answer")
    with working(reading(pictures)):
        if isinstance(model, LanguageModel):
            scores = model.score(prompt, suffixes)
        else:
            scores = model.score(a.image, prompt, suffixes)
    ranked = sorted(zip(suffixes, scores, strict=True), key=lambda pair: -pair[1].total)
    for suffix, score in ranked:
        if a.format == "json":
            found = {"model": model_name(a), "prompt": prompt, "suffix": suffix}
            say(as_json(found | score_fields(score)))
        else:
            total, *each = (f"{round(number, 4) + 0.0:.4f}" for number in (score.total, *score.logprobs))
            words = " ".join(suffix.split())
            say(total, f"{score.perplexity:.4g}", words, " ".join(each), sep="\t")
    note_embedded(model, pictures)
