"""Attacks the release binary over HTTPS, beside benign callers, and prints how soon it sees whom, what the response is worth, and whom it harms.

    make attacks                                  everything, an hour for each victim on two cores; --runs and its kin make it longer
    make attacks ARGS=--quick                     a small share of it, some minutes
    target/attacks/bin/python tests/attacks/run.py --victim digits --attack hop_skip_jump --runs 5

$PORTCULLIS_BIN names another binary. Exit 0 when all was played to its end, whatever the figures are; 1 when the clock cut it off or the gateway broke.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np

warnings.filterwarnings("ignore")

import attacks  # noqa: E402
import benign  # noqa: E402
import encoder  # noqa: E402
import gateway  # noqa: E402
import language  # noqa: E402
import logits  # noqa: E402
import play  # noqa: E402
import record  # noqa: E402
import tables  # noqa: E402
import victims  # noqa: E402
from oracle import Recording  # noqa: E402

# What an alarm is called that is of an exposure budget.
BUDGET = "exposure"
# Benign callers that are awake together in one process.
CROWD = 50
# Callers of one tenant; an attacker's keys are each a tenant of its own, which is what hides them best.
TENANT = 8
SIZES = {
    # callers that calibrate, callers that test, rows of their day; runs of an attack, its rows, requests to the language model; seconds
    "quick": {"victims": ["digits", "table"], "fpr": 1e-2, "calibrate": 300, "callers": 110, "rows": (40, 80),
              "runs": 2, "queries": 200, "chat": 2500, "talkers": 24, "requests": 30, "texts": 160, "seconds": 1200},
    "full": {"victims": ["digits", "table", "images"], "fpr": 1e-3, "calibrate": 3000, "callers": 1500, "rows": (100, 300),
             "runs": 8, "queries": 300, "chat": 5000, "talkers": 200, "requests": 60, "texts": 800, "seconds": 4 * 3600},
}
# Of the victim with 3,072 inputs: a request is a hundred times as long, and says no more.
LARGE = {"calibrate": 1000, "callers": 330, "rows": (30, 60), "runs": 5, "queries": 200}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small share of everything")
    parser.add_argument("--victim", action="append", choices=victims.ALL)
    names = [*attacks.NAMES, *logits.ATTACKS, *language.ATTACKS, *encoder.ATTACKS, "none"]
    parser.add_argument("--attack", action="append", choices=names, help="only these; `none` leaves the benign callers alone")
    parser.add_argument("--fpr", type=float, help="the stated rate of false alarms, per caller and day")
    for name, what in [("calibrate", "callers to learn from"), ("callers", "benign callers"), ("runs", "runs of each attack"), ("queries", "rows of an attack"),
                       ("chat", "requests of a thief of logits"), ("talkers", "benign callers of the language model, and of the encoder"),
                       ("requests", "requests of each of their days"), ("texts", "texts of a thief of the encoder"),
                       ("seconds", "when to stop starting anything")]:
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--rows", type=int, nargs=2, metavar=("LEAST", "MOST"), help="rows of a benign caller's day")
    parser.add_argument("--detect", default="", help="more lines of the [detect] table, as TOML", metavar="TOML")
    parser.add_argument("--fidelity", type=float, default=0.9, help="the exposure budget; 0 for none", metavar="F")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="the figures, for a program to read", metavar="FILE")
    parser.add_argument("--keep", help="where policies, recordings and the security log go and stay", metavar="DIR")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    for name, value in SIZES["quick" if asked.quick else "full"].items():
        key = "victim" if name == "victims" else name
        if getattr(asked, key) is None:
            setattr(asked, key, value)
            setattr(asked, f"{key}_default", True)
    return asked


def size(asked, victim, name):
    """How much of something; less of it for the large victim, unless it was asked for."""
    return LARGE[name] if victim.shape and victim.dim > 1000 and hasattr(asked, f"{name}_default") else getattr(asked, name)


def say(line):
    print(line, file=sys.stderr, flush=True)


def plans(asked, victim):
    """Runs of attacks: label, attack, run, keys."""
    wanted = [name for name in attacks.applicable(victim) if asked.attack is None or name in asked.attack]
    runs = size(asked, victim, "runs")
    for name in wanted:
        yield from ((name, name, run, 1) for run in range(runs))
    for name in record.ROTATED:
        if name in wanted:
            for keys in record.ROTATIONS[:1] if asked.quick else record.ROTATIONS:
                yield from ((f"{name}, {keys} keys", name, run, keys) for run in range(max(1, runs // 4)))


def main():
    asked = arguments()
    home = pathlib.Path(asked.keep or tempfile.mkdtemp(prefix="portcullis-attacks-"))
    home.mkdir(parents=True, exist_ok=True)
    llama, gate, until = None, None, time.time() + asked.seconds
    try:
        chosen = [victims.ALL[name]() for name in asked.victim]
        talks = [name for name in logits.ATTACKS if asked.attack is None or name in asked.attack]
        campaigns = [name for name in language.ATTACKS if asked.attack is None or name in asked.attack]
        llama = upstream(home) if talks or campaigns else None
        thefts = [name for name in encoder.ATTACKS if asked.attack is None or name in asked.attack]
        if thefts and not (encoder.FOLDER / "model.safetensors").is_file():
            say(f"{encoder.FOLDER} is not there (`make minilm`): no encoder is attacked")
            thefts = []
        budget = f"\n[detect.exposure]\nfidelity = {asked.fidelity}" if asked.fidelity else ""
        gate = gateway.lay(home / "gate", chosen, asked.detect + budget, llama and llama.stdout.readline().strip(), encoder.FOLDER if thefts else None)
        states = {victim.name: calibrated(asked, gate, victim, home) for victim in chosen}
        keys, tasks = prepare(asked, gate, chosen, (talks, campaigns, thefts), until)
        gate.start()
        begun = time.time()
        results = carry_out(asked, chosen, tasks, until)
        say(f"played for {time.time() - begun:.0f} s")
        time.sleep(2)  # alarms are written a moment after the answer
        exposed = exposures(gate, keys)
        gate.stop()
        alarms = alarms_of(gate, keys)
        report = {"fpr": asked.fpr, "budget": asked.fidelity, "calibration": states, "benign": {}, "attacks": {}, "chat": {}, "talk": {}, "campaigns": {}, "embed": {}, "thefts": {}}
        report |= {"cut": results.pop("cut"), "broken": results.pop("broken")}
        judge(asked, chosen, results, alarms, exposed, report)
        tables.show(report)
        if asked.json:
            pathlib.Path(asked.json).write_text(json.dumps(report, indent=1))
        return 1 if report["cut"] or report["broken"] else 0
    finally:
        if gate and gate.process and gate.process.poll() is None:
            gate.stop()
        if llama:
            llama.stdin.close()
            llama.wait(20)
        if not asked.keep:
            shutil.rmtree(home)


def upstream(home):
    """llama.cpp's server with a tiny random model."""
    root = gateway.gates.ROOT / "tests"
    subprocess.run([sys.executable, root / "data/make_gguf.py", home / "tiny.gguf"], check=True, capture_output=True)
    command = [sys.executable, root / "clients/llama_server.py", home / "tiny.gguf", "tiny"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(home / "llama.log", "w"), text=True)


def calibrated(asked, gate, victim, home):
    """Records benign callers and lets the gateway learn from them."""
    count = size(asked, victim, "calibrate")
    path = home / f"{victim.name}-calibrate.jsonl"
    say(f"{victim.name}: recording {count} callers to calibrate with")
    recording = Recording(path, answers=False)
    record.record_benign(victim, recording, "calibrate", count, size(asked, victim, "rows"), asked.seed)
    recording.close()
    enforced, told = gateway.calibrate(gate, victim.name, path, asked.fpr)
    say(f"{victim.name}: {told}")
    return {"callers": count, "enforced": enforced, "told": told}


def prepare(asked, gate, chosen, others, until):
    """Keys of all callers, and everything that is to be played: (what, label, function, arguments)."""
    keys, made, tasks, crowds, where, (talks, campaigns, thefts) = {}, gateway.Keys(gate), [], [], [gate.url, gate.ca], others

    def key(name, tenant, meaning):
        keys[f"api_key:{name}"] = meaning
        return made.new(name, tenant)

    for victim in chosen:
        count, rows = size(asked, victim, "callers"), size(asked, victim, "rows")
        names = [name for name, _, _ in benign.callers(victim, asked.seed, "test", count, rows)]
        for start in range(0, count, CROWD):
            part = range(start, min(count, start + CROWD))
            theirs = {names[i]: key(f"{victim.name}-{names[i]}", f"tenant-{victim.name}-{i // TENANT}", ("benign", victim.name, names[i])) for i in part}
            given = [victim.name, victim.name, *where, asked.seed, "test", count, rows, part, theirs, until]
            crowds.append(("benign", victim.name, play.crowd, given))
        for label, name, run, rotation in plans(asked, victim):
            random = np.random.default_rng([asked.seed, attacks.NAMES.index(name), rotation, run])
            seed, queries = int(random.integers(1 << 31)), size(asked, victim, "queries") * (1 if rotation == 1 else 2)
            for mode in gateway.MODES:
                which = (victim.name, label, mode, run)
                callers = [f"{victim.name}-{name}-{rotation}-{mode}-{run}-{i}" for i in range(rotation)]
                theirs = [key(caller, f"tenant-{caller}", ("attack", which, i)) for i, caller in enumerate(callers)]
                batch, remember = record.BATCH if run % 2 else 1, run % 3 == 2
                given = [name, victim.name, gateway.served(victim.name, mode), *where, seed, queries, batch, remember, theirs]
                tasks.append(("attack", which, play.attack, given))
    for name in talks:
        for mode in gateway.MODES:
            which, caller = ("chat", name, mode, 0), f"chat-{name}-{mode}"
            given = [name, gateway.served("chat", mode), *where, key(caller, f"tenant-{caller}", ("attack", which, 0)), asked.chat, asked.seed]
            tasks.append(("chat", which, play.chat, given))
    if campaigns:
        callers = [name for name, _, _ in language.callers(asked.seed, asked.talkers)]
        for start in range(0, len(callers), CROWD):
            part = range(start, min(len(callers), start + CROWD))
            theirs = {callers[i]: key(f"talk-{callers[i]}", f"tenant-talk-{i // TENANT}", ("talk", callers[i])) for i in part}
            crowds.append(("talk", "benign", play.talk, ["chat", *where, asked.seed, len(callers), asked.requests, part, theirs, until]))
    for name in campaigns:
        for rotation in language.KEYS:
            which = (name, rotation)
            theirs = [key(f"talk-{name}-{rotation}-{i}", f"tenant-{name}-{rotation}-{i}", ("campaign", which)) for i in range(rotation)]
            tasks.append(("campaign", which, play.campaign, [name, "chat", *where, asked.seed, asked.requests * rotation * 2, theirs]))
    if thefts:
        callers, owner = [name for name, _, _ in encoder.callers(asked.seed, asked.talkers)], made.first
        models = [gateway.served("encoder", mode) for mode in gateway.MODES]
        for start in range(0, len(callers), CROWD):
            part = range(start, min(len(callers), start + CROWD))
            theirs = {callers[i]: key(f"embed-{callers[i]}", f"tenant-embed-{i // TENANT}", ("embed", callers[i])) for i in part}
            crowds.append(("embed", "benign", encoder.crowd, [*models, *where, asked.seed, len(callers), asked.requests, part, theirs, owner, until]))
    for name in thefts:
        for mode, model in zip(gateway.MODES, models):
            which, caller = (name, mode), f"embed-{name}-{mode}"
            given = [name, model, models[-1], *where, asked.seed, asked.texts, key(caller, f"tenant-{caller}", ("theft", which)), owner]
            tasks.append(("theft", which, encoder.steal, given))
    made.write()
    # Benign crowds are spread evenly among the attacks: both are judged by a gateway that sees both.
    mingled = [((i + 0.5) / len(tasks), task) for i, task in enumerate(tasks)] + [((i + 0.5) / len(crowds), task) for i, task in enumerate(crowds)]
    return keys, [task for _, task in sorted(mingled, key=lambda entry: entry[0])]


def processes(asked, chosen):
    """Processes of their own: the toolbox draws from numpy's one global source of randomness."""
    return concurrent.futures.ProcessPoolExecutor(asked.processes, multiprocessing.get_context("spawn"), play.begin, (chosen,))


def carry_out(asked, chosen, tasks, until):
    """Plays everything, a few at a time; nothing new is begun once the time is up."""
    results, done, begun = {"cut": 0, "broken": []}, 0, time.time()
    with processes(asked, chosen) as pool:
        waiting, running = list(reversed(tasks)), {}
        while waiting or running:
            while waiting and len(running) < asked.processes and time.time() < until:
                what, label, function, given = waiting.pop()
                running[pool.submit(function, *given)] = (what, label)
            if time.time() >= until and waiting:
                results["cut"] += len(waiting)
                waiting = []
            finished, _ = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED, timeout=5)
            for future in finished:
                what, label = running.pop(future)
                if error := future.exception():
                    results["broken"].append(f"{what} {label}: {type(error).__name__}: {error}")
                    say(results["broken"][-1])
                    continue
                results.setdefault((what, label), []).append(future.result())
                done += 1
                if done % 20 == 0:
                    say(f"{done} of {len(tasks)} played, {time.time() - begun:.0f} s")
    return results


def alarms_of(gate, keys):
    """The alarms of the security log, in order, by what the caller was meant to be."""
    found = {}
    for event in gate.events("detect.alarm"):
        if event.get("caller") in keys:
            found.setdefault(keys[event["caller"]], []).append(event)
    return found


def exposures(gate, keys):
    """What the gateway's meter says of each caller, by what the caller was meant to be."""
    told = json.loads(gate.admin("/v1/exposure")[1])
    return {keys[one["caller"]]: one for one in told if one["caller"] in keys}


def without_budget(events):
    """Alarms of families: that a budget is spent says nothing of what a caller is."""
    return [event for event in events if event["family"] != BUDGET]


def distinct(events, name):
    return sorted({event.get(name, "") for event in events})


def judge(asked, chosen, results, alarms, exposed, report):
    for victim in chosen:
        crowds = results.get(("benign", victim.name), [])
        told = {caller: mine for part, _ in crowds for caller, mine in part.items()}
        for caller, mine in told.items():
            told_of = [event for event in alarms.get(("benign", victim.name, caller), []) if event["model"] == victim.name]
            events = without_budget(told_of)
            mine |= {"spent": len(told_of) > len(events)}
            mine |= {"alarms": len(events), "families": distinct(events, "family"), "steps": distinct(events, "step")}
            mine["query"] = events[0].get("query") if events else None
        report["benign"][victim.name] = {"callers": told, "took": [seconds for _, part in crowds for seconds in part]}
    runs = {}
    for (what, label), parts in results.items():
        if what == "attack":
            victim, kind, mode, run = label
            runs.setdefault((victim, kind), {}).setdefault(run, {})[mode] = first_alarm(parts[0], alarms, exposed, label)
        elif what == "chat":
            _, name, mode, _ = label
            events = alarms.get(("attack", label, 0), [])
            told = {"alarm": events[0].get("query") if events else None, "families": distinct(events, "family")}
            report["chat"].setdefault(name, {})[mode] = parts[0] | told
        elif what == "campaign":
            name, rotation = label
            events = alarms.get((what, label), [])
            first = {}
            for event in events:
                first.setdefault(event["caller"], event.get("query"))
            told = {"keys_alarmed": len(first), "first": list(first.values()), "families": distinct(events, "family"), "steps": distinct(events, "step")}
            report["campaigns"][f"{name}, {rotation} {'key' if rotation == 1 else 'keys'}"] = parts[0] | told
        elif what == "theft":
            name, mode = label
            events = alarms.get((what, label), [])
            told = {"alarm": events[0].get("query") if events else None, "families": distinct(events, "family"), "steps": distinct(events, "step")}
            report["thefts"][f"{name}, {mode}"] = parts[0] | told
        elif what in ("talk", "embed"):
            for caller, mine in ((caller, mine) for part in parts for caller, mine in part.items()):
                events = alarms.get((what, caller), [])
                mine |= {"alarms": len(events), "families": distinct(events, "family"), "steps": distinct(events, "step")}
                report[what][caller] = mine
    say("making copies of what was stolen")
    with processes(asked, chosen) as pool:
        for (victim, kind), by_run in runs.items():
            told = [judged(pool, victim, kind, modes) for modes in by_run.values() if len(modes) == len(gateway.MODES)]
            report["attacks"].setdefault(victim, {})[kind] = [{key: value() if callable(value) else value for key, value in run.items()} for run in told]


def first_alarm(run, alarms, exposed, label):
    """The row of the whole attack at which its first alarm fell, over all of its keys."""
    owners, first, families, alarmed, spent = np.array(run["owners"]), None, set(), 0, False
    for key in range(int(owners.max()) + 1 if len(owners) else 1):
        told_of = alarms.get(("attack", label, key), [])
        events = without_budget(told_of)
        spent |= len(told_of) > len(events)
        families |= {event["family"] for event in events}
        alarmed += bool(events)
        for event in events[:1]:
            theirs = np.flatnonzero(owners == key)
            row = int(theirs[min(event["query"], len(theirs)) - 1]) + 1 if event.get("query") and len(theirs) else 1
            first = row if first is None else min(first, row)
    meters = [one["fidelity"] for meaning, one in exposed.items() if meaning[:2] == ("attack", label)]
    return run | {"alarm": first, "families": sorted(families), "keys_alarmed": alarmed, "spent": spent, "metered": max(meters, default=0.0)}


def judged(pool, victim, kind, modes):
    """The figures of one run with the response and one without; copies are made in the pool and waited for when they are asked for."""
    without, with_it = modes["shadow"], modes["enforce"]
    told = {"families": sorted({*without["families"], *with_it["families"]}), "keys_alarmed": without["keys_alarmed"], "refusals": with_it["refusals"]}
    told |= {"metered": without["metered"], "spent": with_it["spent"]}
    for suffix, run in (("", without), ("_enforced", with_it)):
        told |= {f"{name}{suffix}": run[name] for name in ("alarm", "ended", "bases", "successes")} | {f"asked{suffix}": len(run["rows"])}
    if kind.split(",")[0] in attacks.THEFT or kind.startswith("jacobian"):
        ask = {"fidelity": (without, None, False), "fidelity_enforced": (with_it, None, False), "fidelity_of_labels": (without, None, True)}
        ask["fidelity_as_metered"] = (without, None, False, True)
        if without["alarm"]:
            ask["fidelity_at_alarm"] = (without, without["alarm"], False)
        told |= {name: pool.submit(play.fidelity, victim, run["rows"], run["answers"], *how).result for name, (run, *how) in ask.items()}
    return told


if __name__ == "__main__":
    sys.exit(main())
