"""The embedded language model answers as transformers does, whose chat template makes the prompts of transformers."""

from random import Random

import pytest
from evaluate_language import Transformers, cases

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


@pytest.mark.parametrize("kind", cases())
def test_the_answers_have_the_same_tokens(oracle, model, kind):
    sample = Random(kind).sample(cases()[kind], 3)
    found = model.generate([case.text(model.chat_prompt) for case in sample])
    assert [each.token_ids for each in found] == oracle.generate([case.text(oracle.prompt) for case in sample])
