"""Records on disk, and files that are written whole."""
