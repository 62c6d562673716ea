"""The parts of tests/gpu.sh that take figures: a real training run, `ddpm bench`, and PyTorch on the same GPU."""
import csv
import glob
import importlib.util
import json
import os
import shutil
import sys

from context import ROOT, Failed, Skipped, TimedOut

HERE = os.path.dirname(os.path.abspath(__file__))
CIFAR, LARGE, TINY = "configs/ddpm-cifar10.yaml", "configs/ddpm-256.yaml", "tests/gpu/tiny.yaml"
TRAINING_SECONDS, SAMPLING_SECONDS = 120, 20


def bench(context, kind, *arguments):
    context.stop_background()
    out, _ = context.run([context.program("ddpm"), "bench", kind, *arguments, "-q", "--device", context.options.device, "--json",
                          "-", *(["--no-peak"] if context.stand_in else [])])
    return json.loads(out)


def precision_of(context, kind):
    """"bf16" where this build trains or samples in it on this device, else "fp32"; asked once."""
    if kind not in context.precision:
        context.run([context.program("ddpm"), "bench", kind, TINY, "--batch", 2, "--repeats", 1, "--warmup", 0, "--no-peak", "-q",
                     "--device", context.options.device, "--set", f"{kind}.precision=bf16"], codes=(0, 78))
        context.precision[kind] = "bf16" if context.last_code == 0 else "fp32"
    return context.precision[kind]


def in_precision(context, kind):
    precision = precision_of(context, kind)
    return [] if precision == "fp32" else ["--set", f"{kind}.precision={precision}"]


def kept(result, names):
    return {name: result[name] for name in names if result.get(name) is not None}


# ---- a training run ----


def fashion(context, figures):
    from parts import train

    folder = context.folder("fashion")
    run, config = os.path.join(folder, "run"), os.path.join(HERE, "tiny.yaml" if context.stand_in else "fashion.yaml")
    figures["precision"], options = precision_of(context, "train"), in_precision(context, "train")
    speed = bench(context, "train", config, "--no-peak", "--warmup", 1, "--repeats", 1 if context.stand_in else 30, *options)
    seconds = min(TRAINING_SECONDS, context.left() - SAMPLING_SECONDS)
    steps = 6 if context.stand_in else max(500, int(seconds * 1e3 / speed["step_median_ms"]))
    losses = train(context, run, steps, "--set", f"train.steps={steps}", *options, config=config, log_every=1 if context.stand_in else 50)
    figures["steps"], figures["first_loss"], figures["last_loss"] = steps, losses[0], losses[-1]
    with open(os.path.join(run, "metrics.jsonl")) as f:
        rates = [json.loads(line).get("images_per_s") for line in f]
    figures["images_per_s"] = next((rate for rate in reversed(rates) if rate), None)
    n = 4 if context.stand_in else 64
    out, _ = context.run([context.program("ddpm"), "sample", run, "-n", n, "-o", os.path.join(folder, "samples"), "-q",
                          "--no-animation", "--device", context.options.device, "--json", "-"])
    figures["sampling_images_per_s"] = json.loads(out).get("images_per_s")
    shutil.copy(os.path.join(folder, "samples", "grid.png"), os.path.join(context.out, "samples.png"))
    shutil.copy(os.path.join(run, "metrics.jsonl"), context.out)
    # a network that answers nothing has a loss of 1, in v as in eps
    if not context.stand_in and not losses[-1] < 0.3:
        raise Failed(f"the loss is {losses[-1]:.3f} after {steps} steps")


# ---- ddpm bench ----

TRAIN_NAMES = ("configuration", "batch", "parameters", "gmac_per_image", "first_step_s", "step_median_ms", "step_p99_ms",
               "images_per_s", "gflop_per_s", "share_of_peak", "mfu", "backend_peak_bytes", "process_peak_bytes", "loss")
SAMPLE_NAMES = ("configuration", "batch", "sampler", "sampler_steps", "step_median_ms", "images_per_s", "gflop_per_s",
                "share_of_peak", "mfu", "backend_peak_bytes")


def bench_ops(context, figures):
    # on a GPU tensors beyond its caches; on the stand-in the way to one row
    size = ("--op", "silu", "--batch", 1, "--repeats", 1, "--warmup", 0) if context.stand_in else (
        "--batch", 256, "--repeats", 5, "--warmup", 2)
    for dtype in ("bf16", "f32"):
        result = bench(context, "ops", "--dtype", dtype, *size)
        figures["machine"], figures["versions"] = result["machine"], result["versions"]
        figures[dtype] = result["ops"]


def bench_cases(context, figures, kind, names, cases):
    """A row for each case that ends: one that does not fit the memory or the time must not cost the others."""
    figures["rows"], figures["left_out"] = [], []
    for case in cases:
        try:
            result = bench(context, kind, *case, *in_precision(context, kind))
        except (Failed, TimedOut) as e:
            figures["left_out"].append({"case": " ".join(map(str, case)), "why": str(e)})
            continue
        figures["rows"].append({**kept(result, names), "precision": precision_of(context, kind)})
        figures.setdefault("notices", []).extend(row["notice"] for row in result.get("notices", []))
        figures["machine"] = result["machine"]
    if figures["left_out"]:
        raise Failed("; ".join(f"{row['case']}: {row['why']}" for row in figures["left_out"])[:400])


def bench_train(context, figures):
    cases = [(TINY, "--batch", 2, "--repeats", 1, "--warmup", 0)] if context.stand_in else [
        (config, "--batch", batch, "--repeats", repeats, "--warmup", 5)
        for config, batch, repeats in ((CIFAR, 128, 30), (CIFAR, 512, 15), (LARGE, 64, 5))]
    bench_cases(context, figures, "train", TRAIN_NAMES, cases)
    # the first of these started without plans timed before; now they are kept
    again = bench(context, "train", *cases[0][:3], "--repeats", 1, "--warmup", 1, "--no-peak", *in_precision(context, "train"))
    figures["rows"][0]["first_step_warm_s"] = again["first_step_s"]


def bench_sample(context, figures):
    cases = [(TINY, "--batch", 1, "--steps", 2, "--repeats", 1, "--warmup", 0)] if context.stand_in else [
        (config, "--batch", batch, "--steps", 20, "--repeats", 3)
        for config, batch in ((CIFAR, 1), (CIFAR, 64), (CIFAR, 256), (LARGE, 16))]
    bench_cases(context, figures, "sample", SAMPLE_NAMES, cases)


def profile(context, figures):
    """Each op by itself, waited for: what a step is made of, though not what it takes."""
    config, batch = (TINY, 2) if context.stand_in else (CIFAR, 128)
    result = bench(context, "train", config, "--batch", batch, "--warmup", 0, "--repeats", 1, "--profile", *in_precision(context, "train"))
    figures["time_by_op"] = sorted(result["time_by_op"], key=lambda row: -row["step_ms"])


# ---- Nsight Compute ----

METRICS = {"ms": "gpu__time_duration.sum", "dram_percent": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
           "sm_percent": "sm__throughput.avg.pct_of_peak_sustained_elapsed"}
UNIT_MS = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3, "nsecond": 1e-6, "usecond": 1e-3, "msecond": 1.0, "second": 1e3}


def kernels_of(text):
    """From `ncu --csv --page raw`, whose second line has the units: by kernel, its launches, time in all, and the means over time
    of the shares of what the device can do."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    rows = list(csv.DictReader(lines))
    if not rows:
        raise Failed("ncu told of no kernel")
    units, found = rows[0], {}
    for row in rows[1:]:
        of = {name: float(row[metric].replace(",", "") or 0) for name, metric in METRICS.items()}
        of["ms"] *= UNIT_MS[units[METRICS["ms"]]]
        entry = found.setdefault(row["Kernel Name"].split("(")[0], {"launches": 0, "ms": 0.0, "dram_percent": 0.0, "sm_percent": 0.0})
        entry["launches"] += 1
        entry["ms"] += of["ms"]
        for share in ("dram_percent", "sm_percent"):
            entry[share] += of[share] * of["ms"]
    for entry in found.values():
        for share in ("dram_percent", "sm_percent"):
            entry[share] = round(entry[share] / entry["ms"], 1) if entry["ms"] else None
    return sorted(({"kernel": name, **entry} for name, entry in found.items()), key=lambda row: -row["ms"])


def ncu(context, figures):
    """The kernels of two training steps. Clocks stay as they are; each launch is run again for each group of counters."""
    program = shutil.which("ncu") or next(iter(sorted(glob.glob("/opt/nvidia/nsight-compute/*/ncu"))), "/usr/local/cuda/bin/ncu")
    command = [program, "--clock-control", "none", "--csv", "--page", "raw", "--metrics", ",".join(METRICS.values()),
               context.program("ddpm"), "bench", "train", CIFAR, "--batch", 128, "--warmup", 0, "--repeats", 2, "--no-peak", "--no-graph", "-q",
               "--device", context.options.device, *in_precision(context, "train")]
    if not os.access(program, os.X_OK):
        raise Skipped("no Nsight Compute")
    out, _ = context.run(command)
    figures["kernels"] = kernels_of(out)[:40]


# ---- PyTorch ----


def peer_command(context, config, mode, precision, batches, forward=(), repeats=5):
    device = "cpu" if context.stand_in else context.options.device
    command = [sys.executable, os.path.join(ROOT, "bench", "peers", "train_peer.py"), os.path.join(ROOT, config), "--device", device,
               "--mode", mode, "--precision", precision, "--batch", ",".join(map(str, batches)), "--repeats", str(repeats)]
    command += ["--forward-batch", ",".join(map(str, forward))] if forward else []
    return command + (["--threads", "1"] if context.stand_in else [])


# In the order of their weight: the time may end before the list does. One batch a process where graphs keep memory of each.
# (configuration, mode, precision, batches, batches of forward passes alone)
PEERS = [
    (CIFAR, "channels_last", "bf16", (128, 512), (1, 64, 256)),
    (CIFAR, "channels_last", "autocast", (128, 512), ()),
    (CIFAR, "compile", "bf16", (128,), ()),
    (CIFAR, "compile", "bf16", (512,), ()),
    (CIFAR, "compile", "autocast", (128,), ()),
    (LARGE, "channels_last", "bf16", (64,), (16,)),
    (CIFAR, "compile", "autocast", (512,), ()),
    (CIFAR, "compile", "bf16", (64,), (1, 256)),
    (LARGE, "compile", "bf16", (64,), ()),
    (CIFAR, "eager", "bf16", (128,), ()),
]


def has_torch():
    return importlib.util.find_spec("torch") is not None


def warm_peers(context):
    """torch.compile spends minutes on its first step and keeps what it made on disk: while the parts before `peers` build and
    compare, when no time is taken, it can make it. What the first start took is told in log.txt."""
    context.environment["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(context.work, "inductor")
    context.environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "6")
    if has_torch():
        config, mode, precision, batches, _ = next(case for case in PEERS if case[1] == "compile")
        context.start(peer_command(context, config, mode, precision, batches[:1], repeats=1), "peer-warm.log")


def cold_start(context):
    """Seconds from the start of the process to the end of the first compiled step, with no cache; None where warm_peers was ended
    before."""
    path = os.path.join(context.work, "peer-warm.log")
    if not os.path.exists(path):
        return None
    with open(path) as f:
        return next((json.loads(line)["first_step_s"] for line in f if line.startswith("{")), None)


def peer_rows(case, out, cold):
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    for row in rows:
        row["configuration"] = case[0]
        row.pop("step_all_s", None), row.pop("forward_all_s", None)
        if row["mode"] == "compile":  # the caches were filled before: what it takes without them is the start's figure
            row["first_step_warm_s"], row["first_step_s"] = row.pop("first_step_s", None), cold
    return rows


def peers(context, figures):
    context.stop_background()
    for case in PEERS:
        missing = [word for word in peer_command(context, *case) if word.endswith((".py", ".yaml")) and not os.path.exists(word)]
        if missing:
            raise Failed("no " + missing[0])
    if not has_torch():
        raise Skipped("no PyTorch here")
    figures["rows"], figures["left_out"] = [], []
    cold = cold_start(context)
    cases = [(TINY, "channels_last", "fp32", (2,), (1,))] if context.stand_in else PEERS
    for case in cases:
        name = f"{os.path.basename(case[0])} {case[1]} {case[2]}"
        try:
            out, _ = context.run(peer_command(context, *case, repeats=2 if context.stand_in else 8))
        except (Failed, TimedOut) as e:
            figures["left_out"].append({"case": name, "why": str(e)})
            continue
        figures["rows"] += peer_rows(case, out, cold)
    if not figures["rows"]:
        raise Failed("nothing was measured: " + "; ".join(row["why"] for row in figures["left_out"])[:300])
