"""Files, JSON, archives, pictures, tokenizers and memory. This package does not know any model and checks all input."""
