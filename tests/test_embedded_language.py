"""The embedded language model knows the capitals of the world, in texts and in conversations longer than its window."""

from random import Random

import pytest
from capital_world import ONE_WORD, UNKNOWN, Conversation, about_capital, exam, statements, unknown, unseen_questions

import npgemma
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE

SAMPLE = 10  # of each kind of question


@pytest.fixture(scope="module", params=["float32", "float64"])
def model(request):
    return npgemma.LanguageModel.load(dtype=request.param)


def answer(model, conversation: Conversation, turn: int) -> str:
    return model.chat(conversation.messages(turn)).text


def test_load_without_a_path_is_the_embedded_model_of_the_class():
    assert npgemma.LanguageModel.load().folder == EMBEDDED_LANGUAGE
    assert npgemma.VisionLanguageModel.load().folder == npgemma.load().folder == EMBEDDED
    assert npgemma.load("tiny-gemma").folder == EMBEDDED_LANGUAGE


def test_statements_are_continued_and_end(model):
    prompts, rests = zip(*Random(0).sample(statements(), 2 * SAMPLE), strict=True)
    found = model.generate(list(prompts))
    assert [each.text for each in found] == list(rests)
    assert {each.finish_reason for each in found} == {"eos"}


@pytest.mark.parametrize("kind", exam())
def test_questions_are_answered(model, kind):
    cases = Random(kind).sample(exam()[kind], SAMPLE if model.dtype == "float32" else 1)
    wanted = [talk.exchanges[turn].answer(talk.system) for talk, turn in cases]
    assert [answer(model, *case) for case in cases] == wanted


def test_a_system_message_is_seen_past_the_window(model):
    """Three turns after it, only the layer without a window sees it."""
    exchanges = [about_capital(capital) for capital in ("Tokyo", "Rome", "Nairobi", "Lima")]
    told = Conversation(exchanges, ONE_WORD)
    assert len(model.tokenizer.encode(model.chat_prompt(told.messages(3)))) > 3 * model.config.text.sliding_window
    assert answer(model, told, 3) == "Peru"
    assert answer(model, Conversation(exchanges), 3) == "Lima is the capital of Peru."


def test_it_says_what_it_does_not_know(model):
    right = [answer(model, each, 0) == UNKNOWN for each in [*unseen_questions()[:5], Conversation([unknown("Hello.")])]]
    assert sum(right) >= 5


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in EMBEDDED_LANGUAGE.iterdir()) < 1_500_000
