"""Measure how close a search comes to what the machine can do: `make bench`."""

from seam.bench.command import main

if __name__ == "__main__":  # not in the processes of the item `memory`
    main()
