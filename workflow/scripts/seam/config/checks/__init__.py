"""Checks of the configuration that its schema cannot express, one module per section."""
