"""chat: answers to the lines of stdin and in a terminal, with the conversation so far in every prompt."""

import builtins
import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import language_folders as small
import pytest
from processes import ROOT

import npgemma
from npgemma.commands.cli import main
from npgemma.commands.output import printable

TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
CUT = "npgemma: the answer was cut off after 4 tokens; --max-new-tokens 8 gives more\n"


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    """A Gemma 3, which may have a system message, with as many positions as an endless answer needs."""
    config = small.config_of("gemma3_text", max_position_embeddings=1 << 20)
    return small.write_folder(tmp_path_factory.mktemp("chat") / "model", config)


class Terminal(io.StringIO):
    """A stdin at which somebody types."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def says(monkeypatch):
    """says(text): what stdin holds; as `kind`, it may be a terminal."""

    def says(text: str, kind: type[io.StringIO] = io.StringIO) -> None:
        monkeypatch.setattr(sys, "stdin", kind(text))

    return says


def prompt_of(*texts: str) -> str:
    """The prompt for the last of these messages and answers."""
    *before, last = texts
    said = zip(before[::2], before[1::2], strict=True)
    return "<bos>" + "".join(f"{TURN.format(a)}{b}<end_of_turn>\n" for a, b in said) + TURN.format(last)


# ---------------------------------------------------------------------------------------------------------------- pipe


def test_each_line_of_stdin_is_answered(chats, says, capsys):
    model = npgemma.load(chats)
    hi = model.chat([{"role": "user", "content": "hi"}], max_new_tokens=4).text
    turns = [("user", "hi"), ("model", hi), ("user", "what is red?")]
    red = model.chat([{"role": role, "content": text} for role, text in turns], max_new_tokens=4).text
    says("hi\n\n   \n what is red? ")
    assert main(["chat", "-m", str(chats), "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr() == (f"{printable(hi)}\n{printable(red)}\n", CUT * 2)


def test_a_prompt_holds_the_conversation_so_far(chats, says, answering, run):
    asked = answering("Hello. ")
    says("hi\nwho?\nwhy?\n")
    assert run("chat", "-m", chats) == "Hello. \n" * 3
    assert asked == [prompt_of(*["hi", "Hello.", "who?", "Hello.", "why?"][:count]) for count in (1, 3, 5)]


def test_a_system_message_comes_first(chats, says, answering, run):
    asked = answering("Yes")
    says("hi\nhi\n")
    run("chat", "-m", chats, "--system", "Be brief.")
    assert asked == [prompt_of("Be brief.\n\nhi"), prompt_of("Be brief.\n\nhi", "Yes", "hi")]


def test_an_answer_ends_at_the_end_of_its_turn(says, tmp_path, capsys):
    config, ids = small.config_of("gemma"), small.turn_ids("hi")
    tensors = small.preferring(config, small.END, ids)
    expected = small.greedy(config, ids, 9, (small.EOS, small.END), tensors)
    assert expected.pop() == small.END
    folder = small.write_folder(tmp_path, config, tensors)
    for form in ("text", "json"):
        says("hi\n")
        assert main(["chat", "-m", str(folder), "--format", form]) == 0
        out, err = capsys.readouterr()
        text = out if form == "text" else json.loads(out)["text"] + "\n"
        assert (text, err) == (small.TOKENIZER.decode(expected) + "\n", "")


def test_json_is_a_line_for_each_message(chats, says, capsys):
    says("hi\nwhat is red?\n")
    assert main(["chat", "-m", str(chats), "--format", "json", "--max-new-tokens", "4"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["prompt"] for each in found] == ["hi", "what is red?"]
    assert {each["model"] for each in found} == {str(chats)}
    answer = npgemma.load(chats).chat([{"role": "user", "content": "hi"}], max_new_tokens=4)
    fields = ("text", "token_ids", "finish_reason", "logprobs")
    assert [found[0][name] for name in fields] == [getattr(answer, name) for name in fields]


def test_a_stop_string_ends_an_answer(chats, says, answering, run):
    asked = answering("one two three")
    says("hi\nhi\n")
    assert run("chat", "-m", chats, "--stop", " two") == "one\none\n"
    assert asked[1] == prompt_of("hi", "one", "hi")


def test_flags_reach_the_model(chats, says, capsys):
    says("hi\n")
    flags = ["--temperature", "3", "--max-new-tokens", "4", "--seed", "5", "--dtype", "float64"]
    assert main(["chat", "-m", str(chats), *flags]) == 0
    options = dict(temperature=3.0, max_new_tokens=4, seed=5)
    expected = npgemma.load(chats, "float64").chat([{"role": "user", "content": "hi"}], **options)
    assert capsys.readouterr().out == f"{printable(expected.text)}\n"


UNANSWERABLE = {
    "a" * 600: "positions of this model; use fewer words: ",
    "<image_soft_token>": "the text contains <image_soft_token>, which a language model cannot read; leave it out",
    "\udcff": "the message is not UTF-8 text; convert it to UTF-8",
}


def test_a_message_without_an_answer_is_left_out_and_the_exit_status_tells(says, capsys, tmp_path):
    command = ["chat", "-m", str(small.write_folder(tmp_path, small.config_of("gemma3_text"))), "--max-new-tokens", "4"]
    says("hi\nwho?\n")
    assert main(command) == 0
    expected = capsys.readouterr().out
    says("\n".join(["hi", *UNANSWERABLE, "who?"]))
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == expected
    first, *lines, last = err.splitlines()
    assert first == last == CUT.rstrip()
    for line, why in zip(lines, UNANSWERABLE.values(), strict=True):
        assert line.startswith("npgemma: ")
        assert why in line


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of a UTF-8 and of an ASCII locale
def test_messages_are_read_as_utf_8(errors, chats, monkeypatch, answering, capsys):
    asked = answering("Yes")
    stdin = io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfcaf\xc3\xa9\r\ncaf\xe9\nhi"), "ascii", errors)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["chat", "-m", str(chats)]) == 1
    assert capsys.readouterr() == ("Yes\nYes\n", "npgemma: the message is not UTF-8 text; convert it to UTF-8\n")
    assert asked == [prompt_of("caf\u00e9"), prompt_of("caf\u00e9", "Yes", "hi")]


def test_an_answer_that_needs_too_much_memory_is_left_out(chats, says, capsys):
    says("hi\n")
    assert main(["chat", "-m", str(chats), "--max-memory", "160MB", "--max-new-tokens", "200000"]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "more than the 0.16 GB allowed; use a smaller max_new_tokens" in err


def test_without_messages_there_is_no_answer(chats, says, run):
    says("")
    assert run("chat", "-m", chats) == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_control_c_ends_the_conversation_and_keeps_the_text_so_far(form, chats, says, answering, capsys):
    asked = answering("half an answer", interrupted_after=7)
    says("hi\nwho?\n")
    assert main(["chat", "-m", str(chats), "--format", form]) == 130
    out, err = capsys.readouterr()
    assert (out if form == "text" else json.loads(out)["text"] + "\n", err) == ("half an\n", "npgemma: interrupted\n")
    assert asked == [prompt_of("hi")]


# ------------------------------------------------------------------------------------------------------------- refused


def test_a_model_that_cannot_chat_is_refused_before_any_message(tmp_path, folder, chats, monkeypatch, refused):
    monkeypatch.setattr(sys, "stdin", None)  # which is not looked at
    base = small.write_folder(tmp_path / "base", small.config_of("gemma2"), chats=False)
    assert refused("chat", "-m", base).startswith(f"{base} has no chat template (neither chat_template.jinja nor")
    other = small.write_folder(tmp_path / "other", small.config_of("gemma2"))
    (other / "chat_template.jinja").write_text("{{ '[INST]' + messages[0]['content'] }}")
    assert "writes '[INST]', which Gemma's chat format does not" in refused("chat", "-m", other)
    reads = f"{folder} answers about pictures and does not chat; load a Gemma whose name ends in -it"
    assert refused("chat", "-m", folder) == reads
    (other / "chat_template.jinja").unlink()
    why = "messages[0] is a system message, which Gemma 1 and 2 do not have; put its text before the user's"
    assert refused("chat", "-m", other, "--system", "Be brief.") == f"--system: {why}"
    assert refused("chat", "-m", chats) == "stdin is closed; chat reads messages from it, one a line"


def test_flags_without_effect_are_wrong_usage(chats, capsys):
    assert main(["chat", "-m", str(chats), "--top-k", "3"]) == 2
    assert capsys.readouterr() == ("", "npgemma: --top-k needs a --temperature above 0\n")


# ------------------------------------------------------------------------------------------------------------ terminal


def test_in_a_terminal_an_interrupted_answer_stays_in_the_conversation(chats, says, answering, capsys):
    asked = answering("half an answer", interrupted_after=7)
    says("hi\nwho?\n", Terminal)
    assert main(["chat", "-m", str(chats)]) == 0
    assert asked == [prompt_of("hi"), prompt_of("hi", "half an", "who?")]
    assert capsys.readouterr() == ("half an\n" * 2, "npgemma: interrupted\n" * 2)


def test_control_c_at_the_prompt_ends_the_conversation(chats, says, monkeypatch, capsys):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    says("", Terminal)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", interrupted)
    assert main(["chat", "-m", str(chats)]) == 130
    assert capsys.readouterr() == ("", "npgemma: interrupted\n")


def test_a_conversation_at_a_real_terminal(chats):
    """A prompt, an endless answer that Ctrl-C ends, the prompt again, and Ctrl-D."""
    ours, theirs = pytest.importorskip("pty").openpty()
    command = [sys.executable, "-m", "npgemma", "chat", "-m", str(chats), "--max-new-tokens", "500000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "dumb"}
    shown = b""

    def read_until(text: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert select.select([ours], [], [], end - time.monotonic())[0], shown
            shown += os.read(ours, 1 << 12)
        shown = shown.split(text, 1)[1]

    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        try:
            read_until(b"> ")
            os.write(ours, b"hi\n")
            read_until(b"<loc")
            process.send_signal(signal.SIGINT)
            read_until(b"npgemma: interrupted\r\n")
            read_until(b"> ")
            os.write(ours, b"\x04")
            assert process.wait(60) == 0
        finally:
            process.kill()
            os.close(ours)
