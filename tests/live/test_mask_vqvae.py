"""The mask auto-encoder against the same network in torch, on random weights, in float64."""

from pathlib import Path

import numpy as np
import pytest
from mask_codecs import WIDTH, random_tensors

from npgemma.checkpoints.mask_vqvae import CODEBOOK, layout_of, mask_codec
from npgemma.layers.tree import leaves, map_tree, thawed
from npgemma.models.mask_vqvae import decode_mask, encode_mask
from npgemma.models.mask_vqvae_grad import loss_and_gradient

torch = pytest.importorskip("torch", reason="the live tests compare with torch")
nn = torch.nn

pytestmark = pytest.mark.live


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1))
        self.net = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), nn.Conv2d(width, width, 1))

    def forward(self, x):
        return x + self.net(x)


def decoder() -> nn.Sequential:
    up = [(16, 15), (15, 9), (9, 7), (7, 5)]
    ups = [layer for pair in up for layer in (nn.ConvTranspose2d(*pair, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(
        nn.Conv2d(WIDTH, 16, 1), nn.ReLU(), Residual(16), Residual(16), *ups, nn.Conv2d(5, 1, 1)
    ).double()


def encoder() -> nn.Sequential:
    down = [(1, 6), (6, 8), (8, 10), (10, 11)]
    downs = [layer for pair in down for layer in (nn.Conv2d(*pair, 4, 2, 1), nn.ReLU())]
    return nn.Sequential(*downs, Residual(11), Residual(11), nn.Conv2d(11, WIDTH, 1)).double()


@pytest.mark.parametrize("seed", range(5))
def test_decoding_and_encoding_equal_torch(seed: int) -> None:
    tensors = {name: x.astype(np.float64) for name, x in random_tensors(seed).items()}
    p = map_tree(lambda leaf: leaf.value.astype(np.float64), mask_codec(tensors, Path("random")))
    codebook = torch.from_numpy(tensors[CODEBOOK])
    networks = {"decoder": decoder(), "encoder": encoder()}
    for part, network in networks.items():
        state = {name.removeprefix(f"{part}."): torch.from_numpy(x) for name, x in tensors.items() if part in name}
        network.load_state_dict(state, strict=True)
    rng = np.random.default_rng(seed)
    codes, masks = rng.integers(0, 128, (4, 16)), rng.uniform(-1, 1, (4, 64, 64))
    with torch.no_grad():
        rows = codebook[torch.from_numpy(codes)].reshape(4, 4, 4, WIDTH).permute(0, 3, 1, 2)
        decoded = networks["decoder"](rows)[:, 0].numpy()
        latent = networks["encoder"](torch.from_numpy(masks)[:, None]).permute(0, 2, 3, 1).reshape(4, 16, 1, WIDTH)
        nearest = (latent - codebook).square().sum(-1).argmin(-1).numpy()
    np.testing.assert_allclose(decode_mask(p, codes), decoded, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(encode_mask(p, masks), nearest)


def test_gradients_of_the_loss_it_was_trained_with_equal_torchs() -> None:
    """The loss of tools/train_masks.py, in which what the decoder gives to the codes passes straight to the encoder."""
    tensors = {name: x.astype(np.float64) for name, x in random_tensors(0).items()}
    p = thawed(mask_codec(tensors, Path("random")), lambda path: path != "codebook", np.dtype(np.float64))
    networks = {"decoder": decoder(), "encoder": encoder()}
    for part, network in networks.items():
        state = {name.removeprefix(f"{part}."): torch.from_numpy(x) for name, x in tensors.items() if part in name}
        network.load_state_dict(state)
    codebook, masks = torch.from_numpy(tensors[CODEBOOK]), np.random.default_rng(0).uniform(-1, 1, (3, 64, 64))
    truth = torch.from_numpy(masks)[:, None]
    x = networks["encoder"](truth).permute(0, 2, 3, 1)
    rows = x.reshape(-1, WIDTH)
    near = codebook[(rows[:, None] - codebook).square().sum(-1).argmin(1)]
    passed = (rows + (near - rows).detach()).reshape(x.shape).permute(0, 3, 1, 2)
    loss = nn.functional.mse_loss(networks["decoder"](passed), truth) + 0.25 * nn.functional.mse_loss(rows, near)
    loss.backward()
    found, gradient = loss_and_gradient(p, masks)
    assert found == pytest.approx(float(loss.detach()), rel=1e-14)
    parameters = [(f"{part}.{name}", x) for part in networks for name, x in networks[part].named_parameters()]
    exact = {name: x.grad.numpy() for name, x in parameters} | {CODEBOOK: tensors[CODEBOOK]}
    wanted = {leaf.path: leaf.value for leaf in leaves(layout_of(exact).fill(exact, np.dtype(np.float64)))}
    assert {leaf.path for leaf in leaves(gradient)} == wanted.keys() - {"codebook"}
    for leaf in leaves(gradient):
        x = wanted[leaf.path]
        assert np.linalg.norm(leaf.value - x) <= 1e-12 * np.linalg.norm(x), leaf.path
