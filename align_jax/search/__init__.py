"""Search for pictures by text and by picture."""
