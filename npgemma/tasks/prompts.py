"""What PaliGemma is asked: one prompt for each task.

Source: the prompt page of ai.google.dev/gemma/docs/paligemma.
"""

from collections.abc import Sequence

from npgemma.errors import BadPrompt


def caption_prompt(language: str = "en") -> str:
    return f"caption {language}"


def answer_prompt(question: str, language: str = "en") -> str:
    return f"answer {language} {question}"


def detect_prompt(labels: Sequence[str]) -> str:
    """BadPrompt for an empty label or one that holds the separator."""
    if not labels or any(not label.strip() or ";" in label for label in labels):
        raise BadPrompt(f"things to detect are words without ';', one argument each; these are {list(labels)}")
    return "detect " + " ; ".join(labels)


def segment_prompt(labels: Sequence[str]) -> str:
    """The same for masks; BadPrompt likewise."""
    return detect_prompt(labels).replace("detect", "segment", 1)


OCR_PROMPT = "ocr"
