"""The towers and the models built on them."""
