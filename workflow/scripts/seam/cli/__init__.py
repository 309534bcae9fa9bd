"""The command `seam`: one module for each subcommand."""
