"""What each experiment resolves to."""
