#!/usr/bin/env python3
"""Which lines of kernels/ and of the CUDA device layer the tests execute, from a build with
-DDDPM_CUDA=EMULATED -DDDPM_COVERAGE=ON whose tests have run with DDPM_TEST_DEVICE=cuda:

    tests/build/coverage.py BUILD [--least 95] [--list]

A template's line counts as executed when any instance executed it. Prints a line a file, with --list the lines that were not, and
fails below --least percent of kernels/ or --least-device percent of src/backend/cuda/.
"""
import argparse
import collections
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def counts(build):
    """{file below ROOT: {line: times executed}}"""
    lines = collections.defaultdict(dict)
    notes = [os.path.join(folder, f) for folder, _, files in os.walk(build) for f in files if f.endswith(".gcno")]
    for note in notes:
        done = subprocess.run(["gcov", "--json-format", "--stdout", os.path.abspath(note)], cwd=build, capture_output=True, text=True)
        for text in done.stdout.splitlines():
            for entry in json.loads(text)["files"]:
                path = os.path.relpath(os.path.join(build, entry["file"]), ROOT)
                for line in entry["lines"]:
                    known = lines[path].get(line["line_number"], 0)
                    lines[path][line["line_number"]] = max(known, line["count"])
    return lines


def numbers(found):
    """3, 5-7"""
    runs = []
    for n in found:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build")
    parser.add_argument("--least", type=float, default=95)
    parser.add_argument("--least-device", type=float, default=0)
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    lines, failed = counts(args.build), False
    for folder, least in (("kernels", args.least), (os.path.join("src", "backend", "cuda"), args.least_device)):
        total = executed = 0
        for path in sorted(p for p in lines if os.path.dirname(p) == folder):
            own = lines[path]
            missed = sorted(n for n, count in own.items() if not count)
            total, executed = total + len(own), executed + len(own) - len(missed)
            print(f"{100 * (1 - len(missed) / len(own)):6.1f} %  {len(own) - len(missed):5} of {len(own):5}  {path}"
                  + (f"  not: {numbers(missed)}" if args.list and missed else ""))
        if not total:
            sys.exit(f"coverage.py: no lines of {folder} in {args.build}")
        share = 100 * executed / total
        print(f"{share:6.1f} %  {executed:5} of {total:5}  {folder}, at least {least:g} %")
        failed |= share < least
    sys.exit(1 if failed else 0)


main()
