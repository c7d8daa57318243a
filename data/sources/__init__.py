"""Where raw pairs come from."""
