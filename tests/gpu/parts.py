"""The parts of tests/gpu.sh, in order. A part takes the context of run.py and a dictionary of what it finds; it raises Failed,
Skipped or TimedOut. Parts behind `build` stand on what it made and on nothing else, so that each can be run by itself."""
import json
import os
import re
import shutil
import struct
import time
import zipfile
from collections import namedtuple

import figures as figure_parts
from machine import build, op_test_names, plan, properties
from context import ROOT, Failed, Skipped

HERE = os.path.dirname(os.path.abspath(__file__))
# `asked`: runs only where --part names it
Part = namedtuple("Part", "name seconds run what asked", defaults=[False])

# Also where bits are not compared: engines as heuristics order them, so that no time goes into timing them.
DETERMINISTIC = ("--deterministic",)

# ---- what several parts need ----


def config_of(context):
    return os.path.join(HERE, "tiny.yaml") if context.stand_in else os.path.join(ROOT, "configs", "fashion-mnist.yaml")


def pack_of(context):
    """A data set as the program packs it: Fashion-MNIST, or 64 small images of noise for the stand-in. Made once."""
    pack = os.path.join(context.work, "data.pack")
    if os.path.exists(pack):
        return pack
    if context.stand_in:
        images = os.path.join(context.work, "train-images-idx3-ubyte")
        with open(images, "wb") as f:
            f.write(struct.pack(">IIII", 0x803, 64, 8, 8) + bytes((i * i * 7 + 31 * i) % 256 for i in range(64 * 64)))
    else:
        folders = [os.path.join(context.options.carry, "fashion-mnist"), "/usr/share/datasets/fashion-mnist"]
        found = [os.path.join(folder, "train-images-idx3-ubyte.gz") for folder in folders]
        images = next((path for path in found if os.path.exists(path)), None)
        if images is None:
            raise Failed("no Fashion-MNIST: neither " + " nor ".join(found))
    context.run([context.program("ddpm"), "pack", images, "-o", pack, "-q"])
    return pack


def train(context, run, steps, *arguments, device=None, config=None, log_every=1):
    """`ddpm train` up to that step in all; the losses of its metrics."""
    context.run([context.program("ddpm"), "train", config or config_of(context), "--run", run, "--max-steps", steps, "-q",
                 "--device", device or context.options.device, "--set", f"data.pack={pack_of(context)}", "--set",
                 f"train.log_every={log_every}", *arguments])
    with open(os.path.join(run, "metrics.jsonl")) as f:
        rows = [json.loads(line) for line in f]
    return [row["loss"] for row in rows if "loss" in row]


def checkpoint_of(run, step):
    return os.path.join(run, "checkpoints", f"step-{step:08}.safetensors")


def tensors_of(path):
    """Header without metadata, and all the bytes behind it."""
    with open(path, "rb") as f:
        (n,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(n))
        header.pop("__metadata__", None)
        return header, f.read()


def compare_checkpoints(a, b):
    """Failed, naming a tensor, unless all tensors of the two have the same bits."""
    (header, x), (other, y) = tensors_of(a), tensors_of(b)
    if header != other:
        raise Failed(f"{a} and {b} hold different tensors")
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if x[begin:end] != y[begin:end]:
            raise Failed(f"{name} differs between {os.path.relpath(a)} and {os.path.relpath(b)}")
    return len(header)


def sample(context, run, folder, *arguments):
    """The pixels that `ddpm sample` draws, as bytes."""
    n = 4 if context.stand_in else 64
    context.run([context.program("ddpm"), "sample", run, "-n", n, "-o", folder, "-q", "--no-grid", "--device",
                 context.options.device, *arguments])
    name = next(name for name in os.listdir(folder) if name.startswith("samples_"))
    with zipfile.ZipFile(os.path.join(folder, name)) as z:
        return z.read("arr_0.npy")


def steps_of(context, on_gpu):
    return 4 if context.stand_in else on_gpu


# ---- proofs ----


def parity_runs(context):
    """(by whose products, environment, arguments): our own kernels; the libraries' engines as heuristics order them, which must
    give the same bits twice; the fastest engines, for one level, since each shape is timed."""
    own, one = (["1x4x4x32", "1x18x18x32"], "1x4x4x32") if context.stand_in else ([], "3x16x16x128")
    return [("own kernels", {"DDPM_LIBRARIES": "0"}, ["--deterministic", *own]),
            ("libraries", {}, ["--deterministic", *([one] if context.stand_in else [])]),
            ("libraries, timed", {}, [one])]


def op_parity(context, figures):
    rows = []
    for products, environment, arguments in parity_runs(context):
        for dtype in ("f32", "bf16"):
            try:
                context.run([context.program("tests/gpu_op_parity"), "--device", context.options.device, "--dtype", dtype,
                             *arguments], codes=(0, 1), environment=environment)
            finally:  # also what was compared before the time ended
                rows += parity_rows(products, context.last_output)
                figures.update(parity_figures(rows))
    failed = figures["failed"]
    if failed:
        names = sorted({f"{r['op']} {r['dtype']} by {r['products']}" for r in failed})
        raise Failed(f"{len(failed)} of {len(rows)} calls: {', '.join(names)}")
    if not rows:
        raise Failed("no call was made")


def parity_rows(products, text):
    names = ("verdict", "dtype", "op", "call", "error_over_limit", "twice")
    cells = [line.split("\t") for line in text.splitlines()]
    rows = [{"products": products, **dict(zip(names, row))} for row in cells if len(row) == len(names)]
    for row in rows:
        row["error_over_limit"] = float(row["error_over_limit"])
    return rows


def parity_figures(rows):
    good = [row for row in rows if row["verdict"] == "ok"]
    return {"calls": len(rows), "failed": [row for row in rows if row["verdict"] != "ok"],
            "not_the_same_bits_twice": sorted({row["op"] for row in rows if row["twice"] != "same"}),
            "largest_errors": sorted(good, key=lambda row: -row["error_over_limit"])[:8]}


def op_tests(context, figures):
    """The ops' own tests against float64. They hand host memory to the device, which not every GPU and kernel can read: the
    first program tells."""
    programs = [context.program(os.path.join("tests", name)) for name in op_test_names()]
    if context.stand_in:  # they are tests of that build by themselves
        programs = [program for program in programs if os.path.exists(program)][:1]
        if not programs:
            raise Skipped("none is built here")
    figures["programs"] = {}
    for program in programs:
        name = os.path.basename(program)
        try:
            context.run([program], environment={"DDPM_TEST_DEVICE": context.options.device, "DDPM_SYNC": "1"})
        except Failed as e:
            if not figures["programs"] and "cudaErrorIllegalAddress" in context.last_output:
                raise Skipped("the GPU cannot read the host's memory") from None
            figures["programs"][name] = str(e)
        else:
            figures["programs"][name] = "passed"
    bad = [name for name, verdict in figures["programs"].items() if verdict != "passed"]
    if bad:
        raise Failed(", ".join(bad))


def golden(context, figures):
    folder = os.path.join(ROOT, "tests", "golden")
    kinds = ["ops", "unet"] if context.stand_in else ["", "math", "ops", "unet", "train", "samplers"]
    files = []
    for kind in kinds:
        names = sorted(os.listdir(os.path.join(folder, kind)))
        names = [name for name in names if name.endswith(".safetensors")]
        if context.stand_in:  # all of them run by themselves in that build: here it is the way to them that is tried
            names = names[:2] if kind == "ops" else names[:1]
        files += [os.path.join(folder, kind, name) for name in names]
    program = context.program("tests/golden_check")
    context.run([program], codes=(64,))  # its usage tells whether it knows bf16
    precisions = ["fp32"] + ["bf16"] * ("--precision" in context.last_output)
    for precision in precisions:
        # the libraries time their engines for each shape, of which the single ops have hundreds
        networks = [path for path in files if os.path.basename(os.path.dirname(path)) in ("unet", "train")]
        for products, chosen, environment in (("own kernels", files, {"DDPM_LIBRARIES": "0"}), ("libraries", networks, {})):
            options = [] if precision == "fp32" else ["--precision", precision]
            out, _ = context.run([program, "--quiet", "--device", context.options.device, *options, *chosen], codes=(0, 1),
                                 environment=environment)
            judge_golden(figures, f"{precision}, {products}", out, len(chosen), precision)


def judge_golden(figures, name, text, files, precision):
    kinds = golden_kinds(text)
    total = kinds.pop("all", {"files": 0, "passed": 0, "skipped": 0})
    figures[name] = {**total, "kinds": kinds}
    # what bf16 has no limits for is skipped, and told; fp32 has them all
    enough = total["passed"] > 0 if precision == "bf16" else total["skipped"] == 0
    if total["files"] != files or total["passed"] + total["skipped"] != files or not enough:
        raise Failed(f"{name}: {total['passed']} passed and {total['skipped']} skipped of {files} files")


def golden_kinds(text):
    """The table at the end of golden_check's output."""
    table = [line.split() for line in text.splitlines() if re.match(r"^\S+ +\d+ +\d+ +\d+", line)]
    return {row[0]: {"files": int(row[1]), "passed": int(row[2]), "skipped": int(row[3]),
                     "worst": float(row[4]) if len(row) > 4 else None} for row in table}


def trace(context, figures):
    """The same steps on the CPU and on the GPU: random numbers agree, so the losses must."""
    folder, steps = context.folder("trace"), steps_of(context, 30)
    options = DETERMINISTIC
    want = figures["cpu"] = train(context, os.path.join(folder, "cpu"), steps, *options, device="cpu")
    # f32: rounding of 1e-7 a sum grows through the steps, and a wrong gradient shows within a few of them. bf16 rounds
    # activations by up to 1/512; a loss is the mean of thousands, whose rounding errors mostly cancel.
    limits = {"fp32": 1e-3} | ({"bf16": 3e-2} if figure_parts.precision_of(context, "train") == "bf16" else {})
    for precision, limit in limits.items():
        got = train(context, os.path.join(folder, precision), steps, *options, "--set", f"train.precision={precision}")
        figures[precision] = got
        if not len(want) == len(got) == steps:
            raise Failed(f"{len(want)} and {len(got)} losses of {steps} steps")
        worst = figures[f"worst_relative_difference_{precision}"] = max(abs(g - w) / abs(w) for g, w in zip(got, want))
        if not worst <= limit:
            raise Failed(f"{precision}: losses differ by {worst:.2e}, limit {limit:.0e}")


def graph(context, figures):
    """Recorded graphs do what the same calls, one by one, do."""
    folder, steps = context.folder("graph"), steps_of(context, 40)
    with_graph, without = os.path.join(folder, "with"), os.path.join(folder, "without")
    train(context, with_graph, steps, "--deterministic")
    train(context, without, steps, "--deterministic", "--no-graph")
    figures["tensors"] = compare_checkpoints(checkpoint_of(with_graph, steps), checkpoint_of(without, steps))
    pixels = [sample(context, with_graph, os.path.join(folder, name), "--deterministic", *option)
              for name, option in (("a", ()), ("b", ("--no-graph",)))]
    if pixels[0] != pixels[1]:
        raise Failed("samples with and without graphs differ")


def determinism(context, figures):
    folder, steps = context.folder("determinism"), steps_of(context, 40)
    options = (*DETERMINISTIC, *figure_parts.in_precision(context, "train"))
    runs = [os.path.join(folder, name) for name in ("first", "second")]
    for run in runs:
        train(context, run, steps, *options)
    figures["options"] = " ".join(options)
    figures["tensors"] = compare_checkpoints(checkpoint_of(runs[0], steps), checkpoint_of(runs[1], steps))
    pixels = [sample(context, runs[0], os.path.join(folder, name), *DETERMINISTIC) for name in ("a", "b")]
    if pixels[0] != pixels[1]:
        raise Failed("two drawings of the same samples differ")


def resume(context, figures):
    folder, steps = context.folder("resume"), steps_of(context, 40)
    options = (*DETERMINISTIC, *figure_parts.in_precision(context, "train"))
    whole, halves = os.path.join(folder, "whole"), os.path.join(folder, "halves")
    train(context, whole, steps, *options)
    train(context, halves, steps // 2, *options)
    train(context, halves, steps, *options)
    figures["tensors"] = compare_checkpoints(checkpoint_of(whole, steps), checkpoint_of(halves, steps))


SANITIZERS = {"memcheck": ["--leak-check", "no"], "racecheck": [], "initcheck": []}


def sanitizer_command(context, tool, dtype):
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [program, "--tool", tool, *SANITIZERS[tool], "--error-exitcode", "9", "--print-limit", "20",
            context.program("tests/gpu_op_parity"), "--device", context.options.device, "--dtype", dtype, "1x18x18x32"]


def sanitizer(context, figures):
    """Our own kernels: a library's may do what the tools do not know."""
    commands = [(tool, dtype, sanitizer_command(context, tool, dtype)) for tool in SANITIZERS for dtype in ("f32", "bf16")]
    if context.stand_in:
        for tool, _, command in commands:
            if tool not in command or not os.access(command[command.index("--print-limit") + 2], os.X_OK):
                raise Failed(f"the command of {tool}: {command}")
        raise Skipped("no GPU; the stand-in checks memory and races itself")
    if not os.access(commands[0][2][0], os.X_OK):
        raise Skipped("no compute-sanitizer")
    found = {}
    for tool, dtype, command in commands:
        begin = time.monotonic()
        out, _ = context.run(command, codes=(0, 1, 9), environment={"DDPM_LIBRARIES": "0"})
        summary = [line.strip("= ") for line in out.splitlines() if "SUMMARY" in line]
        found[f"{tool} {dtype}"] = {"summary": "; ".join(summary), "seconds": round(time.monotonic() - begin, 1)}
        figures["tools"] = found
    bad = [name for name, row in found.items()
           if not re.search(r"(ERROR SUMMARY: 0 errors|RACECHECK SUMMARY: 0 hazards)", row["summary"])]
    if bad:
        raise Failed("errors of " + ", ".join(bad))


# Proofs first. Then the figures that are compared, ours beside PyTorch's; then what takes the time that is left.
PARTS = [
    Part("properties", 15, properties, "the GPU, its driver, the tools there are"),
    Part("build", 120, build, "the program, for this GPU, from what carry.sh took along where packages are missing"),
    Part("plan", 20, plan, "the device's properties for ddpm plan, and what it foretells"),
    Part("op_parity", 80, op_parity, "every op against the CPU's, f32 and bf16, outputs poisoned"),
    Part("op_tests", 30, op_tests, "the ops' own tests, where the GPU reads the host's memory"),
    Part("golden", 40, golden, "PyTorch's recorded numbers"),
    Part("trace", 30, trace, "losses of the same steps on the CPU and on the GPU"),
    Part("graph", 30, graph, "recorded graphs against single calls, to the bit"),
    Part("determinism", 30, determinism, "two runs, to the bit"),
    Part("resume", 30, resume, "stopped and gone on, to the bit"),
    Part("sanitizer", 50, sanitizer, "memcheck, racecheck and initcheck of every op"),
    Part("bench_train", 110, figure_parts.bench_train, "steps, memory, time to the first step"),
    Part("peers", 140, figure_parts.peers, "PyTorch on the same GPU, networks and batches"),
    Part("bench_sample", 60, figure_parts.bench_sample, "reverse steps"),
    Part("fashion", 150, figure_parts.fashion, "up to two minutes of training on Fashion-MNIST, and samples"),
    Part("bench_ops", 60, figure_parts.bench_ops, "every op's time and rate"),
    Part("profile", 20, figure_parts.profile, "what a training step is made of, by op"),
    Part("ncu", 120, figure_parts.ncu, "a training step's kernels by Nsight Compute", asked=True),
]
