#!/usr/bin/env python3
"""Do the tests notice a wrong kernel? Changes one operator, index, constant or barrier of kernels/ at a time, and runs on the CPU
the tests that execute that place.

    cmake -S . -B build-dev -G Ninja -DCMAKE_BUILD_TYPE=Release -DDDPM_CUDA=EMULATED && cmake --build build-dev
    tests/build/mutate.py build-dev [--count 200] [--seed 1] [--only groupnorm.cu] [--jobs 2] [--again]

Compiling takes longest, so all mutants are compiled at once: each place becomes a choice made when the program runs, by the number
in MUTANT (`a < b` becomes `a < mutant_compare<7, '<'>() < b`, which keeps the precedence). The same programs note which places a
test executes. A mutant is caught when a test fails, crashes, deadlocks or takes ten times its time: schedule forward first, then
reverse with so few blocks that each goes round several times; a missing barrier also under the checker of shared-memory races.

Places are drawn by a fixed seed, evenly over the files by size; those that do not compile (constants) are replaced by the next.
What is known is kept in BUILD/mutants/results.tsv (--results), and a second run goes on from there; --again tries survivors again,
with new tests or by a build with sanitizers, which sees reads and writes beyond a tensor:

    tests/build/mutate.py build-emulated --again --results build-dev/mutants/results.tsv

Survivors belong, each with its reason, into tests/cuda_on_cpu/README.md.
"""
import argparse
import concurrent.futures
import hashlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
KERNELS = os.path.join(ROOT, "kernels")
SCHEDULES = ("forward", "reverse")
# Each rule: what it matches, and what stands there instead; k is the mutant's number.
RULES = [
    ("barrier", r"__sync(threads|warp)\(\);", lambda m, k: f"do {{ if (!mutant<{k}>()) {m.group(0)} }} while (0);"),
    ("compare", r" (<|>|<=|>=) ", lambda m, k: f" < mutant_compare<{k}, {code(m.group(1))}>() < "),
    ("equal", r" (==|!=) ", lambda m, k: f" == mutant_equal<{k}, {code(m.group(1))}>() == "),
    ("sum", r" ([+-]) ", lambda m, k: f" + mutant_sum<{k}, {code(m.group(1))}>() + "),
    ("product", r" ([*/%]) ", lambda m, k: f" * mutant_product<{k}, {code(m.group(1))}>() * "),
    ("update", r" ([+*])= ", lambda m, k: f" {m.group(1)}= mutant_update<{k}>() {m.group(1)}= "),
    ("logic", r" (&&|\|\|) ", lambda m, k: f" && !mutant<{k}>() && " if m.group(1) == "&&" else f" || mutant<{k}>() || "),
    ("index", r"\[([A-Za-z_][\w. ]*)\]", lambda m, k: f"[{m.group(1)} + (int)mutant<{k}>()]"),
    ("start", r"= 0;", lambda m, k: f"= (int)mutant<{k}>();"),
    ("fma", r"fmaf\(([^,()]+), ([^,()]+), ([^,()]+)\)",
     lambda m, k: f"fmaf({m.group(1)}, {m.group(2)}, mutant<{k}>() ? -({m.group(3)}) : {m.group(3)})"),
]
# What a rule makes of an operator, for the report.
CHANGED = {"<": "<=", ">": ">=", "<=": "<", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+", "/": "*", "%": "/",
           "&&": "&& false &&", "||": "|| true ||"}
# Lines that decide how fast, not what: their mutants are no faults.
SKIPPED = re.compile(r"^\s*(#|//|\*|/\*|template|typedef|static_assert|extern)|__launch_bounds__|grid_for|grid_of_all|constexpr|static inline unsigned")
HEADER = r"""/* Made by tests/build/mutate.py. */
#pragma once
extern int mutant_chosen;
extern unsigned char mutant_seen[];
template <int K> inline bool mutant()
{
    mutant_seen[K] = 1;
    return mutant_chosen == K;
}
template <int K, int OP> struct mutant_compare { };
template <int K, int OP> struct mutant_equal { };
template <int K, int OP> struct mutant_sum { };
template <int K, int OP> struct mutant_product { };
template <int K> struct mutant_update { };
template <class M, class L> struct mutant_left { L l; };
#define MUTANT_LEFT(op, kind)                                                                        \
    template <class L, int K, int OP> inline mutant_left<kind<K, OP>, L> operator op(L l, kind<K, OP>) { return {l}; } \
    template <class L, class R, int K, int OP> inline auto operator op(mutant_left<kind<K, OP>, L> a, R r)
MUTANT_LEFT(<, mutant_compare)
{
    const L l = a.l;
    const bool is = mutant<K>();
    if constexpr (OP == '<') return is ? l <= r : l < r;
    else if constexpr (OP == '>') return is ? l >= r : l > r;
    else if constexpr (OP == '<' * 256 + '=') return is ? l < r : l <= r;
    else return is ? l > r : l >= r;
}
MUTANT_LEFT(==, mutant_equal)
{
    return (OP == '=' * 256 + '=') != mutant<K>() ? a.l == r : a.l != r;
}
MUTANT_LEFT(+, mutant_sum)
{
    return (OP == '+') != mutant<K>() ? a.l + r : a.l - r;
}
MUTANT_LEFT(*, mutant_product)
{
    const L l = a.l;
    if constexpr (OP == '*') return mutant<K>() ? l + r : l * r;
    else if constexpr (OP == '/') return mutant<K>() ? l * r : l / r;
    else return mutant<K>() ? l / r : l % r;
}
template <int K, class R> inline auto operator+=(mutant_update<K>, R r) { return mutant<K>() ? -r : r; }
template <int K, class R> inline auto operator*=(mutant_update<K>, R r) { return mutant<K>() ? r + 1 : r; }
"""
CHOICE = r"""#include <stdio.h>
#include <stdlib.h>
extern int mutant_chosen;
extern unsigned char mutant_seen[];
int mutant_chosen = -1;
unsigned char mutant_seen[COUNT];
static struct mutant_choice {
    mutant_choice()
    {
        if (getenv("MUTANT")) mutant_chosen = atoi(getenv("MUTANT"));
    }
    ~mutant_choice()
    {
        FILE *f = getenv("MUTANTS_SEEN") ? fopen(getenv("MUTANTS_SEEN"), "wb") : NULL;
        if (f) fwrite(mutant_seen, 1, COUNT, f);
        if (f) fclose(f);
    }
} choice;
"""


def code(operator):
    """The operator as a number that C++ writes 'x' or 'x' * 256 + 'y'."""
    return str(int.from_bytes(operator.encode(), "big"))


def places(name):
    """Every (file, line number, rule, column span) of a file, comments left out."""
    found, in_comment = [], False
    with open(os.path.join(KERNELS, name)) as f:
        for number, line in enumerate(f, 1):
            text = line.rstrip("\n")
            if in_comment:
                in_comment = "*/" not in text
                continue
            if "/*" in text and "*/" not in text:
                in_comment = True
                text = text[:text.index("/*")]
            if SKIPPED.search(text):
                continue
            end = text.find("/*") if "/*" in text else len(text)
            for rule, pattern, _ in RULES:
                found += [(name, number, "extent" if rule == "index" and m.group(1).isupper() else rule, m.span())
                          for m in re.finditer(pattern, text[:end])]
    return found


def draw(names, seed):
    """All places in the order in which they are taken: every barrier, then the others shuffled, files in turn by size."""
    generator, order = random.Random(seed), []
    for name in names:
        found = places(name)
        generator.shuffle(found)
        order += [(0 if p[2] == "barrier" else (i + 0.5) / len(found), name, p) for i, p in enumerate(found)]
    return [p for _, _, p in sorted(order) if p[2] != "extent"]  # of an array: one element more is no fault


def write_sources(folder, mutants):
    """A copy of kernels/ where each mutant's place is a choice; {number: (line before, line after)}."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(KERNELS, folder)
    replace, texts = {rule: (re.compile(pattern), by) for rule, pattern, by in RULES}, {}
    for name in {m[0] for m in mutants.values()}:
        with open(os.path.join(KERNELS, name)) as f:
            lines = f.read().split("\n")
        own = [(k, m) for k, m in mutants.items() if m[0] == name]
        for k, (_, number, rule, (begin, end)) in sorted(own, key=lambda o: (o[1][1], -o[1][3][0])):
            old = lines[number - 1]
            match = replace[rule][0].match(old, begin)
            texts[k] = old[begin:end].strip()
            lines[number - 1] = old[:begin] + replace[rule][1](match, k) + old[end:]
        with open(os.path.join(folder, name), "w") as f:
            f.write('#include "mutant.h"\n#line 1\n' + "\n".join(lines))
    with open(os.path.join(folder, "mutant.h"), "w") as f:
        f.write(HEADER)
    return texts


class Build:
    """The tests of a configured build, linked with kernels that hold every mutant."""

    def __init__(self, folder, jobs):
        self.folder, self.jobs = os.path.abspath(folder), jobs
        self.work = os.path.join(self.folder, "mutants")
        os.makedirs(self.work, exist_ok=True)
        with open(os.path.join(self.folder, "compile_commands.json")) as f:
            entries = json.load(f)
        self.compile = {os.path.basename(e["file"]): e["command"] for e in entries if e["file"].endswith(".cu")}
        self.tests = sorted({os.path.splitext(os.path.basename(e["file"]))[0] for e in entries
                             if re.search(r"/tests/(op|kernels)/test_\w+\.c$", e["file"])})

    def source(self, name):
        return os.path.join(self.work, "kernels", name)

    def object(self, name, races):
        return os.path.join(self.work, f"{name}{'.races' if races else ''}.o")

    def compile_one(self, name, races):
        """None, or what the compiler says."""
        words = shlex.split(self.compile[name])
        words[words.index("-o") + 1] = self.object(name, races)
        words[words.index("-c") + 1] = self.source(name)
        words = [w for w in words if w not in ("-Werror", "-O3", f"-I{KERNELS}")]
        words += ["-O1", "-w", "-fmax-errors=400", f"-I{os.path.join(self.work, 'kernels')}"]
        words += ["-fsanitize=thread", "-g"] if races else []
        stamp = self.object(name, races) + ".of"  # what the object was made of: a second run need not make it again
        made_of = self.digest() + " ".join(words)
        if os.path.exists(stamp) and open(stamp).read() == made_of:
            return None
        if os.path.exists(stamp):
            os.remove(stamp)
        done = subprocess.run(words, cwd=self.folder, capture_output=True, text=True)
        if done.returncode:
            return done.stderr
        with open(stamp, "w") as f:
            f.write(made_of)
        return None

    def digest(self):
        """Of all sources, changed as they are."""
        sums, folder = hashlib.sha256(), os.path.join(self.work, "kernels")
        for name in sorted(os.listdir(folder)):
            with open(os.path.join(folder, name), "rb") as f:
                sums.update(f.read())
        return sums.hexdigest()

    def compile_all(self, names, races=False):
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            return [e for e in pool.map(lambda name: self.compile_one(name, races), names) if e]

    def program(self, test, races):
        return os.path.join(self.work, test + (".races" if races else ""))

    def link_all(self, tests, count, races=()):
        choice = os.path.join(self.work, "choice.o")
        source = os.path.join(self.work, "choice.cpp")
        with open(source, "w") as f:
            f.write(f"#define COUNT {count + 1}\n" + CHOICE)
        subprocess.run(["c++", "-O1", "-c", source, "-o", choice], check=True)
        archive = os.path.join(self.work, f"kernels{'.races' if races else ''}.a")
        if os.path.exists(archive):
            os.remove(archive)
        subprocess.run(["ar", "rc", archive, choice] + [self.object(n, n in races) for n in self.compile], check=True)
        for test in tests:
            text = subprocess.run(["ninja", "-C", self.folder, "-t", "commands", f"tests/{test}"], check=True,
                                  capture_output=True, text=True).stdout
            words = shlex.split(re.sub(r"^: && | && :$", "", text.splitlines()[-1]))
            words = [archive if w.endswith("libddpm_kernels.a") else w for w in words]
            words[words.index("-o") + 1] = self.program(test, bool(races))
            subprocess.run(words, cwd=self.folder, check=True, capture_output=True)

    def run(self, test, schedule, seconds, mutant=None, seen=None, races=False):
        """None when the test passes, else how it failed."""
        environment = {**os.environ, "DDPM_TEST_DEVICE": "cuda", "DDPM_SYNC": "1", "DDPM_LIBRARIES": "0", "DDPM_CACHE": "",
                       "CUDA_ON_CPU_SCHEDULE": schedule, "OMP_NUM_THREADS": "1"}
        environment.update({"CUDA_ON_CPU_MOST_BLOCKS": "3"} if races or schedule == "reverse" else {})
        environment.update({"MUTANT": str(mutant)} if mutant is not None else {})
        environment.update({"MUTANTS_SEEN": seen} if seen else {})

        def limit():
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        try:
            done = subprocess.run([self.program(test, races)], cwd=os.path.join(ROOT, "tests"), env=environment,
                                  capture_output=True, preexec_fn=limit, timeout=40 * seconds)
        except subprocess.TimeoutExpired:
            return f"{test} does not end"
        if done.returncode == -24 or (done.returncode == -9 and not races):
            return f"{test} does not end"
        return None if done.returncode == 0 else f"{test} {'fails' if done.returncode > 0 else 'crashes'}"


def apart(order, count):
    """The first `count` places of which none lies within another."""
    taken, by_line = [], {}
    for p in order:
        beside = by_line.setdefault(p[:2], [])
        if len(taken) < count and all(p[3][1] <= begin or end <= p[3][0] for begin, end in beside):
            beside.append(p[3])
            taken.append(p)
    return taken


def prepare(build, order, count):
    """Compiles the first `count` places that compile; {number: place}, {number: text}."""
    refused, names = set(), list(build.compile)
    while True:
        wanted = apart([p for p in order if p not in refused], count)
        mutants = dict(enumerate(wanted))
        texts = write_sources(os.path.join(build.work, "kernels"), mutants)
        errors = build.compile_all(names)
        if not errors:
            return mutants, texts
        bad = {(f, int(n)) for f, n in re.findall(r"(?:^|[/ ])(\w+\.(?:cuh?|h)):(\d+):", "\n".join(errors), re.M)}
        more = {p for p in wanted if (p[0], p[1]) in bad}
        if not more:
            sys.exit("mutate.py: kernels do not compile:\n" + errors[0][:3000])
        print(f"{len(more)} places are constants and are left out", flush=True)
        refused |= more


def coverage(build):
    """{test: (seconds, places that it executes)}; every test must pass as it is."""
    found = {}
    for test in build.tests:
        seen = os.path.join(build.work, "seen")
        if os.path.exists(seen):
            os.remove(seen)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        if why := build.run(test, "forward", 600, seen=seen):
            sys.exit(f"mutate.py: with no mutant {why}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if not os.path.exists(seen):  # a test without kernels
            continue
        with open(seen, "rb") as f:
            found[test] = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, f.read())
    return found


def verdict(build, tests, mutant):
    """How a mutant is caught, or None."""
    own = sorted((seconds, test) for test, (seconds, seen) in tests.items() if seen[mutant])
    for schedule in SCHEDULES:
        for seconds, test in own:
            if why := build.run(test, schedule, int(5 + 10 * seconds), mutant):
                return why + f", {schedule}"
    return None


def race(build, tests, mutant, name, count):
    """How the checker of shared-memory races catches a barrier of this file, or None."""
    own = sorted((seconds, test) for test, (seconds, seen) in tests.items() if seen[mutant])
    checked = [name] if name.endswith(".cu") else list(build.compile)
    if errors := build.compile_all(checked, True):
        sys.exit("mutate.py: " + errors[0][:3000])
    build.link_all([test for _, test in own], count, checked)
    for seconds, test in own:
        for choice in (None, mutant):
            if why := build.run(test, "forward", int(60 + 100 * seconds), choice, races=True):
                if choice is None:
                    sys.exit(f"mutate.py: with no mutant {why} under the checker of races")
                return why + ", races"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--least", type=float, default=90)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--results")
    args = parser.parse_args()
    names = sorted(f for f in os.listdir(KERNELS) if re.search(r"\.cuh?$", f) and f != "device.cuh" or f == "formulas.h")
    build, start = Build(args.build, args.jobs), time.monotonic()
    mutants, texts = prepare(build, draw([n for n in names if args.only in (None, n)], args.seed), args.count)
    build.link_all(build.tests, len(mutants))
    tests = coverage(build)
    print(f"compiled and tried as it is in {time.monotonic() - start:.0f} s; the tests take "
          f"{sum(s for s, _ in tests.values()):.0f} s", flush=True)
    lock = threading.Lock()  # one set of programs checks races

    def attempt(k):
        why = verdict(build, tests, k)
        if not why and mutants[k][2] == "barrier":
            with lock:
                why = race(build, tests, k, mutants[k][0], len(mutants))
        return why

    log, known = args.results or os.path.join(build.work, "results.tsv"), {}
    sources = {n: open(os.path.join(KERNELS, n)).read().split("\n") for n in names}

    def key(k):
        name, number, rule, (begin, _) = mutants[k]
        return (name, str(number), str(begin), rule, sources[name][number - 1].strip())

    if os.path.exists(log):
        with open(log) as f:
            known = {tuple(r[:5]): r[5] for r in (line.rstrip("\n").split("\t") for line in f)}
    if args.again:
        known = {place: why for place, why in known.items() if why != "survived"}
    left = [k for k in mutants if key(k) not in known]
    with open(log, "a") as out, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(attempt, k): k for k in left}
        for i, job in enumerate(concurrent.futures.as_completed(jobs), 1):
            k, why = jobs[job], job.result() or "survived"
            known[key(k)] = why
            out.write("\t".join((*key(k), why)) + "\n")
            out.flush()
            print(f"{i}/{len(left)} {mutants[k][0]}:{mutants[k][1]} {mutants[k][2]} '{texts[k]}': {why}", flush=True)
    report(mutants, texts, known, key, time.monotonic() - start, args.least)


def report(mutants, texts, known, key, seconds, least):
    by_rule = {}
    for k, place in mutants.items():
        kept = by_rule.setdefault(place[2], [0, 0])
        kept[0] += 1
        kept[1] += known[key(k)] != "survived"
    caught = sum(n for _, n in by_rule.values())
    for k, (name, number, rule, _) in sorted(mutants.items(), key=lambda m: m[1]):
        if known[key(k)] == "survived":
            print(f"survived: {name}:{number} {rule} '{texts[k]}' -> '{CHANGED.get(texts[k], rule)}' in: {key(k)[4]}")
    print("\n".join(f"{rule}: {n} of {all_} caught" for rule, (all_, n) in sorted(by_rule.items())))
    print(f"{caught} of {len(mutants)} mutants caught, {100 * caught / len(mutants):.1f} %, {seconds:.0f} s")
    sys.exit(0 if 100 * caught >= least * len(mutants) else 1)


main()
