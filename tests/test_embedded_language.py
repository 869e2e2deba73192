"""The embedded language model knows the capitals of countries, in texts and in conversations longer than its window."""

from random import Random

import pytest
from capital_world import ONE_WORD, UNKNOWN, Conversation, about_capital, exam, statements, unseen_questions

import npgemma
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE


@pytest.fixture(scope="module")
def model():
    return npgemma.LanguageModel.load()


def test_load_without_a_path_is_the_embedded_model_of_the_class():
    assert npgemma.LanguageModel.load().folder == EMBEDDED_LANGUAGE
    assert npgemma.VisionLanguageModel.load().folder == npgemma.load().folder == EMBEDDED
    assert npgemma.load("tiny-gemma").folder == EMBEDDED_LANGUAGE


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_statements_are_continued_and_end(dtype):
    prompts, rests = zip(*Random(dtype).sample(statements(), 4), strict=True)
    found = npgemma.LanguageModel.load(dtype=dtype).generate(list(prompts))
    assert [each.text for each in found] == list(rests)
    assert {each.finish_reason for each in found} == {"stop"}


def test_questions_of_every_kind_are_answered(model):
    cases = [case for kind, asked in exam().items() for case in Random(kind).sample(asked, 2)]
    found = model.generate([model.chat_prompt(talk.messages(turn)) for talk, turn in cases])
    assert [each.text for each in found] == [talk.exchanges[turn].answer(talk.system) for talk, turn in cases]


@pytest.mark.parametrize(("system", "right"), [("", "Lima is the capital of Peru."), (ONE_WORD, "Peru")])
def test_a_system_message_is_followed_past_the_window(model, system, right):
    talk = Conversation([about_capital(capital) for capital in ("Tokyo", "Rome", "Nairobi", "Lima")], system)
    messages = talk.messages(3)
    assert len(model.processor.encode(model.chat_prompt(messages))) > 3 * model.config.text.sliding_window
    assert model.chat(messages).text == right


def test_questions_about_anything_else_are_not_answered(model):
    found = model.generate([model.chat_prompt(talk.messages(0)) for talk in unseen_questions()[:4]])
    assert sum(each.text == UNKNOWN for each in found) >= 3


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in EMBEDDED_LANGUAGE.iterdir()) < 1_500_000
