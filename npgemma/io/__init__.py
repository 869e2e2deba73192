"""Everything that touches a file: configs, checkpoints, tokenizers, pictures. What is outside is checked here."""
