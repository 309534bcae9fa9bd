"""Estimate baselines of finished searches in seconds.

python workflow/scripts/quick_baselines.py head,magnitude,snip results/direct/MODEL/binary/* prints one row for each, as
CSV. `seam.reuse.quick_baselines` says how they differ from those of the workflow.
"""

import csv
import sys
from pathlib import Path

from seam.errors import UserError
from seam.memory import use_threads
from seam.reuse.quick_baselines import quick_baseline

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("Usage: python workflow/scripts/quick_baselines.py head,magnitude,... FOLDER...")
    use_threads(1)
    names, folders = sys.argv[1].split(","), [path for path in sys.argv[2:] if (Path(path) / "metrics.json").is_file()]
    if not folders:
        sys.exit("Error: none of these folders has a metrics.json: name the folders of target problems, .../binary/*.")
    writer = None
    try:
        for row in (quick_baseline(name, folder) for name in names for folder in folders):
            if writer is None:
                writer = csv.DictWriter(sys.stdout, row)
                writer.writeheader()
            writer.writerow(row)
            sys.stdout.flush()
    except UserError as error:
        sys.exit(f"Error: {error}")
