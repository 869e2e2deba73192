"""Weights and prompts -> tokens: options, the loop, sampling, beam search, scores, and text."""
