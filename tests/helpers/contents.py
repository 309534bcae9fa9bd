"""What the files of a folder hold."""

import json
from pathlib import Path

import pandas as pd


def content(folder):
    """{file: bytes} of a result folder; timing is taken out of tables and JSON files."""
    found = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix == ".csv":
            found[path.name] = pd.read_csv(path, dtype=str).drop(columns="seconds").to_csv()
        elif path.suffix == ".json":
            data = json.loads(path.read_text())
            found[path.name] = {key: value for key, value in data.items() if not key.endswith("seconds")}
        else:
            found[path.name] = path.read_bytes()
    return found
