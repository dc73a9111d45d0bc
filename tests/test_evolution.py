"What must hold for the evolution of any parent, and searches from beginning to end."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes
from torch import nn

import neon.ecomp.evolution
from neon.ecomp.evolution import PRESETS, EvolutionConfig, EvolutionData, evolve, get_preset
from neon.ecomp.operators import (
    Teacher,
    crowding_distance,
    exchange_units,
    mutate_widths,
    pareto_ranks,
    recombine_aligned,
    survivors,
    with_linear_layers,
)
from neon.ecomp.published import (
    CRITERIA,
    Individual,
    Parent,
    draw_cutoffs,
    keep_units,
    kept_width,
    mutate_weights,
    recombine_blocks,
    uniform_share,
)
from neon.foundations.core import NeonError, generator, torch_generator
from neon.foundations.networks import Architecture, DenseNetwork, Layer, build_network
from neon.foundations.training import predict

few = settings(max_examples=15, deadline=None, derandomize=True)
seeds = st.integers(0, 9)
NORMS = st.sampled_from([(), (), ("batchnorm",), ("dropout",), ("batchnorm", "dropout")])


@st.composite
def parents(draw) -> DenseNetwork:
    "A network of 1 to 4 hidden layers of any widths, whose batch norms have seen something."
    hidden = [Layer(draw(st.integers(1, 12)), draw(st.sampled_from(["relu", "tanh", "sigmoid"])), draw(NORMS),
                    draw(NORMS),
                  bias=draw(st.booleans())) for _ in range(draw(st.integers(1, 4)))]
    layers = (*hidden, Layer(draw(st.integers(1, 4)), draw(st.sampled_from(["identity", "softmax"]))))
    network = build_network(Architecture(draw(st.integers(1, 6)), layers), torch_generator(draw(seeds), "weights"))
    rng = torch_generator(0, "norms")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor in (module.weight, module.bias, module.running_mean): tensor.data.uniform_(-1, 1, generator=rng)
            module.running_var.uniform_(0.5, 2, generator=rng)
    return network


def pruned(parent: Parent, rng: np.random.Generator) -> Individual:
    "The parent with random units."
    some = lambda w: torch.from_numpy(np.sort(rng.permutation(w)[:rng.integers(1, w + 1)]))
    return keep_units(parent.individual, [some(w) for w in parent.individual.hidden_widths])


def rows_for(parent: Parent, n: int = 60) -> torch.Tensor:
    return torch.randn(n, parent.architecture.n_inputs, generator=torch_generator(1, "inputs"))


def labels_for(parent: Parent, n: int = 60) -> torch.Tensor:
    return torch.randint(parent.architecture.n_outputs, (n,), generator=torch_generator(1, "labels"))


def same(a: Individual, b: Individual) -> bool:
    tensors = lambda i: (*i.weights, *i.biases, *i.units)
    return len(tensors(a)) == len(tensors(b)) and all(torch.equal(x, y)
                                                      for x, y in zip(tensors(a), tensors(b), strict=True))


def fits(individual: Individual, parent: Parent) -> bool:
    "Do all shapes agree with each other, and do the units exist, each once?"
    widths = (parent.architecture.n_inputs, *individual.hidden_widths, parent.architecture.n_outputs)
    shapes = all(W.shape == (n_out, n_in) and b.shape == (n_out,) for W, b, n_in, n_out
                 in zip(individual.weights, individual.biases, widths, widths[1:], strict=False))
    return shapes and all(len(u) == w and 0 <= u.min() and u.max() < whole for u, w, whole
                          in zip(individual.units, individual.hidden_widths, parent.architecture.hidden_widths,
                                 strict=True))


# Individuals

@few
@given(parents(), seeds)
def test_the_parent_and_its_prunings_are_networks(network, seed):
    parent = Parent(network)
    x, child = rows_for(parent), pruned(parent, generator(seed, "units"))
    scores = parent.run(parent.individual, x)[-1]
    softmax = network.architecture.layers[-1].activation == "softmax"
    torch.testing.assert_close(scores.softmax(1) if softmax else scores, predict(network, x), rtol=1e-4, atol=1e-5)
    outputs, small = parent.run(child, x)[-1], parent.to_network(child)
    torch.testing.assert_close(outputs.softmax(1) if softmax else outputs, predict(small, x), rtol=1e-4, atol=1e-5)
    assert child.n_params == small.architecture.n_params
    assert small.architecture.hidden_widths == child.hidden_widths and fits(child, parent)


@few
@given(parents(), seeds)
def test_prunings_have_sizes_from_0_to_1(network, seed):
    parent, rng = Parent(network), generator(seed, "units")
    assert kept_width(parent, parent.individual) == pytest.approx(1)
    for _ in range(5):
        child = pruned(parent, rng)
        assert 0 < kept_width(parent, child) <= 1 + 1e-12


@few
@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 12), seeds)
def test_even_cuts_of_a_balanced_parent_have_the_published_size(depth, width, kept, seed):
    parent = Parent(build_network(Architecture(5, (*(Layer(width) for _ in range(depth)), Layer(3, "identity"))),
                                  torch_generator(seed)))
    kept = min(kept, width)
    child = keep_units(parent.individual, [torch.arange(kept)]*depth)
    assert kept_width(parent, child) == pytest.approx(kept/width, rel=1e-9)


@few
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 10), st.integers(1, 6), st.integers(1, 4))
def test_uniform_share_inverts_the_count_of_parameters(tens, tenths, n_inputs, n_outputs):
    at = lambda share: Architecture(n_inputs, (*(Layer(w*share) for w in tens), Layer(n_outputs, "identity")))
    assert uniform_share(at(10), at(tenths).n_params) == pytest.approx(tenths/10)


# Children

@few
@given(parents(), seeds)
def test_children_of_blocks_have_the_other_parents_widths(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    a, b = pruned(parent, rng), mutate_weights(pruned(parent, rng), rng)
    before, cutoffs = [t.clone() for i in (a, b) for t in (*i.weights, *i.biases)], draw_cutoffs(a, b, rng)
    for first, second in ((a, b), (b, a)):
        child = recombine_blocks(first, second, cutoffs)
        assert child.hidden_widths == second.hidden_widths and fits(child, parent)
        for k, C, V, W in zip(cutoffs, child.weights, first.weights, second.weights, strict=True):
            assert torch.equal(C[:k, :k], V[:k, :k]) and torch.equal(C[k:], W[k:]) and torch.equal(C[:, k:], W[:, k:])
        for k, c, v, w in zip(cutoffs, child.biases, first.biases, second.biases, strict=True):
            assert torch.equal(c, torch.cat([v[:k], w[k:]]))
    assert all(torch.equal(x, y) for x, y in zip(before, [t for i in (a, b) for t in (*i.weights, *i.biases)],
                                                 strict=True))


@few
@given(parents(), seeds)
def test_aligned_children_have_every_unit_once(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    for _ in range(3):
        a, b = pruned(parent, rng), pruned(parent, rng)
        child = recombine_aligned(a, b, parent, rows_for(parent), rng)
        assert fits(child, parent)
        for units, first, second in zip(child.units, a.units, b.units, strict=True):
            assert len(units.unique()) == len(units) and set(units.tolist()) <= {*first.tolist(), *second.tolist()}


@few
@given(parents(), seeds)
def test_aligned_children_have_widths_between_those_of_their_parents(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    for _ in range(3):
        a, b = pruned(parent, rng), pruned(parent, rng)
        child = recombine_aligned(a, b, parent, rows_for(parent), rng)
        for w, v, u in zip(child.hidden_widths, a.hidden_widths, b.hidden_widths, strict=True):
            assert min(u, v) <= w <= max(u, v)


@few
@given(parents(), seeds)
def test_units_can_be_exchanged_and_put_back(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    child = mutate_weights(pruned(parent, rng), rng)
    assert same(exchange_units(child, parent, child.units), child)
    whole = exchange_units(child, parent, parent.individual.units)
    assert whole.hidden_widths == parent.individual.hidden_widths
    assert same(exchange_units(whole, parent, child.units), child)
    assert same(exchange_units(pruned(parent, rng), parent, parent.individual.units), parent.individual)


@few
@given(parents(), seeds)
def test_mutated_widths_stay_within_the_parent(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    places, child = [rng.permutation(w) for w in parent.individual.hidden_widths], pruned(parent, rng)
    for _ in range(8):
        child = mutate_widths(child, parent, places, rng, spread=0.5)
        assert fits(child, parent) and min(child.hidden_widths) >= 1
        assert all(len(u.unique()) == len(u) for u in child.units)


# Repair

@few
@given(parents(), seeds)
def test_repair_leaves_the_units_and_looks_at_nothing_else(network, seed):
    parent, rng = Parent(network), generator(seed, "mix")
    teacher, child = Teacher(parent, rows_for(parent), labels_for(parent)), pruned(parent, rng)
    repaired = teacher.repair(child)
    assert all(torch.equal(u, v) for u, v in zip(repaired.units, child.units, strict=True)) and fits(repaired, parent)
    assert same(teacher.repair(mutate_weights(child, rng)), repaired) and same(teacher.repair(repaired), repaired)


@few
@given(parents())
def test_a_parent_without_cuts_needs_no_repair(network):
    parent = Parent(network)
    x, y = rows_for(parent, 200), labels_for(parent, 200)
    repaired = Teacher(parent, x, y, label_step=0.0, ridge=1e-5).repair(parent.individual)
    wanted, found = parent.run(parent.individual, x)[-1], parent.run(repaired, x)[-1]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05*max(float(wanted.std(0).max()), 1e-2))


def test_units_that_hardly_vary_can_be_solved_for():
    network = build_network(Architecture(6, (Layer(20, "sigmoid"), Layer(20, "sigmoid"), Layer(3, "identity"))),
                            torch_generator(0))
    with torch.no_grad():
        for layer in network.layers[:2]: layer.linear.bias += 5
    parent = Parent(network)
    x, y = rows_for(parent, 2000), labels_for(parent, 2000)
    wanted = parent.run(parent.individual, x)[-1]
    found = parent.run(Teacher(parent, x, y, label_step=0.0, ridge=1e-4).repair(parent.individual), x)[-1]
    assert (found - wanted).square().sum() < 0.01*(wanted - wanted.mean(0)).square().sum()


def test_a_small_ridge_is_enough_for_units_that_say_the_same():
    network = build_network(Architecture(1, (Layer(40, "tanh"), Layer(1, "identity"))), torch_generator(0))
    parent = Parent(network)
    Teacher(parent, rows_for(parent, 200), labels_for(parent, 200), ridge=1e-8).repair(parent.individual)


@few
@given(parents())
def test_linear_layers_change_nothing(network):
    x = torch.randn(50, network.architecture.n_inputs, generator=torch_generator(1, "inputs"))
    torch.testing.assert_close(predict(with_linear_layers(network, x, 1.0), x), predict(network, x), rtol=1e-3,
                               atol=1e-4)


# Fronts

triples = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 3))
points = st.lists(triples, min_size=1, max_size=20).map(lambda p: np.array(p, float))


def dominates(a: np.ndarray, b: np.ndarray) -> bool: return bool((a <= b).all() and (a < b).any())


@settings(few, max_examples=60)
@given(points)
def test_ranks_are_peeled_fronts(objectives):
    left, expected = set(range(len(objectives))), np.full(len(objectives), -1)
    for rank in range(len(objectives)):
        front = {i for i in left if not any(dominates(objectives[j], objectives[i]) for j in left)}
        expected[list(front)] = rank
        left -= front
    assert pareto_ranks(objectives).tolist() == expected.tolist() and not left


@settings(few, max_examples=60)
@given(points)
def test_the_ends_of_a_front_have_infinite_room(objectives):
    ranks = pareto_ranks(objectives)
    room = crowding_distance(objectives, ranks)
    assert (room >= 0).all() and not np.isnan(room).any()
    for rank in np.unique(ranks):
        front = ranks == rank
        for values in objectives[front].T:
            for end in (values.min(), values.max()): assert np.isinf(room[front][values == end]).any()


@settings(few, max_examples=60)
@given(points, st.integers(1, 20))
def test_the_first_front_survives(objectives, n):
    n, first = min(n, len(objectives)), set(np.flatnonzero(pareto_ranks(objectives) == 0).tolist())
    chosen = survivors(objectives, n).tolist()
    assert len(chosen) == len(set(chosen)) == n
    assert first <= set(chosen) if len(first) <= n else set(chosen) <= first
    ranks = pareto_ranks(objectives)
    assert max(ranks[chosen]) <= min((ranks[i] for i in range(len(objectives)) if i not in chosen),
                                     default=len(objectives))


# Searches

def test_similarity_is_measured_on_all_rows_of_a_batch():
    network = build_network(Architecture(3, (Layer(9), Layer(2, "identity"))), torch_generator(0))
    x = rows_for(Parent(network), 400)
    data = EvolutionData(network, x, x[:, 0] > 0, x, x[:, 0] > 0, EvolutionConfig(batch_size=300), 0)
    assert data.batch(1)[2].samples == 300


def fitted(network: DenseNetwork, x: torch.Tensor, y: torch.Tensor, steps: int = 150) -> DenseNetwork:
    "A little training on all rows at once."
    loss = nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    optimiser = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(network(x), y).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def spirals():
    "A network that has learned some of two intertwined spirals, and rows and classes: for training, for validation."
    rng = generator(0, "spirals")
    y, t = rng.integers(0, 2, 400), rng.uniform(0.5, 2.5, 400)
    X = np.stack([t*np.cos(3*t + np.pi*y), t*np.sin(3*t + np.pi*y)], 1) + 0.05*rng.normal(size=(400, 2))
    x, y = torch.from_numpy(X).float(), torch.from_numpy(y)
    network = build_network(Architecture(2, (Layer(16), Layer(12, "tanh"), Layer(2, "identity"))), torch_generator(0))
    return fitted(network, x[:250], y[:250]), x[:250], y[:250], x[250:], y[250:]


PAPER = PRESETS["paper"].replace(population=8, generations=4, batch_size=50, weights=(1.0, 2.0, 1.0), mutation_rate=0.3)
NEON = PRESETS["neon"].replace(population=8, generations=4, judge_rows=100, similarity_rows=60)
SEARCHES = pytest.mark.parametrize("config", [PAPER, NEON], ids=["paper", "neon"])


@SEARCHES
def test_a_seed_names_a_search(spirals, config):
    first, second, other = (evolve(*spirals, config, seed) for seed in (0, 0, 1))
    assert first.records == second.records != other.records and len(first.records) == 5
    assert all(same(a, b) for a, b in zip(first.population, second.population, strict=True))
    assert np.array_equal(first.mean_fitness, second.mean_fitness)


@SEARCHES
def test_an_interrupted_search_goes_on_as_if_nothing_had_happened(spirals, config, tmp_path, monkeypatch):
    whole, path, step = evolve(*spirals, config), tmp_path/"search", neon.ecomp.evolution._next

    def interrupted(state, *rest):
        if state.generation == 3: raise KeyboardInterrupt
        step(state, *rest)

    monkeypatch.setattr(neon.ecomp.evolution, "_next", interrupted)
    with pytest.raises(KeyboardInterrupt): evolve(*spirals, config, checkpoint=path, every=2)
    monkeypatch.setattr(neon.ecomp.evolution, "_next", step)
    with pytest.raises(NeonError, match="seed"): evolve(*spirals, config, seed=1, checkpoint=path)
    resumed = evolve(*spirals, config, checkpoint=path)
    assert resumed.records == whole.records and not path.exists()
    assert all(same(a, b) for a, b in zip((*resumed.population, *resumed.archive), (*whole.population, *whole.archive),
                                          strict=True))
    assert np.array_equal(resumed.mean_fitness, whole.mean_fitness)


@pytest.mark.parametrize("population", [2, 3, 7])
@SEARCHES
def test_populations_keep_their_size(spirals, config, population):
    state = evolve(*spirals, config.replace(population=population, generations=2))
    assert len(state.population) == len(state.scores.size) == len(state.mean_fitness) == population


def test_the_archive_is_a_front_from_small_to_large(spirals):
    state = evolve(*spirals, NEON)
    size, loss = state.archive_scores.size, state.archive_scores.loss
    assert len(state.archive) == len(size) >= 3 and (np.diff(size) > 0).all() and (np.diff(loss) < 0).all()
    for individual, s in zip(state.archive, size, strict=True):
        assert kept_width(state.parent, individual) == pytest.approx(s)
    smallest, i = state.smallest_within(float(size[1]))
    assert i == 1 and smallest is state.archive[1] and state.smallest_within(size[0] - 0.01) is None


def test_ours_keeps_what_the_parent_knows(spirals):
    network, x, y, x_validation, y_validation = spirals
    state = evolve(network, x, y, x_validation, y_validation, NEON.replace(population=20, generations=8))
    child = state.parent.to_network(state.smallest_within(0.7)[0])
    right = lambda net: (predict(net, x_validation).argmax(1) == y_validation).float().mean().item()
    assert right(network) > 0.8 and right(child) > right(network) - 0.05
    assert child.architecture.n_params < 0.7*network.architecture.n_params


# Regression

@pytest.fixture(scope="module")
def sugar():
    "A network that has learned some of scikit-learn's diabetes data, a regression, and its rows and targets (n, 1)."
    X, y = load_diabetes(return_X_y=True)
    x, y = (torch.from_numpy((v - v.mean(0))/v.std(0)).float() for v in (X, y[:, None]))
    network = build_network(Architecture(10, (Layer(24), Layer(16), Layer(1, "identity"))), torch_generator(0))
    return fitted(network, x[:300], y[:300], 40), x[:300], y[:300], x[300:], y[300:]


def test_regression_from_beginning_to_end(sugar):
    network, *_, x, y = sugar
    state, quality = evolve(*sugar, NEON, task="regression"), CRITERIA["regression"].quality
    child, i = state.smallest_within(0.5)
    small = state.parent.to_network(child)
    of_parent, of_child = (float(1 - (predict(net, x) - y).square().sum()/(y - y.mean()).square().sum())
                           for net in (network, small))
    assert of_parent > 0.3 and of_child > of_parent - 0.1 and small.architecture.n_outputs == 1
    found = float(quality(predict(small, x[:100]), y[:100]))
    assert found == pytest.approx(float(state.archive_scores.accuracy[i]), abs=1e-4)


@SEARCHES
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_regression_targets_may_be_a_vector(sugar, config):
    network, x, y, x_validation, y_validation = sugar
    column, flat = (evolve(network, x, a, x_validation, b, config, task="regression")
                    for a, b in ((y, y_validation), (y[:, 0], y_validation[:, 0])))
    np.testing.assert_allclose(flat.scores.accuracy, column.scores.accuracy)


# Bad input

def test_more_neighbours_than_rows(spirals):
    with pytest.raises(NeonError, match="perplexity"): evolve(*spirals, PAPER.replace(batch_size=31))
    data = EvolutionData(*spirals, NEON.replace(similarity_rows=31), 0)
    assert data.fixed_similarity.perplexity == 10  # a third of the rows that are always the same
    with pytest.raises(NeonError, match="perplexity"): evolve(*spirals, NEON.replace(similarity_rows=3))


@SEARCHES
@pytest.mark.parametrize("place", [1, 3], ids=["training", "validation"])
def test_missing_inputs(spirals, config, place):
    rows = list(spirals)
    rows[place] = rows[place].clone()
    rows[place][7, 1] = float("nan")
    # the published search does not look at validation rows
    if config is PAPER and place == 3: assert evolve(*rows, config).records
    else:
        with pytest.raises(NeonError, match="finite"): evolve(*rows, config)


@SEARCHES
def test_a_parent_without_hidden_layers(spirals, config):
    network = build_network(Architecture(2, (Layer(2, "identity"),)))
    with pytest.raises(NeonError, match="no hidden layer"): evolve(network, *spirals[1:], config)


def test_names_and_settings_that_do_not_exist(spirals):
    with pytest.raises(NeonError, match="unknown preset"): evolve(*spirals, "best")
    with pytest.raises(NeonError, match="unknown preset"): get_preset("")
    for wrong in (dict(population=1), dict(generations=-1), dict(weights=(1, 2)), dict(weights=(1, float("nan"), 1)),
                  dict(mutation_rate=1.5), dict(selection="best"), dict(objectives=("speed",)), dict(elitism=True),
                  dict(perplexity=0.5)):
        with pytest.raises(NeonError, match=next(iter(wrong))): EvolutionConfig(**wrong)


def test_a_task_that_does_not_exist(spirals):
    with pytest.raises(NeonError, match="task"): evolve(*spirals, PAPER, task="ranking")
