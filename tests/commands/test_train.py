"""npgemma train: adapters and models that npgemma loads, runs that go on, and what is refused."""

import json
import shutil
from collections.abc import Callable
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

SHORT = ("--epochs", "2", "--batch", "2", "--rate", "0.01")
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str], folder: Path, data: Path) -> Callable[..., tuple[int, str, str]]:
    """train(*arguments): exit status, stdout and stderr of a short run with the random model."""

    def train(*arguments: object, data: Path = data, model: Path = folder) -> tuple[int, str, str]:
        status = main(["train", str(data), "-m", str(model), *SHORT, *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    return train


def tensors(folder: Path) -> dict[str, np.ndarray]:
    return paligemma.read_tensors(folder, paligemma.read_config(folder))


def logits(model: npgemma.VisionLanguageModel) -> np.ndarray:
    inputs = model.processor([npgemma.sample_picture()], ["caption en"])
    return model.forward(inputs.input_ids[0], inputs.pixel_values)


def test_an_adapter_is_loaded_beside_its_model(train, folder: Path, tmp_path: Path) -> None:
    status, _, err = train("-o", tmp_path / "run", "--lora", 3)
    assert status == 0
    assert f"step {STEPS} of {STEPS}" in err
    assert set(content(tmp_path / "run")) == {
        *("adapter_config.json", "adapter_model.safetensors", "log.jsonl", "run.json"),
    }
    before, after = npgemma.load(folder), npgemma.load(folder, adapter=tmp_path / "run")
    assert np.abs(logits(after) - logits(before)).max() > 1e-3
    assert len(losses(tmp_path / "run")) == STEPS


def test_a_merged_adapter_is_the_model_with_its_adapter(train, folder: Path, tmp_path: Path) -> None:
    train("-o", tmp_path / "adapter", "--lora", 3)
    train("-o", tmp_path / "merged", "--lora", 3, "--merge")
    expected = logits(npgemma.load(folder, adapter=tmp_path / "adapter"))
    found = logits(npgemma.load(tmp_path / "merged"))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.05 * scale)  # bfloat16 weights, as the model has them
    assert all(x.dtype == np.uint16 for x in tensors(tmp_path / "merged").values())


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--full"], ("language_model.", "vision_tower.", "multi_modal_projector.")),
        (["--train", "attention"], ("self_attn",)),
        (["--train", "projector,text.blocks.1.mlp.up"], ("multi_modal_projector.", "layers.1.mlp.up_proj")),
    ],
)
def test_chosen_parts_of_a_model_change_and_no_others(train, folder, tmp_path, arguments, changed) -> None:
    train("-o", tmp_path / "run", *arguments)
    was, found = tensors(folder), tensors(tmp_path / "run")
    moved = {name for name in was if not np.array_equal(was[name], found[name])}
    assert was.keys() == found.keys()
    assert all(was[name].dtype == found[name].dtype for name in was)
    assert all(any(part in name for part in changed) for name in moved)
    assert all(any(part in name for name in moved) for part in changed)
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()
    assert npgemma.load(tmp_path / "run").generate(npgemma.sample_picture(), "ocr", max_new_tokens=2).token_ids


def test_held_out_examples_are_scored_before_between_and_after(train, data: Path, tmp_path: Path) -> None:
    curve = tmp_path / "loss.png"
    status, out, _ = train("-o", tmp_path / "run", "--eval", data, "--keep", data, "--eval-every", 3, "--curve", curve)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval" in line] == [0, 3, 4]
    assert [line["eval"] for line in lines if "eval" in line] == [line["keep"] for line in lines if "keep" in line]
    assert status == 0
    assert "held-out, before training: loss" in out
    assert "kept, after training: loss" in out
    assert out.count("detect") == 4
    with Image.open(curve) as image:
        assert image.size == (960, 540)


def test_the_scores_after_training_are_those_of_the_written_model(train, data: Path, tmp_path: Path) -> None:
    """Weights are rounded to the dtype of the files, and the loss is that of the rounded ones."""
    train("-o", tmp_path / "run", "--full", "--eval", data)
    said = json.loads((tmp_path / "run" / "run.json").read_text())["scores"]["eval"]["loss"]
    model = npgemma.load(tmp_path / "run")
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    scores = [model.score(data.parent / each["image"], each["prefix"], each["suffix"]) for each in lines]
    found = -sum(score.total for score in scores) / sum(len(score.token_ids) for score in scores)
    assert found == pytest.approx(said, rel=1e-5)


def test_a_run_with_the_same_seed_has_the_same_bytes(train, tmp_path: Path) -> None:
    train("-o", tmp_path / "a", "--lora", 3, "--augment", "crop=0.7,flip")
    train("-o", tmp_path / "b", "--lora", 3, "--augment", "crop=0.7,flip")
    train("-o", tmp_path / "c", "--lora", 3, "--augment", "crop=0.7,flip", "--seed", 1)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


def test_computing_activations_twice_changes_no_bit(train, tmp_path: Path) -> None:
    train("-o", tmp_path / "a", "--full", "--checkpointing", "on")
    train("-o", tmp_path / "b", "--full", "--checkpointing", "off")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_accumulation_learns_from_the_same_batch(train, tmp_path: Path) -> None:
    train("-o", tmp_path / "a", "--lora", 3, "--dtype", "float64")
    train("-o", tmp_path / "b", "--lora", 3, "--dtype", "float64", "--batch", 1, "--accumulate", 2)
    np.testing.assert_allclose(losses(tmp_path / "a"), losses(tmp_path / "b"), rtol=1e-9)


def test_a_finished_run_is_left_as_it_is(train, tmp_path: Path) -> None:
    train("-o", tmp_path / "run", "--lora", 3)
    before = content(tmp_path / "run")
    assert train("-o", tmp_path / "run", "--lora", 3)[0] == 0
    status, _, err = train("-o", tmp_path / "run", "--lora", 4)
    assert status == 1
    assert "holds another run: its lora is 3, not 4" in err
    assert content(tmp_path / "run") == before


def test_an_adapter_goes_on_learning(train, folder: Path, tmp_path: Path) -> None:
    train("-o", tmp_path / "first", "--lora", 3, "--alpha", 6)
    train("-o", tmp_path / "second", "--adapter", tmp_path / "first", "--schedule", "constant")
    first, second = (open_file(tmp_path / each / "adapter_model.safetensors") for each in ("first", "second"))
    assert first.keys() == second.keys()
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 6)
    assert losses(tmp_path / "second")[0] != losses(tmp_path / "first")[0]
    assert all(not np.array_equal(first[name], second[name]) for name in first)


def test_a_plan_is_printed_and_nothing_is_written(train, tmp_path: Path) -> None:
    status, out, _ = train("-o", tmp_path / "run", "--lora", 3, "--plan")
    assert status == 0
    assert "numbers in 42 arrays" in out
    assert "4 of 2 examples" in out
    assert "s a step" in out
    assert "learned  a|▁blue|▁star|<eos>" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", language_folders.FAMILIES)
def test_language_models_learn_too(train, tmp_path: Path, family: str) -> None:
    model = language_folders.write_folder(tmp_path / "model", language_folders.config_of(family))
    texts = write_texts(tmp_path / "texts.jsonl")
    for how in (["--lora", 2], ["--full"]):
        status, _, err = train("-o", tmp_path / how[0], *how, "--eval", texts, data=texts, model=model)
        assert status == 0, err
    loaded = npgemma.load(model, adapter=tmp_path / "--lora"), npgemma.load(tmp_path / "--full")
    assert all(each.generate("one two", max_new_tokens=2).token_ids for each in loaded)


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
def test_what_cannot_be_done_is_one_sentence(train, tmp_path: Path, arguments: list, message: str) -> None:
    status, out, err = train("-o", tmp_path / "run", *arguments)
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
def test_wrong_usage_is_told(train, tmp_path: Path, capsys, arguments: list, message: str) -> None:
    try:
        status, _, err = train("-o", tmp_path / "run", *arguments)
    except SystemExit as stopped:  # argparse
        status, err = stopped.code, capsys.readouterr().err
    assert status == 2
    assert message in err


def test_a_line_that_cannot_be_learned_is_reported_or_skipped(train, tmp_path: Path) -> None:
    bad = write_data(tmp_path / "data", bad='{"image": "9.png", "prefix": "ocr", "suffix": "x"}')
    status, _, err = train("-o", tmp_path / "run", data=bad)
    assert status == 1
    assert "line 5" in err
    assert not (tmp_path / "run").exists()
    status, _, err = train("-o", tmp_path / "run", "--skip-bad", data=bad)
    assert status == 0
    assert "skipped 1 line" in err


def test_a_folder_that_is_not_empty_is_left_as_it_is(train, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    before = content(tmp_path / "model")
    status, _, err = train("-o", tmp_path / "model", model=tmp_path / "model")
    assert status == 1
    assert "not empty" in err
    assert content(tmp_path / "model") == before
