"""The tasks of PaliGemma: its prompts, and the objects and masks in its answers."""
