"""Pages and tables about runs."""
