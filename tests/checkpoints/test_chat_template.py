"""Where the chat template of a folder is found, as in transformers, and folders without one."""

import json

import pytest

from npgemma.checkpoints.chat_template import read_chat_template
from npgemma.errors import BadModel


def config(template):
    return {"tokenizer_config.json": json.dumps({"chat_template": template})}


JINJA = {"chat_template.jinja": "{{ 'é' }}"}
NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
FOUND = {
    "a file": (JINJA, "{{ 'é' }}", "chat_template.jinja"),
    "a key": (config("chat"), "chat", "tokenizer_config.json: chat_template"),
    "both": (config("chat") | JINJA, "{{ 'é' }}", "chat_template.jinja"),
    "several": (config(NAMED), "chat", "tokenizer_config.json: chat_template"),
}


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_text(content, "utf-8")
    return folder


@pytest.mark.parametrize("name", FOUND)
def test_the_template_of_a_folder_and_where_it_stands(name, tmp_path):
    files, template, where = FOUND[name]
    assert read_chat_template(write(tmp_path, files)) == (template, str(tmp_path / where))


REFUSED = {
    "no file": ({}, "has no chat template (neither chat_template.jinja nor"),
    "no key": ({"tokenizer_config.json": "{}"}, "chat needs an instruction-tuned model"),
    "null": (config(None), "chat needs an instruction-tuned model"),
    "a number": (config(7), "tokenizer_config.json: chat_template is not a template"),
    "none is the default": (config(NAMED[:1]), "or has none named default"),
    "a list of text": (config(["chat"]), "or has none named default"),
    "not JSON": ({"tokenizer_config.json": "{"}, "tokenizer_config.json cannot be read as JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_a_template_is_refused(name, tmp_path):
    files, said = REFUSED[name]
    with pytest.raises(BadModel) as error:
        read_chat_template(write(tmp_path, files))
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_large_template_is_refused(tmp_path):
    with (tmp_path / "chat_template.jinja").open("wb") as file:
        file.truncate(1 << 30)  # a hole, which takes no space
    with pytest.raises(BadModel, match=r"chat_template\.jinja cannot be read: it is larger than 50 MB"):
        read_chat_template(tmp_path)


def test_a_template_that_is_not_utf_8_is_refused(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(BadModel, match=r"chat_template\.jinja cannot be read: it is not UTF-8 text"):
        read_chat_template(tmp_path)
