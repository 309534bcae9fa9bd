"""Read, write and change files of made-up results."""

import json
from pathlib import Path

from seam.files import write_csv
from seam.report.tables import read_table

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "workflow/scripts/seam/resources/published.csv"
ENGINES = ["deepsparse", "onnxruntime"]


def stored(frame, path="table.csv"):
    """Return the table after it was written to the disk and read back."""
    write_csv(path, frame)
    return read_table(path)


def rewrite(path, change):
    """Change the dictionary in a JSON file."""
    data = json.loads(Path(path).read_text())
    change(data)
    Path(path).write_text(json.dumps(data))
