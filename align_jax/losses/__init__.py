"""Contrastive losses, and the choice between objectives."""
