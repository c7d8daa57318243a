"""The record format on disk, and stages that are written atomically."""
