"""chat: a conversation with an instruction-tuned language model, in a terminal or line by line from stdin."""

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from npgemma.api.language import LanguageModel
from npgemma.commands.ask import stream
from npgemma.commands.flags import AddParser, answer_flags, chat_flags, generate, load_model, options
from npgemma.commands.notes import note_answers
from npgemma.commands.output import model_name, print_json, say, tell
from npgemma.decoding.options import GenerationOptions
from npgemma.decoding.text import Generation
from npgemma.errors import BadModel, BadPrompt, TooLittleMemory
from npgemma.io.model_folder import EMBEDDED_LANGUAGE

Message = dict[str, Any]


def add_chat(add_parser: AddParser, form: argparse.ArgumentParser) -> None:
    chat = add_parser(
        "chat",
        parents=[answer_flags(form, chat_flags())],
        help="talk with an instruction-tuned language model; each line of stdin is a message",
    )
    chat.add_argument("--system", metavar="TEXT", help="what the model should know first (Gemma 3)")
    chat.set_defaults(run=run_chat, resident="auto")


def run_chat(a: argparse.Namespace) -> int:
    """Answer every message with those before it in mind; returns 1 if one could not be answered.

    In a terminal, Ctrl-C ends an answer, which stays in the conversation as far as it goes. At the prompt it ends the
    conversation, as Ctrl-D does.
    """
    chosen = options(a)
    a.model = a.model or EMBEDDED_LANGUAGE.name
    model = load_model(a)
    if not isinstance(model, LanguageModel):
        raise BadModel(f"{model.folder} answers about pictures and does not chat; load a Gemma whose name ends in -it")
    messages: list[Message] = [] if a.system is None else [{"role": "system", "content": a.system}]
    try:  # a model that cannot chat is refused at once
        model.chat_prompt([*messages, {"role": "user", "content": ""}])
    except BadPrompt as error:
        raise BadPrompt(f"--system: {error}") from None
    failed = False
    for text in lines():
        try:
            asked = [*messages, user_message(text)]
            answer, status = reply(a, model, asked, chosen)
        except (BadPrompt, TooLittleMemory) as error:  # such as a conversation that has become too long
            tell(str(error))
            failed = True
            continue
        if status and not sys.stdin.isatty():
            return status
        messages = [*asked, {"role": "model", "content": answer.text}]
    return int(failed)


def user_message(text: str) -> Message:
    """A line of stdin as a message. BadPrompt if it is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadPrompt("the message is not UTF-8 text; convert it to UTF-8") from None
    return {"role": "user", "content": text}


def reply(
    a: argparse.Namespace, model: LanguageModel, messages: list[Message], chosen: GenerationOptions
) -> tuple[Generation, int]:
    """Print the answer to the last message; returns it, and the exit status if it were the last."""
    run = stream if a.format == "text" else generate
    (answer,), status = run(model, [], model.chat_prompt(messages), chosen, model.chat_ends)
    if a.format == "json":
        print_json(model_name(a), messages[-1]["content"], answer)
    if status == 0:
        note_answers(a, model, [answer])
    return answer, status


def lines() -> Iterator[str]:
    """The lines of stdin that are not empty; a terminal shows a prompt, and edits what is typed.

    Bytes that are not UTF-8 become surrogates. BadPrompt if stdin is closed.
    """
    if sys.stdin is None or sys.stdin.closed:
        raise BadPrompt("stdin is closed; chat reads messages from it, one a line")
    in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding=None if in_terminal else "utf-8-sig", errors="surrogateescape")
    if in_terminal:
        with suppress(ImportError):  # not on every system
            import readline  # noqa: F401 - importing it lets input() edit and recall lines
    with suppress(EOFError):
        while line := input("> ") + "\n" if in_terminal else sys.stdin.readline():
            if line.strip():
                yield line.strip()
    if in_terminal:
        say()
