"""npgemma train: adapters and models that npgemma loads, runs that go on, and what is refused."""

import io
import json
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import language_folders
import numpy as np
import pytest
from PIL import Image
from training_data import content, losses, write_data, write_texts

import npgemma
from npgemma.checkpoints import paligemma
from npgemma.commands.cli import main
from npgemma.io.safetensors import open_file
from npgemma.io.weight_writing import write_file

SHORT = ("--epochs", "1", "--batch", "2", "--rate", "0.01", "--schedule", "constant")
STEPS = 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def held_out(data: Path) -> Path:
    """Two of the examples, whose answers end soon."""
    lines = data.read_text().splitlines()
    path = data.parent / "held-out.jsonl"
    path.write_text("\n".join([lines[2], lines[1]]))
    return path


@pytest.fixture(scope="module")
def run(folder: Path, data: Path) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments): exit status, stdout and stderr of a short run with the random model."""

    def run(*arguments: object, data: Path = data, model: Path = folder) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                status = main(["train", str(data), "-m", str(model), *SHORT, *map(str, arguments)])
            except SystemExit as stopped:  # argparse
                status = stopped.code
        return status, out.getvalue(), err.getvalue()

    return run


@pytest.fixture(scope="module")
def adapter(run, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, str, str]]:
    """The folder of a run, and what it said."""
    folder = tmp_path_factory.mktemp("adapter") / "run"
    scored = ("--eval", held_out, "--keep", held_out, "--eval-every", 1, "--curve", folder.parent / "loss.png")
    return folder, run("-o", folder, "--lora", 3, *scored)


@pytest.fixture(scope="module")
def whole(run, held_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that trained a whole model."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run("-o", folder, "--full", "--eval", held_out)[0] == 0
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return paligemma.read_tensors(folder, paligemma.read_config(folder))


def logits(model: npgemma.VisionLanguageModel) -> np.ndarray:
    inputs = model.processor([npgemma.sample_picture()], ["caption en"])
    return model.forward(inputs.input_ids[0], inputs.pixel_values)


def test_an_adapter_is_loaded_beside_its_model(adapter, folder: Path) -> None:
    run, (status, _, err) = adapter
    assert status == 0
    assert f"step {STEPS} of {STEPS}" in err
    assert set(content(run)) == {"adapter_config.json", "adapter_model.safetensors", "log.jsonl", "run.json"}
    before, after = npgemma.load(folder), npgemma.load(folder, adapter=run)
    assert np.abs(logits(after) - logits(before)).max() > 1e-3
    assert len(losses(run)) == STEPS


def test_a_merged_adapter_is_the_model_with_its_adapter(run, adapter, folder: Path, tmp_path: Path) -> None:
    run("-o", tmp_path / "run", "--lora", 3, "--merge")
    expected, found = logits(npgemma.load(folder, adapter=adapter[0])), logits(npgemma.load(tmp_path / "run"))
    # the matrices are rounded to bfloat16, as the model has them
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * np.abs(expected).max())
    assert all(x.dtype == np.uint16 for x in tensors(tmp_path / "run").values())


def changed(folder: Path, run: Path) -> set[str]:
    """The names of the tensors that a run has changed."""
    was, found = tensors(folder), tensors(run)
    assert was.keys() == found.keys()
    assert all(was[name].dtype == found[name].dtype for name in was)
    return {name for name in was if not np.array_equal(was[name], found[name])}


def test_all_of_a_model_changes_and_its_other_files_stay(folder: Path, whole: Path) -> None:
    unmoved = tensors(folder).keys() - changed(folder, whole)
    assert all(name.endswith("k_proj.bias") for name in unmoved)  # which have no gradient
    assert (whole / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    assert npgemma.load(whole).generate(npgemma.sample_picture(), "ocr", max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("parts", "pattern"),
    [
        ("attention", r"language_model.*self_attn.*"),
        ("projector,text.blocks.1.mlp.up", r"multi_modal_projector.*|.*language_model.*layers\.1\.mlp\.up_proj.*"),
    ],
)
def test_chosen_parts_of_a_model_change_and_no_others(run, folder, tmp_path, parts: str, pattern: str) -> None:
    run("-o", tmp_path / "run", "--train", parts)
    assert changed(folder, tmp_path / "run") == {name for name in tensors(folder) if re.fullmatch(pattern, name)}


def test_held_out_examples_are_scored_before_between_and_after(adapter) -> None:
    run, (_, out, _) = adapter
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [0, 1, 2]
    assert [line["eval"] for line in lines if "eval" in line] == [line["keep"] for line in lines if "keep" in line]
    assert "held-out, before training: loss" in out
    assert "kept, after training: loss" in out
    assert out.count("detect") == 4
    with Image.open(run.parent / "loss.png") as image:
        assert image.size == (960, 540)


def test_the_scores_after_training_are_those_of_the_written_model(whole: Path, held_out: Path) -> None:
    """Weights are rounded to the dtype of the files, and the loss is that of the rounded ones."""
    said = json.loads((whole / "run.json").read_text())["scores"]["eval"]["loss"]
    model = npgemma.load(whole)
    lines = [json.loads(line) for line in held_out.read_text().splitlines()]
    scores = [model.score(held_out.parent / each["image"], each["prefix"], each["suffix"]) for each in lines]
    found = -sum(score.total for score in scores) / sum(len(score.token_ids) for score in scores)
    assert found == pytest.approx(said, rel=1e-5)


def test_a_run_with_the_same_seed_has_the_same_bytes_on_any_number_of_threads(run, use_threads, tmp_path: Path) -> None:
    how = ("--lora", 3, "--augment", "crop=0.7,flip")
    use_threads(1)
    run("-o", tmp_path / "a", *how)
    use_threads(2)
    run("-o", tmp_path / "b", *how)
    run("-o", tmp_path / "c", *how, "--seed", 1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_computing_activations_twice_changes_no_bit(run, whole: Path, held_out: Path, tmp_path: Path) -> None:
    run("-o", tmp_path / "run", "--full", "--eval", held_out, "--checkpointing", "on")
    assert content(tmp_path / "run") == content(whole)


def test_accumulation_learns_from_the_same_batch(run, tmp_path: Path) -> None:
    run("-o", tmp_path / "a", "--epochs", 0.5, "--lora", 3, "--dtype", "float64")
    run("-o", tmp_path / "b", "--epochs", 0.5, "--lora", 3, "--dtype", "float64", "--batch", 1, "--accumulate", 2)
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-9)


def test_a_finished_run_is_left_as_it_is(run, adapter, held_out: Path) -> None:
    folder, _ = adapter
    before = content(folder)
    how = ("--eval", held_out, "--keep", held_out, "--eval-every", 1)
    assert run("-o", folder, "--lora", 3, *how)[0] == 0
    status, _, err = run("-o", folder, "--lora", 4, *how)
    assert status == 1
    assert "holds another run: its lora is 3, not 4" in err
    assert content(folder) == before


def test_an_adapter_goes_on_learning(run, adapter, tmp_path: Path) -> None:
    run("-o", tmp_path / "run", "--adapter", adapter[0])
    first, second = (open_file(each / "adapter_model.safetensors") for each in (adapter[0], tmp_path / "run"))
    assert first.keys() == second.keys()
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 8)
    assert losses(tmp_path / "run")[0] < losses(adapter[0])[0]
    assert all(not np.array_equal(first[name], second[name]) for name in first)


def test_the_rows_of_words_are_learned_beside_an_adapter(run, folder: Path, tmp_path: Path) -> None:
    run("-o", tmp_path / "run", "--lora", 3, "--words", "heart", "--merge")
    table = "language_model.model.embed_tokens.weight"
    was, found = tensors(folder)[table], tensors(tmp_path / "run")[table]
    encode = npgemma.load(folder).tokenizer.encode
    moved = np.flatnonzero((was != found).any(1)).tolist()
    assert set(moved) <= {*encode("heart"), *encode(" heart")}
    assert moved


def test_a_plan_is_printed_and_nothing_is_written(run, tmp_path: Path) -> None:
    status, out, _ = run("-o", tmp_path / "run", "--lora", 3, "--plan")
    assert status == 0
    assert "numbers in 42 arrays" in out
    assert "2 of 2 examples" in out
    assert "s a step" in out
    assert "learned  a|▁blue|▁star|<eos>" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("family", "how"), [("gemma", ["--full"]), ("gemma2", ["--lora", 2]), ("gemma3_text", [])])
def test_language_models_learn_too(run, tmp_path: Path, family: str, how: list) -> None:
    model = language_folders.write_folder(tmp_path / "model", language_folders.config_of(family))
    texts, end = write_texts(tmp_path / "texts.jsonl"), tmp_path / "run"
    status, _, err = run("-o", end, *how, data=texts, model=model)
    assert status == 0, err
    loaded = npgemma.load(end) if "--full" in how else npgemma.load(model, adapter=end)
    assert loaded.generate("one two", max_new_tokens=2).token_ids


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "text.blocks.9.*"], "--train text.blocks.9.* names nothing that can be trained here"),
        (["--lora", 3, "--train", "text.embedding"], "--train text.embedding names nothing"),
        (["--eval", "missing.jsonl"], "missing.jsonl"),
        (["--full", "--max-memory", "151MB"], "more than the 0.15 GB allowed"),
        (["--curve", "no/such/folder/a.png"], "no/such/folder/a.png cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, tmp_path: Path, arguments: list, message: str) -> None:
    status, out, err = run("-o", tmp_path / "run", *arguments)
    assert (status, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--full", "--train", "attention"], "--full trains everything"),
        (["--full", "--alpha", 3], "--alpha is for --lora"),
        (["--full", "--merge"], "--merge merges an adapter"),
        (["--epochs", 0], "--epochs must be above 0"),
        (["--warmup", 1], "--warmup must be at least 0 and below 1"),
        (["--loss-mean", "word"], "invalid choice"),
        (["--augment", "turn"], "'turn' is not crop, flip"),
        (["--adapter", "x", "--lora", 3], "--adapter goes on training that adapter"),
    ],
)
def test_wrong_usage_is_told(run, tmp_path: Path, arguments: list, message: str) -> None:
    status, _, err = run("-o", tmp_path / "run", *arguments)
    assert status == 2
    assert message in err


def test_a_line_that_cannot_be_learned_is_reported_or_skipped(run, tmp_path: Path) -> None:
    bad = write_data(tmp_path / "data", bad='{"image": "9.png", "prefix": "ocr", "suffix": "x"}')
    status, _, err = run("-o", tmp_path / "run", data=bad)
    assert status == 1
    assert "line 5" in err
    assert not (tmp_path / "run").exists()
    status, _, err = run("-o", tmp_path / "run", "--skip-bad", data=bad)
    assert status == 0
    assert "skipped 1 line" in err


def test_arrays_that_need_too_much_are_refused_before_the_examples_are_read(run, tmp_path: Path) -> None:
    bad = write_data(tmp_path / "data", bad="{")
    status, _, err = run("-o", tmp_path / "run", "--full", "--max-memory", "170MB", data=bad, model="tiny")
    assert status == 1
    assert re.search(r"needs 0\.19 GB \(0\.00 GB of weights, 0\.03 GB of trained arrays\), more than the", err)


def test_a_folder_that_is_not_empty_is_left_as_it_is(run, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    before = content(tmp_path / "model")
    status, _, err = run("-o", tmp_path / "model", model=tmp_path / "model")
    assert status == 1
    assert "not empty" in err
    assert content(tmp_path / "model") == before


def test_a_loss_that_is_not_finite_names_the_tap_where_it_began(run, folder: Path, tmp_path: Path) -> None:
    whole = dict(open_file(folder / "model.safetensors"))
    name = next(each for each in whole if each.endswith("layers.1.mlp.gate_proj.weight"))
    whole[name] = np.full_like(whole[name], 0x7E00)  # bfloat16 for 4e37
    shutil.copytree(folder, tmp_path / "model")
    write_file(whole, tmp_path / "model" / "model.safetensors")
    with np.errstate(all="warn"):
        status, out, err = run("-o", tmp_path / "run", "--lora", 3, model=tmp_path / "model")
    assert (status, out) == (1, "")
    last = err.splitlines()[-1]
    assert "in step 1, which begins at the tap text.layers.1.mlp." in last
    assert f"the state before it is kept in {tmp_path / 'run'}" in last
    assert (tmp_path / "run" / "state-00000000.safetensors").exists()
