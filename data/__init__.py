"""Offline: raw image-text pairs to corpus, vocabulary and records.

Training never imports this package, nor does this package import training; they share
the format on disk that `data.records.records` describes.
"""
