"""From raw pairs to a filtered corpus."""
