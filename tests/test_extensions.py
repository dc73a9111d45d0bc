"What a newcomer adds from outside, touching no file of the project."
import pytest
import torch

from neon.foundations.core import TrainingConfig, torch_generator
from neon.foundations.data import PreparedData, prepare
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import train_networks
from neon.published.agent import AgentConfig, train_agent
from neon.published.environment import EnvConfig, PruningEnv
from neon.published.reward import REWARDS


@pytest.fixture(scope="module")
def iris() -> PreparedData: return prepare("iris")


@pytest.fixture(scope="module")
def networks(iris) -> list[DenseNetwork]:
    "Two small networks, trained on iris."
    shapes = [Architecture(4, (*map(Layer, hidden), Layer(3, "identity"))) for hidden in ((20, 10), (12,))]
    drawn = [build_network(shape, torch_generator(0, i)) for i, shape in enumerate(shapes)]
    parts = iris.X_train, iris.y_train, iris.X_validation, iris.y_validation
    return [result.network for result in train_networks(drawn, *parts, TrainingConfig(20), 0)]


def test_a_reward_of_your_own(iris, networks, monkeypatch):
    paid = []

    def gentle(reduction, accuracy_change, budget):
        "The reduction, minus ten for every point beyond the budget."
        paid.append(reduction - 10*max(0, -accuracy_change - budget))
        return paid[-1]

    monkeypatch.setitem(REWARDS, "gentle", gentle)  # forgotten after the test
    for reward in (gentle, "gentle"):
        rules = EnvConfig(budget=5, passes=1, recovery="refit", reward=reward)
        agent = train_agent(networks, iris, rules, AgentConfig(episodes=3), progress=False)
        assert sum(entry["return"] for entry in agent.log) == pytest.approx(sum(paid))
        paid.clear()


def test_an_importance_of_your_own(iris, networks):
    def by_number(network, layer, H, y):
        "The last units matter most: one value per unit; H is their output on rows of the classes y."
        return torch.arange(H.shape[1])

    untrained = TrainingConfig(epochs=0)  # of the units that stay, the weights stay as they are
    rules = EnvConfig(passes=1, recovery="slice", importance=by_number, training=untrained)
    env = PruningEnv(networks, iris, rules)
    env.reset(options={"network": 0})
    env.step(4)  # keeps 60 % of the first layer
    kept = env.state.network.layers[0].linear.weight
    assert torch.equal(kept, networks[0].layers[0].linear.weight[-12:])
