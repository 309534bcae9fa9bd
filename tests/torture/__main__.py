"""Run a campaign of attacks on the workflow, some of each kind; by default that takes minutes.

make torture ARGS="--images 33 --weights 61" takes seconds; ARGS="--large --table table.md" takes hours.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from . import campaign, commands, known
from .outcomes import HELD, SKIPPED, holes, report
from .world import World


def main(arguments: list[str] | None = None) -> int:
    """Run the campaign that the command line asks for; return 1 if anything was silent, lost, run or unclear."""
    options = _parser().parse_args(arguments)
    counts = dict(campaign.LARGE if options.large else campaign.SMALL)
    asked = {kind: getattr(options, kind.replace("-", "_")) for kind in campaign.KINDS}
    if any(number is not None for number in asked.values()):
        counts = {kind: number for kind, number in asked.items() if number}
    if options.only:
        counts = {kind: counts.get(kind) or campaign.SMALL[kind] for kind in options.only}
    commands.preload()
    world, outcomes = World(options.work), []
    try:
        if options.attempt is not None:
            turns = (campaign.run_one(world, kind, options.attempt, options.seed) for kind in counts)
        else:
            turns = campaign.run(world, counts, options.seed, options.minutes)
        for outcome in turns:
            outcomes.append(outcome)
            mark = " (known)" if known.hole_of(outcome) else ""
            if options.verbose or outcome.verdict not in (HELD, SKIPPED):
                head = f"{outcome.kind} {outcome.attempt}, {outcome.name}"
                print(f"{head}: {outcome.verdict}{mark}, {outcome.detail} ({outcome.seconds:.1f} s)", flush=True)
    except KeyboardInterrupt:
        print("\nStopped; the table has what was tried.", file=sys.stderr)
    finally:
        world.close()
    page = report(outcomes, options.seed)
    print("\n" + page)
    if options.table:
        options.table.write_text(page, encoding="utf-8")
    return 1 if holes(outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("torture", description=__doc__)
    for kind in campaign.KINDS:
        parser.add_argument(f"--{kind}", type=int, metavar="N", help=f"attempts of this kind ({campaign.SMALL[kind]})")
    parser.add_argument("--large", action="store_true", help=f"the whole campaign, hours: {campaign.LARGE}")
    parser.add_argument("--only", action="append", choices=campaign.KINDS, metavar="KIND", help="this kind, or these")
    parser.add_argument("--seed", type=int, default=0, help="where all random choices come from (0)")
    parser.add_argument("--attempt", type=int, metavar="NUMBER", help="a single attempt, with --only and --seed")
    parser.add_argument("--minutes", type=float, help="start no attempt after so many")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the run that attacks start from in FOLDER")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the tables to this Markdown file")
    parser.add_argument("--verbose", action="store_true", help="print each attempt, not the holes alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
