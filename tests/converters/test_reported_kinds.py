"""Kinds of models from public reports, through both targets: what torch answers, and the saved artifact."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.test_picked import CASES

TARGETS = ("coreml", "mps")
G = torch.Generator().manual_seed(5)
IDS = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])


def normal(*shape):
    return torch.randn(*shape, generator=G)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["ball", "experts by where", "reductions"])
def test_artifacts_put_back_what_masks_pick(agrees, target, name):
    function, inputs, modules = CASES[name]
    agrees(target, function, *inputs, modules=modules)


@pytest.mark.parametrize("target", TARGETS)
def test_truth_values_are_reduced_padded_and_counted(agrees, target):
    def function(x, y):
        a, b = x > 0, y > 0.2
        values, places = a.max(1)
        least, _ = a.min(1, keepdim=True)
        changed = F.pad(a[:, 1:] != a[:, :-1], (1, 0), value=True) & b
        return values, places, least, a.amax(0), a.amin((0, 1)), a.max(), changed, F.pad(a, (-1, 2))

    agrees(target, function, normal(4, 5), normal(4, 5))


@pytest.mark.parametrize("target", TARGETS)
def test_an_integer_is_scattered_into_real_numbers(agrees, target):
    """The one-hot codes of a VQ-VAE: scatter_(1, indices, 1)."""

    def function(x, codes):
        nearest = torch.cdist(x, codes).argmin(1, keepdim=True)
        return torch.zeros(x.shape[0], codes.shape[0]).scatter_(1, nearest, 1) @ codes, nearest

    agrees(target, function, normal(6, 4), normal(5, 4))


@pytest.mark.parametrize("target", TARGETS)
def test_one_value_is_put_at_many_places(agrees, target):
    """Voxels that hold a point; the serializer of MPS spread the value over the shape of the target."""

    def function(points, rows):
        place = ((points + 2).floor().long().clamp(0, 3) * torch.tensor([4, 1])).sum(-1)
        occupied, grid, square = torch.zeros(16, dtype=torch.bool), torch.zeros(16, 3), torch.zeros(4, 3)
        occupied[place] = True
        grid[place] = torch.tensor([1.0, 2.0, 3.0])
        square[torch.tensor([[0, 2], [3, 1]])] = rows
        return occupied, grid, square

    agrees(target, function, normal(7, 2), normal(2, 3))


@pytest.mark.parametrize("target", TARGETS)
def test_copies_and_fills_beyond_half_precision(agrees, target):
    """RWKV's running maximum starts at -1e38; steps are written into their place."""

    def function(x):
        largest, result = torch.full_like(x[:, 0], -1e38), torch.zeros_like(x)
        for step in range(x.shape[1]):
            result[:, step] = torch.exp(largest - torch.maximum(largest, x[:, step]))
            largest = torch.maximum(largest, x[:, step])
        return result

    agrees(target, function, normal(2, 4))


@pytest.mark.parametrize("target", TARGETS)
def test_small_matrices_are_inverted_and_taken_apart(agrees, target):
    """Kalman filters, homographies from four points, Gaussian processes."""

    def function(x, right):
        matrix = x @ x.mT + torch.eye(3)
        lower = torch.linalg.cholesky(matrix)
        inverse, solution = torch.linalg.inv(x), torch.linalg.solve(x, right)
        solved = torch.linalg.solve_triangular(lower, right, upper=False)
        again = torch.cholesky_solve(right, lower)
        return inverse, solution, lower, solved, again, torch.linalg.det(x), torch.logdet(matrix)

    # the first pivot is 0: rows change places
    x = torch.tensor(
        [[[0.0, 1.2, 0.3], [0.8, 0.1, -0.4], [0.2, -0.3, 1.1]], [[1.0, 0.2, 0], [0.1, 2, 0.3], [1, 0, 1]]]
    )
    agrees(target, function, x, normal(2, 3, 1), least_db=45.0)


@pytest.mark.parametrize("target", TARGETS)
def test_pictures_leave_in_8_bits_as_whole_numbers(agrees, target):
    def function(image, pixels):
        labels = (image > 0.5).sum(1).to(torch.uint8)
        picture = (image * 240).clamp(0, 255).round().to(torch.uint8)
        return (
            labels,
            picture * (labels > 1),
            picture + 100,
            (image * 100 - 50).to(torch.int8),
            pixels + pixels,
        )

    pixels = torch.randint(0, 256, (2, 5), dtype=torch.uint8, generator=G)
    image = torch.randint(0, 5, (1, 3, 4, 4), generator=G) / 4  # exact in half precision
    agrees(target, function, image, pixels)


@pytest.mark.parametrize("target", TARGETS)
def test_counts_of_truth_values_index(agrees, target):
    """entmax and TabNet: how many are above the threshold says which one it is."""

    def function(x):
        sorted_, _ = x.sort(-1, descending=True)
        count = (sorted_ > 0).sum(-1, keepdim=True)
        return sorted_.gather(-1, (count - 1).clamp(min=0)), count, (x > -9).expand(700, 5, 6).sum()

    agrees(target, function, normal(5, 6))


@pytest.mark.parametrize("target", TARGETS)
def test_bags_take_the_largest(agrees, target):
    torch.manual_seed(1)
    agrees(target, lambda ids, bag: bag(ids), IDS, modules=[torch.nn.EmbeddingBag(20, 4, mode="max")])


class ChannelsLast(torch.nn.Module):
    """As `model.to(memory_format=torch.channels_last)` leaves it; forward asks for it as well."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, x):
        x = self.first(x.contiguous(memory_format=torch.channels_last)).relu()
        return self.second(x), x.flatten(1), x


@pytest.mark.parametrize("target", TARGETS)
def test_weights_of_channels_last_leave_no_trace_in_results(agrees, target):
    agrees(target, ChannelsLast().to(memory_format=torch.channels_last), normal(1, 3, 8, 6))


@pytest.mark.parametrize("target", TARGETS)
def test_light_that_reaches_each_sample_of_a_ray(agrees, target):
    """Radiance fields and splats: the running product of what the samples before let through."""

    def function(density):
        opacity = 1 - torch.exp(-density.relu())
        through = torch.cat([torch.ones_like(opacity[:, :1]), 1 - opacity], 1)
        return torch.cumprod(through, 1)[:, :-1] * opacity, through.cumprod(0)

    agrees(target, function, normal(3, 11))
