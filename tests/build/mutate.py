#!/usr/bin/env python3
"""Do the tests notice a wrong kernel? Changes one operator, index, constant or barrier of kernels/*.cu at a time, and runs the tests
of that file on the CPU, with the checker of shared-memory races.

    cmake -S . -B build-races -G Ninja -DDDPM_CUDA=EMULATED -DDDPM_RACES=ON && cmake --build build-races
    tests/build/mutate.py build-races [--count 240] [--seed 1] [--only groupnorm.cu] [--output FILE]

A mutant is caught when it does not compile, a test fails, or a test does not end. Mutants are drawn evenly over the files by size
from every place where a rule applies, by a fixed seed. Survivors are printed with their line, and belong, each with its reason,
into tests/cuda_on_cpu/README.md.
"""
import argparse
import concurrent.futures
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SECONDS = 60  # a test takes one; what takes longer hangs
SCHEDULES = ("forward", "reverse")
TESTS = {
    "adamw.cu": ["test_optimizer", "test_adamw_kernels"],
    "attention.cu": ["test_attention", "test_attention_kernels"],
    "attention_bwd.cu": ["test_attention", "test_attention_kernels"],
    "conv.cu": ["test_product_kernels", "test_conv2d"],
    "conv_parts.cu": ["test_conv_parts"],
    "embedding.cu": ["test_embedding", "test_embedding_kernels"],
    "groupnorm.cu": ["test_groupnorm", "test_groupnorm_kernels"],
    "groupnorm_bwd.cu": ["test_groupnorm", "test_groupnorm_kernels"],
    "linear.cu": ["test_linear", "test_product_kernels"],
    "mse_loss.cu": ["test_loss", "test_diffusion_kernels"],
    "noising.cu": ["test_noise", "test_diffusion_kernels"],
    "pack.cu": ["test_pack"],
    "pointwise.cu": ["test_pointwise", "test_pointwise_kernels"],
    "resample.cu": ["test_resample", "test_pointwise_kernels"],
    "reverse_step.cu": ["test_reverse_step", "test_diffusion_kernels"],
    "softmax.cu": ["test_softmax", "test_pointwise_kernels"],
}
RULES = [
    ("barrier", r"__sync(threads|warp)\(\);", lambda m: ";"),
    ("compare", r" (<|>|<=|>=|==|!=) ", lambda m: {"<": " <= ", ">": " >= ", "<=": " < ", ">=": " > ", "==": " != ", "!=": " == "}[m.group(1)]),
    ("sum", r" ([+-]) ", lambda m: {"+": " - ", "-": " + "}[m.group(1)]),
    ("product", r" ([*/%]) ", lambda m: {"*": " + ", "/": " * ", "%": " / "}[m.group(1)]),
    ("update", r" ([+*])= ", lambda m: {"+": " -= ", "*": " += "}[m.group(1)]),
    ("logic", r" (&&|\|\|) ", lambda m: {"&&": " || ", "||": " && "}[m.group(1)]),
    ("index", r"\[([A-Za-z_][\w. ]*)\]", lambda m: f"[{m.group(1)} + 1]"),
    ("start", r"= 0;", lambda m: "= 1;"),
    ("fma", r"fmaf\(([^,()]+), ([^,()]+), ([^,()]+)\)", lambda m: f"fmaf({m.group(1)}, {m.group(2)}, -({m.group(3)}))"),
]
# Lines that decide how fast, not what: their mutants are no faults.
SKIPPED = re.compile(r"^\s*(#|//|\*|/\*|template|typedef|static_assert|extern)|__launch_bounds__|grid_for|constexpr|static inline unsigned")


def places(path):
    """Every (line number, rule, column span, new text) of a file, comments left out."""
    found, in_comment = [], False
    with open(path) as f:
        for number, line in enumerate(f, 1):
            code = line.rstrip("\n")
            if in_comment:
                in_comment = "*/" not in code
                continue
            if "/*" in code and "*/" not in code:
                in_comment = True
                code = code[:code.index("/*")]
            if SKIPPED.search(code):
                continue
            end = code.find("/*") if "/*" in code else len(code)
            for rule, pattern, replace in RULES:
                for match in re.finditer(pattern, code[:end]):
                    found.append((number, rule, match.span(), replace(match)))
    return found


class Build:
    """Compiles one changed kernel file of a configured build and links tests with it."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        with open(os.path.join(self.folder, "compile_commands.json")) as f:
            self.compile = {os.path.basename(e["file"]): e["command"] for e in json.load(f) if e["file"].endswith(".cu")}
        self.link, self.lock = {}, threading.Lock()

    def link_command(self, test):
        with self.lock:
            if test not in self.link:
                text = subprocess.run(["ninja", "-C", self.folder, "-t", "commands", f"tests/{test}"], check=True,
                                      capture_output=True, text=True).stdout
                self.link[test] = re.sub(r"^: && | && :$", "", text.splitlines()[-1])
            return self.link[test]

    def make(self, name, source, test, out):
        """None, or why it could not be built: a test program at out/test."""
        archive = os.path.join(out, "libddpm_kernels.a")
        if not os.path.exists(archive):
            words = shlex.split(self.compile[name])
            member = os.path.basename(words[words.index("-o") + 1])
            target = os.path.join(out, member)
            words[words.index("-o") + 1] = target
            words[words.index("-c") + 1] = source
            words = [w for w in words if w not in ("-Werror",)] + [f"-I{os.path.join(ROOT, 'kernels')}", "-w"]
            if subprocess.run(words, cwd=self.folder, capture_output=True).returncode:
                return "does not compile"
            shutil.copy(os.path.join(self.folder, "libddpm_kernels.a"), archive)
            subprocess.run(["ar", "r", archive, target], check=True, capture_output=True)
        words = shlex.split(self.link_command(test))
        words = [archive if w.endswith("libddpm_kernels.a") else w for w in words]
        words[words.index("-o") + 1] = os.path.join(out, test)
        return None if subprocess.run(words, cwd=self.folder, capture_output=True).returncode == 0 else "does not link"

    def run(self, test, out, schedule):
        """None when the test passes, else how it failed."""
        environment = {**os.environ, "DDPM_TEST_DEVICE": "cuda", "DDPM_SYNC": "1", "CUDA_ON_CPU_SCHEDULE": schedule,
                       "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run([os.path.join(out, test)], cwd=os.path.join(ROOT, "tests"), env=environment,
                                  capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"{test} does not end"
        return None if done.returncode == 0 else f"{test} fails on {schedule}"


def verdict(build, name, lines):
    """How a changed file is caught, or None."""
    with tempfile.TemporaryDirectory() as out:
        source = os.path.join(out, name)
        with open(source, "w") as f:
            f.writelines(lines)
        for test in TESTS[name]:
            if why := build.make(name, source, test, out):
                return why
            for schedule in SCHEDULES:
                if why := build.run(test, out, schedule):
                    return why
    return None


def draw(args, names):
    random.seed(args.seed)
    pool = {name: places(os.path.join(ROOT, "kernels", name)) for name in names}
    total = sum(map(len, pool.values()))
    chosen = []
    for name, found in pool.items():
        count = min(len(found), max(1, round(args.count * len(found) / total)))
        barriers = [p for p in found if p[1] == "barrier"]
        rest = [p for p in found if p[1] != "barrier"]
        random.shuffle(rest)
        chosen += [(name, p) for p in (barriers + rest)[:max(count, len(barriers))]]
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--count", type=int, default=240)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--least", type=float, default=90)
    parser.add_argument("--output")
    args = parser.parse_args()
    names = sorted(f for f in os.listdir(os.path.join(ROOT, "kernels")) if f.endswith(".cu"))
    for name in names:
        if name not in TESTS:
            sys.exit(f"mutate.py: no tests are named for {name}")
    names = [n for n in names if not args.only or n == args.only]
    build = Build(args.build)
    for name in names:  # unchanged, everything must pass, else every mutant is "caught"
        with open(os.path.join(ROOT, "kernels", name)) as f:
            if why := verdict(build, name, f.readlines()):
                sys.exit(f"mutate.py: {name} as it is: {why}")
    mutants = draw(args, names)

    def attempt(mutant):
        name, (number, rule, (begin, end), text) = mutant
        with open(os.path.join(ROOT, "kernels", name)) as f:
            lines = f.readlines()
        old = lines[number - 1]
        lines[number - 1] = old[:begin] + text + old[end:]
        return verdict(build, name, lines), name, number, rule, old.strip(), lines[number - 1].strip()

    caught, survivors, by_rule = 0, [], {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as workers:
        for i, (why, name, number, rule, old, new) in enumerate(workers.map(attempt, mutants), 1):
            kept = by_rule.setdefault(rule, [0, 0])
            kept[0] += 1
            if why:
                caught += 1
                kept[1] += 1
            else:
                survivors.append({"file": name, "line": number, "rule": rule, "was": old, "is": new})
            print(f"{i}/{len(mutants)} {name}:{number} {rule}: {why or 'SURVIVED: ' + new}", flush=True)
    share = 100 * caught / len(mutants)
    print("\n".join(f"{rule}: {k} of {n} caught" for rule, (n, k) in sorted(by_rule.items())))
    print(f"{caught} of {len(mutants)} mutants caught, {share:.1f} %")
    if args.output:
        with open(args.output, "w") as f:
            json.dump({"mutants": len(mutants), "caught": caught, "seed": args.seed, "by_rule": by_rule, "survivors": survivors}, f, indent=1)
            f.write("\n")
    sys.exit(0 if share >= args.least else 1)


main()
