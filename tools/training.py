"""What the training of the embedded models shares: optimizers, the rate, checkpoints and the log of a run."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

LOG_EVERY, SAVE_EVERY = 50, 250


class Muon(torch.optim.Optimizer):
    """Muon as in torch.optim, its step as long as AdamW's, in float32: bfloat16 products are slow on many CPUs."""

    def __init__(self, matrices: list[nn.Parameter], lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(matrices, dict(lr=lr, weight_decay=weight_decay, momentum=momentum))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(average, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * max(p.shape) ** 0.5)


def orthogonal(x: Tensor) -> Tensor:
    """About U V^T of x = U S V^T, by five Newton-Schulz steps with Muon's coefficients."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T).T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


def optimizers(modules: dict[str, nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon on the matrices of the model's layers, AdamW on embeddings, norms, biases and the other modules."""
    named = {f"{module}.{name}": p for module, each in modules.items() for name, p in each.named_parameters()}
    matrices = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
    others = [p for name, p in named.items() if not (".layers." in name and p.ndim == 2)]
    return [
        Muon(matrices, lr=rate, weight_decay=0.02, momentum=0.95),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def rate_at(step: int, steps: int) -> float:
    """Share of the full rate: up for a 40th of the steps, held, and down to zero in the last 40%."""
    return min(1.0, 40 * (step + 1) / steps, max(0.0, (steps - step) / (0.4 * steps)))


class Run:
    """A training run of so many steps, which writes checkpoint.pt and log.jsonl and resumes from them.

    A checkpoint is written every 250 steps and at the end, beside the old one, and renamed. `step` counts the steps
    done.
    """

    def __init__(self, folder: Path, modules: dict[str, nn.Module], steps: int, rate: float, minutes: float) -> None:
        self.folder, self.modules, self.steps, self.rate, self.minutes = folder, modules, steps, rate, minutes
        self.optimizers = optimizers(modules, rate)
        self.step = 0
        self.shown: list[dict[str, float]] = []
        self.started = time.monotonic()
        self.checkpoint = folder / "checkpoint.pt"
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.exists():
            self.resume(torch.load(self.checkpoint))

    def resume(self, state: dict) -> None:
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step = state["step"]

    @property
    def is_over(self) -> bool:
        return self.step >= self.steps or time.monotonic() - self.started > 60 * self.minutes

    def update(self, loss: Tensor, /, **shown: Tensor) -> None:
        """One step down the gradient of `loss`; the log has the means of `shown`."""
        rate = self.rate * rate_at(self.step, self.steps)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.modules["model"].parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.shown.append({name: value.item() for name, value in shown.items()} | {"grad_norm": norm.item()})
        self.step += 1
        if self.step % LOG_EVERY == 0:
            means = {name: round(float(np.mean([each[name] for each in self.shown])), 4) for name in self.shown[0]}
            self.shown.clear()
            self.log(**means, rate=round(rate, 6))
        if self.step % SAVE_EVERY == 0 or self.is_over:
            self.save()

    def log(self, **values: float) -> None:
        line = {"step": self.step} | values | {"seconds": round(time.monotonic() - self.started)}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def save(self) -> None:
        state = {name: module.state_dict() for name, module in self.modules.items()}
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        torch.save(state | {"optimizers": states, "step": self.step}, self.folder / "partial.pt")
        os.replace(self.folder / "partial.pt", self.checkpoint)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
