"""Everything that looks for a good mask."""
