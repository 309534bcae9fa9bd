"""Source models: architectures, weights, and changes to a model's layers."""
