"""Convolutions and walks over images, ours beside XLA's."""
