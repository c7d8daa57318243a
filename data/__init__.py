"""Prepares data offline: makes a corpus, a vocabulary and records from raw pairs.

Training never imports this package, and this package never imports training. Training
reads the files that this package writes; `data.records.records` describes their format.
"""

from align_jax.quiet import drop_start_lines

drop_start_lines()  # in the processes that commands start, too
