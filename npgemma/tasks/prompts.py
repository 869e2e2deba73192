"""The prompt of each task.

Source: the prompt page of ai.google.dev/gemma/docs/paligemma.
"""

from collections.abc import Sequence

from npgemma.errors import BadPrompt

OCR_PROMPT = "ocr"


def caption_prompt(language: str = "en") -> str:
    """Asks for a caption."""
    return f"caption {language}"


def answer_prompt(question: str, language: str = "en") -> str:
    """Asks a question."""
    return f"answer {language} {question}"


def detect_prompt(labels: Sequence[str]) -> str:
    """Asks for the boxes of objects. BadPrompt without labels, and for an empty label or one that contains ';'."""
    return f"detect {joined(labels)}"


def segment_prompt(labels: Sequence[str]) -> str:
    """Asks for the masks of objects. BadPrompt as for `detect_prompt`."""
    return f"segment {joined(labels)}"


def joined(labels: Sequence[str]) -> str:
    """The labels with PaliGemma's separator between them."""
    if not labels or any(not label.strip() or ";" in label for label in labels):
        raise BadPrompt(f"give one or more labels; a label must not be empty or contain ';': {list(labels)}")
    return " ; ".join(labels)
