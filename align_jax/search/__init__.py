"""Search of pictures by text and by picture."""
