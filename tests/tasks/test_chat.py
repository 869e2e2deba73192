"""Chat prompts: the text that Gemma's templates write, conversations that they do not have, and stop ids."""

import time

import pytest

from npgemma.errors import BadModel, BadPrompt
from npgemma.tasks.chat import chat_prompt, check_template, stop_ids

FAMILIES = ["gemma", "gemma2", "gemma3_text"]
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "model", "content": "Hello!"}
SYSTEM = {"role": "system", "content": " Be brief. "}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("role", ["model", "assistant"])
def test_a_prompt_has_the_turns_and_the_beginning_of_an_answer(model_type, role):
    messages = [{"role": "user", "content": "  Hi\n there \n"}, HELLO | {"role": role}, HI]
    assert chat_prompt(messages, model_type) == (
        "<bos><start_of_turn>user\nHi\n there<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


@pytest.mark.parametrize("content", [SYSTEM["content"], parts(SYSTEM["content"])], ids=["text", "parts"])
def test_gemma_3_has_a_system_message_in_the_first_turn(content):
    messages = [SYSTEM | {"content": content}, HI, HELLO, HI]
    assert chat_prompt(messages, "gemma3_text") == (
        "<bos><start_of_turn>user\n Be brief. \n\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_parts_of_a_content_are_stripped_and_joined():
    message = {"role": "user", "content": parts(" Hi ", "there\n")}
    assert (
        chat_prompt([message], "gemma3_text")
        == "<bos><start_of_turn>user\nHithere<end_of_turn>\n<start_of_turn>model\n"
    )


def test_control_tokens_in_a_text_stay():
    """As in transformers, which does not escape them either."""
    said = chat_prompt([HI | {"content": "a<end_of_turn>b"}], "gemma2")
    assert said == "<bos><start_of_turn>user\na<end_of_turn>b<end_of_turn>\n<start_of_turn>model\n"


BAD = {
    "no message": ([], "the last message must be the user's"),
    "only a system message": ([SYSTEM], "the last message must be the user's"),
    "an answer at the end": ([HI, HELLO], "the last message must be the user's"),
    "the model first": ([HELLO], "messages[0] is of the model, where the user's turn is"),
    "two of the user": ([HI, HI], "messages[1] is of the user, where the model's turn is"),
    "two of the user after a system message": (
        [SYSTEM, HI, HI],
        "messages[2] is of the user, where the model's turn is",
    ),
    "a late system message": ([HI, SYSTEM, HI], "messages[1] is a system message; only the first"),
    "two system messages": ([SYSTEM, SYSTEM, HI], "messages[1] is a system message; only the first"),
    "a system message of two parts": ([SYSTEM | {"content": parts("a", "b")}, HI], "a system message of 2 parts"),
    "an unknown role": ([{"role": "tool", "content": "x"}], "messages[0]: role is 'tool'; supported: user"),
    "no role": ([{"content": "x"}], "messages[0] is {'content': 'x'}, not an object with a role"),
    "text": (["Hi"], "messages[0] is 'Hi', not an object with a role"),
    "no content": ([{"role": "user"}], "messages[0]: content is None, neither text nor a list"),
    "a number": ([HI, HELLO, HI | {"content": 7}], "messages[2]: content is 7, neither text"),
    "a picture": ([HI | {"content": [{"type": "image"}]}], "messages[0]: content is [{'type': 'image'}], neither text"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_conversations_are_refused_with_the_number_of_the_message(name):
    messages, said = BAD[name]
    with pytest.raises(BadPrompt) as error:
        chat_prompt(messages, "gemma3_text")
    assert said in str(error.value)


@pytest.mark.parametrize("model_type", ["gemma", "gemma2"])
def test_gemma_1_and_2_have_no_system_messages(model_type):
    with pytest.raises(BadPrompt, match=r"Gemma 1 and 2 do not have; put its text before the user's"):
        chat_prompt([SYSTEM, HI], model_type)


# ------------------------------------------------------------------------------------------------------------ stop ids

IDS = {"<eos>": 1, "<start_of_turn>": 106, "<end_of_turn>": 107}


@pytest.mark.parametrize(
    ("eos_ids", "expected"), [((1,), (1, 107)), ((1, 107), (1, 107)), ((107, 5), (107, 5)), ((), (107,))]
)
def test_an_answer_ends_at_the_end_of_the_turn_as_well(eos_ids, expected):
    assert stop_ids(eos_ids, IDS) == expected


@pytest.mark.parametrize("token", ["<start_of_turn>", "<end_of_turn>"])
def test_a_tokenizer_without_the_tokens_of_turns_cannot_chat(token):
    with pytest.raises(BadModel, match=f"no {token}, so the model cannot chat"):
        stop_ids((1,), {text: id_ for text, id_ in IDS.items() if text != token})


# ----------------------------------------------------------------------------------------------------------- templates

GEMMAS = """{#- Gemma's format -#}
{{ bos_token }}
{%- for m in messages -%}
    {%- if m['role'] == "tool" -%}{{ raise_exception("No tools, (sorry): 'user' and \\"model\\" alone") }}{%- endif -%}
    {{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + m['content'] | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""


@pytest.mark.parametrize("template", [GEMMAS, GEMMAS.replace("'", '"'), GEMMAS.replace("{{ bos_token }}", "<bos>")])
def test_a_template_that_writes_gemmas_format_is_accepted(template):
    check_template(template, "file")


OTHERS = {
    "another format": ("{{ '<|im_start|>' + role + '\n' + content + '<|im_end|>\n' }}", "file writes '<|im_start|>'"),
    "a text for every chat": (GEMMAS.replace("{% endfor", "{{ 'Be brief. ' }}{% endfor"), "file writes 'Be brief. '"),
    "a text between tags": (GEMMAS.replace("{% endfor", "### Answer:{% endfor"), "### Answer:"),
    "another role": (GEMMAS.replace("'<start_of_turn>model", "'<start_of_turn>gemma"), "'<start_of_turn>gemma\\n'"),
    "no end of a turn": (GEMMAS.replace("<end_of_turn>", ""), "file does not write <start_of_turn> and <end_of_turn>"),
    "a tag that is not closed": (GEMMAS + "{{ 'Be brief. ' ", "file writes 'Be brief. '"),
    "words alone": ("{{ messages[0]['content'] }}", "file does not write <start_of_turn>"),
    "nothing": ("", "file does not write <start_of_turn>"),
}


MANY = 30_000


@pytest.mark.parametrize("text", ["{{", "{%", "{#", "{{ raise_exception(", "{{ '\\", "{{ raise_exception('\\"])
def test_a_template_that_opens_much_and_closes_nothing_is_refused_in_little_time(text):
    """Not in a time that grows with the square of its length, which is a minute here."""
    began = time.perf_counter()
    with pytest.raises(BadModel):
        check_template(text + text[-2:] * MANY + text * MANY, "file")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", OTHERS)
def test_a_template_that_writes_another_format_is_refused_with_what_it_writes(name):
    template, said = OTHERS[name]
    with pytest.raises(BadModel) as error:
        check_template(template, "file")
    assert said in str(error.value)
    assert "generate continues a text that you format yourself" in str(error.value)
