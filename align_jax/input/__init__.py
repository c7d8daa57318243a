"""The input pipeline: from records on disk to batches."""
