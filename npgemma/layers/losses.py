"""Losses: the cross-entropy of tokens or classes, the binary cross-entropy of labels, of which several may fit, and two
for towers that are trained on pairs.

Row i of the pictures belongs to row i of the texts. The losses of pairs take rows of length 1 (see `norms.unit`), and
compute in the dtype of the pictures.
"""

import numpy as np

from npgemma.layers.activations import log_softmax, sigmoid, softmax
from npgemma.layers.shapes import Array, Bool, Float, Int

# Texts whose scores are held at a time: with 32,768 pairs, all scores would take 4 GB.
COLUMNS = 4096


def cross_entropy(
    logits: Float[Array, "T V"], targets: Int[Array, "T"], weights: Float[Array, "T"], smoothing: float = 0.0
) -> float:
    """L = - sum over t, v of weights[t] wanted[t v] log softmax(logits)[t v].

    wanted[t v] is 1 - smoothing at the target of t, and smoothing / (V - 1) elsewhere. The weights say what the loss is
    the mean of: 1/T each is the mean over rows.

    Source: Szegedy et al. 2016, section 7, as big_vision spreads it. PyTorch's label_smoothing e also spreads some of
    it on the target: e there is smoothing = e (V - 1) / V here.
    """
    log_probs = log_softmax(logits)
    spread = smoothing / (logits.shape[1] - 1)
    right = log_probs[np.arange(len(targets)), targets]
    return -float((weights * ((1 - smoothing - spread) * right + spread * log_probs.sum(-1))).sum())


def cross_entropy_backward(
    logits: Float[Array, "T V"], targets: Int[Array, "T"], weights: Float[Array, "T"], smoothing: float = 0.0
) -> Float[Array, "T V"]:
    """dlogits[t v] = weights[t] (P[t v] - wanted[t v]), P = softmax(logits).

    At the target, P - 1 is computed as minus the sum of all other P: a subtraction loses its digits where P is near 1.
    """
    dlogits = softmax(logits)
    at_target = np.arange(len(targets)), targets
    dlogits[at_target] = 0
    others = dlogits.sum(-1)
    dlogits -= smoothing / (logits.shape[1] - 1)
    dlogits[at_target] = smoothing - others
    return dlogits * weights[:, None].astype(logits.dtype)


def binary_cross_entropy(logits: Float[Array, "B V"], fits: Bool[Array, "B V"], weights: Float[Array, "B"]) -> float:
    """L = - 1/V sum over b, v of weights[b] log sigmoid(z[b v] logits[b v]), z = 1 where a label fits, else -1.

    -log sigmoid(x) is softplus(-x) = log(1 + e^-x). Weights of 1/B are the mean over a batch.

    Source: torch.nn.BCEWithLogitsLoss, transformers' loss of "multi_label_classification".
    """
    return float((weights * np.logaddexp(0, np.where(fits, -logits, logits)).mean(-1)).sum())


def binary_cross_entropy_backward(
    logits: Float[Array, "B V"], fits: Bool[Array, "B V"], weights: Float[Array, "B"]
) -> Float[Array, "B V"]:
    """dlogits[b v] = weights[b] / V (sigmoid(logit) - fits), computed as -sigmoid(-logit) where a label fits."""
    sign = np.where(fits, -1, 1).astype(logits.dtype)
    return sign * sigmoid(sign * logits) * (weights[:, None] / logits.shape[1]).astype(logits.dtype)


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


def sigmoid_loss_backward(
    images: Float[Array, "B E"], texts: Float[Array, "B E"], scale: float, bias: float, columns: int = COLUMNS
) -> tuple[Float[Array, "B E"], Float[Array, "B E"], float, float]:
    """dimages, dtexts, dscale and dbias, the sums over `columns` texts at a time.

    dl[i j] = -z[i j] sigmoid(-z[i j] l[i j]) / B
    dimages = scale dl texts,  dtexts = scale dl^T images,  dscale = sum dl images texts^T,  dbias = sum dl
    """
    dimages, dtexts = np.zeros_like(images), np.empty_like(texts)
    dscale = dbias = 0.0
    for start in range(0, len(texts), columns):
        some = texts[start : start + columns]
        cosine = images @ some.T  # B columns
        sign = np.where(np.eye(len(images), len(some), -start, dtype=bool), -1, 1).astype(images.dtype)  # -z
        dscores = sign * sigmoid(sign * (cosine * scale + bias)) / len(images)
        dimages += dscores @ some * scale
        dtexts[start : start + columns] = dscores.T @ images * scale
        dscale += float((dscores * cosine).sum())
        dbias += float(dscores.sum())
    return dimages, dtexts, dscale, dbias


def contrastive_loss(images: Float[Array, "B E"], texts: Float[Array, "B E"], scale: float) -> float:
    """L = (the cross entropy of the right text for each picture + that of the right picture for each text) / 2.

    The scores are l = scale images texts^T. Source: CLIP (Radford et al. 2021), section 2.3, figure 3.
    """
    scores = images @ texts.T * scale
    matching = log_softmax(scores).diagonal(), log_softmax(scores.T).diagonal()
    return -float(matching[0].mean() + matching[1].mean()) / 2


def contrastive_loss_backward(
    images: Float[Array, "B E"], texts: Float[Array, "B E"], scale: float
) -> tuple[Float[Array, "B E"], Float[Array, "B E"], float]:
    """dimages, dtexts and dscale, from those of two cross-entropies whose targets are the diagonal of the scores.

    dl = (softmax of the rows of l + softmax of its columns - 2 I) / 2B;  the rest as in `sigmoid_loss_backward`.
    """
    cosine = images @ texts.T
    matching, halves = np.arange(len(images)), np.full(len(images), 0.5 / len(images))
    by_picture = cross_entropy_backward(cosine * scale, matching, halves)
    by_text = cross_entropy_backward(cosine.T * scale, matching, halves)
    dscores = by_picture + by_text.T
    return dscores @ texts * scale, dscores.T @ images * scale, float((dscores * cosine).sum())
