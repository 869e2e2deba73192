"""LanguageModel: forward, generate, stream, generate_ids and score against the second spelling on one page."""

from pathlib import Path

import language_folders as small
import numpy as np
import pytest
from agreement import assert_agrees
from answers import assert_same
from language_folders import BOS, END, EOS, FAMILIES, PIECES, SOFT

import npgemma
from npgemma.api.language import LanguageModel
from npgemma.errors import BadModel, BadPrompt

TEXT = "The capital of the cat is"  # 14 tokens with <bos>: more than twice the window
SHORT = "cat"
# Sums of float64 in another order; the logits are below 10.
ROUNDINGS = dict(rtol=0, atol=1e-12)
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language")
    return {family: small.write_folder(root / family, small.config_of(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def models(folders) -> dict[str, LanguageModel]:
    return {family: npgemma.load(folder, "float64") for family, folder in folders.items()}


def ids_of(model: LanguageModel, text: str) -> list[int]:
    return [BOS, *model.tokenizer.encode(text)]


# ------------------------------------------------------------------------------------------------------------- forward


@every_family
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "with a head"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_equals_the_second_spelling(family, tied, dtype, tmp_path):
    config = small.config_of(family, tied)
    model = npgemma.load(small.write_folder(tmp_path, config), dtype)
    assert type(model) is LanguageModel
    ids = model.processor.encode(TEXT)
    assert ids.tolist() == ids_of(model, TEXT)
    found = model.forward(ids)
    assert found.dtype == dtype
    assert_agrees(found, small.logits(config, ids))


def test_the_window_matters(models):
    """Of layers without a window, all rows see <bos>."""
    config = small.config_of("gemma2", sliding_window=100)
    model, ids = models["gemma2"], models["gemma2"].processor.encode(TEXT)
    far = np.abs(model.forward(ids) - small.logits(config, ids)).max(-1)
    assert (far[: small.WINDOW] < 1e-12).all()
    assert (far[small.WINDOW :] > 1e-3).all()


def test_taps_have_the_names_of_every_model(models):
    taps = npgemma.Recorder()
    models["gemma3_text"].forward(models["gemma3_text"].processor.encode(SHORT), tap=taps)
    ids = ids_of(models["gemma3_text"], SHORT)
    assert taps["prompts.0.input_ids"].tolist() == ids
    assert taps["prompts.0.token_type_ids"].tolist() == [1] * len(ids)
    assert taps["positions"].tolist() == list(range(len(ids)))
    assert taps["text.layers.2.attn.q_norm"].shape == (len(ids), 4, 6)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([], "one row of whole numbers"),
        ([2, -1], "input_ids run from -1 to 2"),
        ([2, SOFT], f"input_ids run from 2 to {SOFT}; this model has tokens 0 to {SOFT - 1}"),
    ],
)
def test_other_ids_are_refused(ids, says, models):
    for call in (models["gemma3_text"].forward, models["gemma3_text"].generate_ids):
        with pytest.raises(BadPrompt, match=says):
            call(np.array(ids, np.int64))


# ------------------------------------------------------------------------------------------------------------ generate


@every_family
@pytest.mark.parametrize("text", [TEXT, ""])
def test_generate_takes_the_likeliest_token_again_and_again(family, text, models):
    model, config = models[family], small.config_of(family)
    found = model.generate(text, max_new_tokens=6)
    assert found.token_ids == small.greedy(config, ids_of(model, text), 6)
    assert found.text == model.tokenizer.decode(found.token_ids)
    assert found.finish_reason == "length"
    np.testing.assert_allclose(
        found.logprobs, small.logprobs(config, ids_of(model, text), found.token_ids), **ROUNDINGS
    )


def test_bos_is_put_before_a_text_once(models):
    model = models["gemma"]
    assert model.processor.encode("<bos>" + SHORT).tolist() == ids_of(model, SHORT)
    assert model.generate("<bos>" + SHORT, max_new_tokens=3) == model.generate(SHORT, max_new_tokens=3)
    assert model.processor.encode(SHORT + "<bos>").tolist() == [*ids_of(model, SHORT), BOS]


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_texts_of_different_lengths_are_continued_as_each_alone(family, models):
    model, texts = models[family], [TEXT, "", SHORT]
    together = model.generate(texts, max_new_tokens=5)
    assert_same(together, [model.generate(text, max_new_tokens=5) for text in texts])
    assert model.generate([], max_new_tokens=5) == []


@pytest.mark.parametrize("family", ["gemma2"])
def test_samples_have_the_log_probabilities_of_one_pass(family, models):
    model, ids = models[family], ids_of(models[family], TEXT)
    options = dict(num_return_sequences=2, temperature=1.5, max_new_tokens=4, seed=2)
    found = model.generate(TEXT, **options)
    assert model.generate(TEXT, **options) == found
    assert len({tuple(each.token_ids) for each in found}) == 2
    for each in found:
        np.testing.assert_allclose(
            each.logprobs, small.logprobs(small.config_of(family), ids, each.token_ids), **ROUNDINGS
        )


@pytest.mark.parametrize("family", ["gemma3_text"])
def test_beams_are_sorted_and_have_the_log_probabilities_of_one_pass(family, models):
    model, ids = models[family], ids_of(models[family], TEXT)
    found = model.generate(TEXT, num_beams=3, num_return_sequences=2, max_new_tokens=4)
    totals = [sum(small.logprobs(small.config_of(family), ids, each.token_ids)) for each in found]
    np.testing.assert_allclose([sum(each.logprobs) for each in found], totals, **ROUNDINGS)
    assert totals == sorted(totals, reverse=True)
    assert model.generate([TEXT], num_beams=3, max_new_tokens=4) == found[:1]


def test_a_stop_string_ends_the_text(models):
    model = models["gemma"]
    whole = model.generate(TEXT, max_new_tokens=12)
    stop = whole.text[10:13]
    found = model.generate(TEXT, max_new_tokens=12, stop=stop)
    assert found.text == whole.text[: whole.text.index(stop)]
    assert found.finish_reason == "stop"
    assert "".join(model.stream(TEXT, max_new_tokens=12, stop=stop)) == found.text


@pytest.mark.parametrize("family", ["gemma2"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 3.0, "seed": 4}], ids=str)
def test_the_pieces_of_a_stream_are_the_text_of_generate(family, sampling, models):
    found = list(models[family].stream(TEXT, max_new_tokens=6, **sampling))
    assert len(found) > 1
    assert "".join(found) == models[family].generate(TEXT, max_new_tokens=6, **sampling).text


def test_a_stream_is_one_text(models):
    with pytest.raises(ValueError, match="only one answer is written at a time"):
        models["gemma"].stream(TEXT, num_beams=2)


def test_generate_ids_needs_no_tokenizer(tmp_path):
    """Any row of the table may be chosen: also one that belongs to no token, which `generate` never writes."""
    config, ids, row = small.config_of("gemma2"), [BOS, *small.TOKENIZER.encode(TEXT)], PIECES + 5
    tensors = small.preferring(config, row, ids)
    model = npgemma.load(small.write_folder(tmp_path, config, tensors), "float64")
    expected: list[int] = []
    for _ in range(6):
        expected.append(int(small.logits(config, [*ids, *expected], tensors)[-1].argmax()))
    assert row in expected
    assert row not in model.generate(TEXT, max_new_tokens=6).token_ids
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    model = npgemma.load(tmp_path, "float64")
    assert model.generate_ids(np.array(ids), 6, ()) == expected
    assert model.generate_ids(np.array(ids), 6, [expected[3]]) == expected[: expected.index(expected[3]) + 1]
    with pytest.raises(BadModel, match=r"tokenizer\.model is missing"):
        model.generate(TEXT)


# --------------------------------------------------------------------------------------------------------------- score


@every_family
def test_scores_are_the_log_probabilities_of_one_pass(family, models):
    model = models[family]
    suffixes = [" red cat", "s", " of the star is a"]
    found = model.score(TEXT, suffixes)
    for suffix, score in zip(suffixes, found, strict=True):
        answer = model.tokenizer.encode(suffix)
        assert score.token_ids == answer  # without an end token
        expected = small.logprobs(small.config_of(family), ids_of(model, TEXT), answer)
        np.testing.assert_allclose(score.logprobs, expected, **ROUNDINGS)
    assert model.score(TEXT, suffixes[0]).token_ids == found[0].token_ids
    each = model.score([TEXT, SHORT, ""], suffixes)
    np.testing.assert_allclose(each[1].logprobs, model.score(SHORT, "s").logprobs, **ROUNDINGS)


def test_an_empty_prompt_scores_a_whole_text(models):
    model = models["gemma2"]
    ids = model.tokenizer.encode(TEXT)
    found = model.score("", TEXT)
    assert found.token_ids == ids
    np.testing.assert_allclose(found.logprobs, small.logprobs(small.config_of("gemma2"), [BOS], ids), **ROUNDINGS)


@pytest.mark.parametrize(
    ("prompts", "suffixes", "says"),
    [
        ("a", "", "a suffix is empty: there is no token to score"),
        ("a", ["b", ""], "a suffix is empty"),
        (["a"], ["b", "c"], "there are 1 prompts and 2 suffixes; pass one for each prompt"),
        ("a", "b" * 600, "more than the 512 positions of this model; use fewer words"),
        ("a", "b<image_soft_token>", "contains <image_soft_token>, which a language model cannot read"),
        ("<image_soft_token>", "b", "contains <image_soft_token>, which a language model cannot read"),
    ],
    ids=str,
)
def test_what_cannot_be_scored_is_refused(prompts, suffixes, says, models):
    with pytest.raises(BadPrompt, match=says):
        models["gemma3_text"].score(prompts, suffixes)


# ---------------------------------------------------------------------------------------------------------------- chat

HI = {"role": "user", "content": " Hi\n"}
SAID = "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"


@pytest.mark.parametrize("family", ["gemma", "gemma3_text"])
def test_an_answer_ends_at_the_end_of_its_turn_although_the_config_does_not_say_so(family, tmp_path):
    config = small.config_of(family)
    tensors = small.preferring(config, END, small.turn_ids("Hi"))
    model = npgemma.load(small.write_folder(tmp_path, config, tensors), "float64")
    assert model.config.eos_token_ids == (EOS,)
    assert model.chat_prompt([HI]) == SAID
    assert model.processor.encode(SAID).tolist() == small.turn_ids("Hi")
    found = model.chat([HI], max_new_tokens=5)
    assert found.token_ids == small.greedy(config, small.turn_ids("Hi"), 5, (EOS, END), tensors)
    assert (found.token_ids[-1], found.finish_reason) == (END, "stop")
    assert "<end_of_turn>" not in found.text
    assert "".join(model.stream_chat([HI], max_new_tokens=5)) == found.text
    further = model.generate(SAID, max_new_tokens=5)  # which does not know of turns
    assert further.token_ids[: len(found.token_ids)] == found.token_ids
    assert len(further.token_ids) == 5


def test_a_conversation_is_continued(models):
    model = models["gemma3_text"]
    messages = [{"role": "system", "content": "Be brief."}, HI, {"role": "assistant", "content": "Hello "}, HI]
    prompt = model.chat_prompt(messages)
    first = "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
    assert prompt == first + SAID.removeprefix("<bos>")
    assert model.chat(messages, max_new_tokens=5) == model.generate(prompt, max_new_tokens=5)
    assert model.processor.encode(prompt).tolist().count(BOS) == 1


@pytest.mark.parametrize(
    ("family", "messages", "says"),
    [
        ("gemma", [{"role": "system", "content": "a"}, HI], "which Gemma 1 and 2 do not have"),
        ("gemma2", [{"role": "system", "content": "a"}, HI], "which Gemma 1 and 2 do not have"),
        ("gemma3_text", [HI, HI], "turns alternate"),
        ("gemma3_text", [], "the last message must be the user's"),
        ("gemma3_text", [{"role": "user", "content": "<image_soft_token>"}], "contains <image_soft_token>"),
        ("gemma3_text", [{"role": "user", "content": "a" * 600}], "positions of this model"),
    ],
    ids=str,
)
def test_what_cannot_be_answered_is_refused(family, messages, says, models):
    for call in (models[family].chat, lambda messages: list(models[family].stream_chat(messages))):
        with pytest.raises(BadPrompt, match=says):
            call(messages)


def test_a_base_model_continues_texts_and_does_not_chat(tmp_path):
    model = npgemma.load(small.write_folder(tmp_path, small.config_of("gemma2"), chats=False))
    assert model.generate(TEXT, max_new_tokens=2).token_ids
    with pytest.raises(BadModel, match=r"has no chat template.*generate continues a text"):
        model.chat([HI])
