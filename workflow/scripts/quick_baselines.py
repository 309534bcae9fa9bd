"""Estimate baselines of finished searches in seconds.

python workflow/scripts/quick_baselines.py head,magnitude,snip results/direct/MODEL/binary/* prints one row for each, as
CSV. `seam.reuse.quick_baselines` says how they differ from those of the workflow.
"""

import argparse
import csv
import sys
from pathlib import Path

from seam.errors import UserError
from seam.memory import use_threads
from seam.reuse.quick_baselines import quick_baseline

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Estimate baselines of finished searches in seconds, as CSV.")
    parser.add_argument("baselines", help="names, separated by commas: head,magnitude,snip")
    parser.add_argument("folders", nargs="+", metavar="folder", help="results/direct/MODEL/binary/TARGET")
    parser.add_argument("--architecture", help="file.py:function of the source model, if it has one; its code runs")
    options = parser.parse_args()
    use_threads(1)
    folders = [path for path in options.folders if (Path(path) / "metrics.json").is_file()]
    if not folders:
        sys.exit("Error: none of these folders has a metrics.json: name the folders of target problems, .../binary/*.")
    given = {"architecture": options.architecture} if options.architecture else {}
    writer = None
    try:
        for name in options.baselines.split(","):
            for folder in folders:
                row = quick_baseline(name, folder, **given)
                if writer is None:
                    writer = csv.DictWriter(sys.stdout, row)
                    writer.writeheader()
                writer.writerow(row)
                sys.stdout.flush()
    except UserError as error:
        sys.exit(f"Error: {error}")
