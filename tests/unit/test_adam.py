import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seam.training.adam import Adam

SCRIPTS = Path(__file__).parents[2] / "workflow" / "scripts"


def layers(seed=0):
    torch.manual_seed(seed)
    first = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    return torch.nn.Sequential(first, torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))


def steps(network, optimizer, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        optimizer.zero_grad()
        network(torch.randn(4, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_it_is_torchs_adam_to_the_bit():
    mine = layers()
    theirs = copy.deepcopy(mine)
    groups = [(mine[0].parameters(), 0.05), (mine[2].parameters(), 0.1)]
    other = torch.optim.Adam(
        [{"params": theirs[0].parameters(), "lr": 0.05}, {"params": theirs[2].parameters(), "lr": 0.1}],
        fused=True, eps=1e-8,
    )  # fmt: skip
    assert torch.equal(steps(mine, Adam(groups), 20), steps(theirs, other, 20))


def test_the_rates_follow_the_factor():
    mine = layers()
    theirs = copy.deepcopy(mine)
    other = torch.optim.Adam(theirs.parameters(), 0.05, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(other, lambda step: 1 / (1 + step))

    class Scheduled:
        zero_grad = other.zero_grad

        def step(self):
            other.step()
            schedule.step()

    assert torch.equal(
        steps(mine, Adam([(mine.parameters(), 0.05)], lambda step: 1 / (1 + step)), 10), steps(theirs, Scheduled(), 10)
    )


def test_parameters_can_be_updated_one_by_one_within_a_step():
    one, other = layers(), layers()

    def rate(step):
        return 0.9**step

    mine, reference = (Adam([(n[0].parameters(), 0.05), (n[2].parameters(), 0.1)], rate) for n in (one, other))

    class Early:
        zero_grad = mine.zero_grad

        def step(self):
            for parameters in ([one[2].bias], [one[0].weight, one[0].bias]):
                mine.update(parameters)
                assert all(parameter.grad is None for parameter in parameters)
            mine.step()

    assert torch.equal(steps(one, Early(), 5), steps(other, reference, 5))
    moments = zip(mine.first + mine.second, reference.first + reference.second, strict=True)
    assert all(torch.equal(a, b) for mine, other in moments for a, b in zip(mine, other, strict=True))


def test_it_resumes_from_its_state_as_if_never_interrupted(tmp_path):
    whole, first = layers(), layers()
    wanted = steps(whole, whole_adam := Adam([(whole.parameters(), 0.1)], lambda step: 0.9**step), 5)
    steps(whole, whole_adam, 5, seed=2)
    adam = Adam([(first.parameters(), 0.1)], lambda step: 0.9**step)
    assert torch.equal(steps(first, adam, 5), wanted)
    torch.save(adam.state_dict(), tmp_path / "state.pt")
    again = Adam([(first.parameters(), 0.1)], lambda step: 0.9**step)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(first, again, 5, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), first.parameters(), strict=True))


def test_a_state_of_other_tensors_is_refused():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(3, 2)
    with pytest.raises((RuntimeError, ValueError)):
        Adam([(one.parameters(), 0.1)]).load_state_dict(Adam([(other.parameters(), 0.1)]).state_dict())


def test_a_search_does_not_import_torchs_compiler():
    code = "import sys, seam.reuse.direct, seam.training.adam as a, torch; p = torch.ones(2); p.grad = torch.ones(2);" \
        " a.Adam([([p], 0.1)]).step(); sys.exit('torch._dynamo' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS).returncode == 0
