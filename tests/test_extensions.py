"What a newcomer adds from outside, touching no file of the project."
import torch

from neon.foundations.core import torch_generator
from neon.foundations.networks import Architecture, Layer, build_network
from neon.foundations.surgery import get_importance, most_important, slice_units


def test_an_importance_of_your_own_decides_which_units_stay():
    network = build_network(Architecture(4, (Layer(8), Layer(5), Layer(3, "identity"))), torch_generator(0, "toy"))
    x, y = torch.randn(50, 4, generator=torch_generator(0, "x")), torch.arange(50) % 3
    given = []

    def class_contrast(network, layer, H, y):
        "How far apart a unit's mean activations in the classes are."
        given.append((network, layer, H.shape, y.shape))
        means = torch.stack([H[y == c].mean(0) for c in y.unique()])
        return means.max(0).values - means.min(0).values

    H = network.layers[0](x).detach()
    scores = get_importance(class_contrast)(network, 0, H, y)
    assert given == [(network, 0, (50, 8), (50,))] and scores.shape == (8,)
    units = most_important(scores, 3)
    assert set(units.tolist()) == set(scores.argsort()[-3:].tolist())
    assert slice_units(network, 0, units).architecture.hidden_widths == (3, 5)
