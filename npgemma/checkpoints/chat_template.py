"""The chat template of a model folder: chat_template.jinja or, without that file, a key of tokenizer_config.json."""

from pathlib import Path

from npgemma.errors import BadModel
from npgemma.io.added_tokens import MAX_BYTES, TOKENIZER_CONFIG
from npgemma.io.model_folder import member
from npgemma.io.regular_files import read_regular
from npgemma.io.strict_json import read_json

CHAT_TEMPLATE = "chat_template.jinja"
KEY = "chat_template"


def read_chat_template(folder: Path) -> tuple[str, str]:
    """The Jinja template, and the file and key that it comes from. BadModel if there is none, as for base models."""
    path, config = member(folder, CHAT_TEMPLATE), member(folder, TOKENIZER_CONFIG)
    if path.exists():
        return text_of(path), str(path)
    found = read_json(config, MAX_BYTES).get(KEY) if config.exists() else None
    where = f"{config}: {KEY}"
    if found is None:
        either = f"neither {CHAT_TEMPLATE} nor {KEY} in {TOKENIZER_CONFIG}"
        does = "chat needs an instruction-tuned model, such as those whose names end in -it; generate continues a text"
        raise BadModel(f"{folder} has no chat template ({either}): {does}")
    if isinstance(found, list):  # several, each with a name
        found = next(
            (each.get("template") for each in found if isinstance(each, dict) and each.get("name") == "default"), None
        )
    if not isinstance(found, str):
        raise BadModel(f"{where} is not a template, or has none named default")
    return found, where


def text_of(path: Path) -> str:
    """The text of a file. BadModel if it cannot be read, is large or is not UTF-8."""
    try:
        return read_regular(path, MAX_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadModel(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from None
