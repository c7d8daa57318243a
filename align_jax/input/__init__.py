"""From records on disk to batches."""
