"""The train step, the optimizer, checkpoints, and the config fields of a run."""
