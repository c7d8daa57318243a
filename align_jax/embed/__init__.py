"""Embeds pictures and texts with a trained model."""
