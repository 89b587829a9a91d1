"""What an attacker holds: something that answers rows with probabilities, counts, and ends.

`Direct` asks the model itself and is what recordings are made with; `gateway.py` has the one that asks over HTTPS.
"""

import json

import numpy as np
from art.estimators.classification import BlackBoxClassifierNeuralNetwork


class Spent(Exception):
    """The attacker's queries are used up."""


class Refused(Exception):
    """The gateway did not answer; `code` says as what."""

    def __init__(self, status, code):
        super().__init__(f"{status} {code}")
        self.status, self.code = status, code


class Oracle:
    """Rows in, probabilities out.

    `budget` rows are answered and not one more; `batch` is how many rows go into one request; with `remember`, what was asked before is not asked again, as an
    attacker who pays for every query would have it.
    """

    def __init__(self, victim, budget, batch=1, remember=False):
        self.victim, self.budget, self.batch, self.remember = victim, budget, batch, remember
        self.rows, self.answers, self.known, self.clipped = [], [], {}, True

    asked = property(lambda self: len(self.rows))

    def send(self, rows):
        raise NotImplementedError

    def ask(self, rows):
        rows = np.asarray(rows, np.float32).reshape(len(rows), -1)
        if self.clipped:
            rows = self.victim.clip(rows)
        answers = np.zeros((len(rows), self.victim.classes), np.float32)
        new = [i for i, row in enumerate(rows) if not (self.remember and row.tobytes() in self.known)]
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            if self.asked + len(part) > self.budget:
                raise Spent
            answers[part] = self.send(rows[part])
            for i in part:
                self.rows.append(rows[i])
                self.answers.append(answers[i])
                if self.remember:
                    self.known[rows[i].tobytes()] = answers[i]
        for i in set(range(len(rows))) - set(new):
            answers[i] = self.known[rows[i].tobytes()]
        return answers

    def art(self, flat=False):
        """As the toolbox wants to see it: images with the channel first, or rows."""
        victim = self.victim
        if flat or not victim.shape:
            shape, ask = (victim.dim,), self.ask
        else:
            height, width, channels = victim.shape
            shape = (channels, height, width)
            def ask(x):
                return self.ask(np.moveaxis(x, 1, 3).reshape(len(x), -1))
        return BlackBoxClassifierNeuralNetwork(ask, shape, victim.classes, clip_values=(victim.low, victim.high), channels_first=True)

    def images(self, rows):
        """Rows as `art()` wants them."""
        if not self.victim.shape:
            return np.asarray(rows, np.float32)
        return np.moveaxis(np.asarray(rows, np.float32).reshape(len(rows), *self.victim.shape), 3, 1)


def request(rows, name="input"):
    """An inference request of the Open Inference Protocol, as JSON text: every number as short as its 32 bits allow."""
    return f'{{"inputs":[{{"name":"{name}","datatype":"FP32","shape":[{len(rows)},{rows.shape[1]}],"data":[{",".join(map(numbers, rows))}]}}]}}'


def numbers(row):
    whole = np.rint(row)
    if (whole == row).all():
        return ",".join(map(str, whole.astype(np.int64).tolist()))
    return ",".join(text[:-2] if text.endswith(".0") else text for text in map(str, np.asarray(row, np.float32)))


def response(model, probabilities, labels):
    """The answer to it, with six significant digits."""
    data = ",".join(f"{p:.6g}" for p in np.asarray(probabilities, np.float64).ravel())
    n, k = probabilities.shape
    return (f'{{"model_name":"{model}","outputs":[{{"name":"probabilities","datatype":"FP32","shape":[{n},{k}],"data":[{data}]}},'
            f'{{"name":"label","datatype":"INT64","shape":[{n}],"data":[{",".join(map(str, labels.tolist()))}]}}]}}')


class Recording:
    """JSON lines of what callers asked and were answered, in order."""

    def __init__(self, path, answers=True):
        self.file, self.answers, self.lines, self.count = open(path, "w"), answers, 0, 0

    def add(self, caller, kind, rows, answer=""):
        end = f',"answer":{answer}}}\n' if self.answers else "}\n"
        self.file.write(f'{{"caller":{json.dumps(caller)},"kind":{json.dumps(kind)},"body":{request(rows)}{end}')
        self.lines, self.count = self.lines + 1, self.count + len(rows)

    def close(self):
        self.file.close()


class Direct(Oracle):
    """Asks the model itself, and writes it down under one caller's name, or under several in turn."""

    def __init__(self, victim, budget, batch=1, remember=False, recording=None, callers=("attacker",), kind=""):
        super().__init__(victim, budget, batch, remember)
        self.recording, self.callers, self.kind, self.turn = recording, callers, kind, 0

    def send(self, rows):
        probabilities, labels = self.victim.predict(rows)
        if self.recording:
            caller = self.callers[self.turn % len(self.callers)]
            self.turn += 1
            self.recording.add(caller, self.kind, rows, response(self.victim.name, probabilities, labels))
        return probabilities
