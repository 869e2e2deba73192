"""The losses of towers that are trained on pairs: row i of the pictures belongs to row i of the texts.

Both take rows of length 1 (see `norms.unit`), and compute in the dtype of the pictures.
"""

import numpy as np

from npgemma.layers.activations import log_softmax
from npgemma.layers.shapes import Array, Float

# Texts whose scores are held at a time: with 32,768 pairs, all scores would take 4 GB.
COLUMNS = 4096


def sigmoid_loss(
    images: Float[Array, "B E"], texts: Float[Array, "B E"], scale: float, bias: float, columns: int = COLUMNS
) -> float:
    """L = -1/B sum over i, j of log sigmoid(z[i j] l[i j]), l = scale images texts^T + bias, z = 1 if i = j, else -1.

    As -log sigmoid(-x) = softplus(x) = log(1 + e^x) and softplus(-x) = softplus(x) - x, this is the sum of softplus(l)
    without the sum of the diagonal. The sum runs over `columns` texts at a time.

    Source: SigLIP (Zhai et al. 2023), equation 1, and section 3.3 for the chunks.
    """
    total = 0.0
    for start in range(0, len(texts), columns):
        scores = images @ texts[start : start + columns].T * scale + bias  # B columns
        matching = scores[start : start + columns].diagonal()
        total += float(np.logaddexp(0, scores).sum()) - float(matching.sum())
    return total / len(images)


def contrastive_loss(images: Float[Array, "B E"], texts: Float[Array, "B E"], scale: float) -> float:
    """L = (the cross entropy of the right text for each picture + that of the right picture for each text) / 2.

    The scores are l = scale images texts^T. Source: CLIP (Radford et al. 2021), section 2.3, figure 3.
    """
    scores = images @ texts.T * scale
    matching = log_softmax(scores).diagonal(), log_softmax(scores.T).diagonal()
    return -float(matching[0].mean() + matching[1].mean()) / 2
