"""Train the mask auto-encoder of the embedded model: in the layout of big_vision's vae-oid.npz.

    python tools/train_masks.py npgemma/assets/tiny/vae-oid.npz     # two minutes on two cores

A vector-quantised auto-encoder (van den Oord et al. 2017, arXiv:1711.00937) of 64 x 64 masks: the shapes of the shape
world, cut out of their pictures as `npgemma.masks.encode_object` cuts them, and blobs of any outline among them, so
that the 128 codes are worth something beyond. Codes follow the encoder as running means of what falls to them; a code
that nothing falls to takes the place of a random encoded patch.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from shape_world import MAX_TURN, SHAPES, SIDE, Thing, draw_mask
from torch import Tensor, nn

from npgemma.checkpoints.mask_vqvae import CODEBOOK, SEGMENT_CODES
from npgemma.io.atomic_write import replace_file
from npgemma.tasks.masks import cut_out

WIDTH = 32  # of a code and of the middle of the network
DOWN, UP = (1, 8, 16, 24, WIDTH), (WIDTH, 24, 16, 12, 8)


class Residual(nn.Module):
    """x + three convolutions, the last one 1 x 1."""

    def __init__(self) -> None:
        super().__init__()
        first, second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))
        self.net = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class AutoEncoder(nn.Module):
    """Modules are numbered as in big_vision's file, so their names are its names."""

    def __init__(self) -> None:
        super().__init__()
        down = [layer for i in range(4) for layer in (nn.Conv2d(*DOWN[i : i + 2], 4, 2, 1), nn.ReLU())]
        up = [layer for i in range(4) for layer in (nn.ConvTranspose2d(*UP[i : i + 2], 4, 2, 1), nn.ReLU())]
        self.encoder = nn.Sequential(*down, Residual(), Residual(), nn.Conv2d(WIDTH, WIDTH, 1))
        ends = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(UP[-1], 1, 1)
        self.decoder = nn.Sequential(ends[0], nn.ReLU(), Residual(), Residual(), *up, ends[1])
        self.register_buffer("codebook", torch.randn(SEGMENT_CODES, WIDTH))
        self.register_buffer("counts", torch.ones(SEGMENT_CODES))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Masks [B 1 64 64] as decoded from their codes, and the commitment loss; in training the codes move along."""
        x = self.encoder(masks).permute(0, 2, 3, 1)  # B 4 4 E
        rows = x.reshape(-1, WIDTH)
        codes = torch.cdist(rows, self.codebook).argmin(1)
        near = self.codebook[codes]
        if self.training:
            self.follow(rows.detach(), codes)
        passed = (rows + (near - rows).detach()).reshape(x.shape).permute(0, 3, 1, 2)
        return self.decoder(passed), F.mse_loss(rows, near)

    def follow(self, rows: Tensor, codes: Tensor, keep: float = 0.99) -> None:
        hits = F.one_hot(codes, SEGMENT_CODES).to(rows.dtype)
        self.counts.mul_(keep).add_(hits.sum(0), alpha=1 - keep)
        self.sums.mul_(keep).add_(hits.T @ rows, alpha=1 - keep)
        idle = self.counts < 0.05
        self.sums[idle] = rows[torch.randint(len(rows), (int(idle.sum()),))]
        self.counts[idle] = 1.0
        self.codebook.copy_(self.sums / self.counts[:, None])


def blob(rng: Random, side: int = 128) -> Image.Image:
    """An outline that wanders about its centre, with a hole now and then."""
    image = Image.new("L", (side, side))
    draw = ImageDraw.Draw(image)
    waves = [(rng.randint(1, 5), rng.uniform(0, 0.25), rng.uniform(0, 2 * math.pi)) for _ in range(3)]
    wide, high = rng.uniform(0.15, 0.45) * side, rng.uniform(0.15, 0.45) * side
    outline = []
    for i in range(72):
        angle = 2 * math.pi * i / 72
        reach = 1 + sum(size * math.cos(n * angle + shift) for n, size, shift in waves)
        outline.append((side / 2 + wide * reach * math.cos(angle), side / 2 + high * reach * math.sin(angle)))
    draw.polygon(outline, fill=255)
    if rng.random() < 0.3:
        r = rng.uniform(0.2, 0.5) * min(wide, high)
        draw.ellipse((side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r), fill=0)
    return image


def masks(rng: Random, count: int) -> Tensor:
    """[count 1 64 64] in -1 .. 1: three of four a shape of the shape world, the others blobs."""
    images = []
    for i in range(count):
        if i % 4:
            place = (0.5, 0.5, rng.uniform(0.11, 0.20), rng.uniform(-MAX_TURN, MAX_TURN))
            image = draw_mask(Thing("", rng.choice(SHAPES), (0, 0, 1, 1), *place), SIDE)
        else:
            image = blob(rng)
        images.append(cut_out(np.asarray(image) > 0)[1])
    return torch.from_numpy(np.stack(images))[:, None]


def train(steps: int, rate: float, seed: int) -> AutoEncoder:
    torch.manual_seed(seed)
    pool, held_out = masks(Random(f"masks {seed}"), 12_000), masks(Random("masks unseen"), 512)
    network = AutoEncoder()
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100, 3 * (steps - step) / steps)
        batch = pool[torch.randint(len(pool), (64,))]
        decoded, commitment = network(batch)
        (F.mse_loss(decoded, batch) + 0.25 * commitment).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 250 == 0:
            network.eval()
            with torch.no_grad():
                inside, truth = network(held_out)[0] > 0, held_out > 0
            network.train()
            iou = ((inside & truth).sum((1, 2, 3)) / (inside | truth).sum((1, 2, 3))).view(-1, 4)
            shapes, blobs = iou[:, 1:].mean(), iou[:, 0].mean()
            print(f"step {step + 1}: IoU of unseen shapes {shapes:.3f}, of blobs {blobs:.3f}", flush=True)
    return network


def export(network: AutoEncoder, out: Path) -> None:
    """The weights in float16, by big_vision's names."""
    named = {name: x for name, x in network.state_dict().items() if name.startswith(("encoder.", "decoder."))}
    named[CODEBOOK] = network.codebook
    with replace_file(out) as part, part.open("wb") as file:
        np.savez_compressed(file, **{name: x.numpy().astype(np.float16) for name, x in named.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    export(train(a.steps, a.rate, a.seed), a.out)


if __name__ == "__main__":
    main()
