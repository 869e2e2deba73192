"""The prompts of the tasks."""

import pytest

from npgemma.errors import BadPrompt
from npgemma.tasks.prompts import OCR_PROMPT, answer_prompt, caption_prompt, detect_prompt


def test_prompts_are_those_that_paligemma_was_trained_with():
    """The processor adds the final newline."""
    assert caption_prompt() == "caption en"
    assert caption_prompt("de") == "caption de"
    assert answer_prompt("where is the cow?") == "answer en where is the cow?"
    assert answer_prompt("wo ist die Kuh?", "de") == "answer de wo ist die Kuh?"
    assert OCR_PROMPT == "ocr"
    assert detect_prompt(["cat"]) == "detect cat"
    assert detect_prompt(("cat", "big dog")) == "detect cat ; big dog"


@pytest.mark.parametrize("labels", [[], [""], [" "], ["cat", "\t\n"], ["cat;dog"], ["cat ; dog"], [";"]])
def test_invalid_labels_are_refused(labels):
    with pytest.raises(BadPrompt, match="give one or more labels"):
        detect_prompt(labels)
