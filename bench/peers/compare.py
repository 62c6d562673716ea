"""Our training step against PyTorch's on the same machine, in turn: prints the ratios and writes them as JSON.

    python bench/peers/compare.py configs/ddpm-cifar10.yaml --batch 8 --rounds 3

Each round runs `ddpm bench train`, `ddpm bench sample` (its step is a forward pass and a reverse step, so it stands for
"forward" to our disadvantage) and train_peer.py once per mode; a figure is the median over rounds, so that a machine that
slows down slows both. torch.compile takes minutes to start and runs in the first round alone, for at most
--compile-timeout seconds. A ratio below 1 means that we are faster or smaller. PyTorch's best mode is the one compared
with, figure by figure.
"""
import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
FIGURES = {"step_s": "training step, s", "forward_s": "forward, s", "peak_bytes": "peak memory, bytes",
           "first_step_s": "process start to first step, s"}


def run_json(command, timeout=None):
    """The JSON object that a command prints; None when it takes too long, an exception when it fails."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, timeout=timeout, check=True, cwd=ROOT, text=True)
    except subprocess.TimeoutExpired:
        return None
    return json.JSONDecoder().raw_decode(done.stdout, done.stdout.index("{"))[0]


def run_ours(args, config):
    common = [config, "--quiet", "--device", args.device, "--repeats", str(args.repeats), "--json", "-"]
    if args.threads:
        common += ["--threads", str(args.threads)]
    train = run_json([args.ddpm, "bench", "train", *common, "--batch", str(args.batch)])
    sample = run_json([args.ddpm, "bench", "sample", *common, "--batch", str(args.batch), "--steps", "10"])
    on_gpu = args.device != "cpu"
    return {"step_s": train["step_median_ms"] / 1e3, "forward_s": sample["step_median_ms"] / 1e3,
            "peak_bytes": train["backend_peak_bytes" if on_gpu else "process_peak_bytes"],
            "first_step_s": train["first_step_s"], "parameters": train["parameters"], "machine": train.get("machine"),
            "versions": train.get("versions")}


def run_peer(args, config, mode):
    command = [args.python, os.path.join(HERE, "train_peer.py"), config, "--batch", str(args.batch), "--mode", mode,
               "--repeats", str(args.repeats), "--device", args.device]
    if args.threads:
        command += ["--threads", str(args.threads)]
    return run_json(command, args.compile_timeout if mode == "compile" else None)


def medians(runs):
    return {key: statistics.median(r[key] for r in runs) for key in FIGURES}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="timed steps per run")
    parser.add_argument("--threads", type=int, default=0, help="0: all this process may run on")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--modes", default="eager,channels_last,compile")
    parser.add_argument("--compile-timeout", type=float, default=480)
    parser.add_argument("--ddpm", default=os.path.join(ROOT, "build", "ddpm"))
    parser.add_argument("--python", default=sys.executable, help="one with requirements.txt installed")
    parser.add_argument("--output", help="JSON file; default bench/results/DATE-peers-CONFIG.json")
    args = parser.parse_args()
    config = os.path.abspath(args.config)
    ours, peers, notes = [], {mode: [] for mode in args.modes.split(",")}, []
    for round_number in range(args.rounds):
        print(f"round {round_number + 1} of {args.rounds}", file=sys.stderr, flush=True)
        ours.append(run_ours(args, config))
        for mode in list(peers):
            if mode == "compile" and round_number > 0:
                continue
            result = run_peer(args, config, mode)
            if result is None:
                notes.append(f"torch.compile did not finish within {args.compile_timeout:.0f} s")
                del peers[mode]
            else:
                peers[mode].append(result)
    first = next(iter(peers.values()))[0]
    if first["parameters"] != ours[0]["parameters"]:
        sys.exit(f"compare: {ours[0]['parameters']} parameters here, {first['parameters']} in PyTorch")

    our = medians(ours)
    peer = {mode: medians(runs) for mode, runs in peers.items()}
    print(f"{'':34} {'ddpm':>12} " + " ".join(f"{mode:>14}" for mode in peer) + f" {'ratio':>8}")
    ratios = {}
    for key, title in FIGURES.items():
        best = min(p[key] for p in peer.values())
        ratios[key] = our[key] / best
        print(f"{title:34} {our[key]:12.5g} " + " ".join(f"{p[key]:14.5g}" for p in peer.values())
              + f" {ratios[key]:8.3f}")
    for note in notes:
        print(note)
    now = datetime.datetime.now(datetime.timezone.utc)
    output = args.output
    if not output:
        name = os.path.splitext(os.path.basename(config))[0]
        output = os.path.join(ROOT, "bench", "results", f"{now:%Y-%m-%d}-peers-{name}-{args.device}.json")
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    record = {"date": now.isoformat(timespec="seconds"), "configuration": os.path.basename(config), "batch": args.batch,
              "device": args.device, "rounds": args.rounds, "repeats": args.repeats, "python": platform.python_version(),
              "torch": first["torch"], "threads": first["threads"], "machine": ours[0]["machine"],
              "versions": ours[0]["versions"], "ours": our, "peers": peer, "ratio": ratios, "notes": notes,
              "runs": {"ours": ours, **peers}}
    with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(os.path.abspath(output)), delete=False) as f:
        json.dump(record, f, indent=1)
        f.write("\n")
    os.chmod(f.name, 0o644)
    os.replace(f.name, output)
    print(f"written to {os.path.relpath(output, os.getcwd())}")


if __name__ == "__main__":
    main()
