"""SigLIP read backwards: each function takes what its namesake in `siglip` took, and dy. See `gemma_grad`."""

from npgemma.layers.activations import gelu
from npgemma.layers.linear import linear_backward, reshaped, total
from npgemma.layers.norms import layer_norm_backward
from npgemma.layers.shapes import Array, Float
from npgemma.layers.taps import Kept, Tap, at, silent
from npgemma.models.siglip import PatchEmbedding, VisionTower
from npgemma.models.vit import every_row, patches
from npgemma.models.vit_grad import encoder_backward


def patch_embedding_backward(
    p: PatchEmbedding, pixel_values: Float[Array, "B C Y X"], dy: Float[Array, "B P D"], tap: Tap = silent
) -> PatchEmbedding:
    """forward: y = W patch + bias + position. A position gets the sum over the pictures; pixels get no gradient."""
    width, _, size, _ = p.weight.shape
    dpatches = tap("patches", dy, "B P D")
    _, weight = linear_backward(patches(pixel_values, size), reshaped(p.weight, (width, -1)), dpatches)
    return PatchEmbedding(reshaped(weight, p.weight.shape), total(p.bias, dpatches), total(p.position, dy))


def vision_tower_backward(
    p: VisionTower, pixel_values: Float[Array, "B C Y X"], saw: Kept, dy: Float[Array, "B P D"], tap: Tap = silent
) -> VisionTower:
    """The gradient of the tower from that of its rows."""
    last = saw[f"layers.{len(p.blocks) - 1}.out"] if p.blocks else saw["embedding"]
    dx, norm = layer_norm_backward(p.norm, last, tap("norm", dy, "B P D"))
    dx, blocks = encoder_backward(p.blocks, every_row(dx.shape[1]), gelu, saw, dx, tap)
    embedding = patch_embedding_backward(p.embedding, pixel_values, tap("embedding", dx, "B P D"), at(tap, "embedding"))
    return VisionTower(embedding, blocks, norm)
