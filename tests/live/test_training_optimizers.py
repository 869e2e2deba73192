"""Optimizers, clipping and schedules beside torch.optim and transformers, in float64, over 60 steps."""

import numpy as np
import pytest

from npgemma.training.optimizers import SGD, Adafactor, AdamW, clip, length
from npgemma.training.schedules import Schedule

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
transformers = pytest.importorskip("transformers", reason="the live tests compare with transformers")

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("one_torch_thread")]

STEPS = 60
# 60 steps of about ten float64 operations; AdamW divides by numbers near the last digits of a gradient
SAME = 1e-12
CASES = {
    "adamw": (AdamW(), 0.0, lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.0)),
    "adamw, decay": (AdamW(), 0.1, lambda p: torch.optim.AdamW(p, lr=1.0, weight_decay=0.1)),
    "adamw, other constants": (
        AdamW(0.8, 0.95, 1e-6),
        0.1,
        lambda p: torch.optim.AdamW(p, lr=1.0, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
    "sgd": (SGD(0.0), 0.1, lambda p: torch.optim.SGD(p, lr=1.0, weight_decay=0.1)),
    "sgd, momentum": (SGD(0.9), 0.1, lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9, weight_decay=0.1)),
    "adafactor": (Adafactor(), 0.1, lambda p: torch.optim.Adafactor(p, lr=1.0, weight_decay=0.1)),
}


@pytest.mark.parametrize("name", CASES)
def test_sixty_clipped_steps_follow_torch(name: str) -> None:
    optimizer, decay, make = CASES[name]
    random = np.random.default_rng(5)
    start = {"matrix": random.standard_normal((5, 3)), "vector": random.standard_normal(4)}
    slopes = {key: random.standard_normal((STEPS, *w.shape)) for key, w in start.items()}
    ours = {key: w.copy() for key, w in start.items()}
    theirs = {key: torch.nn.Parameter(torch.tensor(w)) for key, w in start.items()}
    moments = {key: optimizer.start(w) for key, w in ours.items()}
    schedule = Schedule("cosine", 0.05, STEPS, 6)
    reference = make(theirs.values())
    for step in range(1, STEPS + 1):
        gradients = {key: 2 * w + slopes[key][step - 1] for key, w in ours.items()}
        for key, w in theirs.items():
            w.grad = 2 * w.detach() + torch.tensor(slopes[key][step - 1])
        norm = torch.nn.utils.clip_grad_norm_(theirs.values(), 3.0)
        assert length(gradients) == pytest.approx(float(norm), rel=SAME)
        clip(gradients, 3.0, length(gradients))
        rate = schedule.rate(step)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        for key, w in ours.items():
            optimizer.update(w, gradients[key], moments[key], step, rate, decay)
    for key, w in ours.items():
        np.testing.assert_allclose(w, theirs[key].detach().numpy(), rtol=SAME, atol=SAME, strict=True)
        assert np.abs(w - start[key]).max() > 0.1


@pytest.mark.parametrize("curve", ["cosine", "linear", "constant_with_warmup"])
def test_rates_are_those_of_transformers(curve: str) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    reference = transformers.get_scheduler(curve, torch.optim.SGD([parameter], lr=0.3), 4, 30)
    schedule = Schedule(curve.removesuffix("_with_warmup"), 0.3, 30, 4)
    for step in range(1, 31):
        assert schedule.rate(step) == pytest.approx(reference.get_last_lr()[0], rel=1e-15, abs=1e-17)
        reference.optimizer.step()
        reference.step()
