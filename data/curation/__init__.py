"""Filters a pool of image-text pairs by its metadata, before any picture is fetched."""
