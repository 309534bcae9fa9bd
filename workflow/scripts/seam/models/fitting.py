"""Which tensors of a checkpoint are the weights of a model: found by fit of their names and shapes, and said."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seam.errors import UserError
from seam.log import log
from seam.models.unpickling import Placeholder, Work, module_state

if TYPE_CHECKING:
    import torch

    State = dict[str, torch.Tensor]

MOST_PLACES = 10_000  # that are looked at: a dictionary can hold another one many times
MOST_DEPTH = 3  # of dictionaries in a checkpoint: {"ema": {"model": {"state_dict": ...}}}
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")  # names that wrappers of torch put into others
COUNTERS = ("num_batches_tracked", "total_ops", "total_params", "n_averaged")  # inference needs none of them


@dataclass(frozen=True)
class Candidate:
    """A state dictionary in a file: its tensors, and the keys that lead to it, such as `ema.state_dict`."""

    place: str
    state: State


@dataclass(frozen=True)
class Fit:
    """A candidate under the names of a module.

    place: that of the candidate, and the prefix that was left out. words: what was done. wrong: how many weights do not
    fit.
    """

    candidate: Candidate
    place: str
    state: State
    words: list[str]
    wrong: int

    @property
    def is_average(self) -> bool:
        """Whether it holds averaged weights (EMA), by its name."""
        words = self.place.lower().replace(".", "_").split("_")
        return "ema" in words or any(word.startswith("averag") for word in words)


def find_candidates(content: Any, origin: str | os.PathLike[str]) -> list[Candidate]:
    """Return the state dictionaries in the content of a checkpoint, those nearest to its top first.

    Raises UserError, which names `origin`, if it holds the same tensors too often, or a name that is too long.
    """
    import torch

    candidates: list[Candidate] = []
    work = Work(origin)
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    for _ in range(MOST_PLACES):
        if not waiting:
            break
        place, value, depth = waiting.pop(0)
        if isinstance(value, Placeholder):
            state = module_state(value, work) or {}
        elif isinstance(value, dict):
            work.add(value)
            state = {name: v for name, v in value.items() if isinstance(name, str) and isinstance(v, torch.Tensor)}
        else:
            continue
        if state:
            candidates.append(Candidate(place, state))
        if isinstance(value, dict) and depth < MOST_DEPTH:
            for name, inner in value.items():
                if isinstance(name, str) and "optim" not in name:  # the state of an optimizer has tensors, too
                    waiting.append((f"{place}.{name}" if place else name, inner, depth + 1))
    return candidates


def describe_content(content: Any) -> str:
    """Return in words what a file holds, for a sentence that says that it holds no weights."""
    if isinstance(content, Placeholder):
        return f"an object of {content.name}"
    if isinstance(content, dict) and content:
        keys = [str(key)[:40] for key in content]
        return f"a dictionary with {', '.join(keys[:5])}" + (f" and {len(keys) - 5} more keys" if len(keys) > 5 else "")
    return f"an empty {type(content).__name__}" if content == {} else f"an object of type {type(content).__name__}"


def choose_state(
    candidates: list[Candidate], module: torch.nn.Module, origin: str | os.PathLike[str], key: str | None = None
) -> State:
    """Return the weights of `module` among the state dictionaries of a file, under the module's own names.

    key: the place of the one to take, such as `state_dict_ema`. Without it, a single one must fit; averaged weights are
    taken only if there are no others. The log says what was taken and what was left out.

    If none fits, the one that has most in common with the module is returned, so that `load_state` can say what is
    wrong with it. Raises UserError if several with different numbers fit, or if none is under `key`.
    """
    fits = [fit for candidate in candidates for fit in _fits(candidate, module)]
    if key is not None:
        chosen = [fit for fit in fits if key in (fit.place, fit.candidate.place)]
        if not chosen:
            places = list(dict.fromkeys(fit.place for fit in fits if fit.place))
            known = f", only under {', '.join(places)}" if places else ": leave weights_key out"
            raise UserError(f"{origin} has no weights under {key}{known}.")
        fits = chosen
    good = [fit for fit in fits if not fit.wrong]
    plain = [fit for fit in good if not fit.is_average] or good
    for other in plain[1:]:
        if not _equal(plain[0].state, other.state):
            places = [fit.place for fit in (plain[0], other) if fit.place]
            where = f"{places[0]} and beside it" if len(places) < 2 else " and ".join(places)
            raise UserError(
                f"{origin} holds weights under {where}: save one state dictionary alone, or name one by weights_key."
            )
    best = plain[0] if plain else min(fits, key=lambda fit: fit.wrong)
    state = best.candidate.state
    for wrapper in WRAPPERS:
        if twice := [name for name in state if f"{wrapper}.{name}" in state]:
            raise UserError(
                f"{origin} has both {twice[0]} and {wrapper}.{twice[0]} ({len(twice)} such): save one of the two alone."
            )
    if best.candidate.place:
        log.info("%s: its weights are those under %s", origin, best.candidate.place)
    for words in best.words:
        log.info("%s: %s", origin, words)
    for other in good:
        if other.is_average and not best.is_average:
            log.info("%s also has averaged weights: weights_key: %s takes them", origin, other.place)
    return best.state


def differing_outputs(module: torch.nn.Module, state: State, outputs: int) -> int | None:
    """Return the number of outputs of the weights `state`, if they differ from the module in that alone.

    outputs: of the module. None if the weights fit, or if they differ in anything else.
    """
    model_outputs, given = (
        {name: tuple(value.shape) for name, value in each.items() if not name.endswith("num_batches_tracked")}
        for each in (module.state_dict(), state)
    )
    if model_outputs.keys() != given.keys():
        return None
    differing = [(model_outputs[name], given[name]) for name in model_outputs if model_outputs[name] != given[name]]
    numbers = {shape[0] for expected, shape in differing if shape and expected == (outputs, *shape[1:])}
    is_alone = all(shape and expected == (outputs, *shape[1:]) for expected, shape in differing)
    return numbers.pop() if is_alone and len(numbers) == 1 else None


def _fits(candidate: Candidate, module: torch.nn.Module) -> list[Fit]:
    """Return the ways in which a candidate fits a module, or the one that fits best."""
    expected = module.state_dict()
    needed = {name for name in expected if not name.endswith(COUNTERS)}
    fits = []
    for names, word in _renamings(candidate.state, needed):
        for prefix in _prefixes(names, needed):
            state = {
                name.removeprefix(prefix): candidate.state[old]
                for name, old in names.items()
                if name.startswith(prefix) and (name.removeprefix(prefix) in expected or not name.endswith(COUNTERS))
            }
            words = list(word)
            if prefix:
                words.append(f"the prefix {prefix} of its names is left out")
                if others := sum(not name.startswith(prefix) for name in names):
                    words.append(f"{others} tensors without this prefix are skipped")
            wrong = len(needed - state.keys()) + len(state.keys() - expected.keys())
            wrong += sum(state[name].shape != expected[name].shape for name in needed & state.keys())
            place = ".".join(filter(None, (candidate.place, prefix.removesuffix("."))))
            fits.append(Fit(candidate, place, state, words, wrong))
        if not all(fit.wrong for fit in fits):
            break
    return [fit for fit in fits if not fit.wrong] or [min(fits, key=lambda fit: fit.wrong)]


def _renamings(state: State, needed: set[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Return [({new name: name in the file}, what was done in words)]: as they are, and without wrappers' names."""
    plain = {name: name for name in state}
    present = [word for word in WRAPPERS if any(word in name.split(".") for name in state)]
    present = [word for word in present if not any(word in name.split(".") for name in needed)]
    bare = {".".join(part for part in name.split(".") if part not in present): name for name in state}
    if not present or len(bare) < len(plain):
        return [(plain, [])]
    return [(plain, []), (bare, [f"{' and '.join(present)} in its names are left out"])]


def _prefixes(names: dict[str, str], needed: set[str]) -> list[str]:
    """Return the prefixes that turn names of the file into names of the module, the most frequent first."""
    counts: dict[str, int] = {"": 1}
    for name in names:
        for place in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[place:] in needed:
                counts[name[:place]] = counts.get(name[:place], 0) + 1
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))[:8]


def _equal(state: State, other: State) -> bool:
    import torch

    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
