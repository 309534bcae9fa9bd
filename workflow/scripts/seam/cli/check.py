"""Say in seconds what a model can do, before anything is searched.

Does it build and run? What share of its parameters and multiply-accumulates (MACs) can be masked? Can channels be
removed? Is it exported, and do the engines compute the same? For each layer, a sentence says what is the matter.
Without --weights, the weights are random.
"""

from __future__ import annotations

import argparse
import json
import warnings

from seam.cli.shrink import add_model_arguments

NAME = "check"
HELP = "say what a model can do before anything is searched"
EXIT_FAILS = 3
MOST_LAYERS = 12  # that are listed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    add_model_arguments(parser, weights="a file of weights (default: random weights)")
    parser.add_argument(
        "--outputs", type=int, metavar="N", help="number of the model's outputs (default: of the weights)"
    )
    parser.add_argument("--all-layers", action="store_true", help="list all layers, not the first twelve")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON alone")


def run(options: argparse.Namespace) -> int:
    """Print what was found; return 3 if something would fail later."""
    from seam.delivery.building import build_from_options
    from seam.delivery.checking import check_network
    from seam.memory import use_threads

    use_threads(1)
    warnings.filterwarnings("ignore")  # of the exporter and the tracer, in words for programmers
    built = build_from_options(
        options.model, options.weights, options.weights_key, options.classes, options.size, options.outputs
    )
    check = check_network(built.module, built.outputs, built.size)
    check.findings = {"builds": built.words, **check.findings}
    if options.json:
        content = {"findings": check.findings, "failed": check.failed, "layers": check.layers}
        print(json.dumps({**content, "engines": check.engines, **check.numbers}, indent=2))
        return EXIT_FAILS if check.failed else 0
    for step, sentence in check.findings.items():
        print(f"{'!' if step in check.failed else ' '} {step:<10}{sentence}")
    for engine, result in check.engines.items():
        words = result if isinstance(result, str) else f"differs from torch by {result:.1e} of the largest output"
        print(f"  {engine:<12}{words}")
    layers = list(check.layers.items())
    for name, sentence in layers if options.all_layers else layers[:MOST_LAYERS]:
        print(f"    {name}: {sentence}")
    if len(layers) > MOST_LAYERS and not options.all_layers:
        print(f"    and {len(layers) - MOST_LAYERS} more: --all-layers lists them")
    return EXIT_FAILS if check.failed else 0
