"""The networks in plain operations, for autograd to differentiate: the truth that derivatives by hand are held to."""

from torch import Tensor, nn

from agent.networks import PopulationMLP


def plain(mlp: PopulationMLP, flat: Tensor, x: Tensor) -> Tensor:
    w = mlp.views(flat)
    for i in range(mlp.num_layers):
        x = x @ w[f"weight{i}"] + w[f"bias{i}"]
        if i < mlp.num_layers - 1:
            if mlp.layer_norm:
                x = nn.functional.layer_norm(x, x.shape[-1:]) * w[f"scale{i}"] + w[f"shift{i}"]
            x = x.relu()
    return x
