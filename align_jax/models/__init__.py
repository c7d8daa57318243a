"""The towers and the dual encoder they form."""
