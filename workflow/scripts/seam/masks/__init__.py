"""Masks: one real number, and in the end one bit, for each weight."""
