"""What a run came to, as tables."""

import numpy as np

import benign
import encoder
import figures
import language

# Steps of the ladder that a caller does not feel.
HARMLESS = {"", "observe", "alert"}
# How near the meter is to be to the best copy.
NEAR = 0.05
# How far above it, and still a bound from below.
ABOVE = 0.02


def show(report):
    """Prints everything; the benign callers' figures are summed up in the report on the way."""
    print(f"# Attacks at one false alarm in {1 / report['fpr']:g} caller-days\n")
    for victim, state in report["calibration"].items():
        told = state["told"].splitlines()[-1] if state["told"] else ""
        print(f"- {victim}: {'calibrated' if state['enforced'] else 'NOT calibrated'} on {state['callers']} callers ({told})")
    for victim, kinds in report["attacks"].items():
        attacked(victim, {kind: runs for kind, runs in kinds.items() if runs})
    if report["chat"]:
        talked(report["chat"])
    if report["campaigns"]:
        spoken(report)
    if report["thefts"]:
        embedded(report)
    for victim, crowd in report["benign"].items():
        if crowd["callers"]:
            harmed(victim, crowd)
    for line in report["broken"]:
        print(f"\nBroken: {line}")
    if report["cut"]:
        print(f"\nTime was up: {report['cut']} pieces were not played.")


def attacked(victim, kinds):
    print(f"\n## {victim}: attacks\n")
    rows = []
    for kind, runs in kinds.items():
        seen = [run["alarm"] for run in runs if run["alarm"]]
        row = [kind, len(runs), figures.mean([run["asked"] for run in runs], 0), detected(kind, seen, runs), *figures.queries(seen, len(runs))]
        row.append(" ".join(sorted({family for run in runs for family in run["families"]})) or "–")
        row += [figures.mean([run.get(name) for run in runs]) for name in ("fidelity_at_alarm", "fidelity", "fidelity_enforced", "fidelity_of_labels")]
        row += [figures.mean([run["metered"] for run in runs]), figures.mean([run.get("fidelity_as_metered") for run in runs])]
        row += [f"{sum(run['spent'] for run in runs)}/{len(runs)}"]
        rows.append(row + [evaded(runs, ""), evaded(runs, "_enforced")])
    copies(victim, kinds)
    heads = ["attack", "runs", "rows", "detected", "median", "p90", "families", "copy at alarm", "copy, shadow", "copy, enforced", "copy, labels only",
             "metered", "copy, as metered", "budget spent"]
    print(figures.markdown([*heads, "evaded, shadow", "evaded, enforced"], rows))
    ends = {(kind, run[how]) for kind, runs in kinds.items() for run in runs for how in ("ended", "ended_enforced")}
    early = sorted(f"{kind}: {end}" for kind, end in ends if end not in ("spent", "done"))
    if early:
        print("\nEnded early: " + "; ".join(early) + ".")


def copies(victim, kinds):
    """How the meter stands to the best copy of what one caller was answered, where a copy was made."""
    name = "fidelity_as_metered"
    pairs = [(run["metered"], run[name]) for kind, runs in kinds.items() for run in runs if run.get(name) is not None and not kind.endswith("keys")]
    if pairs:
        near, below = (sum(test(meter, copy) for meter, copy in pairs) for test in (lambda m, c: abs(m - c) <= NEAR, lambda m, c: m <= c + ABOVE))
        print(f"The meter was within {NEAR} of the best copy on rows like its own in {near} of {len(pairs)} runs, "
              f"and no more than {ABOVE} above it in {below}.\n")


def detected(kind, seen, runs):
    """How many runs raised an alarm, and where keys take turns, on how many of their keys."""
    if not seen:
        return "no alarm"
    keys = f", {np.mean([run['keys_alarmed'] for run in runs]):.3g} keys" if kind.endswith("keys") else ""
    return f"{len(seen)}/{len(runs)}{keys}"


def evaded(runs, suffix):
    """Rows evaded of rows tried, and in how many runs there was one: who is refused may try many rows, and needs but one."""
    tried, won = ([run[f"{name}{suffix}"] for run in runs] for name in ("bases", "successes"))
    return f"{sum(won)}/{sum(tried)} in {sum(map(bool, won))}/{len(runs)} runs" if sum(tried) else "–"


def talked(chat):
    print("\n## language model: logits\n")
    rows = [[name, mode, run["asked"], run["logits"], run["width"] or "–", run["alarm"] or "no alarm", " ".join(run["families"]) or "–", run["ended"]]
            for name, modes in chat.items() for mode, run in modes.items()]
    print(figures.markdown(["attack", "mode", "requests", "logits", "hidden width read (of 32)", "alarm at", "families", "ended"], rows))


def spoken(report):
    """The language model's callers; each benign one is summed up by its kind."""
    print("\n## language model: campaigns and benign callers, enforced\n")
    rows = [[name, run["asked"], run["refused"], run["keys_alarmed"], figures.queries(run["first"], len(run["first"]))[0] if run["first"] else "no alarm",
             " ".join(run["families"]) or "–", " ".join(run["steps"]) or "–"] for name, run in report["campaigns"].items()]
    print(figures.markdown(["campaign", "requests", "refused", "keys with an alarm", "its request (median)", "families", "steps"], rows) + "\n")
    by_kind(report, "talk", language.BENIGN)


def embedded(report):
    """The encoder's thieves and callers."""
    print("\n## sentence encoder\n")
    rows = []
    for name, run in report["thefts"].items():
        families, steps = (" ".join(run[part]) or "–" for part in ("families", "steps"))
        rows.append([name, run["asked"], run["refused"], run["alarm"] or "no alarm", families, steps, f"{run['cosine']:.3f}"])
    print(figures.markdown(["theft", "texts", "refused", "alarm at", "families", "steps", "mean cosine of the copy"], rows) + "\n")
    by_kind(report, "embed", encoder.BENIGN)


def by_kind(report, what, kinds):
    callers, report[what], rows = report[what], {}, []
    for group in [*kinds, "all"]:
        theirs = [mine for mine in callers.values() if group in ("all", mine["kind"])]
        report[what][group] = figure = summed(theirs, ("rows", "refused"))
        rows.append([group, figures.share(figure["alarmed"], len(theirs)), figure["acted"], " ".join(figure["families"]) or "–", figure["rows"],
                     figure["refused"], f"{figure['worst']:.2g}"])
    print(figures.markdown(["callers", "alarmed [95 %]", "acted on", "families", "asked", "refused", "worst error"], rows))


def harmed(victim, crowd):
    print(f"\n## {victim}: benign callers, enforced\n")
    callers, took, rows = crowd.pop("callers"), crowd.pop("took"), []
    for group in [*benign.KINDS, "near-duplicates", "all"]:
        theirs = [mine for mine in callers.values() if group in ("all", mine["kind"]) or (group == "near-duplicates" and mine["kind"] in benign.NEAR)]
        crowd[group] = figure = summed(theirs)
        answered = max(1, figure["rows"] - figure["refused"])
        rows.append([group, figures.share(figure["alarmed"], len(theirs)), figure["acted"], " ".join(figure["families"]) or "–", figure["rows"],
                     figure["refused"], figures.percent(figure["changed"] / answered), f"{figure['error'] / answered:.2g}", f"{figure['worst']:.2g}"])
    print(figures.markdown(["callers", "alarmed [95 %]", "acted on", "families", "rows", "refused", "top-1 changed", "mean error of p", "worst"], rows))
    spent = sum(mine.get("spent", False) for mine in callers.values())
    if spent:
        print(f"\nPast the exposure budget, and told labels since: {spent} of {len(callers)}.")
    if took:
        crowd["milliseconds"] = {name: float(np.quantile(took, q)) * 1000 for name, q in (("p50", 0.5), ("p99", 0.99))}
        print(f"\nA request took {crowd['milliseconds']['p50']:.2f} ms (median), {crowd['milliseconds']['p99']:.2f} ms (p99), client and all.")


def summed(callers, names=("rows", "refused", "changed", "error")):
    alarmed = [mine for mine in callers if mine["alarms"]]
    total = {name: sum(mine[name] for mine in callers) for name in names}
    total |= {"callers": len(callers), "alarmed": len(alarmed), "acted": sum(not set(mine["steps"]) <= HARMLESS for mine in alarmed)}
    worst = max((mine.get("worst", 0.0) for mine in callers), default=0.0)
    return total | {"worst": worst, "families": sorted({family for mine in alarmed for family in mine["families"]})}
