"""Commands with a language model: texts in place of pictures, and the commands that need a picture."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import language_folders as small
import numpy as np
import pytest

import npgemma
from npgemma import testing
from npgemma.commands.cli import main
from npgemma.commands.output import printable
from npgemma.io.model_folder import EMBEDDED

PICTURE = npgemma.sample_picture()
NO_PICTURES = "a language model reads no pictures; leave them out, or load a PaliGemma"
TEXT = "The cat is"


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    return small.write_folder(tmp_path_factory.mktemp("language") / "model", small.config_of("gemma3_text"))


# ------------------------------------------------------------------------------------------------------------ generate


def test_generate_continues_a_text(language, run):
    flags = ("-m", language, "--max-new-tokens", 4)
    expected = npgemma.load(language).generate(TEXT, max_new_tokens=4)
    assert run("generate", TEXT, *flags, note="cut off after 4 tokens") == f"{printable(expected.text)}\n"
    found = json.loads(run("generate", TEXT, *flags, "--format", "json", note="cut off"))
    assert found == {"model": str(language), "prompt": TEXT} | dataclasses.asdict(expected)


def test_samples_and_beams_of_a_text(language, run):
    model, flags = npgemma.load(language), ("-m", language, "--max-new-tokens", 4, "--format", "json")
    drawn = model.generate(TEXT, max_new_tokens=4, num_return_sequences=2, temperature=2.0, seed=3)
    found = run("generate", TEXT, *flags, "--samples", 2, "--temperature", 2, "--seed", 3, note="cut off")
    assert [json.loads(line)["token_ids"] for line in found.splitlines()] == [each.token_ids for each in drawn]
    best = model.generate(TEXT, max_new_tokens=4, num_beams=3)
    assert json.loads(run("generate", TEXT, *flags, "--num-beams", 3, note="cut off"))["token_ids"] == best.token_ids


def test_a_file_without_a_prompt_is_wrong_usage(language, capsys):
    for flags in ([], ["-m", str(language)], ["-m", str(EMBEDDED)]):
        assert main(["generate", str(PICTURE), *flags]) == 2
        hint = "is a file; give a prompt after it, such as 'caption en'"
        assert capsys.readouterr() == ("", f"npgemma: {PICTURE} {hint}\n")


def test_a_paligemma_needs_a_picture(folder, capsys):
    assert main(["generate", "caption en", "-m", str(folder)]) == 2
    says = f"npgemma: {folder} answers about pictures; name one before the prompt\n"
    assert capsys.readouterr() == ("", says)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", PICTURE, "caption en"),
        ("generate", "one", "two"),
        ("caption", PICTURE),
        ("answer", PICTURE, "why?"),
        ("ocr", PICTURE, "--num-beams", 2),
        ("detect", PICTURE, "cat"),
        ("segment", PICTURE, "cat"),
        ("batch", PICTURE.parent, "ocr", "-o", "unwritten.jsonl"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_about_pictures_refuse_a_language_model(arguments, language, refused):
    says = f"{language} holds a language model, which reads no pictures; load a PaliGemma"
    assert refused(*arguments, "-m", language) == says
    assert not Path("unwritten.jsonl").exists()


def test_score_refuses_a_picture_for_a_language_model(language, refused):
    assert refused("score", PICTURE, "ocr", "FNY", "-m", language) == NO_PICTURES


# --------------------------------------------------------------------------------------------------------------- score


def test_score_ranks_continuations(language, run):
    suffixes = [" red", " a star", "s"]
    ranked = sorted(
        zip(suffixes, npgemma.load(language).score(TEXT, suffixes), strict=True), key=lambda pair: -pair[1].total
    )
    lines = run("score", TEXT, *suffixes, "-m", language).splitlines()
    assert [line.split("\t")[2] for line in lines] == [suffix.strip() for suffix, _ in ranked]
    for line, (_, score) in zip(lines, ranked, strict=True):
        total, perplexity, _, each = line.split("\t")
        assert (float(total), float(perplexity)) == (round(score.total, 4), float(f"{score.perplexity:.4g}"))
        assert [float(number) for number in each.split()] == [round(number, 4) for number in score.logprobs]
    (found,) = map(json.loads, run("score", "", TEXT, "-m", language, "--format", "json").splitlines())
    whole = npgemma.load(language).score("", TEXT)
    assert (found["prompt"], found["suffix"], found["logprobs"]) == ("", TEXT, whole.logprobs)
    assert len(whole.logprobs) == len(small.TOKENIZER.encode(TEXT))


@pytest.mark.parametrize(
    ("arguments", "content", "same"),
    [
        (["score", "-", " red"], f"{TEXT}\n", ["score", TEXT, " red"]),
        (["score", TEXT, "-"], " red\n\n a star\r\n", ["score", TEXT, " red", " a star"]),
        (["score", TEXT, "s", "-"], " red\n a star", ["score", TEXT, "s", " red", " a star"]),
        (["generate", "-", "--stop", "<loc"], f"{TEXT}\n", ["generate", TEXT, "--stop", "<loc"]),
    ],
    ids=str,
)
def test_stdin_holds_a_prompt_or_answers_with_the_space_before_them(
    arguments, content, same, language, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    flags = ["-m", str(language), *(["--max-new-tokens", "4"] if "generate" in arguments else [])]
    assert main([*arguments, *flags]) == 0
    found = capsys.readouterr()
    assert main([*same, *flags]) == 0
    assert capsys.readouterr() == found
    assert found.out


def test_an_empty_answer_is_not_scored(language, refused):
    assert refused("score", TEXT, "", "-m", language) == "a suffix is empty: there is no token to score"


def test_score_of_a_paligemma_needs_a_picture(folder, capsys):
    assert main(["score", TEXT, " red", "-m", str(folder)]) == 2
    assert capsys.readouterr() == ("", "npgemma: score needs a picture, a prompt, and at least one answer\n")


# --------------------------------------------------------------------------------------------------------------- batch


def test_a_batch_continues_and_scores_texts(language, tmp_path, capsys):
    jobs = [{"id": "a", "prompt": TEXT, "suffix": " red"}, {"id": "b", "prefix": "A dog", "suffix": " is"}]
    path, output = tmp_path / "jobs.jsonl", tmp_path / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))
    command = ["batch", str(path), "-m", str(language), "-o", str(output), "--score", "--max-new-tokens", "4"]
    assert main(command) == 0
    found = {line["id"]: line for line in map(json.loads, output.read_text().splitlines())}
    model = npgemma.load(language)
    for name, prompt, suffix in (("a", TEXT, " red"), ("b", "A dog", " is")):
        assert list(found[name])[:3] == ["id", "prompt", "suffix"]
        assert found[name]["text"] == model.generate(prompt, max_new_tokens=4).text
        assert found[name]["score"]["token_ids"] == small.TOKENIZER.encode(suffix)
        np.testing.assert_allclose(found[name]["score"]["logprobs"], model.score(prompt, suffix).logprobs, rtol=1e-4)
    assert main(command) == 0  # nothing is left to do
    assert "2 of 2 done, 0 now" in capsys.readouterr().err


def test_a_batch_about_a_picture_needs_it(folder, tmp_path, refused):
    (tmp_path / "jobs.jsonl").write_text('{"id": 7, "prompt": "ocr"}\n')
    says = refused("batch", tmp_path / "jobs.jsonl", "-m", folder, "-o", tmp_path / "answers.jsonl")
    assert "holds no job: the job 7 has no image, a path or a list of paths; add one, or load a language model" in says


# -------------------------------------------------------------------------------------------------- inspect and verify


def test_inspect_has_the_facts_of_a_language_model(language, run):
    config = small.config_of("gemma3_text")
    found = json.loads(run("inspect", language, "--format", "json"))
    count = sum(x.size for x in small.tensors_of(config).values())
    token = 2 * 2 * 6 * 4  # key and value, heads, width, float32: of one layer
    assert found["model_type"] == "gemma3_text"
    assert (found["parameters"], found["bytes"]) == (count, 4 * count)
    assert found["tokens_per_image"] == 0
    assert found["cache_bytes_per_token"] == 3 * token
    assert found["cache_bytes_at_most"] == (512 + 2 * (5 + 7)) * token  # of all positions, and two of a window
    assert found["tokenizer_pieces"] == small.SOFT + 1
    assert found["unknown_keys"] == []
    assert found["config"]["text"]["sliding_window"] == 5
    assert found["config"]["eos_token_ids"] == [1]


def test_inspect_in_text_describes_a_language_model(language, run):
    lines = run("inspect", language).splitlines()
    assert "text       3 layers, width 12, 4 query and 2 key heads of 6, a window of 5 tokens in 2 of them" in lines
    assert "cache      288 bytes per token in float32, 0.00 GB for 512 tokens" in lines
    names = [line.split()[0] for line in lines[1:]]
    assert names == ["weights", "files", "text", "cache", "tokenizer", "memory"]


def test_an_unknown_key_of_a_language_model_is_listed(tmp_path, run):
    folder = small.write_folder(tmp_path, small.config_of("gemma2"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"moe_layers": 2}))
    assert run("inspect", folder).splitlines()[-1] == "unknown    config.json: moe_layers"


def test_verify_names_weights_that_are_not_finite(language, tmp_path, capsys):
    assert main(["verify", str(language)]) == 0
    assert capsys.readouterr().out.endswith("\nweights   all finite\n")
    config = small.config_of("gemma2")
    name = "model.layers.1.pre_feedforward_layernorm.weight"
    tensors = small.tensors_of(config) | {name: np.full(12, np.nan, np.float32)}
    folder = small.write_folder(tmp_path, config, tensors)
    assert main(["verify", str(folder)]) == 1
    assert capsys.readouterr().out.endswith(f"\nweights   not finite: {name}\n")


def test_verify_says_that_tensors_belong_to_another_family(tmp_path, capsys):
    config = small.config_of("gemma3_text")
    folder = small.write_folder(tmp_path, config)
    testing.save_tensors(
        {name: x for name, x in small.tensors_of(config).items() if "q_norm" not in name and "k_norm" not in name},
        folder / "model.safetensors",
    )
    assert main(["verify", str(folder)]) == 1
    assert "the two belong to different models" in capsys.readouterr().err
