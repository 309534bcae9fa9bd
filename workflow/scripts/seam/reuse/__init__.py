"""The procedures of direct and indirect reuse, from a source model to results in a folder."""
