"""The mask search."""
