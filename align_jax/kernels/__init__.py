"""Convolutions and passes over images, as XLA programs and as Pallas kernels."""
