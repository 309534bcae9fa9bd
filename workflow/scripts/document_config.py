"""Print docs/configuration.md, which is made from the schema of the configuration; with a path, write it there."""

import argparse
from pathlib import Path

from seam.config.document import document
from seam.config.schema import read_schema
from seam.files import write_text

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "config.schema.yaml"

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", nargs="?", help="the file to write")
    output = parser.parse_args().output
    page = document(read_schema(SCHEMA))
    if output:
        write_text(output, page)
    else:
        print(page, end="")
