#!/usr/bin/env python3
"""Side-by-side proxy benchmark on loopback. See README.md."""
import argparse, asyncio, collections, json, os, pathlib, re, signal, ssl, statistics, subprocess, sys, time, urllib.error, urllib.request

import keys

HERE = pathlib.Path(__file__).resolve().parent
RUN = HERE / "run"
RESULTS = HERE / "results"
KEYS = RUN / "keys"
BIN = os.environ.get("BENCH_BIN", str(HERE / "rust/target/release"))
TICK = os.sysconf("SC_CLK_TCK")
UPSTREAM_PORT = 19000
HTTP = "h1 h2".split()
started = []  # every process we start, ended by pid at exit


# ---------- processes ----------
def stat_all():
    out = {}
    for p in pathlib.Path("/proc").iterdir():
        if p.name.isdigit():
            try:
                f = (p / "stat").read_text().rsplit(")", 1)[1].split()
                out[int(p.name)] = (int(f[1]), sum(map(int, f[11:15])) / TICK)  # ppid, u+s+cu+cs
            except OSError:
                pass
    return out


def tree(pid, st=None):
    st = st or stat_all()
    kids, out, todo = collections.defaultdict(list), [], [pid]
    for p, (pp, _) in st.items():
        kids[pp].append(p)
    while todo:
        p = todo.pop()
        if p in st:
            out.append(p)
            todo += kids[p]
    return out


def cpu(pid):
    st = stat_all()
    return sum(st[p][1] for p in tree(pid, st))


def mem_mib(pid):
    """PSS of the whole process tree, MiB (shared pages counted once)."""
    kb = 0
    for p in tree(pid):
        try:
            kb += int(re.search(r"^Pss:\s+(\d+)", pathlib.Path(f"/proc/{p}/smaps_rollup").read_text(), re.M)[1])
        except (OSError, TypeError):
            pass
    return kb / 1024


def busy():
    """(busy, steal) seconds of the whole machine."""
    f = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]))
    return (sum(f[:8]) - f[3] - f[4] - f[7]) / TICK, f[7] / TICK


def pinned(cpus, *cmd):
    return ["taskset", "-c", cpus, *map(str, cmd)]


def stop_all():
    for pid in reversed(started):
        for p in reversed(tree(pid)):
            try:
                os.kill(p, signal.SIGTERM)
            except ProcessLookupError:
                pass
    time.sleep(0.5)
    for pid in started:
        for p in tree(pid):
            try:
                os.kill(p, signal.SIGKILL)
            except ProcessLookupError:
                pass


# ---------- peers ----------
class Peer:
    def __init__(self, name, port, a):
        self.name, self.opts, self.headers, self.kind = name, {}, [], a.kinds[0]
        env = os.environ | {"PORT": str(port), "UPSTREAM": f"127.0.0.1:{UPSTREAM_PORT}", "KEYS": str(KEYS), "RUN": str(RUN),
                            "BIN": BIN, "THREADS": str(a.threads), "JWT": ""}
        out = subprocess.run(pinned(a.proxy_cpu, "bash", HERE / f"peers/{name}.sh"), env=env, capture_output=True, text=True, timeout=60)
        for line in out.stdout.splitlines():
            if line.startswith("header="):
                self.headers.append(line[7:])
            else:
                self.opts |= dict(kv.split("=", 1) for kv in line.split())
        if "pid" not in self.opts:
            raise RuntimeError(out.stderr)
        self.pid, self.port = int(self.opts["pid"]), int(self.opts["port"])
        started.append(self.pid)
        self.scheme = self.opts.get("scheme", "https")
        self.protos = self.opts["protos"].split(",")
        if not any(h.lower().startswith("authorization:") for h in self.headers):
            self.headers.append("Authorization: Bearer " + (KEYS / "es256.jwt").read_text())
        end = time.time() + int(self.opts.get("wait", 15))
        while (code := self.status()) != 200:
            if time.time() > end or self.pid not in stat_all():
                raise RuntimeError(f"not ready (last answer: {code}); see run/")
            time.sleep(0.3)
        if self.opts.get("auth") == "jwt":
            bad = self.headers[-1][:-6] + "AAAAAA"
            assert self.status(bad) == 401, f"{name}: forged token answered {self.status(bad)}"

    def url(self, path=None):
        return f"{self.scheme}://127.0.0.1:{self.port}{path or PATHS[self.kind]}"

    def status(self, auth=None):
        hs = dict(h.split(": ", 1) for h in self.headers) | {"Content-Type": "application/json"}
        if auth:
            hs["Authorization"] = auth.split(": ", 1)[1]
        ctx = ssl._create_unverified_context() if self.scheme == "https" else None
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url(), body_path(self.kind, 1).read_bytes(), hs), context=ctx, timeout=5).status
        except urllib.error.HTTPError as e:
            return e.code
        except OSError as e:
            return str(e)


EATS = [1037, 2158, 2003, 5983, 2833, 1012]  # "a man is eating food."
# How many sentences there are in a request, and the tokens of each: 12, and eight of 62, some three lines of a text.
SENTENCES = {"minilm": (1, [101, *EATS, 102, 2003, 5983, 2833, 102]), "minilm8": (8, [101, *EATS * 10, 102])}


def body_path(kind, kb):
    """chat: a chat completion request of `kb` KiB; infer: an OIP v2 request; embed: an embeddings request."""
    p = RUN / f"{kind}-{kb}k.json"
    if not p.exists():
        size = kb * 1024
        if kind == "digits":  # one row of 64 pixels for the bundled classifier, whatever `kb`
            d = {"id": "1", "inputs": [{"name": "input", "shape": [1, 64], "datatype": "FP32", "data": [float(i * 7 % 17) for i in range(64)]}]}
        elif kind in SENTENCES:
            count, ids = SENTENCES[kind]
            d = {"inputs": [{"name": name, "shape": [count, len(ids)], "datatype": "INT64", "data": data * count}
                            for name, data in (("input_ids", ids), ("attention_mask", [1] * len(ids)))],
                 "outputs": [{"name": "embedding"}]}
        elif kind == "infer":
            n = size // 5
            d = {"id": "1", "inputs": [{"name": "x", "shape": [1, n], "datatype": "FP32", "data": [round((i * 37 % 997) / 997, 2) for i in range(n)]}]}
        elif kind == "embed":
            d = {"model": "m", "input": ("lorem ipsum dolor sit amet " * (size // 27 + 1))[:size - 40]}
        else:
            text = "The quick brown fox jumps over the lazy dog. "
            msgs, left = [{"role": "system", "content": "You are a helpful assistant."}], size - 190
            while left > 0:
                c = (text * 46)[:min(left, 2000)]
                msgs.append({"role": "assistant" if len(msgs) % 2 == 0 else "user", "content": c})
                left -= len(c) + 33
            d = {"model": "m", "stream": kind == "sse", "max_tokens": 256, "temperature": 0.7, "messages": msgs}
        p.write_text(json.dumps(d, separators=(",", ":")))
    return p


PATHS = {"chat": "/v1/chat/completions", "digits": "/v2/models/digits/infer", "minilm": "/v2/models/minilm/infer",
         "minilm8": "/v2/models/minilm/infer", "infer": "/v2/models/m/infer", "embed": "/v1/embeddings"}


# ---------- one cell ----------
def measured(peer, cmd, a):
    """Runs a load client to its end (connects included)."""
    c0, u0, (b0, s0), t0, ru0 = cpu(peer.pid), cpu(started[0]), busy(), time.time(), os.times()
    p = subprocess.run(pinned(a.load_cpu, *cmd), capture_output=True, text=True, timeout=300)
    c, u, (b1, s1), wall, ru1 = cpu(peer.pid) - c0, cpu(started[0]) - u0, busy(), time.time() - t0, os.times()
    gen = ru1.children_user + ru1.children_system - ru0.children_user - ru0.children_system
    return p, {"wall": wall, "cpu": c, "upstream_cpu": u, "loadgen_cpu": gen, "steal": s1 - s0, "foreign": max(0, b1 - b0 - c - u - gen) / wall, "mem_mib": mem_mib(peer.pid)}


def pct(v, p):
    return v[min(len(v) - 1, int(len(v) * p))] if v else None


def h2load(peer, proto, kind, kb, conc, a):
    """Steady state only: CPU and requests are counted in a window after connects and warm-up."""
    log = RUN / "h2load.log"
    log.unlink(missing_ok=True)
    secs = a.secs * float(peer.opts.get("slow", 1))
    conns = conc if proto == "h1" else max(1, conc // 32)
    cmd = ["h2load", "-D", f"{int((a.warm + secs + .3) * 1000)}ms", "-c", conns, "-m", 1 if proto == "h1" else conc // conns, "-t", 1, "--log-file", log,
           "-d", body_path(kind, kb), "-H", "Content-Type: application/json"]
    for h in peer.headers:
        cmd += ["-H", h]
    if a.rps:
        cmd += ["--rps", f"{a.rps / conns:.3f}"]
    cmd += (["--h1"] if proto == "h1" else []) + [peer.url(PATHS[kind])]
    p = subprocess.Popen(pinned(a.load_cpu, *cmd), stdout=subprocess.DEVNULL)
    watch = {"cpu": peer.pid, "upstream_cpu": started[0], "loadgen_cpu": p.pid}
    time.sleep(a.warm)
    c0, (b0, s0), t0 = {k: cpu(v) for k, v in watch.items()}, busy(), time.time()
    time.sleep(secs)
    m = {k: cpu(v) - c0[k] for k, v in watch.items()}
    (b1, s1), t1 = busy(), time.time()
    m |= {"mem_mib": mem_mib(peer.pid), "wall": t1 - t0, "steal": s1 - s0, "foreign": max(0, b1 - b0 - sum(m.values())) / (t1 - t0)}
    try:
        p.wait(timeout=a.warm + secs + 30)
    except subprocess.TimeoutExpired:
        p.kill()
    lat, bad = [], 0
    for line in log.read_text().splitlines() if log.exists() else []:  # start µs since epoch, status, duration µs
        start, status, dur = line.split("\t")[:3]
        if t0 * 1e6 <= int(start) + int(dur) < t1 * 1e6:
            if status == "200":
                lat.append(int(dur))
            else:
                bad += 1
    lat.sort()
    ok = len(lat)
    return m | {"ok": ok, "bad": bad, "rps": ok / (t1 - t0), "p50_us": pct(lat, .5), "p99_us": pct(lat, .99), "cpu_ms_per_1k": m["cpu"] / ok * 1e6 if ok else None}


def sse(peer, conc, n, a):
    cmd = [f"{BIN}/sseload", "--addr", f"127.0.0.1:{peer.port}", "--path", PATHS["chat"], "--body", body_path("sse", 1), "--n", n, "--conc", conc]
    cmd += ["--tls"] if peer.scheme == "https" else []
    for h in peer.headers:
        cmd += ["--header", h]
    p, m = measured(peer, cmd, a)
    r = json.loads(p.stdout)
    return m | r | {"bad": r["errors"], "cpu_ms_per_1k": m["cpu"] / max(1, r["chunks"]) * 1e6}


def handshake(peer, a):
    cmd = ["wrk", "-t", 1, "-c", 16, "-d", f"{max(1, round(a.secs))}s", "-H", "Connection: close"]
    for h in peer.headers:
        cmd += ["-H", h]
    p, m = measured(peer, cmd + [peer.url()], a)
    n = int(re.search(r"(\d+) requests in", p.stdout)[1])
    return m | {"ok": n, "bad": 0, "rps": n / m["wall"], "cpu_ms_per_1k": m["cpu"] / n * 1e6 if n else None}


async def idle_conns(peer, n):
    ctx = ssl._create_unverified_context()
    req = "GET / HTTP/1.1\r\nHost: localhost\r\n" + "".join(h + "\r\n" for h in peer.headers) + "\r\n"
    before, conns = mem_mib(peer.pid), []
    for _ in range(n):
        r, w = await asyncio.open_connection("127.0.0.1", peer.port, ssl=ctx if peer.scheme == "https" else None)
        w.write(req.encode())
        await r.readuntil(b"\r\n\r\n")
        conns.append(w)
    await asyncio.sleep(0.5)
    after = mem_mib(peer.pid)
    for w in conns:
        w.transport.abort()
    return {"ok": n, "bad": 0, "mem_mib": after, "kib_per_conn": (after - before) * 1024 / n}


def run_cell(peer, s, a):
    if s["kind"] == "sse":
        return sse(peer, s["conc"], s["n"], a)
    if s["kind"] == "handshake":
        return handshake(peer, a)
    if s["kind"] == "idle":
        return asyncio.run(idle_conns(peer, s["n"]))
    return h2load(peer, s["proto"], s["kind"], s["kb"], s["conc"], a)


def scenarios(a):
    out = []
    for kind in a.kinds:
        for proto in a.protos:
            for kb in a.kb:
                for c in a.conc:
                    out.append({"name": f"{kind}-{proto}-{kb}k-c{c}", "kind": kind, "proto": proto, "kb": kb, "conc": c})
    if "sse" in a.extra:
        out += [{"name": "sse-c1", "kind": "sse", "proto": "h1", "conc": 1, "n": 12}, {"name": "sse-c32", "kind": "sse", "proto": "h1", "conc": 32, "n": 192}]
    if "handshake" in a.extra:
        out.append({"name": "handshake", "kind": "handshake", "proto": "h1", "conc": 16})
    if "idle" in a.extra:
        out.append({"name": "idle-conns", "kind": "idle", "proto": "h1", "conc": 0, "n": 500})
    return [s for s in out if re.search(a.only, s["name"])]


# ---------- report ----------
def med(v):
    v = [x for x in v if x is not None]
    return statistics.median(v) if v else None


def starved(c, asked=None):
    """Other work took the machine: peer, load and upstream together got under a third of one CPU, or (`asked`: requests a second
    that were to be offered) a tenth of the load was not offered or not answered. Such cells are dropped."""
    if asked and "rps" in c and c["scenario"].split("-")[0] in PATHS:
        return c["rps"] < .9 * asked
    return c["foreign"] > .8 and (c["cpu"] + c["loadgen_cpu"] + c["upstream_cpu"]) / c["wall"] < .35 if "wall" in c and c["scenario"].split("-")[0] in PATHS else False


def report(res, out):
    cells = collections.defaultdict(dict)  # scenario -> peer -> [rounds]
    dropped = [c for c in res["cells"] if starved(c, res["args"].get("rps"))]
    for c in res["cells"]:
        if c in dropped:
            continue
        cells[c["scenario"]].setdefault(c["peer"], []).append(c)
    L = [f"# Benchmark {res['when']}", "", f"{res['machine']}; proxy pinned to CPU {res['args']['proxy_cpu']} ({res['args']['threads']} thread(s)), load and upstream to CPU "
         f"{res['args']['load_cpu']}; " + (f"{res['args']['rps']:g} requests a second for every peer; " if res['args'].get('rps') else "") + f"{res['args']['rounds']} rounds, interleaved; medians. CPU = CPU-ms of the whole proxy process tree per 1000 requests "
         f"(SSE: per 1000 chunks). Ratio = CPU against `{res['base']}`, median of the per-round ratios. foreign = CPUs used by other work meanwhile.", "",
         f"{len(dropped)} of {len(res['cells'])} cells dropped (starved by other work).", "", "| peer | idle MiB | max MiB seen |", "|---|---|---|"]
    for p, i in res["peers"].items():
        L.append(f"| {p} | {i['idle_mib']:.0f} | {max([c['mem_mib'] for c in res['cells'] if c['peer'] == p] or [0]):.0f} |")
    f = lambda x, d=0: "-" if x is None else f"{x:,.{d}f}"
    for s, peers in cells.items():
        sse, idle = s.startswith("sse"), s.startswith("idle")
        L += ["", f"## {s}", ""]
        L += ["| peer | KiB per idle connection |", "|---|---|"] if idle else [
            "| peer | " + ("ttfb p50 µs | ttfb p99 | chunk delay p50 µs | delay p99" if sse else "req/s | p50 µs | p99 µs") + " | CPU ms/1k | ratio | min–max | bad | foreign |",
            "|---|" + "---|" * (9 if sse else 8)]
        base = {c["round"]: c for c in peers.get(res["base"], [])}
        for p, cs in peers.items():
            g = lambda k: med([c.get(k) for c in cs])
            if idle:
                L.append(f"| {p} | {f(g('kib_per_conn'), 1)} |")
                continue
            rat = med([c["cpu_ms_per_1k"] / base[c["round"]]["cpu_ms_per_1k"] for c in cs if c["round"] in base and c["cpu_ms_per_1k"] and base[c["round"]]["cpu_ms_per_1k"]])
            cpus = [c["cpu_ms_per_1k"] for c in cs if c["cpu_ms_per_1k"]]
            spread = f"{min(cpus):,.1f}–{max(cpus):,.1f}" if cpus else "-"
            cols = [g("ttfb_p50"), g("ttfb_p99"), g("delay_p50"), g("delay_p99")] if sse else [g("rps"), g("p50_us"), g("p99_us")]
            L.append(f"| {p} | " + " | ".join(f(c) for c in cols) + f" | {f(g('cpu_ms_per_1k'), 1)} | {f(rat, 2)} | {spread} | {sum(c['bad'] for c in cs)} | {f(g('foreign'), 2)} |")
    out.write_text("\n".join(L) + "\n")


def main():
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("peers", nargs="*", help="names of scripts in peers/, e.g. hyper nginx haproxy")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--secs", type=float, default=2, help="length of one cell's measured window (a peer may multiply it: slow=N)")
    ap.add_argument("--warm", type=float, default=1, help="connects and warm-up before the window")
    ap.add_argument("--rps", type=float, help="requests a second for every peer alike, in place of as many as it can take: a quick peer's "
                    "load and upstream never sleep, a slower one pays for waking them, so only at equal load is CPU per request the peer's alone")
    ap.add_argument("--protos", nargs="*", default=HTTP, choices=HTTP)
    ap.add_argument("--kinds", nargs="*", default=["chat"], choices=list(PATHS))
    ap.add_argument("--kb", nargs="*", type=int, default=[1, 64])
    ap.add_argument("--conc", nargs="*", type=int, default=[1, 32, 256])
    ap.add_argument("--extra", nargs="*", default=["sse", "handshake", "idle"])
    ap.add_argument("--only", default="", help="regex on scenario names")
    ap.add_argument("--threads", type=int, default=1)
    ap.add_argument("--proxy-cpu", default="1")
    ap.add_argument("--load-cpu", default="0")
    ap.add_argument("--base", help="peer the ratios are against (default: the first)")
    ap.add_argument("--out", default=time.strftime("%Y%m%d-%H%M%S"))
    ap.add_argument("--report", type=pathlib.Path, metavar="JSON", help="only write the Markdown of an earlier run again")
    a = ap.parse_args()
    if a.report:
        return report(json.loads(a.report.read_text()), a.report.with_suffix(".md"))
    if not a.peers:
        ap.error("no peers")
    RUN.mkdir(exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    keys.main(KEYS)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    cpu_name = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())[1]
    res = {"when": time.strftime("%F %T"), "machine": f"{cpu_name}, {os.cpu_count()} CPUs, Linux {os.uname().release}", "args": vars(a), "base": a.base or a.peers[0], "peers": {}, "cells": []}
    jpath = RESULTS / f"{a.out}.json"
    os.sched_setaffinity(0, {int(a.load_cpu.split(",")[0].split("-")[0])})  # keep the harness off the proxy's CPU
    try:
        up = subprocess.Popen(pinned(a.load_cpu, f"{BIN}/mock", "--port", UPSTREAM_PORT), stdout=subprocess.DEVNULL)
        started.append(up.pid)
        time.sleep(0.5)
        peers = []
        for i, name in enumerate(a.peers):
            try:
                p = Peer(name, 19100 + i, a)
            except Exception as e:
                print(f"SKIP {name}: {e}", file=sys.stderr)
                continue
            time.sleep(0.5)
            res["peers"][name] = {"idle_mib": mem_mib(p.pid), "opts": p.opts}
            peers.append(p)
        for rnd in range(a.rounds):
            for s in scenarios(a):
                order = peers[rnd % len(peers):] + peers[:rnd % len(peers)]  # A B C, B C A, ...
                for p in order:
                    if s["proto"] not in p.protos or s["kind"] in p.opts.get("skip", "").split(",") or (s["kind"] == "idle" and rnd):
                        continue
                    try:
                        c = run_cell(p, s, a)
                    except Exception as e:
                        print(f"FAIL {p.name} {s['name']}: {e!r}", file=sys.stderr)
                        continue
                    res["cells"].append({"round": rnd, "scenario": s["name"], "peer": p.name} | c)
                    print(f"{rnd} {s['name']:18} {p.name:16} " + " ".join(f"{k}={v:.1f}" if isinstance(v, float) else f"{k}={v}" for k, v in c.items()
                          if k in ("rps", "p50_us", "p99_us", "cpu_ms_per_1k", "bad", "mem_mib", "ttfb_p50", "delay_p50", "delay_p99", "kib_per_conn", "foreign")), flush=True)
                jpath.write_text(json.dumps(res, indent=1))
                report(res, jpath.with_suffix(".md"))
    finally:
        stop_all()
    print(jpath.with_suffix(".md"))


if __name__ == "__main__":
    main()
