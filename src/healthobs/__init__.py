"""healthobs."""
