"""The quickstart's drawings, raw pairs and evaluation sets."""
