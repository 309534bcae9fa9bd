"""The kinds of data sets, one module each. Only the configuration and the preparation of data import them."""
