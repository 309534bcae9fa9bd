"""Inherited defects: adversarial images, and how many of them mislead a student."""
