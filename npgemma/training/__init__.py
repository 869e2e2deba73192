"""Training: the examples that people have, the batches a step learns from, and how good the answers are."""
