"""The contrastive losses and the choice between objectives."""
