"""Several mask searches of one source model in one pass.

A small network leaves most of a GPU idle: its kernels are over before the next one is launched. Here each kernel works
for all searches: masked weights, masks, Adam's moments and heads have one dimension more, the search, before their own,
and `torch.func.vmap` runs the network over it, its convolutions as grouped ones. What a search is, stays in
seam/search.py; its batches, random numbers, history and checkpoint are its own, so that it can also go on alone.

What comes out is what each search would have found alone, but for the order in which a convolution sums.
"""

import contextlib
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map

from seam import evaluation
from seam.errors import UserError
from seam.evaluation import predict
from seam.log import log
from seam.masks.layers import unused_parameters
from seam.masks.masks import Masks
from seam.models.surgery import copy_state, set_training_mode
from seam.search.search import ADVICE, goes_on, is_evaluated, judged, phase_of, result_of, row_of, training
from seam.training.run import Run, batch_sums

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def search_all(problems, settings):
    """Yield (problem, Result) of each search when it ends; those that fail are left out, with a line in the log.

    problems: at least one, of the same source model, with as many images each: objects with what
        `seam.search.search` takes of each (model, train, selection, source_accuracy, checkpoint), and a `target`.
        Where checkpoints stand at different epochs, those that stand where the first does are searched.
    settings: of all of them. Raises RuntimeError where the network has what cannot be vectorised, such as dropout.
    """
    with contextlib.ExitStack() as entered:
        one = problems[0]
        exclude = unused_parameters(one.model.source, next(iter(one.selection))[0][:2])
        stack = Stack([problem.model for problem in problems], settings, len(one.train), exclude)
        searches = []
        for number, problem in enumerate(problems):
            run = Run(problem.train, stack.parts(number), problem.checkpoint, ADVICE)
            searches.append((problem, entered.enter_context(run)))
        runs = [run for _, run in searches]
        first = runs[0].epoch, runs[0].batch
        others = [problem.target for problem, run in searches if (run.epoch, run.batch) != first]
        if others:
            log.info("left for later, as their checkpoints stand elsewhere: %s", ", ".join(others))
        stack, searches = stack.of(searches, [(run.epoch, run.batch) == first for run in runs])
        while searches:
            ended = [not goes_on(run, settings) for _, run in searches]
            yield from ((problem, result_of(run, problem.model.source)) for problem, run in _where(searches, ended))
            stack, searches = stack.of(searches, [not end for end in ended])
            if searches:
                stack, searches = _one_epoch(stack, searches, settings, runs)


def _one_epoch(stack, searches, settings, runs):
    """An epoch of all `searches`; the stack and those that have not failed. runs: all that listen to signals."""
    phase = phase_of(searches[0][1].epoch, settings)
    set_training_mode(stack.model)
    stack.masks.train(phase == "masks")
    step, own = stack.steps[phase], [run for _, run in searches]
    epochs = [run.rest_of_epoch() for run in own]
    totals = torch.stack([run.totals for run in own]).to(stack.head.weight.device)
    for number, run in enumerate(own):
        run.totals = totals[number]  # what is added to all is added to each
    for batches in zip(*epochs, strict=True):
        images, labels = stack_batches(batches)
        totals += batch_sums(*step(images, labels), labels)
        for run in own:
            run.batch += 1
        _answer(own, runs)
    kept, trained = stack.masks.kept(), []
    for number, (problem, run) in enumerate(searches):
        try:
            trained.append((run.sums(), stack.masks.share(kept[number], run.epoch)))
        except UserError as error:
            log.warning("%s is left to its own job: %s", problem.target, error)
            trained.append(None)
    stack, searches = stack.of(searches, [one is not None for one in trained])
    if not searches:
        return stack, searches
    judge = is_evaluated(searches[0][1].epoch, settings)
    if judge:
        selection = zip(*(problem.selection for problem, _ in searches), strict=True)
        logits, labels = predict(stack.model, map(stack_batches, selection))
    told = any(run.signal is not None for run in runs)
    save = told or searches[0][1].is_worth_saving(len(searches))
    for number, ((problem, run), (sums, retention)) in enumerate(zip(searches, filter(None, trained), strict=True)):
        accuracy = evaluation.accuracy(logits[:, number], labels[:, number]) if judge else None
        row = row_of(run, sums, accuracy, retention, settings)
        row["seconds"] /= len(searches)
        log.info("of %s:", problem.target)
        bits, head = partial(stack.masks.bits_of, number), partial(copy_state, run.parts["head"])
        run.end_epoch(*judged(run, row, problem.source_accuracy, settings, bits, head), save=save)
    _answer([run for _, run in searches], runs)
    return stack, searches


def _answer(own, runs):
    """Answer a signal to stop, whichever of the `runs` took it; write checkpoints when they are due."""
    told = next((run.signal for run in runs if run.signal is not None), None)
    if told is not None or own[0].is_due():
        for run in own:
            with contextlib.suppress(UserError):  # a loss that is not finite: the epoch's end says so
                run.save()
        own[-1].signal = told
        own[-1].check()


def _where(values, chosen):
    return [value for value, wanted in zip(values, chosen, strict=True) if wanted]


def stack_batches(batches):
    """(images [B, 3, H, W], labels [B]) of each search -> images [B, T, 3, H, W] and labels [B, T]."""
    images, labels = zip(*batches, strict=True)
    # T * 3 channels, last in memory, are what the grouped convolution is given.
    images = torch.cat(images, 1).contiguous(memory_format=torch.channels_last)
    return images.unflatten(1, (len(labels), -1)), torch.stack(labels, 1)


class Vectorised(nn.Module):
    """A module with other parameters for each search: inputs [B, T, ...] -> outputs [B, T, ...].

    parameters: {name: tensor [T, ...]} of those that differ.
    """

    def __init__(self, module, parameters):
        super().__init__()
        self.module, self.different = module, parameters

    def forward(self, inputs):
        return torch.func.vmap(self._one, in_dims=(0, 1), out_dims=1)(self.different, inputs)

    def _one(self, parameters, inputs):
        return torch.func.functional_call(self.module, parameters, (inputs,))


def rounded(layer, inputs, output):
    """A layer's output on a GPU in the precision of autocast, as alone: vmap adds the bias afterwards, in float32."""
    lower = output.device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return output.to(torch.get_autocast_dtype("cuda")) if lower else output


class StackedMasks(Masks):
    """Masks of several searches: the weights are those of one, all else has the search as its first dimension."""

    def __init__(self, module, searches, exclude=()):
        super().__init__(module, exclude)
        self.parameters = {name: repeated(p, searches) for name, p in self.parameters.items()}
        self.values = {name: torch.ones_like(p, dtype=torch.float32) for name, p in self.parameters.items()}
        self.at_once = 0  # a kernel has enough to do, and the weights have one dimension less than the masks

    def kept(self):
        """[T], on the CPU: the number of weights that each keeps."""
        return torch.stack([(value > 0).flatten(1).sum(1) for value in self.values.values()]).sum(0).cpu()

    def bits_of(self, number):
        return {name: (value[number] > 0).cpu() for name, value in self.values.items()}


def repeated(parameter, searches):
    """A parameter for each search [T, ...]; of a convolution's, channels stay last in memory."""
    value = parameter.detach()
    if value.dim() == 4:
        value = value.permute(0, 2, 3, 1)
    value = value.expand(searches, *value.shape).contiguous()
    return value.permute(0, 1, 4, 2, 3) if parameter.dim() == 4 else value


class Stack:
    """What several searches train, in tensors of all of them.

    model: all networks as one module, [B, T, 3, H, W] -> [B, T, n]; steps: that of each phase.
    """

    def __init__(self, each, settings, batches, exclude=()):
        self.each, self.settings, self.batches, self.exclude = each, settings, batches, exclude
        source, head = each[0].source.requires_grad_(False), each[0].head
        for layer in (*source.modules(), head):
            if isinstance(layer, LAYERS) and rounded not in layer._forward_hooks.values():
                layer.register_forward_hook(rounded)
        self.masks = StackedMasks(source, len(each), exclude)
        self.head = nn.Linear(head.in_features, head.out_features, device=head.weight.device)  # holds those of all
        for name in ("weight", "bias"):
            values = torch.stack([getattr(model.head, name).detach() for model in each])
            setattr(self.head, name, nn.Parameter(values))
        self.model = nn.Sequential()
        self.model.source = Vectorised(source, self.masks.parameters)
        self.model.relu = each[0].relu
        self.model.head = Vectorised(head, dict(self.head.named_parameters()))
        self.whole, self.steps = training(self.model, self.masks, self.head, settings, batches, losses)

    def parts(self, number):
        """What one search's `Run` keeps, as it would be if it were alone."""
        return {name: StackSlice(part, number) for name, part in self.whole.items()}

    def of(self, searches, chosen):
        """(the stack of the chosen searches alone, these): what the others had takes part no longer."""
        left = _where(searches, chosen)
        if len(left) in (0, len(searches)):
            return self, left
        for _, run in _where(searches, [not wanted for wanted in chosen]):
            run.parts = {}  # they hold the tensors of all
        stack = Stack(_where(self.each, chosen), self.settings, self.batches, self.exclude)
        for number, (_, run) in enumerate(left):
            states = {name: part.state_dict() for name, part in run.parts.items()}
            run.parts = stack.parts(number)
            for name, part in run.parts.items():
                part.load_state_dict(states[name])
        return stack, left


class StackSlice:
    """One search's share of what the stack trains, for its checkpoint."""

    def __init__(self, whole, number):
        self.whole, self.number = whole, number

    def state_dict(self):
        return tree_map(lambda v: v[self.number].clone() if torch.is_tensor(v) else v, dict(self.whole.state_dict()))

    def load_state_dict(self, state):
        def put(all_of_them, one):
            if not torch.is_tensor(all_of_them):
                return one
            all_of_them = all_of_them.clone()
            all_of_them[self.number] = one
            return all_of_them

        self.whole.load_state_dict(tree_map(put, dict(self.whole.state_dict()), dict(state)))


def losses(logits, labels):
    """The cross entropy of each search [T], from logits [B, T, n] and labels [B, T]."""
    return cross_entropy(logits.transpose(1, 2), labels, reduction="none").mean(0)
