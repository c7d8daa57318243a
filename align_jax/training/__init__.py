"""The train step, its optimizer and checkpoints, and the fields of a run."""
