"""Prepares data offline: makes a corpus, a vocabulary and records from raw pairs.

Training never imports this package, and this package never imports training. They meet
only in the format on disk that `data.records.records` describes.
"""
