"""Several mask searches of one source model in one pass.

A small network leaves most of a GPU idle, because its kernels end before the next one is launched. In a stack, each
kernel works for all searches (see `seam.search.stack`). Each search has its own rules, batches, random numbers, history
and checkpoint, so that it can also be resumed alone.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch
from torch import nn

from seam.errors import UserError
from seam.evaluation import predict
from seam.log import log
from seam.masks.layers import unused_parameters
from seam.search.mask_search import ADVICE, MaskSearch, Measure, SearchResult
from seam.search.stack import Stack, stack_batches
from seam.settings import SearchSettings
from seam.training.checkpoint import Checkpoint
from seam.training.run import Batch, Batches, TrainingRun, batch_sums


class Problem(Protocol):
    """What a stack needs to know of each search; see `seam.search.plain.search`."""

    target: str
    model: nn.Module
    train: Batches
    selection: Iterable[Batch]
    source_accuracy: float
    checkpoint: Checkpoint
    class_weights: Sequence[float] | None
    measure: Measure


ProblemType = TypeVar("ProblemType", bound=Problem)


@dataclass
class Member(Generic[ProblemType]):
    """One search of a stack."""

    problem: ProblemType
    search: MaskSearch

    @property
    def run(self) -> TrainingRun:
        """The state of the search."""
        return self.search.run


def search_stack(
    problems: Sequence[ProblemType], settings: SearchSettings
) -> Iterator[tuple[ProblemType, SearchResult]]:
    """Yield (problem, result) of each search when it ends; leave out those that fail, with a line in the log.

    problems: at least one, all of the same source model, numbers of images and weights of classes. If their checkpoints
    stand at different places, only those that stand where most do are searched. Raises RuntimeError if the
    network has an operation that cannot be vectorised, such as dropout.
    """
    with contextlib.ExitStack() as entered:
        first = problems[0]
        exclude = unused_parameters(first.model.get_submodule("source"), next(iter(first.selection))[0][:2])
        stack = Stack([problem.model for problem in problems], settings, len(first.train), exclude, first.class_weights)
        members, parts = [], stack.slices(0)
        beginning = {name: part.state_dict() for name, part in parts.items()}
        for number, problem in enumerate(problems):
            run = entered.enter_context(TrainingRun(problem.train, stack.slices(number), problem.checkpoint, ADVICE))
            mask_search = MaskSearch(run, settings, problem.source_accuracy, problem.target, problem.measure)
            members.append(Member(problem, mask_search))
        runs = [member.run for member in members]
        places = [(run.epoch, run.batch) for run in runs]
        usual = Counter(places).most_common(1)[0][0]
        if later := [problem.target for problem, place in zip(problems, places, strict=True) if place != usual]:
            log.info("searched later, as their checkpoints stand elsewhere: %s", ", ".join(later))
            checkpoint = problems[places.index(usual)].checkpoint
            state = checkpoint.read() if checkpoint else None
            # The number of steps is that of the whole stack, and the others' came last.
            for name, part in parts.items():
                part.load_state_dict((state["parts"] if state else beginning)[name])
        del parts, beginning  # the memory of a stack
        stack, members = _keep(stack, members, [place == usual for place in places])
        while members:
            unfinished = [member.search.has_next_epoch() for member in members]
            for member, has_next in zip(members, unfinished, strict=True):
                if not has_next:
                    yield member.problem, member.search.result(member.problem.model.get_submodule("source"))
            stack, members = _keep(stack, members, unfinished)
            if members:
                stack, members = _train_epoch(stack, members, runs)
        for run in runs:
            if run.signal is not None:  # it came while results were stored
                run.end_process(run.signal)


def _train_epoch(
    stack: Stack, members: list[Member[ProblemType]], runs: list[TrainingRun]
) -> tuple[Stack, list[Member[ProblemType]]]:
    """Train an epoch of all members; return the stack and the members without those that failed.

    runs: those of all searches that have begun, because any of them may have received a signal.
    """
    member_runs = [member.run for member in members]
    phase = [member.search.begin_epoch() for member in members][0]
    step = stack.training.begin_epoch(phase)
    epochs = [run.remaining_batches() for run in member_runs]
    totals = torch.stack([run.totals for run in member_runs]).to(stack.head.weight.device)
    for number, run in enumerate(member_runs):
        run.totals = totals[number]  # a view: an addition to `totals` changes it
    for batches in zip(*epochs, strict=True):
        images, labels = stack_batches(batches)
        totals += batch_sums(*step(images, labels), labels)
        for run in member_runs:
            run.batch += 1
        _save_or_exit(member_runs, runs)
    kept, figures = stack.masks.kept(), []
    for number, (member, run) in enumerate(zip(members, member_runs, strict=True)):
        try:
            figures.append((run.epoch_sums(), stack.masks.share(kept[number], run.epoch)))
        except UserError as error:
            log.warning("%s leaves the stack, to be searched alone: %s", member.problem.target, error)
            figures.append(None)
    stack, members = _keep(stack, members, [figure is not None for figure in figures])
    if not members:
        return stack, members
    accuracies: list[float | None] = [None] * len(members)
    if members[0].search.is_evaluated():
        selection = zip(*(member.problem.selection for member in members), strict=True)
        logits, labels = predict(stack.model, map(stack_batches, selection))
        accuracies = [member.search.measure(logits[:, n], labels[:, n]) for n, member in enumerate(members)]
    # After a signal, `_save_or_exit` writes the checkpoints.
    save = all(run.signal is None for run in runs) and members[0].run.is_save_worthwhile(len(members))
    results = zip(members, filter(None, figures), accuracies, strict=True)
    for number, (member, (sums, retention), accuracy) in enumerate(results):
        bits, head = partial(stack.masks.bits_of, number), partial(stack.head_of, number)
        member.search.end_epoch(phase, sums, retention, accuracy, bits, head, save=save, share=len(members))
    _save_or_exit([member.run for member in members], runs)
    return stack, members


def _save_or_exit(member_runs: list[TrainingRun], runs: list[TrainingRun]) -> None:
    """Write all checkpoints if they are due; on a signal, which any of the `runs` may have received, also exit."""
    signalled = next((run.signal for run in runs if run.signal is not None), None)
    if signalled is None and not member_runs[0].is_save_due():
        return
    for run in member_runs:
        if not run.is_finite:  # the end of the epoch says so
            continue
        try:
            run.save()
        except UserError as error:  # such as a full disk
            if signalled is None:
                raise
            log.error("a checkpoint is missing: %s", error)
    if signalled is not None:
        member_runs[-1].end_process(signalled)


def _keep(
    stack: Stack, members: list[Member[ProblemType]], wanted: Sequence[bool]
) -> tuple[Stack, list[Member[ProblemType]]]:
    """Return the members that are wanted, and a stack of them alone."""
    numbers = [number for number, want in enumerate(wanted) if want]
    if len(numbers) in (0, len(members)):
        return stack, [members[number] for number in numbers]
    stack = stack.subset(numbers)
    for member in members:
        member.run.parts = {}  # they hold the tensors of the old stack
    members = [members[number] for number in numbers]
    for number, member in enumerate(members):
        member.run.parts = stack.slices(number)
    return stack, members
