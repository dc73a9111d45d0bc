"""The loops that the engine replaces: one network at a time, one row at a time, all layers forward in every minibatch.

They are written as they would be with a plain `DataLoader`, without deliberate waste: layers that do not learn get no
gradients, the validation rows are evaluated at once, and where nothing stops early no validation is done and no weights
are kept.
"""
import copy

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from neon.foundations.core import TrainingConfig, torch_generator
from neon.foundations.data import PreparedData
from neon.foundations.networks import DenseNetwork
from neon.foundations.surgery import replace_layer
from neon.published.environment import Cut

STEP = TrainingConfig(epochs=100, batch_size=32, learning_rate=1e-3, patience=10)  # After a cut, as published
BASE = TrainingConfig(epochs=100, batch_size=64, learning_rate=1e-3, patience=10)  # A base network that stops early
PUBLISHED_BASE = BASE.replace(patience=None)                                       # A base network, as published


def train(
    network: DenseNetwork, # Not changed
    data: PreparedData,
    config: TrainingConfig,
    learning: tuple[int, ...] | None = None, # Layers that learn; None: all
    seed: int = 0,
) -> DenseNetwork:
    "Train one network, the whole of it forward for every minibatch."
    torch.manual_seed(seed)  # of dropout
    network = copy.deepcopy(network)
    for i, layer in enumerate(network.layers): layer.requires_grad_(learning is None or i in learning)
    loader = DataLoader(TensorDataset(data.X_train, data.y_train), config.batch_size, shuffle=True, drop_last=True,
                        generator=torch_generator(seed, "batches"))
    optimiser = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], config.learning_rate)
    best, best_loss, since = None, float("inf"), 0
    for _ in range(config.epochs):
        train_epoch(network, loader, optimiser)
        if config.patience is None: continue
        loss, since = validation_loss(network, data), since + 1
        if loss < best_loss: best, best_loss, since = copy.deepcopy(network.state_dict()), loss, 0
        if since == config.patience: break
    if best is not None: network.load_state_dict(best)
    return network.eval()


def train_epoch(network: DenseNetwork, loader: DataLoader, optimiser: torch.optim.Optimizer) -> None:
    "One pass over the training rows."
    network.train()
    for x, y in loader:
        optimiser.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimiser.step()


@torch.no_grad()
def validation_loss(network: DenseNetwork, data: PreparedData) -> float:
    "Mean cross-entropy on the validation rows."
    network.eval()
    return F.cross_entropy(network(data.X_validation), data.y_validation).item()


def start(cut: Cut, seed: int) -> DenseNetwork:
    "The network with fresh layers in place of the cut one and the next, the same as in the engine's own `replace`."
    return replace_layer(cut.state.network, cut.layer, cut.width, torch_generator(seed, "weights", *cut.name))


def step(cut: Cut, data: PreparedData, seed: int, config: TrainingConfig = STEP) -> DenseNetwork:
    "One published environment step: fresh layers, trained until they have converged."
    return train(start(cut, seed), data, config, (cut.layer, cut.layer + 1), seed)
