"""The quickstart's raw pairs."""
