"""The models: weights as frozen dataclasses, and the functions that use them."""
