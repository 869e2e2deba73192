"""What npgemma train writes, read by peft and transformers; and adapters of peft's that go on learning in npgemma."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from training_data import losses, write_data, write_texts

import npgemma
from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED, EMBEDDED_LANGUAGE

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from dump_transformers import load_model, make_inputs  # noqa: E402
from peft_models import adapted, logits_of  # noqa: E402
from torch_logits import logits, read  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("one_torch_thread")]

SAMPLE = EMBEDDED.parent / "sample.png"
SAME = 1e-5  # of the largest logit: two float32 runs
MOVED = 0.1  # training must change a logit by this much; otherwise a test would pass without it


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def inputs() -> dict:
    return make_inputs(EMBEDDED, [SAMPLE], "caption en")


def train(data: Path, output: Path, *arguments: str) -> Path:
    assert main(["train", str(data), "-o", str(output), "--epochs", "2", "--batch", "2", *arguments]) == 0
    return output


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=SAME * np.abs(expected).max(), strict=True)


def loaded_by_peft(base: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with an adapter. A warning is an error, such as of keys that are missing or unexpected."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing")  # peft calls transformers by an old name
        return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        ((), 28),
        (("--train", "attention"), 16),
        (("--train", "text.blocks.2.*"), 7),
        (("--train", "vision,projector"), 4 * 6 + 1),
        (("--train", "all"), 28 + 4 * 6 + 1),
        (("--words", "heart,blue"), 28),
    ],
)
def test_peft_loads_an_adapter_without_a_warning(data, inputs, tmp_path, arguments: tuple, modules: int) -> None:
    train(data, tmp_path / "run", "--lora", "4", "--rate", "0.01", *arguments)
    base = load_model(EMBEDDED, torch.float32, "eager")
    model = loaded_by_peft(base, tmp_path / "run")
    names = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    assert len(names) == modules
    assert any("vision_tower" in name for name in names) == any(
        each in ("all", "vision,projector") for each in arguments
    )
    expected, loaded = logits_of(model, inputs, wide=False), npgemma.load(adapter=tmp_path / "run")
    assert_same(logits(loaded, inputs), expected)
    assert np.abs(expected - logits(npgemma.load(), inputs)).max() > MOVED


@pytest.mark.parametrize("arguments", [("--full",), ("--lora", "4", "--merge"), ("--words", "heart", "--merge")])
def test_transformers_loads_a_model(data: Path, inputs: dict, tmp_path: Path, arguments: tuple) -> None:
    train(data, tmp_path / "run", "--rate", "0.005", *arguments)
    expected = logits_of(read(tmp_path / "run"), inputs, wide=False)
    assert_same(logits(npgemma.load(tmp_path / "run"), inputs), expected)
    assert np.abs(expected - logits(npgemma.load(), inputs)).max() > MOVED


def test_peft_loads_the_adapter_of_a_language_model(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl")
    train(texts, tmp_path / "run", "-m", "tiny-gemma", "--rate", "0.01")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED_LANGUAGE, dtype=torch.float32, attn_implementation="eager")
    model = loaded_by_peft(base, tmp_path / "run")
    ids = make_inputs(EMBEDDED_LANGUAGE, [], "one two")
    expected = logits_of(model, ids, wide=False)
    assert_same(logits(npgemma.load("tiny-gemma", adapter=tmp_path / "run"), ids), expected)
    assert np.abs(expected - logits(npgemma.load("tiny-gemma"), ids)).max() > MOVED


def test_an_adapter_of_peft_goes_on_learning(data: Path, inputs: dict, tmp_path: Path) -> None:
    """With different ranks, and a square root in its scale: what is written says the same in another way."""
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, rank_pattern={"up_proj": 2}, target_modules=r".*language_model.*(q|up)_proj"
    )
    adapted(config, wide=False).save_pretrained(tmp_path / "peft")
    before = npgemma.load(adapter=tmp_path / "peft")
    train(
        data, tmp_path / "run", "--adapter", str(tmp_path / "peft"), "--rate", "1e-9", "--batch", "4", "--epochs", "1"
    )
    assert_same(logits(npgemma.load(adapter=tmp_path / "run"), inputs), logits(before, inputs))
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    scores = [before.score(data.parent / each["image"], each["prefix"], each["suffix"]) for each in lines]
    loss = -sum(score.total for score in scores) / sum(len(score.token_ids) for score in scores)
    assert losses(tmp_path / "run") == pytest.approx([loss], rel=1e-5)
    model = loaded_by_peft(load_model(EMBEDDED, torch.float32, "eager"), tmp_path / "run")
    assert_same(logits_of(model, inputs, wide=False), logits(before, inputs))
