"""generate, caption, answer, ocr and score: text in, text out."""

import argparse
import sys
from dataclasses import asdict, replace

from npgemma.api.vision_language import VisionLanguageModel
from npgemma.commands.flags import (
    AddParser,
    WrongUsage,
    add_num_beams,
    answer,
    answer_flags,
    load_model,
    model_flags,
    positive,
    sampling,
)
from npgemma.commands.output import INTERRUPTED, as_json, print_json, printable, working
from npgemma.decoding.loop import Token
from npgemma.decoding.sampling import Sampling, SamplingOptions
from npgemma.decoding.text import Generation
from npgemma.tasks.prompts import OCR_PROMPT, answer_prompt, caption_prompt


def add_ask(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    common = answer_flags(form)
    add_num_beams(common)
    common.add_argument(
        "--samples", type=positive, default=1, metavar="N", help="with a temperature: N answers, one after the other"
    )
    generate = add_parser("generate", parents=[common], help="any prompt, about one or several pictures")
    generate.add_argument("images", nargs="+", metavar="IMAGE", help="one picture or several")
    generate.add_argument("text", metavar="PROMPT", help="such as 'caption en' or 'detect cat'")
    generate.set_defaults(run=run_prompt, prompt=lambda a: a.text)

    caption = add_parser("caption", parents=[common], help="what is on the picture")
    caption.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    caption.add_argument("--language", default="en", help="default: en")
    caption.set_defaults(run=run_prompt, prompt=lambda a: caption_prompt(a.language))

    question = add_parser("answer", parents=[common], help="the answer to a question about the picture")
    question.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    question.add_argument("question", metavar="QUESTION", help="in words")
    question.add_argument("--language", default="en", help="default: en")
    question.set_defaults(run=run_prompt, prompt=lambda a: answer_prompt(a.question, a.language))

    ocr = add_parser("ocr", parents=[common], help="the text on the picture")
    ocr.add_argument("images", nargs=1, metavar="IMAGE", help="a picture")
    ocr.set_defaults(run=run_prompt, prompt=lambda a: OCR_PROMPT)

    score = add_parser(
        "score",
        parents=[form, model_flags()],
        help="how likely the model finds given answers: log P, perplexity, answer, log P of each token",
    )
    score.add_argument("image", metavar="IMAGE", help="a picture")
    score.add_argument("prompt", metavar="PROMPT", help="what the answers are to")
    score.add_argument("suffixes", nargs="+", metavar="ANSWER", help="several are ranked")
    score.set_defaults(run=run_score)


def run_prompt(a: argparse.Namespace) -> int:
    """The text that the model writes, streamed; or a line for each of several samples; or JSON, an answer a line."""
    if a.samples > 1 and (a.temperature == 0 or a.num_beams > 1):
        raise WrongUsage("--samples are drawn; they want a --temperature above 0, and no --num-beams")
    sampling(a)  # wrong usage is said before a model is loaded
    model, prompt = load_model(a), a.prompt(a)
    if a.samples > 1:
        return show(a, prompt, *draw(a, model, prompt))
    if a.format == "json" or a.num_beams > 1:
        written, status = answer(a, model, a.images, prompt)
        return show(a, prompt, [written], status)
    return stream(a, model, prompt)


def show(a: argparse.Namespace, prompt: str, answers: list[Generation], status: int) -> int:
    for each in answers:
        if a.format == "json":
            print_json(prompt, each)
        else:
            print(printable(each.text))
    return status


def draw(a: argparse.Namespace, model: VisionLanguageModel, prompt: str) -> tuple[list[Generation], int]:
    """The samples, and the exit status: Ctrl-C leaves of each what is written so far, and 130."""
    names = SamplingOptions.__annotations__
    answers, rules = model.answers(a.stop), Sampling(**{name: getattr(a, name) for name in names})
    written: list[Token] = []
    with working("reading the picture"):
        try:
            written.extend(model.tokens([a.images], [prompt], a.max_new_tokens, rules, answers, a.samples))
        except KeyboardInterrupt:
            print("npgemma: interrupted", file=sys.stderr)
            so_far = answers.generations(written, a.samples)
            return [replace(each, finish_reason=each.finish_reason or "interrupted") for each in so_far], INTERRUPTED
    return answers.generations(written, a.samples), 0


def stream(a: argparse.Namespace, model: VisionLanguageModel, prompt: str) -> int:
    """Each piece of the answer as it comes. After Ctrl-C, what came so far is a line of its own."""
    written, status = "", 0
    with working("reading the picture") as done:
        try:
            for piece in model.stream(a.images, prompt, **sampling(a)):
                done()
                print(printable(piece), end="", flush=sys.stdout.isatty())
                written += piece
        except KeyboardInterrupt:
            status = INTERRUPTED
    if status == 0 or written:
        print()
    if status:
        print("npgemma: interrupted", file=sys.stderr)
    elif not written:
        print("npgemma: the model answered with nothing", file=sys.stderr)
    return status


def run_score(a: argparse.Namespace) -> None:
    """A line a suffix, the likeliest first: log-probability, perplexity, suffix, log-probability of each token."""
    model = load_model(a)
    with working("reading the picture"):
        scores = model.score(a.image, a.prompt, a.suffixes)
    ranked = sorted(zip(a.suffixes, scores, strict=True), key=lambda pair: -pair[1].total)
    for suffix, score in ranked:
        if a.format == "json":
            facts = {"total": score.total, "loss": score.loss, "perplexity": score.perplexity}
            print(as_json({"prompt": a.prompt, "suffix": suffix, **asdict(score), **facts}))
        else:
            total, *each = (f"{round(number, 4) + 0.0:.4f}" for number in (score.total, *score.logprobs))
            words = printable(" ".join(suffix.split()))
            print(total, f"{score.perplexity:.4g}", words, " ".join(each), sep="\t")
