"""Print docs/api.md, which is made from the docstrings of the package; with a path, write it there."""

import argparse

from seam.api import document
from seam.files import write_text

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", help="the file to write")
    output = parser.parse_args().output
    if output:
        write_text(output, document())
    else:
        print(document(), end="")
