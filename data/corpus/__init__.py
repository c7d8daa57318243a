"""Makes a filtered corpus from raw pairs."""
