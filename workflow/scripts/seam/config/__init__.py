"""The configuration: from YAML to checked target problems and students."""
