"""The text of a conversation, as the instruction-tuned Gemma models were trained on it.

    <bos><start_of_turn>user
    TEXT<end_of_turn>
    <start_of_turn>model
    TEXT<end_of_turn>
    ...

Source: the chat_template of google/gemma-2-2b-it and google/gemma-3-1b-it. npgemma does not run Jinja; it writes this
format itself, and `check_template` refuses a template that writes another.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from npgemma.errors import BadModel, BadPrompt, shortened

BOS, START, END = "<bos>", "<start_of_turn>", "<end_of_turn>"
ROLES = {"user": "user", "model": "model", "assistant": "model"}  # as messages and as turns name them
TURNS = ("user", "model")


def chat_prompt(messages: Sequence[Mapping[str, Any]], model_type: str) -> str:
    """The text that a model continues with its answer to the last of `messages`; it begins with the one <bos>.

    A message has a `role` ("user", "model" or "assistant", or "system" for the first) and a `content`: text, or a list
    of parts such as {"type": "text", "text": "Hello"}. White space around the text of a turn is left out. Text that
    spells a control token, such as <end_of_turn>, becomes that token when it is encoded, as in transformers: check text
    that you do not trust.

    BadPrompt, with the number of the message, if roles do not alternate from user to user, if a content is not text, or
    for a system message that the models of this `model_type` were not trained with.
    """
    read = [parsed(message, f"messages[{i}]") for i, message in enumerate(messages)]
    prefix = ""
    if read and read[0][0] == "system":
        prefix = SYSTEM[model_type](read.pop(0)[1])
    first = len(messages) - len(read)
    for i, (role, _) in enumerate(read):
        if ROLES.get(role) != TURNS[i % 2]:
            raise misplaced(f"messages[{first + i}]", role, TURNS[i % 2])
    if len(read) % 2 == 0:
        raise BadPrompt("the last message must be the user's, for the model to answer; add one")
    turns = [(ROLES[role], "".join(part.strip() for part in parts)) for role, parts in read]
    turns[0] = "user", prefix + turns[0][1]
    return BOS + "".join(f"{START}{role}\n{text}{END}\n" for role, text in turns) + f"{START}model\n"


def misplaced(where: str, role: str, expected: str) -> BadPrompt:
    """The error for a message whose role is not that of its turn."""
    if role not in {*ROLES, "system"}:
        return BadPrompt(f"{where}: role is {role!r}; supported: user, model (or assistant), system")
    if role == "system":
        return BadPrompt(f"{where} is a system message; only the first message can be one")
    return BadPrompt(f"{where} is of the {role}, where the {expected}'s turn is; turns alternate, and the user begins")


def parsed(message: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """The role of a message and the parts of its text. BadPrompt if it has another form."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadPrompt(f"{where} is {shortened(repr(message))}, not an object with a role and a content")
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(is_text(part) for part in parts):
        what = 'neither text nor a list of parts such as {"type": "text", "text": "Hello"}'
        raise BadPrompt(f"{where}: content is {shortened(repr(content))}, {what}")
    return message["role"], [part["text"] for part in parts]


def is_text(part: Any) -> bool:
    """Whether a part of a content is text."""
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def without_system(parts: list[str]) -> str:
    """Gemma 1 and 2 were trained without system messages: BadPrompt."""
    raise BadPrompt("messages[0] is a system message, which Gemma 1 and 2 do not have; put its text before the user's")


def before_first_turn(parts: list[str]) -> str:
    """Gemma 3 has the text of a system message, white space included, at the beginning of the first turn."""
    if len(parts) != 1:
        raise BadPrompt(f"messages[0] is a system message of {len(parts)} parts; give its text as one")
    return f"{parts[0]}\n\n"


SYSTEM: Mapping[str, Callable[[list[str]], str]] = {  # by the model_type of config.json
    "gemma": without_system,
    "gemma2": without_system,
    "gemma3_text": before_first_turn,
}


def stop_ids(eos_ids: Sequence[int], ids: Mapping[str, int]) -> tuple[int, ...]:
    """The ids that end an answer: those of the configs and <end_of_turn>, which the configs of fine-tunes may lack.

    `ids` are those of the tokenizer. BadModel if it does not know the tokens of a turn.
    """
    for token in (START, END):
        if token not in ids:
            raise BadModel(f"the tokenizer has no {token}, so the model cannot chat; generate continues a text instead")
    return tuple(dict.fromkeys([*eos_ids, ids[END]]))


# ------------------------------------------------------------------------------------------- templates of model folders

# What Gemma's templates write besides the messages, and what fine-tunes of the same format write.
WRITTEN = {"", "\n", "\n\n", BOS, START, END, f"{END}\n", "<start_of_image>"}
WRITTEN |= {f"{START}{role}{end}" for role in TURNS for end in ("", "\n")}
# What is not closed goes on to the end, which keeps the search linear.
STRING = r"'(?:[^'\\]|\\.)*(?:'|\\?\Z)|\"(?:[^\"\\]|\\.)*(?:\"|\\?\Z)"
COMMENT = re.compile(r"\{#.*?(?:#\}|\Z)", re.DOTALL)
TAG = re.compile(r"\{\{.*?(?:\}\}|\Z)|\{%.*?(?:%\}|\Z)", re.DOTALL)
REFUSAL = re.compile(rf"raise_exception\((?:{STRING}|[^'\")])*(?:\)|\Z)", re.DOTALL)
LITERAL = re.compile(STRING, re.DOTALL)


def check_template(template: str, where: str) -> None:
    """BadModel if a Jinja template of a folder, from the file and key `where`, does not write Gemma's format.

    It does if all that it writes are the control tokens of turns, line feeds and single words: roles and keys.
    """
    instead = "generate continues a text that you format yourself"
    for text in written(template):
        if text not in WRITTEN and not re.fullmatch(r"\w+", text):
            raise BadModel(f"{where} writes {shortened(repr(text), 60)}, which Gemma's chat format does not; {instead}")
    if START not in template or END not in template:
        raise BadModel(f"{where} does not write {START} and {END}, as Gemma's chat format does; {instead}")


def written(template: str) -> Iterator[str]:
    """The constant texts that a Jinja template may write: those between its tags, and the strings in them."""
    template = COMMENT.sub("", template)
    yield from (text.strip() for text in TAG.split(template))
    for tag in TAG.findall(template):
        for literal in LITERAL.findall(REFUSAL.sub("", tag)):
            yield literal[1:-1].replace("\\n", "\n")
