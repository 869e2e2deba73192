"""Transfer: a model learns from examples, by gradients that its own layers compute."""
