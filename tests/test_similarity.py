"""The similarity loss equals scikit-learn's routine and the original EComp: one child, populations, however odd."""
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.manifold import _t_sne
from sklearn.metrics import pairwise_distances

from neon.ecomp.similarity import (
    EPSILON,
    DistanceLoss,
    SimilarityLoss,
    bisected_precisions,
    fewest_digits,
    joint_probabilities,
    squared_distances,
    student_probabilities,
)
from neon.foundations.core import NeonError, generator


@pytest.fixture(scope="module")
def stored(root):
    return np.load(root / "tests" / "fixtures" / "ecomp" / "similarity.npz", allow_pickle=False)


def condensed(matrix):
    return np.asarray(matrix)[np.triu_indices(len(matrix), 1)]


def theirs(X, perplexity=30):
    return _t_sne._joint_probabilities(pairwise_distances(X, squared=True), perplexity, 0)


def expected(X, Y, perplexity=30):
    P, Q = theirs(X, perplexity), theirs(Y, perplexity)
    return 2*np.sum(P*np.log(np.maximum(P, EPSILON)/Q))


def network(rng, samples, inputs=32, units=96):
    "Two hidden ReLU layers on clustered rows, and a function that gives children's embeddings."
    weights = [rng.standard_normal(shape)/np.sqrt(shape[0]/2) for shape in ((inputs, units), (units, units))]
    x = rng.standard_normal((10, inputs))[rng.integers(10, size=samples)] + 0.6*rng.standard_normal((samples, inputs))

    def embeddings(width, noise):
        hidden, before = x, np.arange(inputs)
        for W in weights:
            kept = np.sort(rng.permutation(units)[:width])
            factors = rng.uniform(1 - noise, 1 + noise, (len(before), width))
            hidden, before = np.maximum(hidden @ (W[np.ix_(before, kept)]*factors), 0), kept
            yield hidden
    return embeddings


def population(seed, samples=100, children=12, dtype=np.float32, offset=0.0, scale=1.0):
    "Embeddings of a parent, [layer], and of children, [layer][child]."
    embeddings = network(generator(seed, "population"), samples)
    change = lambda X: (offset + scale*X).astype(dtype)
    parent = [change(X) for X in embeddings(96, 0)]
    each = [[change(X) for X in embeddings(int(width), 0.2)] for width in np.linspace(90, 15, children)]
    return parent, [list(layer) for layer in zip(*each, strict=True)]


# -- against the original ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", range(4))
def test_losses_of_the_original(stored, pair):
    X, Y = stored[f"pair{pair}.X"], stored[f"pair{pair}.Y"]
    for child in ("gaussian", "student"):
        published = float(stored[f"pair{pair}.tsne_{child}"])
        assert SimilarityLoss(X, child=child)(Y) == pytest.approx(published, rel=1e-6), child
    if pair == 3: assert np.isnan(stored["pair3.distance"]) and 0 < DistanceLoss(X)(Y) < 1
    else: assert DistanceLoss(X)(Y) == pytest.approx(float(stored[f"pair{pair}.distance"]), rel=1e-6)


def test_too_few_rows_are_refused_where_the_original_says_0(stored):
    X, Y = stored["pair4.X"], stored["pair4.Y"]
    assert abs(float(stored["pair4.tsne_gaussian"])) < 1e-12
    with pytest.raises(NeonError, match="needs more than 31 samples, got 20"): SimilarityLoss(X)
    assert DistanceLoss(X)(Y) == pytest.approx(float(stored["pair4.distance"]), rel=1e-6)


def test_distributions_of_the_original(stored):
    X, Y = (squared_distances(torch.tensor(stored[f"pair0.{name}"]).double()) for name in "XY")
    for name, Q in {"P": joint_probabilities(X), "Q_gaussian": joint_probabilities(Y),
                    "Q_student": student_probabilities(Y, 12)}.items():
        np.testing.assert_allclose(condensed(Q), stored[f"pair0.{name}"], rtol=1e-6, err_msg=name)
        assert torch.equal(Q, Q.mT) and float(Q.sum()) == pytest.approx(1, abs=1e-12) and Q.dtype == torch.float64


def test_layers_are_added(stored):
    X, Y = ([stored[f"pair{pair}.{name}"] for pair in (0, 3)] for name in "XY")  # equally many rows
    for loss in (SimilarityLoss, DistanceLoss):
        single = [loss(x)(y) for x, y in zip(X, Y, strict=True)]
        assert loss(X)(Y) == pytest.approx(sum(single), rel=1e-9)
        np.testing.assert_allclose(loss(X).layers([[y, y] for y in Y]), [single, single], rtol=1e-7)
    stored_sum = float(stored["distance_two_layers"])
    assert stored_sum == pytest.approx(sum(DistanceLoss(stored[f"pair{p}.X"])(stored[f"pair{p}.Y"]) for p in (0, 1)),
                                       rel=1e-6)


# -- against scikit-learn ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [5, 31, 32, 33, 60, 150])
@pytest.mark.parametrize("perplexity", [3.0, 12.3, 30.0])
def test_joint_probabilities_are_those_of_scikit_learn(samples, perplexity):
    rng = generator(samples, "joint")
    clouds = [rng.standard_normal((samples, 4)), np.maximum(rng.standard_normal((samples, 40)), 0),
              1e3*rng.standard_normal((samples, 2)),
              1e-4*rng.standard_normal((samples, 9)), np.exp(rng.standard_normal((samples, 3)))]
    distances = squared_distances(torch.tensor(np.stack([np.pad(X, ((0, 0), (0, 40 - X.shape[1]))) for X in clouds])))
    for D, P in zip(distances, joint_probabilities(distances, perplexity), strict=True):
        np.testing.assert_allclose(condensed(P), _t_sne._joint_probabilities(D.numpy(), perplexity, 0), rtol=1e-9)


def test_odd_rows_are_those_of_scikit_learn():
    rng = generator(0, "odd")
    X = rng.standard_normal((60, 6))
    odd = {"all equal": np.ones((60, 6)), "zeros": np.zeros((60, 6)), "pairs": np.repeat(X[:30], 2, 0),
           "forties": np.repeat(X[:2], 40, 0),
           "simplex": np.eye(60), "simplex, far": 100*np.eye(60), "grid": np.arange(60.0)[:, None],
           "two groups": X + 1e4*(X[:, :1] > 0),
           "an outlier": np.concatenate([X, 300*X[:1]]), "huge": 1e15*X, "minute": 1e-21*X}
    for name, Y in odd.items():
        distances = squared_distances(torch.tensor(Y))
        start = torch.full((len(Y),), 1e3, dtype=torch.float64)
        for P in (joint_probabilities(distances), joint_probabilities(distances, start=start)):
            np.testing.assert_allclose(condensed(P), _t_sne._joint_probabilities(distances.numpy(), 30, 0), rtol=1e-9,
                                       err_msg=name)


@pytest.mark.parametrize("options", [{}, {"dtype": np.float64}, {"samples": 40}, {"samples": 257}, {"offset": 3.0},
                                     {"offset": 1e3},
                                     {"offset": 1e5, "dtype": np.float64}, {"scale": 1e4}, {"scale": 1e-5}], ids=str)
def test_populations(options):
    for seed in range(2):
        parent, children = population(seed, **options)
        near = lambda Z: Z - np.float64(options.get("offset", 0))  # scikit-learn does not centre
        wanted = np.array([[expected(near(X), near(Y)) for Y in layer]
                           for X, layer in zip(parent, children, strict=True)]).T
        losses = SimilarityLoss(parent).layers(children).numpy()
        np.testing.assert_allclose(losses, wanted, rtol=2e-6, atol=5e-8)
        assert np.median(np.abs(losses/wanted - 1)) < 5e-7


def test_odd_children_among_others():
    (parent, _), (children, _) = population(3)
    rng = generator(3, "odd children")
    odd = [np.zeros((100, 7)), np.full((100, 3), 0.1), np.repeat(children[0][:5], 20, 0),
           np.repeat(children[0][:2], 50, 0),
           children[0]*np.r_[1e3, np.ones(99)][:, None], np.maximum(children[0] - 2, 0),
           np.pad(children[1], ((0, 0), (5, 5))),
           rng.standard_normal((100, 1)), 1e12*children[2], children[0] + 1e6*(np.arange(100) < 50)[:, None], parent,
           1e-15*children[3]]
    odd = [Y.astype(np.float32) for Y in odd]
    mixed = [Y for pair in zip(odd, children, strict=True) for Y in pair]
    losses = SimilarityLoss(parent).population(mixed)
    exactly = lambda Y: joint_probabilities(squared_distances(torch.tensor(Y).double()))
    P = exactly(parent)
    exact = [float((P*torch.log(P/Q)).nansum()) for Q in map(exactly, mixed)]
    np.testing.assert_allclose(losses, exact, rtol=2e-6, atol=5e-8)
    assert losses[20] < 1e-9, "the parent itself"
    np.testing.assert_allclose(losses[0], losses[2], rtol=1e-12, err_msg="dead and constant layers are the same")
    ordinary = [0, 10, 12, 14, 20]
    np.testing.assert_allclose(losses[ordinary], [expected(parent, mixed[i]) for i in ordinary], rtol=2e-6, atol=5e-8)


def test_where_bisection_stops():
    rng = generator(0, "bisection")
    rows = torch.tensor(rng.gamma(3, rng.lognormal(0, 6, (300, 1)), (300, 80)))
    betas = bisected_precisions(rows)
    square = torch.zeros(300, 81, 81, dtype=torch.float64)
    square[:, 0, 1:] = rows
    from neon.ecomp.similarity import _solve
    assert torch.equal(_solve(square, 30.0)[0][:, 0], betas)
    ends = np.array([1.0, 0.75, 2.0]), np.array([1.0, 0.75, 3.999])
    assert fewest_digits(*ends).tolist() == [1, 0.75, 2]


# -- forms -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [SimilarityLoss, DistanceLoss, lambda X: SimilarityLoss(X, child="student")])
def test_forms_of_a_population_agree(loss):
    parent, children = population(1, samples=50, children=5)
    widths = torch.tensor([[layer[b].shape[1] for layer in children] for b in range(5)])
    padded = [torch.stack([torch.nn.functional.pad(torch.tensor(Y), (0, 96 - Y.shape[1])) for Y in layer])
              for layer in children]
    compare = loss([torch.tensor(X) for X in parent])
    losses = compare.population(children)
    assert losses.shape == (5,) and losses.dtype == torch.float64
    torch.testing.assert_close(compare.population(padded, widths), losses, rtol=2e-6, atol=5e-8)
    torch.testing.assert_close(compare.population(padded, widths[:, 0].tolist()), losses, rtol=2e-6, atol=5e-8)
    torch.testing.assert_close(compare.population([padded[0].numpy(), children[1]], widths), losses, rtol=2e-6,
                               atol=5e-8)
    torch.testing.assert_close(compare.layers(children).sum(1), losses)
    for b in range(5):
        assert compare([layer[b] for layer in children]) == pytest.approx(float(losses[b]), rel=1e-6, abs=3e-8)
    alone = loss(parent[0])
    assert torch.equal(alone.population(children[0]), alone.population([children[0]]))
    torch.testing.assert_close(alone.population(padded[0], widths[:, 0]), alone.population(children[0]), rtol=2e-6,
                               atol=5e-8)


def test_gradients_other_types_and_an_empty_population():
    (parent, _), (children, _) = population(2, samples=40, children=3)
    loss = SimilarityLoss(parent)
    leaf = torch.tensor(children[0], requires_grad=True)
    assert loss(leaf) == loss(children[0])
    assert loss(torch.tensor(children[0]).double()) == pytest.approx(loss(children[0]), rel=1e-6)
    assert loss((children[0] > 0.5).astype(np.int64)) > 0 and loss(torch.tensor(children[0]).bfloat16()) > 0
    assert loss.population([[]]).shape == (0,)


def test_a_loss_is_copied_sent_and_shared():
    (parent, _), (children, _) = population(4, samples=64, children=6)
    loss = SimilarityLoss(parent)
    losses = loss.population(children)
    assert len(pickle.dumps(loss)) < 500_000
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other.population(children), losses)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(lambda _: loss.population(children), range(16)): assert torch.equal(answer, losses)


def test_groups_and_parts_do_not_matter(monkeypatch):
    from neon.ecomp import similarity
    parent, children = population(5, samples=70, children=9)
    losses = SimilarityLoss(parent).population(children)
    for together, cached in ((5000, 5000), (20_000, 7000), (1, 1), (10**6, 10**6)):
        monkeypatch.setattr(similarity, "_TOGETHER", together)
        monkeypatch.setattr(similarity, "CACHED", cached)
        torch.testing.assert_close(SimilarityLoss(parent).population(children), losses, rtol=2e-6, atol=5e-8)


def test_distances():
    rng = generator(0, "distances")
    for dtype, tolerance in ((np.float32, 1e-5), (np.float64, 1e-12)):
        X = (100 + rng.standard_normal((3, 50, 20))).astype(dtype)
        D = squared_distances(torch.tensor(X))
        assert D.dtype == torch.tensor(X).dtype and torch.equal(D, D.mT) and bool((D >= 0).all())
        assert D.diagonal(dim1=-2, dim2=-1).count_nonzero() == 0
        for mine, x in zip(D, X, strict=True):
            np.testing.assert_allclose(mine, pairwise_distances(x.astype(np.float64) - 100, squared=True),
                                       rtol=tolerance, atol=tolerance)
        assert squared_distances(torch.tensor(np.repeat(X[:, :1], 7, 1))).count_nonzero() == 0


def test_mistakes_are_named():
    (parent, second), (children, _) = population(0, samples=40, children=3)
    loss, bad = SimilarityLoss(parent), children[1].copy()
    bad[3, 2] = np.nan
    cases = [(lambda: loss.population([children[0], bad]), "finite"),
             (lambda: loss(children[0][:39]), "40 samples, a child 39"),
             (lambda: loss(np.full_like(children[0], np.inf)), "finite"),
             (lambda: loss(children[0][None]), "1 layers|shape"),
             (lambda: loss([parent, second]), "parent has 1 layers, the children have 2"),
             (lambda: SimilarityLoss([]), "no layer"),
             (lambda: SimilarityLoss(parent, perplexity=39), "more than 40 samples, got 40"),
             (lambda: SimilarityLoss(bad), "not finite"),
             (lambda: SimilarityLoss(parent, perplexity=0), "at least 1"),
             (lambda: SimilarityLoss(parent[:, :0]), "shape"),
             (lambda: SimilarityLoss([parent, second]).population([children, children[:2]]),
              "different numbers of children"),
             (lambda: loss.population(children, [1, 2]), "widths have shape"),
             (lambda: loss.population(children, [1, 0, 2]), "one unit"),
             (lambda: SimilarityLoss(parent, child="student")(bad), "finite"),
             (lambda: DistanceLoss(parent)(bad), "finite")]
    for call, message in cases:
        with pytest.raises(NeonError, match=message): call()
