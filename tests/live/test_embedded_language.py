"""The embedded language model answers as transformers does, whose chat template makes the prompts of transformers."""

from random import Random

import pytest
from capital_world import exam, statements
from evaluate_language import Transformers

import npgemma
from npgemma.io.model_folder import EMBEDDED_LANGUAGE

pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture(scope="module")
def oracle():
    return Transformers(EMBEDDED_LANGUAGE)


@pytest.fixture(scope="module")
def model():
    return npgemma.LanguageModel.load()


def test_statements_are_continued_with_the_same_tokens(oracle, model):
    for prompt, _ in Random(0).sample(statements(), 6):
        assert model.generate(prompt).token_ids == oracle.statement(prompt)


@pytest.mark.parametrize("kind", exam())
def test_questions_are_answered_with_the_same_tokens(oracle, model, kind):
    for talk, turn in Random(kind).sample(exam()[kind], 3):
        messages = talk.messages(turn)
        assert model.chat(messages).token_ids == oracle.answer(messages)
