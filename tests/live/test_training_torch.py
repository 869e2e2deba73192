"""npgemma train beside torch: the same batches through transformers and torch.optim in float64, loss by loss.

NPGEMMA_STEPS=300 makes the longest of these runs longer.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from training_data import losses, write_data

import npgemma
from npgemma.api.transfer import Lines, Transfer, encoder_of
from npgemma.checkpoints.trained_model import save_adapter
from npgemma.commands.cli import main
from npgemma.io.model_folder import EMBEDDED
from npgemma.training.batches import places
from npgemma.training.examples import Example, read_examples
from npgemma.training.options import TrainingOptions

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")
peft = pytest.importorskip("peft", reason="these tests compare with peft")

from make_fixtures import in_float64, truth  # noqa: E402
from torch_logits import read  # noqa: E402

pytestmark = [
    pytest.mark.live,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_torch_thread"),
]

STEPS = int(os.environ.get("NPGEMMA_STEPS", 50))
RATES = {"adamw": 5e-4, "sgd": 0.1}
DECAY, CLIP, BATCH = 0.1, 1.0, 2
MOVED = 0.05  # the mean of the last losses must be lower by this much; otherwise nothing was learned
# Both runs add the same numbers in another order, and what differs grows from step to step; a wrong formula makes 1e-3.
# In float32, roundings grow to 1e-2 over 100 steps.
FLOAT64, FLOAT32, COMPARED = 1e-11, 1e-4, 50


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def examples(data: Path) -> tuple[Example, ...]:
    return read_examples(data, encoder_of(npgemma.load())).examples


def train(data: Path, output: Path, steps: int, optimizer: str, *arguments: str) -> list[float]:
    """The losses of a run of so many steps."""
    epochs = steps * BATCH / 4
    settings = {"epochs": epochs, "batch": BATCH, "decay": DECAY, "clip": CLIP}
    settings |= {"rate": RATES[optimizer], "optimizer": optimizer}
    flags = [each for name, value in settings.items() for each in (f"--{name}", str(value))]
    assert main(["train", str(data), "-o", str(output), *flags, *arguments]) == 0
    found = losses(output)
    assert len(found) == steps
    return found


@contextmanager
def float64_model() -> Iterator[torch.nn.Module]:
    with truth():
        yield in_float64(read(EMBEDDED))


def loss_of(model: torch.nn.Module, batch: list[Example]) -> torch.Tensor:
    """transformers' loss of labels, as the mean over the tokens of the batch; one example at a time, without pads."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for example in batch:
        inputs = labelled(example)
        learned = int((inputs["labels"] != -100).sum())
        total = total + model(**inputs).loss * learned
        tokens += learned
    return total / tokens


@cache
def labelled(example: Example) -> dict[str, torch.Tensor]:
    """An example as transformers trains on it."""
    encoder = encoder_of(npgemma.load())
    ids, types, start = encoder.encode(example.prefix, example.suffix, 1)
    row = torch.tensor(ids)[None]
    labels = row.clone()
    labels[:, :start] = -100
    pixels = torch.tensor(encoder.pixel_values(list(example.images)), dtype=torch.float64)
    found = {"input_ids": row, "token_type_ids": torch.tensor(types)[None], "pixel_values": pixels, "labels": labels}
    return found | {"attention_mask": torch.ones_like(row)}


def reference(model: torch.nn.Module, examples: tuple[Example, ...], optimizer: str, steps: int) -> list[float]:
    """The losses of torch, with the scheduler and the clipping that the Trainer of transformers uses."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if p.ndim > 1 and "position" not in name]
    others = [p for name, p in trained.items() if p.ndim == 1 or "position" in name]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    kinds = {"adamw": torch.optim.AdamW, "sgd": lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9)}
    moving = kinds[optimizer](groups, lr=RATES[optimizer])
    schedule = transformers.get_cosine_schedule_with_warmup(moving, int(0.05 * steps), steps)
    found = []
    for step in range(steps):
        loss = loss_of(model, [examples[place.example] for place in places(0, step, len(examples), BATCH)])
        moving.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)
        moving.step()
        schedule.step()
        found.append(float(loss))
    return found


@pytest.mark.parametrize(("optimizer", "steps"), [("adamw", STEPS), ("sgd", 10)])
def test_losses_of_full_training_follow_torch(data, examples, tmp_path: Path, optimizer: str, steps: int) -> None:
    found = train(data, tmp_path / "64", steps, optimizer, "--full", "--dtype", "float64")
    with float64_model() as model:
        expected = reference(model, examples, optimizer, steps)
    print(f"{steps} steps of {optimizer} in float64 are within {worst(found, expected):.1e} of torch's loss")
    np.testing.assert_allclose(found, expected, rtol=FLOAT64, atol=FLOAT64)
    assert np.mean(found[-2:]) < np.mean(found[:2]) - MOVED
    narrow = train(data, tmp_path / "32", steps, optimizer, "--full")[:COMPARED]
    print(f"the first {len(narrow)} in float32 are within {worst(narrow, expected[:COMPARED]):.1e}")
    np.testing.assert_allclose(narrow, expected[:COMPARED], rtol=FLOAT32, atol=FLOAT32)


def test_losses_of_an_adapter_follow_peft(data: Path, examples: tuple[Example, ...], tmp_path: Path) -> None:
    """From the same A: peft's own is drawn by torch."""
    steps = 10
    found = train(data, tmp_path / "run", steps, "adamw", "--lora", "4", "--dtype", "float64")
    start = Transfer(npgemma.load(dtype="float64"), Lines(examples, {}), TrainingOptions(lora=4))
    (tmp_path / "start").mkdir()
    save_adapter(tmp_path / "start", start.tree, start.home, str(EMBEDDED))
    model = in_float64(read(EMBEDDED))
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "start", is_trainable=True).double()
    with truth():
        expected = reference(adapted, examples, "adamw", steps)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # the start was saved in float32
    assert np.mean(found[-2:]) < np.mean(found[:2]) - MOVED


def worst(found: list[float], expected: list[float]) -> float:
    """The largest difference, of a loss above 1 as a share of it."""
    return float((np.abs(np.array(found) - expected) / np.maximum(1, expected)).max())
