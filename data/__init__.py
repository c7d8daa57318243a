"""Prepares data offline: makes a corpus, a vocabulary and records from raw pairs.

Training never imports this package, and this package never imports training. Training
reads the files that this package writes; `data.records.records` describes their format.
"""
