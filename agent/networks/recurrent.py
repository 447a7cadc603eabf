"""Memory cells: what a policy knows of the observations before this one.

    __init__(self, num_in: int, size: int)
    forward: x [B, T, num_in], state [B, size], starts [B, T] -> h [B, T, size]

h_t is the state after step t. Where `starts` holds an episode begins, and its state with zeros.
"""

import torch
from torch import Tensor, nn

LONGEST_MEMORY = 64.0  # steps, of a new cell


class GRU(nn.Module):
    """h_t = (1 - z_t) n_t + z_t h_{t-1} (Cho et al. 2014); gates as in torch.nn.GRU, step by step."""

    def __init__(self, num_in: int, size: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(num_in, 3 * size)
        self.of_state = nn.Linear(size, 3 * size)
        with torch.no_grad():
            self.of_input.bias[size : 2 * size] += keeping(size)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        states = []
        for of_input, start in zip(self.of_input(x).unbind(1), starts.unbind(1), strict=True):
            state = torch.where(start.unsqueeze(-1), 0.0, state)
            reset_x, keep_x, new_x = of_input.chunk(3, -1)
            reset_h, keep_h, new_h = self.of_state(state).chunk(3, -1)
            keep = torch.sigmoid(keep_x + keep_h)
            new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
            state = new + keep * (state - new)
            states.append(state)
        return torch.stack(states, 1)


class MinGRU(nn.Module):
    """h_t = (1 - z_t) h_{t-1} + z_t n_t, z_t and n_t of the input alone (Feng et al. 2024, eq. 3): all steps at once.

    Differs from there: n_t passes tanh, which bounds the state.
    """

    def __init__(self, num_in: int, size: int) -> None:
        super().__init__()
        self.of_input = nn.Linear(num_in, 2 * size)
        with torch.no_grad():
            self.of_input.bias[:size] -= keeping(size)

    def forward(self, x: Tensor, state: Tensor, starts: Tensor) -> Tensor:
        update, new = self.of_input(x).chunk(2, -1)
        update = torch.sigmoid(update)
        keep = torch.where(starts.unsqueeze(-1), 0.0, 1 - update)
        return scan(keep, update * torch.tanh(new), state)


def scan(keep: Tensor, added: Tensor, state: Tensor) -> Tensor:
    """h_t = keep_t h_{t-1} + added_t over axis 1, in log2 T steps (Hillis & Steele 1986)."""
    added = torch.cat([(added[:, :1] + keep[:, :1] * state.unsqueeze(1)), added[:, 1:]], 1)
    length, lag = keep.shape[1], 1
    while lag < length:
        joined = added[:, lag:] + keep[:, lag:] * added[:, :-lag]
        added = torch.cat([added[:, :lag], joined], 1)
        keep = torch.cat([keep[:, :lag], keep[:, lag:] * keep[:, :-lag]], 1)
        lag *= 2
    return added


def keeping(size: int) -> Tensor:
    """Biases with which the units of a new cell forget over 1 to LONGEST_MEMORY steps (Tallec & Ollivier 2018)."""
    return torch.empty(size).uniform_(1.0, LONGEST_MEMORY).log()


CELLS: dict[str, type[nn.Module]] = {"gru": GRU, "mingru": MinGRU}
