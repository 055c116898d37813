"""models/packed_sequences.py: packed sequences of one length are captured as the padded tensors that they
are."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from cidermill.models.errors import UserError
from cidermill.models.evaluate import evaluate
from tests.models.test_known_numbers import captured


class Packed(torch.nn.Module):
    """kind: of the layer. lengths: (input) -> lengths of its sequences. given: first states."""

    def __init__(self, kind, lengths, given=False, batch_first=True, length=None, **options):
        super().__init__()
        self.layer = kind(3, 4, batch_first=batch_first, **options)
        self.lengths, self.given, self.batch_first, self.length = lengths, given, batch_first, length
        self.register_buffer("steps", torch.tensor([5, 5]))

    def forward(self, x):
        lengths = self.steps if self.lengths is None else self.lengths(x)
        packed = pack_padded_sequence(x, lengths, self.batch_first, enforce_sorted=False)
        output, last = self.layer(packed, x[:2, 0, :1].expand(2, 2, 4).contiguous() if self.given else None)
        padded, steps = pad_packed_sequence(output, self.batch_first, 0.5, self.length)
        return padded, steps, *(last if isinstance(last, tuple) else (last,))


def full(x):
    return torch.full((x.shape[0],), x.shape[1])


MODULES = {
    "gru, both directions, first states": Packed(torch.nn.GRU, full, given=True, bidirectional=True),
    "lstm, projected": Packed(torch.nn.LSTM, full, num_layers=2, proj_size=2),
    "rnn, from a list": Packed(torch.nn.RNN, lambda x: [x.shape[1]] * len(x)),
    "rnn, shorter than its input": Packed(torch.nn.RNN, lambda x: torch.tensor([4, 4]), nonlinearity="relu"),
    "lstm, from a buffer, padded to a length": Packed(torch.nn.LSTM, None, length=7),
    "gru, time first": Packed(torch.nn.GRU, lambda x: [len(x)] * x.shape[1], batch_first=False),
}


@pytest.mark.parametrize("name", MODULES)
def test_sequences_of_one_length(name):
    module = MODULES[name]
    found = captured(module, torch.zeros(2, 5, 3) if module.batch_first else torch.zeros(5, 2, 3))
    for batch, answer in zip(found.samples.batches, evaluate(found.program, found), strict=True):
        with torch.no_grad():
            expected = module(torch.from_numpy(batch["x"]))
        for value, tensor in zip(answer.values(), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(value), tensor, check_dtype=False)


def test_lengths_that_an_input_gives_are_refused():
    module = Packed(torch.nn.GRU, lambda x: x[:, 0, 0].long().clamp(1, 5))
    with pytest.raises(UserError, match="decides by the values of its data"):
        captured(module, torch.ones(2, 5, 3))


def test_a_tensor_that_inputs_fill_is_no_number():
    """Beside packed sequences: places that a loop collects."""

    class Places(Packed):
        def forward(self, x):
            places = torch.zeros(2, dtype=torch.long)
            places[0] = x.flatten().argmax()
            return *super().forward(x), places

    with pytest.raises(UserError, match="decides by the values of its data"):
        captured(Places(torch.nn.GRU, full), torch.ones(2, 5, 3))
