"""A campaign of attacks on the workflow: kills, flips, hostile inputs, a full disk. `make torture` runs it."""
