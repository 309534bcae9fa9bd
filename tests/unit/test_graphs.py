"""Steps as CUDA graphs, with a stand-in on the CPU; the last tests need a GPU."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from seam.device import select_device
from seam.masks.masks import GPU_UPDATE_BYTES, Masks
from seam.models.architectures import build_model
from seam.models.folding import fold
from seam.models.surgery import with_head
from seam.search import training
from seam.search.plain import search
from seam.search.stack import Stack
from seam.search.training import cosine, mask_step
from seam.settings import SearchSettings
from seam.training import graphs
from seam.training.adam import Adam
from seam.training.graphs import GraphStep, largest_difference, with_cuda_graph

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class PretendedGraphs:
    """A stand-in for CUDA's graphs: `capture` undoes what it runs, and a replay computes into the same tensors.

    spoil: is called with the `GraphStep` and the function instead of a replay. fails: the message with which capturing
    ends, after the step was done.
    """

    def __init__(self, monkeypatch, spoil=None, fails=None):
        self.spoil, self.fails, self.replays = spoil, fails, 0
        monkeypatch.setattr(graphs, "capture", self.capture)
        monkeypatch.setattr(graphs, "on_stream", contextlib.nullcontext)
        monkeypatch.setattr(graphs, "synchronization_forbidden", contextlib.nullcontext)
        monkeypatch.setattr(graphs, "capture_stream", object)
        monkeypatch.setattr(graphs, "host_random_state", lambda: None)  # dropout's numbers are the CPU's here
        monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
        monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)
        monkeypatch.setattr(training, "with_cuda_graph", lambda step, parts, device: GraphStep(step, parts))

    def capture(self, function):
        one = function.__self__
        states, random = copy.deepcopy([dict(part.state_dict()) for part in one.parts]), torch.get_rng_state()
        outputs = function()
        if self.fails:
            raise RuntimeError(self.fails)
        for part, state in zip(one.parts, states, strict=True):
            part.load_state_dict(state)
        torch.set_rng_state(random)

        def replay():
            self.replays += 1
            if self.spoil:
                self.spoil(one, function)
            else:
                for place, value in zip(outputs, function(), strict=True):
                    place.copy_(value)

        return outputs, replay


class Small(nn.Sequential):
    def __init__(self, dropout=0.0):
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(288, 4))


def problem(dropout=0.0):
    """A model, training batches of which the last is smaller, and those of the selection."""
    torch.manual_seed(0)
    model = with_head(Small(dropout), 4, 2)
    train = [(torch.randn(n, 3, 8, 8), torch.randint(2, (n,))) for n in (16, 16, 16, 16, 16, 9)]
    return model, train, train[:2]


def searched(schedule="published", dropout=0.0):
    model, train, select = problem(dropout)
    torch.manual_seed(1)
    settings = SearchSettings(epochs=6, lr_mask=0.1, alpha=2.0, schedule=schedule, head_every=3)
    return search(model, train, select, 0.5, settings)


def assert_same(one, other):
    assert [{**row, "seconds": 0} for row in one.history] == [{**row, "seconds": 0} for row in other.history]
    assert all(torch.equal(one.bits[name], bits) for name, bits in other.bits.items())
    assert all(torch.equal(one.head[name], value) for name, value in other.head.items())


@pytest.mark.parametrize("schedule", ["published", "fast"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_search_by_graphs_finds_the_same(schedule, dropout, monkeypatch, caplog):
    caplog.set_level("INFO")
    expected = searched(schedule, dropout)
    graph = PretendedGraphs(monkeypatch)
    assert_same(searched(schedule, dropout), expected)
    # Of each phase three steps warm it up and the fourth is done both ways; the last batch of an epoch is smaller.
    phases = {"head": 2, "masks": 4} if schedule == "published" else {"head": 1, "masks": 5}
    assert graph.replays == sum(epochs * 5 - 3 for epochs in phases.values())
    assert caplog.text.count("steps are launched as a CUDA graph") == 2


def does_nothing(one, function):
    pass


def sees_another_batch(one, function):
    one.batch[0].copy_(one.batch[0].flip(0) * 2)
    function()


def draws_other_numbers(one, function):
    torch.manual_seed(100)
    function()


@pytest.mark.parametrize("spoil", [does_nothing, sees_another_batch, draws_other_numbers])
def test_a_graph_that_does_something_else_is_not_used(spoil, monkeypatch, caplog):
    expected = searched(dropout=0.5)
    graph = PretendedGraphs(monkeypatch, spoil)
    assert_same(searched(dropout=0.5), expected)
    assert graph.replays == 2  # one of each phase
    assert caplog.text.count("kernel by kernel, as a CUDA graph cannot be: it gives other values for ") == 2


def test_a_step_that_cannot_be_captured_is_launched_kernel_by_kernel(monkeypatch, caplog):
    expected = searched()
    graph = PretendedGraphs(monkeypatch, fails="operation not permitted when stream is capturing\nCompile with ...")
    assert_same(searched(), expected)
    assert graph.replays == 0
    said = "kernel by kernel, as a CUDA graph cannot be: operation not permitted when stream is capturing"
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]  # INFO, too, after a job's log
    assert [record.getMessage().endswith(said) for record in warnings] == [True, True]


def test_it_begins_with_an_odd_batch_where_a_checkpoint_stands_before_one(monkeypatch):
    graph, given = PretendedGraphs(monkeypatch), []
    value = torch.zeros(1)

    class Part:
        def state_dict(self):
            return {"value": value}

        def load_state_dict(self, state):
            value.copy_(state["value"])

    def step(images, labels):
        given.append(len(images))
        value.add_(len(images))
        return images.sum(1), images.sum()

    one = GraphStep(step, [Part()])
    sizes = [3, *[8] * 8, 3, *[8] * 9, 9, *[8] * 9]
    for size in sizes:
        logits, loss = one(torch.full((size, 2), float(size)), torch.zeros(size))
        assert loss == 2 * size * size and logits.shape == (size,)
    assert value == sum(sizes)
    # The second of 8 is the first that counts: after four steps more all others of 8 are by the graph.
    assert graph.replays == 26 - 1 - 3


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_that_draws_numbers_on_the_host_is_not_captured(dropout, monkeypatch, caplog):
    caplog.set_level("INFO")
    expected, host_random_state = searched(dropout=dropout), graphs.host_random_state
    graph = PretendedGraphs(monkeypatch)
    monkeypatch.setattr(graphs, "host_random_state", host_random_state)
    assert_same(searched(dropout=dropout), expected)
    assert (graph.replays == 0) == bool(dropout)
    assert caplog.text.count("a CUDA graph cannot be: it draws random numbers on the host") == (2 if dropout else 0)


def test_a_step_that_waits_is_not_captured(monkeypatch, caplog):
    expected = searched()
    graph = PretendedGraphs(monkeypatch)

    @contextlib.contextmanager
    def synchronization_forbidden():
        yield
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(graphs, "synchronization_forbidden", synchronization_forbidden)
    monkeypatch.setattr(graphs, "capture", None)
    assert_same(searched(), expected)
    assert graph.replays == 0
    assert caplog.text.count("as a CUDA graph cannot be: called a synchronizing CUDA operation") == 2


def test_a_stack_of_searches_is_a_graph_too(monkeypatch):
    def trained():
        torch.manual_seed(0)
        model = with_head(Small(), 4, 2)
        stack = Stack([copy.deepcopy(model) for _ in range(3)], SearchSettings(lr_mask=0.1), 1)
        stack.masks.train()
        images = torch.randn(8, 9, 8, 8).contiguous(memory_format=torch.channels_last).unflatten(1, (3, 3))
        given = []
        for _ in range(8):
            logits, loss = stack.training.steps["masks"](images, torch.randint(2, (8, 3)))
            given.append((logits.detach().clone(), loss.detach().clone()))
        return stack, given

    (expected, losses) = trained()
    graph = PretendedGraphs(monkeypatch)
    stack, by_graph = trained()
    assert graph.replays == 5
    images, _ = stack.training.steps["masks"].batch
    assert images.stride() == (8 * 8 * 9, 3, 1, 8 * 9, 9)  # channels stay last in memory
    for name, value in expected.masks.values.items():
        assert torch.equal(stack.masks.values[name], value)
    assert all(
        torch.equal(a, b) for one, other in zip(by_graph, losses, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("kind", "switch", "graph"), [("cpu", "1", False), ("cuda", "0", False), ("cuda", "1", True)])
def test_graphs_are_for_cuda_and_can_be_switched_off(kind, switch, graph, monkeypatch):
    monkeypatch.setenv("SEAM_CUDA_GRAPHS", switch)

    def step(images, labels):
        pass

    assert isinstance(with_cuda_graph(step, [], torch.device(kind)), GraphStep) is graph


class Launches(TorchDispatchMode):
    """Counts the calls of operations that compute something."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = function(*arguments, **(named or {}))
        self.count += not (function.is_view or "empty" in str(function) or "detach" in str(function))
        return given


@pytest.mark.parametrize(("update_bytes", "most"), [(GPU_UPDATE_BYTES, 30), (0, 200)])
def test_a_step_of_a_gpu_launches_little_more_than_a_bare_pass(update_bytes, most):
    model = with_head(fold(build_model("resnet20", 10).eval()).requires_grad_(False), 10, 2)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
    masks = Masks(model.source)
    masks.train()
    masks.update_bytes = update_bytes
    adam = Adam([(masks.values.values(), 0.1), (model.head.parameters(), 0.1)], cosine(100))
    step = mask_step(model, model.head, masks, adam, 1.0)
    with Launches() as bare:
        cross_entropy(model(images), labels).backward()
    model.zero_grad()
    with Launches() as masked:
        step(images, labels)
    assert bare.count > 100 and most / 2 < masked.count - bare.count <= most


def test_the_difference_of_two_steps_is_a_share_of_what_they_change():
    before = [{"steps": 3, "value": torch.zeros(100), "still": torch.ones(50)}, {"still": torch.ones(9)}]
    one = [{"steps": 4, "value": torch.arange(100.0) + 1, "still": torch.ones(50)}, {"still": torch.ones(9)}]
    assert largest_difference(one, one, before) == largest_difference(before, before, before) == 0
    other = copy.deepcopy(one)
    other[0]["value"] *= 1.05  # nearer than a tenth
    assert largest_difference(one, other, before) == 0
    other[0]["value"][:20] *= 1.1
    assert largest_difference(one, other, before) == pytest.approx(20 / 101)
    assert largest_difference(before, one, before) == 1
    other[1]["still"][:2] = 0  # of the second part all that has changed
    assert largest_difference(one, other, before) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("schedule", ["published", "fast"])
@pytest.mark.gpu
@on_a_gpu
@pytest.mark.usefixtures("restored_device")
def test_on_a_gpu_a_search_by_graphs_finds_the_same(schedule, dropout, monkeypatch, caplog):
    caplog.set_level("INFO")
    select_device("cuda/float32")

    def on_gpu():
        model, train, select = problem(dropout)
        batches = ([(images.cuda(), labels.cuda()) for images, labels in part] for part in (train, select))
        torch.manual_seed(1)
        settings = SearchSettings(epochs=6, lr_mask=0.1, alpha=2.0, schedule=schedule, head_every=3)
        return search(model.cuda(), *batches, 0.5, settings)

    by_graph = on_gpu()
    assert caplog.text.count("steps are launched as a CUDA graph") == 2
    monkeypatch.setenv("SEAM_CUDA_GRAPHS", "0")
    for row, other in zip(by_graph.history, on_gpu().history, strict=True):
        assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=1e-2)
        assert row["retention"] == pytest.approx(other["retention"], abs=0.01)


@pytest.mark.gpu
@on_a_gpu
def test_on_a_gpu_a_step_that_waits_for_it_is_not_captured(caplog):
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).cuda().requires_grad_(False)
    head = nn.Linear(2, 2).cuda()
    masks = Masks(network)
    adam = Adam([(masks.values.values(), 0.1), (head.parameters(), 0.1)])
    model = nn.Sequential(network, head)
    masks.train()

    def waits(logits, labels):
        return cross_entropy(logits, labels) * float(logits.isfinite().all())

    step = with_cuda_graph(mask_step(model, head, masks, adam, 1.0, waits), [masks, head, adam], torch.device("cuda"))
    for _ in range(6):
        _, loss = step(torch.randn(4, 3, 2, 2).cuda(), torch.tensor([0, 1, 0, 1]).cuda())
    assert loss.isfinite() and "kernel by kernel, as a CUDA graph cannot be" in caplog.text
