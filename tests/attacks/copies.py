"""How good a copy could be made of what a recording's callers were answered: what an exposure meter is held against.

    copies.py --victim digits --recording attacks.jsonl --at 25 50 100 200 400 --runs 5 --out copies.jsonl

Writes `{"caller", "kind", "n", "fidelity", "fidelity_of_labels"}` for each caller and count of rows; fidelity is the best thief's, on the holdout. The same with
`_as_metered` is on rows of the same origin as a meter's own: of benign callers that did not calibrate.
"""

import argparse
import json
import warnings

import numpy as np

import benign
import thief
import victims


def read(path, runs, kinds):
    """Rows and answers by caller, of the first so many callers of each kind."""
    told, seen = {}, {}
    for line in open(path):
        said = json.loads(line)
        if kinds and said["kind"] not in kinds:
            continue
        callers = seen.setdefault(said["kind"], [])
        if said["caller"] not in callers:
            if len(callers) >= runs:
                continue
            callers.append(said["caller"])
        mine = told.setdefault(said["caller"], (said["kind"], [], []))
        for part, tensor in ((mine[1], said["body"]["inputs"][0]), (mine[2], said["answer"]["outputs"][0])):
            part.append(np.array(tensor["data"], np.float32).reshape(tensor["shape"]))
    return {caller: (kind, np.concatenate(rows), np.concatenate(answers)) for caller, (kind, rows, answers) in told.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--victim", choices=victims.ALL, default="digits")
    parser.add_argument("--recording", required=True)
    parser.add_argument("--at", type=int, nargs="+", default=[25, 50, 100, 200, 400])
    parser.add_argument("--runs", type=int, default=5, help="callers of each kind")
    parser.add_argument("--kind", action="append", help="only these kinds")
    parser.add_argument("--out", required=True)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    victim = victims.ALL[asked.victim]()
    judged_on = {"": None, "_as_metered": benign.like_the_owners(victim)}
    with open(asked.out, "w") as out:
        for caller, (kind, rows, answers) in read(asked.recording, asked.runs, asked.kind).items():
            labels = np.eye(victim.classes, dtype=np.float32)[answers.argmax(axis=1)]
            for n in [n for n in asked.at if n <= len(rows)]:
                figures = {}
                for name, told in (("fidelity", answers), ("fidelity_of_labels", labels)):
                    copies = list(thief.steal(victim, rows[:n], told[:n]))
                    figures |= {name + how: max(thief.fidelity(victim, copy, on) for copy in copies) for how, on in judged_on.items()}
                out.write(json.dumps({"caller": caller, "kind": kind, "n": n} | {name: round(figure, 4) for name, figure in figures.items()}) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
