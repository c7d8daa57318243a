"""Facts about evaluation sets: sources, splits, counts and labels."""
