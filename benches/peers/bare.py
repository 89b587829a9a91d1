#!/usr/bin/env python3
"""all-MiniLM-L6-v2 at batches of eight through the whole gateway, beside the same model in bare ONNX Runtime, in turns in one run.

    make minilm-onnx && benches/peers/setup.sh models
    benches/peers/bare.py [--rounds 24] [--secs 2]

Bare is Python's `onnxruntime` of the same version, one thread, in a loop: no server, no parsing, the same eight sentences of 62 tokens in every
run, and their embeddings asked for, not what the graph says of each token. The gateway has every control on (see peers/portcullis-digits.sh), its
model in a worker; it gets them as JSON over TLS, one call at a time. Both are pinned to the same CPU. Printed are CPU and time of a batch, and
bare's by the gateway's: 1 is as fast as bare.
"""
import argparse, json, os, pathlib, statistics, subprocess, sys, time

import bench
import keys

MODEL = pathlib.Path(os.environ.get("XDG_DATA_HOME", pathlib.Path.home() / ".local/share")) / "portcullis/all-minilm-l6-v2-onnx/model.onnx"
VENV = pathlib.Path(os.environ.get("MODELS_VENV", bench.RUN / "venv-models"))
BARE = """
import json, sys, time
import numpy, onnxruntime
model, body = sys.argv[1:]
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
feed = {t["name"]: numpy.array(t["data"], numpy.int64).reshape(t["shape"]) for t in json.load(open(body))["inputs"]}
for line in sys.stdin:
    times, cpu, end = [], time.process_time(), time.time() + float(line)
    while time.time() < end:
        start = time.perf_counter()
        session.run(["embedding"], feed)
        times.append(time.perf_counter() - start)
    times.sort()
    print(json.dumps({"cpu": (time.process_time() - cpu) / len(times) * 1e3, "p50": times[len(times) // 2] * 1e3}), flush=True)
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--rounds", type=int, default=24)
    ap.add_argument("--secs", type=float, default=2, help="of each turn")
    ap.add_argument("--proxy-cpu", default="1")
    ap.add_argument("--load-cpu", default="0")
    a = ap.parse_args()
    for needed, how in ((MODEL, "make minilm-onnx"), (VENV / "bin/python", "benches/peers/setup.sh models")):
        if not needed.exists():
            sys.exit(f"{needed} is not there: {how}")
    a.kinds, a.threads, a.warm, a.rps = ["minilm8"], 1, 1, None
    bench.RUN.mkdir(exist_ok=True)
    keys.main(bench.KEYS)
    body = bench.body_path("minilm8", 1)
    os.sched_setaffinity(0, {int(a.load_cpu)})
    rounds = []
    try:
        # The harness takes the first process that it starts for the upstream; here there is none.
        idle = subprocess.Popen(["sleep", "infinity"])
        bench.started.append(idle.pid)
        gateway = bench.Peer("portcullis-minilm", 19100, a)
        bare = subprocess.Popen(bench.pinned(a.proxy_cpu, VENV / "bin/python", "-c", BARE, MODEL, body), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        bench.started.append(bare.pid)
        for number in range(a.rounds + 1):
            bare.stdin.write(f"{a.secs}\n")
            bare.stdin.flush()
            alone = json.loads(bare.stdout.readline())
            through = bench.h2load(gateway, "h1", "minilm8", 1, 1, a)
            if through["bad"] or not through["ok"]:
                sys.exit(f"the gateway answered {through['ok']} calls and refused {through['bad']}; see {bench.RUN}/portcullis-minilm")
            row = {"bare cpu": alone["cpu"], "cpu": through["cpu_ms_per_1k"] / 1e3, "bare p50": alone["p50"], "p50": through["p50_us"] / 1e3}
            if number:  # the first is for warming up
                rounds.append(row)
                print(f"{number} " + " ".join(f"{name}={value:.2f}" for name, value in row.items()) + f" ms, foreign={through['foreign']:.2f}", flush=True)
    finally:
        bench.stop_all()
    median = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    ratio = {name: statistics.median(row[f"bare {name}"] / row[name] for row in rounds) for name in ("cpu", "p50")}
    print(f"\n| a batch of 8 | bare ONNX Runtime | gateway | bare / gateway |\n|---|---|---|---|")
    for name, what in (("cpu", "CPU ms"), ("p50", "ms, median")):
        print(f"| {what} | {median['bare ' + name]:.2f} | {median[name]:.2f} | {ratio[name]:.3f} |")


if __name__ == "__main__":
    main()
