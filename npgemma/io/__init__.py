"""Bytes: files, JSON, archives, pictures, tokenizers, memory. Nothing here knows a model; all input is checked."""
