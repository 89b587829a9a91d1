"""What thieves train, and how good the copy is.

The toolbox needs a framework's classifier for the stolen copy. PyTorch's wheel brings gigabytes of CUDA along and TensorFlow's a quarter of a gigabyte, for a
perceptron of one hidden layer; so the copy is that perceptron in numpy, as an estimator of the toolbox.
"""

import numpy as np
from art.estimators import BaseEstimator, NeuralNetworkMixin
from art.estimators.classification.classifier import ClassifierMixin
from scipy.spatial.distance import cdist
from sklearn.linear_model import LogisticRegression

HIDDEN = 64
# At least so many steps of the optimiser, however few rows there are: a thief who has paid for rows trains long on them.
STEPS = 600


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


class Copy(ClassifierMixin, NeuralNetworkMixin, BaseEstimator):
    """A perceptron of one hidden layer, Adam on the cross entropy with soft labels. Inputs are scaled by what the attacker knows of the columns."""

    def __init__(self, victim, seed=0):
        super().__init__(model=None, clip_values=(victim.low, victim.high), channels_first=True)
        self.nb_classes, self.dim = victim.classes, victim.dim
        self.middle, self.scale = (0.0, victim.high) if victim.shape else (victim.mean, victim.sd + 1e-9)
        self.hwc = victim.shape
        self.random = np.random.default_rng(seed)
        shapes = [(self.dim, HIDDEN), (1, HIDDEN), (HIDDEN, self.nb_classes), (1, self.nb_classes)]
        self.weights = [self.random.normal(0, np.sqrt(2 / n), (n, m)).astype(np.float32) if n > 1 else np.zeros((n, m), np.float32) for n, m in shapes]
        self.first, self.second = ([np.zeros_like(w) for w in self.weights] for _ in range(2))
        self.step = 0

    input_shape = property(lambda self: (self.dim,))

    def flat(self, x):
        """Rows in the victim's order, from what the toolbox hands over."""
        if x.ndim == 4:
            x = np.moveaxis(x, 1, 3)
        return ((np.asarray(x, np.float32).reshape(len(x), -1) - self.middle) / self.scale).astype(np.float32)

    def fit(self, x, y, batch_size=32, nb_epochs=10, **_):
        x, y = self.flat(x), np.asarray(y, np.float32)
        if len(x) > 1:  # the bandit of KnockoffNets trains on one row at a time, and means it
            nb_epochs = max(nb_epochs, -(-STEPS * batch_size // len(x)))
        for _ in range(nb_epochs):
            order = self.random.permutation(len(x))
            for start in range(0, len(x), batch_size):
                self.descend(x[order[start : start + batch_size]], y[order[start : start + batch_size]])
        return self

    def descend(self, x, y, rate=0.003, decay=1e-4):
        w1, b1, w2, b2 = self.weights
        hidden = np.maximum(x @ w1 + b1, 0)
        error = (softmax(hidden @ w2 + b2) - y) / len(x)
        back = (error @ w2.T) * (hidden > 0)
        self.step += 1
        gradients = (x.T @ back + decay * w1, back.sum(axis=0, keepdims=True), hidden.T @ error + decay * w2, error.sum(axis=0, keepdims=True))
        for i, gradient in enumerate(gradients):
            self.first[i] += 0.1 * (gradient - self.first[i])
            self.second[i] += 0.001 * (gradient**2 - self.second[i])
            scaled = self.first[i] / (1 - 0.9**self.step) / (np.sqrt(self.second[i] / (1 - 0.999**self.step)) + 1e-8)
            self.weights[i] -= rate * scaled

    def predict(self, x, batch_size=128, **_):
        w1, b1, w2, b2 = self.weights
        return softmax(np.maximum(self.flat(x) @ w1 + b1, 0) @ w2 + b2).astype(np.float32)

    def gradient(self, x, labels):
        """Of the logit of each row's label, with respect to the row."""
        w1, b1, w2, _ = self.weights
        active = self.flat(x) @ w1 + b1 > 0
        return ((w2[:, labels].T * active) @ w1.T) / self.scale

    def compute_loss(self, *_, **__):
        raise NotImplementedError

    def get_activations(self, *_, **__):
        raise NotImplementedError


def steal(victim, rows, answers, seed=0):
    """The copies that a thief would make of what was answered: a perceptron, a linear model and kernel machines. Labels alone, as one-hot answers, will do."""
    rows, answers = np.asarray(rows, np.float32), np.asarray(answers, np.float64)
    copies = [Copy(victim, seed).fit(rows, answers).predict]
    if (answers == np.rint(answers)).all():
        return [*copies, *kernels(victim, rows, answers, 1e-6), *from_labels(victim, rows, answers)]
    told = answers[answers > 0].min()
    for floor in {1e-6, max(1e-30, told / 2)}:  # what stands for a probability that was rounded to nothing
        copies += [*kernels(victim, rows, answers, floor), linear(victim, rows, answers, floor), *ridges(victim, rows, answers, floor)]
    return copies


def ridges(victim, rows, answers, floor):
    """Least squares on the log-odds of all rows, held small: what is to be had of fewer rows than unknowns, and of a model that bends."""
    middle = rows.mean(axis=0)
    scale = victim.high if victim.shape else rows.std(axis=0) + 1e-9
    odds = np.log(np.maximum(answers, floor))
    odds -= odds.mean(axis=1, keepdims=True)
    known, level = (rows - middle) / scale, odds.mean(axis=0)
    square = known.T @ known
    for ridge in (1e-3, 1e-2, 1e-1):
        held = square + ridge * np.trace(square) / len(square) * np.eye(len(square)) + 1e-12 * np.eye(len(square))
        solved = np.linalg.solve(held, known.T @ (odds - level))
        yield lambda x, solved=solved: softmax((np.asarray(x, np.float64) - middle) / scale @ solved + level)


def kernels(victim, rows, answers, floor):
    """Kernel ridge regression on log-odds, or on labels: little data, and no training to wait for. As wide as the queries lie apart, and as a user's rows do."""
    middle, scale = (0.0, victim.high) if victim.shape else (rows.mean(axis=0), rows.std(axis=0) + 1e-9)
    known = (rows - middle) / scale
    odds = np.log(np.maximum(answers, floor))
    targets = odds - odds.mean(axis=1, keepdims=True)
    square = cdist(known, known, "sqeuclidean")
    width = np.median(square) + 1e-12
    users = 2 * ((victim.sd / scale) ** 2).sum()
    for wide, ridge in ((0.5 * width, 1e-3), (width, 1e-5), (width, 1e-1), (2 * users, 1e-3)):
        solved = np.linalg.solve(np.exp(-square / wide) + ridge * np.eye(len(known)), targets)
        yield lambda x, wide=wide, solved=solved: np.exp(-cdist((x - middle) / scale, known, "sqeuclidean") / wide) @ solved


def from_labels(victim, rows, answers):
    """Logistic regression, where there are two labels to tell apart."""
    labels = answers.argmax(axis=1)
    if len(np.unique(labels)) < 2:
        return
    middle, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    fitted = LogisticRegression(max_iter=300).fit((rows - middle) / scale, labels)

    def copy(x):
        made = np.zeros((len(x), victim.classes))
        made[:, fitted.classes_] = fitted.predict_proba((x - middle) / scale)
        return made
    yield copy


def linear(victim, rows, answers, floor):
    """Least squares on the log-odds, exact where the victim is linear and its answers are; over the rows all of whose odds are told, if there are any."""
    usable = (answers > floor).all(axis=1)
    if usable.sum() < 2:
        usable[:] = True
    odds = np.log(np.maximum(answers, floor))
    odds = (odds - odds.mean(axis=1, keepdims=True))[usable]
    middle, scale = rows.mean(axis=0), rows.std(axis=0) + 1e-9
    design = np.concatenate([(rows[usable] - middle) / scale, np.ones((usable.sum(), 1))], 1)
    solved = np.linalg.lstsq(design, odds, rcond=1e-9)[0]
    return lambda x: softmax(np.concatenate([(np.asarray(x, np.float64) - middle) / scale, np.ones((len(x), 1))], 1) @ solved)


def fidelity(victim, copy, rows=None):
    """How often a copy and the model say the same of rows that neither thief nor training has seen."""
    rows = victim.pools["holdout"][0] if rows is None else rows
    return float((copy(rows).argmax(axis=1) == victim.predict(rows)[1]).mean())


def best(victim, rows, answers, seed=0, judged_on=None):
    """The fidelity of the best copy to be had of these answers, on the holdout or on other rows: the thief is given the benefit of choosing with them."""
    if len(rows) < 2:
        return 1 / victim.classes
    return max(fidelity(victim, copy, judged_on) for copy in steal(victim, rows, answers, seed))
