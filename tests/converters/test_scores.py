"""Which operators a choice is made by: as far back as one product of matrices, and only where a real number
hangs on it."""

import torch

from cidermill.converters.scores import scores


def names_of(function, *inputs):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.book = torch.nn.Parameter(torch.randn(8, 4))
            self.weight = torch.nn.Parameter(torch.randn(4, 4, 1))

        def forward(self, *values):
            return function(self, *values)

    program = torch.export.export(Net().eval(), inputs).run_decompositions({})
    return sorted(node.target._opname for node in scores(program))


def test_distances_are_back_to_the_network_before_them():
    def nearest(net, x):
        x = torch.relu(torch.conv1d(x, net.weight)).transpose(1, 2)
        return net.book[(x @ net.book.t()).argmin(-1)]

    found = names_of(nearest, torch.randn(1, 4, 6))
    assert {"relu", "matmul"} <= {*found} and "conv1d" not in found


def test_a_second_product_is_the_network():
    def routed(net, x):
        x = torch.tanh(x @ net.book.t())
        value, place = torch.topk(torch.softmax(x @ net.book, -1), 1)
        return value * torch.gather(x, 1, place)

    found = names_of(routed, torch.randn(6, 4))
    assert {"softmax", "tanh"} <= {*found} and found.count("matmul") == 1


def test_classes_that_leave_the_model_change_no_real_number():
    assert not names_of(lambda net, x: (x @ net.book.t()).argmax(-1), torch.randn(6, 4))
    assert not names_of(lambda net, x: (x @ net.book.t()).max(-1).values.amax(), torch.randn(6, 4))
