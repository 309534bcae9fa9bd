"""The content of result folders, without clock times."""

import json
from pathlib import Path

import pandas as pd


def content(folder):
    """Return {file name: content} of a result folder; tables and JSON files are without their clock times."""
    contents = {}
    for path in sorted(Path(folder).iterdir()):
        if path.suffix == ".csv":
            contents[path.name] = pd.read_csv(path, dtype=str).drop(columns=["seconds", "digest"]).to_csv()
        elif path.suffix == ".json":
            data = json.loads(path.read_text())
            contents[path.name] = {key: value for key, value in data.items() if not key.endswith(("seconds", "digest"))}
        else:
            contents[path.name] = path.read_bytes()
    return contents
