"""What each of ten teachers becomes: predictors that nothing can be cut from, and the dense networks that they teach.

    python benchmarks/teachers.py                        # all ten; some minutes on one core
    python benchmarks/teachers.py --only forest --only onnx
    python benchmarks/teachers.py --effort 0.1           # a trial

All learn the digits that come with scikit-learn (1,797 images of 8 x 8, values 0 to 16). A third of the rows fits the
teacher and teaches the network, a third is for validation, a third tests both. The table holds a line per teacher; a
teacher that needs a package which is not installed (skorch, onnx) is left out, and the script says so.
"""
import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import pandas as pd
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn

from neon.compress import compress
from neon.compression.export import from_sklearn, to_onnx
from neon.compression.search import SearchConfig
from neon.compression.teachers import student_features, teacher_outputs
from neon.foundations.core import NeonError, write_csv
from neon.foundations.training import predict

OUTPUT = "data/results/teachers.csv"


class Residual(nn.Module):
    "Two residual blocks."
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 64), nn.Linear(64, 10)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x/16)
        for block in self.blocks: x = x + block(x).relu()
        return self.last(x)


class Embedded(nn.Module):
    "An embedding of the 17 values that a pixel can have."
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(17, 4)
        self.head = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor: return self.head(self.embed(x.long()).flatten(1))


class Attention(nn.Module):
    "Self-attention over the pixels."
    def __init__(self):
        super().__init__()
        self.value, self.place = nn.Linear(1, 16), nn.Parameter(torch.randn(64, 16)/4)
        self.attend, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(64*16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.value(x[..., None]/16) + self.place
        return self.head((h + self.attend(h, h, h, need_weights=False)[0]).flatten(1))


def normed() -> nn.Module:
    "Layer norms between dense layers."
    return nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 96), nn.LayerNorm(96), nn.GELU(),
                         nn.Linear(96, 10))


def convolutional() -> nn.Module:
    "Two convolutions and an average over what they see."
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def trained(make: Callable[[], nn.Module], X: np.ndarray, y: np.ndarray, epochs: int = 60) -> nn.Module:
    "A torch module, trained with Adam."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, x, t = make(), torch.tensor(X, dtype=torch.float32), torch.tensor(y)
        optimiser = torch.optim.Adam(module.parameters(), 2e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                nn.functional.cross_entropy(module(x[rows]), t[rows]).backward()
                optimiser.step()
    return module.eval()


def voting(X: np.ndarray, y: np.ndarray) -> object:
    "Three classifiers of different kinds, the mean of whose probabilities counts."
    parts = [("linear", LogisticRegression(max_iter=500)), ("forest", RandomForestClassifier(100, random_state=0)),
             ("kernel", CalibratedClassifierCV(SVC(), ensemble=False))]
    return make_pipeline(StandardScaler(), VotingClassifier(parts, voting="soft")).fit(X, y)


def skorch_net(X: np.ndarray, y: np.ndarray) -> object:
    "A residual network in scikit-learn's coat."
    from skorch import NeuralNetClassifier
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NeuralNetClassifier(Residual, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=2e-3,
                                  max_epochs=60, batch_size=64, train_split=None, verbose=0)
        return net.fit(X.astype(np.float32), y)


def saved_onnx(X: np.ndarray, y: np.ndarray) -> str:
    "A file in ONNX format; its folder is the process's own."
    network = from_sklearn(MLPClassifier((128, 64), max_iter=200, random_state=0).fit(X, y))
    path = Path(tempfile.mkdtemp())/"digits.onnx"
    to_onnx(network, path, probabilities=True)
    return str(path)


TEACHERS: dict[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "boosting": lambda X, y: HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(X, y),
    "forest": lambda X, y: RandomForestClassifier(200, random_state=0).fit(X, y),
    "soft voting": voting,
    "residual": lambda X, y: trained(Residual, X, y),
    "layer norm": lambda X, y: trained(normed, X/16, y),
    "embedding": lambda X, y: trained(Embedded, X, y),
    "attention": lambda X, y: trained(Attention, X, y),
    "convolutional": lambda X, y: trained(convolutional, X.reshape(-1, 1, 8, 8)/16, y),
    "skorch": skorch_net,
    "onnx": saved_onnx,
}


def as_taken(name: str, X: np.ndarray) -> np.ndarray:
    "Rows as this teacher takes them."
    if name == "layer norm": return X/16
    if name == "convolutional": return X.reshape(-1, 1, 8, 8)/16
    return X.astype(np.float32) if name == "skorch" else X


def measured(name: str, effort: float, budget: float = 2.0) -> dict:
    "Make a teacher, compress it, and test both on rows that neither has seen."
    X, y = load_digits(return_X_y=True)
    X_rest, X_test, y_rest, y_test = train_test_split(X, y, test_size=1/3, random_state=0, stratify=y)
    X_fit, X_held, y_fit, y_held = train_test_split(X_rest, y_rest, test_size=1/2, random_state=0, stratify=y_rest)
    teacher, place = TEACHERS[name](X_fit, y_fit), lambda rows: as_taken(name, rows)
    said, start = teacher_outputs(teacher, place(X_test), "classes"), time.monotonic()
    accuracy = lambda outputs: float((outputs.argmax(1).numpy() == y_test).mean())
    facts = {"teacher": name, "size": said.size, "unit": said.unit, "accuracy": accuracy(said.outputs)}
    result = compress(teacher, place(X_fit), y_fit, budget, validation=(place(X_held), y_held), agent=None,
                      search=SearchConfig(effort=effort))
    seconds, small = time.monotonic() - start, result.network
    if result.how == "as it was": return facts | {"how": "none found", "seconds": seconds}
    if isinstance(small, nn.Module) and hasattr(small, "architecture"):
        a, outputs = small.architecture, predict(small, student_features(teacher, place(X_test)))
        facts |= {"network": str(a), "parameters": a.n_params, "network_accuracy": accuracy(outputs)}
    return facts | {"drop": result.drop.points, "budget": budget, "how": result.how, "seconds": seconds}


def main(argv: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(TEACHERS), help="this teacher; may be repeated")
    parser.add_argument("--effort", type=float, default=1.0, help="factor on the updates (default: %(default)s)")
    parser.add_argument("--output", default=OUTPUT, help="where the table goes (default: %(default)s)")
    args, lines = parser.parse_args(argv), []
    torch.set_num_threads(1)
    for name in args.only or TEACHERS:
        try: lines.append(measured(name, args.effort))
        except (ImportError, NeonError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in lines[-1].items()}, flush=True)
    write_csv(Path(args.output), pd.DataFrame(lines).round(4))
    return 0


if __name__ == "__main__":
    sys.exit(main())
