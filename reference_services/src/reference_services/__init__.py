"""Reference services built on healthobs."""
