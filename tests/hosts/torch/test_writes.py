"""Writes to the tensors of a module: noticed wherever somebody's code runs, undone, and nothing is copied for reading."""

import pytest
import torch
from torch import nn

from graphprune.hosts.torch.untouched import guarded, untouched
from graphprune.hosts.torch.writes import Writes, memory_of, watching

X = torch.ones(4, 3)


def normed(training):
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6)).train(training)


@pytest.mark.parametrize(("training", "copies"), [(True, 5), (False, 0)])
def test_only_batch_norms_in_training_write(training, copies):
    net = normed(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    writes = Writes([*net.parameters(), *net.buffers()])
    with writes, torch.no_grad():
        net(X)
    assert len(writes.saved) == copies
    writes.undo()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("inside", [watching, lambda: untouched(normed(training=False), runs=True)])
def test_a_guarded_module_is_watched_while_other_code_runs(inside):
    net = normed(training=False)
    weight = net[0].weight.detach().clone()
    with guarded(net):
        with inside(), torch.no_grad():
            net[0].weight.mul_(2)
        assert not torch.equal(net[0].weight, weight)
    assert torch.equal(net[0].weight, weight)


def test_what_is_read_is_told():
    net, seen = normed(training=False), set()
    with untouched(net, runs=True, seen=seen), torch.no_grad():
        net[0](X)
    assert {memory_of(net[0].weight), memory_of(net[0].bias)} <= seen
    assert memory_of(net[1].weight) not in seen
