#!/usr/bin/env python3
"""Machine code of every kernel for every GPU: compiles kernels/*.cu with warnings as errors, reads what ptxas says, and compares
registers, static shared memory and spills with the committed table kernels/resources.tsv.

    tests/build/kernels.py                  compare; exit 1 on a difference, a spill or a warning
    tests/build/kernels.py --write          write the table
    tests/build/kernels.py --only groupnorm.cu [--write]    of one file alone
    tests/build/kernels.py --markdown       print the table of kernels/README.md: traffic, registers, occupancy
    tests/build/kernels.py --check          no nvcc: does kernels/README.md have that table, and kernels/traffic.tsv every kernel?

Compiling prints how long it took. The table belongs to one version of nvcc. With another one, register counts differ by a few:
then only spills, warnings and kernels missing from the table are faults.
"""
import argparse
import concurrent.futures
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TABLE = os.path.join(ROOT, "kernels", "resources.tsv")
ARCHITECTURES = ["80", "90", "100", "120"]
INCLUDES = [f"-I{os.path.join(ROOT, folder)}" for folder in ("kernels", "include", "src/core", "src/backend")]
# Of a multiprocessor: threads, blocks, shared memory, and what of that a block takes beside its own (CUDA programming guide).
MULTIPROCESSOR = {"80": (2048, 32, 164 << 10), "90": (2048, 32, 228 << 10), "100": (2048, 32, 228 << 10), "120": (1536, 24, 100 << 10)}
SHARED_OVERHEAD = 1024
REGISTERS = 65536  # in four quarters, given out to warps by 256
TRAFFIC = os.path.join(ROOT, "kernels", "traffic.tsv")
README = os.path.join(ROOT, "kernels", "README.md")
MARKS = ("<!-- made by tests/build/kernels.py --write -->\n", "<!-- end -->\n")


def find_nvcc(given):
    for path in (given, os.environ.get("NVCC"), shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"):
        if path and os.path.exists(path):
            return path
    sys.exit("kernels.py: no nvcc; install the CUDA toolkit, or run cmake/cuda_wheels.sh --compiler")


def version_of(nvcc):
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    return re.search(r"release [\d.]+, (V[\d.]+)", text).group(1)


def demangle(names):
    done = subprocess.run(["c++filt"], input="\n".join(names), check=True, capture_output=True, text=True)
    return [re.sub(r"^void |\(.*$", "", line).replace("__nv_bfloat16", "bf16") for line in done.stdout.splitlines()]


def compile_one(nvcc, source, arch, folder):
    """{mangled name: (registers, static shared bytes, spill bytes)} of one file for one architecture."""
    out = os.path.join(folder, f"{os.path.basename(source)}.{arch}.cubin")
    command = [nvcc, "-std=c++17", "-O3", "-fmad=false", "-cubin", f"-arch=sm_{arch}", "-Xptxas", "-v", "-Werror", "all-warnings", *INCLUDES,
               source, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"kernels.py: {os.path.relpath(source, ROOT)} for sm_{arch}:\n{done.stdout}{done.stderr}")
    found, name, spill = {}, None, 0
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            name = match.group(1)
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spill = int(match.group(1)) + int(match.group(2))
        elif name and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = (int(match.group(1)), int(shared.group(1)) if shared else 0, spill)
            name = None
    return found


def measure(nvcc, names, processes):
    sources, rows = [os.path.join(ROOT, "kernels", name) for name in names], []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(processes) as pool:
        jobs = [(source, arch, pool.submit(compile_one, nvcc, source, arch, folder))
                for source in sources for arch in ARCHITECTURES]
        for source, arch, job in jobs:
            found = job.result()
            for name, (registers, shared, spill) in zip(demangle(list(found)), found.values()):
                rows.append((os.path.basename(source), name, f"sm_{arch}", registers, shared, spill))
    return rows


def read_table():
    with open(TABLE) as f:
        lines = f.read().splitlines()
    version = lines[0].rpartition(" ")[2]
    rows = [line.split("\t") for line in lines[2:]]
    return version, [(r[0], r[1], r[2], int(r[3]), int(r[4]), int(r[5])) for r in rows]


def write_table(version, rows):
    with open(TABLE, "w") as f:
        f.write(f"# made by tests/build/kernels.py --write with nvcc {version}\n")
        f.write("# file\tkernel\tarchitecture\tregisters\tstatic shared bytes\tspill bytes\n")
        for row in sorted(rows, key=lambda r: (r[0], r[1], int(r[2][3:]))):
            f.write("\t".join(map(str, row)) + "\n")


def read_traffic():
    """{(file, kernel): (per, moved, least, dynamic shared bytes, remark)}"""
    with open(TRAFFIC) as f:
        rows = [line.split("\t") for line in f.read().splitlines() if not line.startswith("#")]
    return {(r[0], r[1]): (r[2], r[3], r[4], int(r[5]), r[6]) for r in rows}


def constants():
    """{file: {name: expression}} of every `constexpr int`."""
    found = {}
    for name in sorted(os.listdir(os.path.join(ROOT, "kernels"))):
        with open(os.path.join(ROOT, "kernels", name)) as f:
            text = f.read()
        lists = re.findall(r"static constexpr int (\w+ = [^;]+);", text)
        found[name] = dict(re.split(r" = ", part) for line in lists for part in re.split(r", (?=\w+ = )", line))
    return found


def threads_of(file, kernel):
    """What the source's __launch_bounds__ says."""
    with open(os.path.join(ROOT, "kernels", file)) as f:
        bounds = re.search(r"__launch_bounds__\(([^,()]+)[^()]*\)\s+" + kernel + r"\(", f.read()).group(1)
    known = {n: e for names in constants().values() for n, e in names.items()} | constants()[file]
    while re.search(r"[A-Za-z_]", bounds):
        bounds = re.sub(r"[A-Za-z_]\w*", lambda m: f"({known[m.group(0)]})", bounds)
    return eval(bounds)  # digits and operators


def occupancy(arch, threads, registers, shared):
    """Percent of a multiprocessor's threads that can run this kernel at a time."""
    most_threads, most_blocks, most_shared = MULTIPROCESSOR[arch]
    warps = 4 * (REGISTERS // 4 // (256 * -(-registers * 32 // 256)))
    blocks = min(most_blocks, most_threads // threads, warps * 32 // threads, most_shared // (shared + SHARED_OVERHEAD))
    return round(100 * blocks * threads / most_threads)


def markdown(rows):
    """A line a kernel, of its instance with the most registers."""
    traffic, kernels = read_traffic(), {}
    for file, name, arch, registers, shared, _ in rows:
        kernels.setdefault((file, name.split("<")[0]), {}).setdefault(arch[3:], []).append((registers, shared))
    if missing := sorted(kernels.keys() ^ traffic.keys()):
        sys.exit(f"kernels.py: kernels/traffic.tsv and kernels/resources.tsv differ in {missing}")
    lines = ["| kernel | bytes moved per | moved | least | threads | registers | shared | occupancy, % | |", "|---|---|---|---|---|---|---|---|---|"]
    for (file, kernel), by_arch in kernels.items():
        per, moved, least, dynamic, remark = traffic[file, kernel]
        most = {arch: (max(r for r, _ in found), max(s for _, s in found) + dynamic) for arch, found in by_arch.items()}
        threads = threads_of(file, kernel)
        lines.append(f"| `{kernel}` | {per} | {moved} | {least} | {threads} | {' / '.join(str(most[a][0]) for a in ARCHITECTURES)} | "
                     f"{max(s for _, s in most.values())} | "
                     f"{' / '.join(str(occupancy(a, threads, *most[a])) for a in ARCHITECTURES)} | {remark} |")
    return "\n".join(lines) + "\n"


def readme_parts():
    with open(README) as f:
        before, _, rest = f.read().partition(MARKS[0])
    table, _, after = rest.partition(MARKS[1])
    return before, table, after


def write_readme(rows):
    before, _, after = readme_parts()
    text = before + MARKS[0] + markdown(rows) + MARKS[1] + after  # may fail: before the file is emptied
    with open(README, "w") as f:
        f.write(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--nvcc")
    parser.add_argument("--only", help="a file of kernels/")
    parser.add_argument("-j", "--jobs", type=int, default=os.cpu_count())
    args = parser.parse_args()
    if args.markdown:
        return print(markdown(read_table()[1]), end="")
    if args.check:
        if readme_parts()[1] != markdown(read_table()[1]):
            sys.exit("kernels.py: the table in kernels/README.md is not that of --markdown: run tests/build/kernels.py --write")
        return None
    nvcc = find_nvcc(args.nvcc)
    names = [args.only] if args.only else sorted(f for f in os.listdir(os.path.join(ROOT, "kernels")) if f.endswith(".cu"))
    start = time.monotonic()
    version, rows = version_of(nvcc), measure(nvcc, names, args.jobs)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"nvcc: {len(names)} files for {len(ARCHITECTURES)} architectures in {time.monotonic() - start:.0f} s, "
          f"{used.ru_utime + used.ru_stime:.0f} s of CPU time")
    table_version, table = read_table() if os.path.exists(TABLE) else (version, [])
    faults = [f"{r[0]}: {r[1]} spills {r[5]} bytes on {r[2]}" for r in rows if r[5]]
    if args.write:
        if args.only and version != table_version:
            sys.exit(f"kernels.py: the table is of nvcc {table_version}, this is {version}: write all of it")
        write_table(version, rows + [r for r in table if r[0] not in names])
        write_readme(read_table()[1])
    else:
        table = [r for r in table if r[0] in names or not args.only]
        same = version == table_version
        width = 6 if same else 3
        ours, theirs = {r[:width] for r in rows}, {r[:width] for r in table}
        faults += ["not in kernels/resources.tsv: " + "\t".join(map(str, r)) for r in sorted(ours - theirs)]
        faults += ["only in kernels/resources.tsv: " + "\t".join(map(str, r)) for r in sorted(theirs - ours)]
        if not same:
            print(f"nvcc {version}, the table is of {table_version}: names and spills compared, not registers")
    for fault in faults[:40]:
        print(fault)
    print(f"{len(rows)} kernels and architectures, {len(faults)} faults")
    sys.exit(1 if faults else 0)


main()
