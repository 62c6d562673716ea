"""tests/gpu.sh: runs the parts in order, each within its seconds, and writes down each as it ends.

In the folder of results (at most eight files, so that they can be fetched from a machine that gives back no more):

  results.json   everything; written anew, whole, as each part ends
  summary.txt    a line a part
  log.txt        every command with its exit code, seconds and output
  and what parts leave there: samples.png, metrics.jsonl, device.json
"""
import argparse
import datetime
import json
import os
import subprocess
import sys
import time
import traceback

from context import ROOT, Context, Failed, Skipped, TimedOut, write_whole
from figures import warm_peers
from machine import set_library_path
from parts import PARTS


def commit_of(context):
    try:
        out = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True,
                             check=True)
        return out.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        pass
    try:
        with open(os.path.join(context.options.carry, "commit")) as f:
            return f.read().strip()
    except OSError:
        return "unknown"


def run_part(context, part, seconds):
    """The part's record: name, verdict, seconds, message, and what it found."""
    if seconds < 1:
        return {"part": part.name, "verdict": "left out", "seconds": 0, "message": f"no time left: --part {part.name}"}
    context.end = time.monotonic() + seconds
    context.log(f"\n======== {part.name}, at most {seconds:.0f} s")
    begin = time.monotonic()
    verdict, message, figures = "passed", "", {}
    try:
        # `figures` is filled as the part goes, so that what was found before a failure is kept
        part.run(context, figures)
    except Skipped as e:
        verdict, message = "skipped", str(e)
    except TimedOut as e:
        verdict, message = "timed out", str(e)
    except Failed as e:
        verdict, message = "failed", str(e)
    except Exception as e:  # a fault of a part's own code must not cost the parts behind it
        verdict, message = "failed", f"{type(e).__name__}: {e}"
        context.log(traceback.format_exc())
    message = message or figures.pop("note", "")
    return {"part": part.name, "verdict": verdict, "seconds": round(time.monotonic() - begin, 2), "message": message,
            **figures}


def main():
    parser = argparse.ArgumentParser(prog="tests/gpu.sh", description="Proofs and figures on a GPU.",
                                     epilog="Example: tests/gpu.sh --part build,op_parity,golden")
    parser.add_argument("--part", metavar="NAMES", help="only these, separated by commas; they need a build")
    parser.add_argument("--list", action="store_true", help="list the parts and the seconds each may take")
    parser.add_argument("--budget", type=float, default=540, metavar="SECONDS", help="for all parts together (default: 540)")
    parser.add_argument("--out", default="build-gpu/results", metavar="DIR", help="results (default: build-gpu/results)")
    parser.add_argument("--build", default="build-gpu", metavar="DIR", help="the build, made by the part `build`")
    parser.add_argument("--carry", default="build-gpu-carry", metavar="DIR", help="what tests/gpu/carry.sh made, if there")
    parser.add_argument("--device", default="cuda", metavar="NAME", help="cuda or cuda:N")
    parser.add_argument("--stand-in", action="store_true", help="no GPU: tiny sizes, on a build with DDPM_CUDA=EMULATED")
    options = parser.parse_args()
    options.carry = os.path.abspath(options.carry)
    names = [part.name for part in PARTS]
    chosen = options.part.split(",") if options.part else [part.name for part in PARTS if not part.asked]
    for name in chosen:
        if name not in names:
            parser.error(f"no part {name!r}; there are {', '.join(names)}")
    if options.list:
        for part in PARTS:
            print(f"{part.name:14} {part.seconds:4} s   {part.what}{' (only when asked for)' if part.asked else ''}")
        return 0

    context = Context(options)
    end = time.monotonic() + options.budget
    now = datetime.datetime.now(datetime.timezone.utc)
    record = {"date": now.isoformat(timespec="seconds"), "commit": commit_of(context), "stand_in": options.stand_in, "parts": []}
    for name in ("results.json", "summary.txt", "log.txt"):
        if os.path.exists(os.path.join(context.out, name)):
            os.unlink(os.path.join(context.out, name))
    if not context.stand_in:
        set_library_path(context)
        if {"build", "peers"} <= set(chosen):
            warm_peers(context)
    bad = 0
    for part in PARTS:
        if part.name not in chosen:
            continue
        # a part by itself may take all there is
        result = run_part(context, part, end - time.monotonic() if len(chosen) == 1 else min(part.seconds, end - time.monotonic()))
        bad += result["verdict"] in ("failed", "timed out", "left out")
        record["parts"].append(result)
        write_whole(os.path.join(context.out, "results.json"), json.dumps(record, indent=1) + "\n")
        line = f"{result['part']:14} {result['verdict']:10} {result['seconds']:7.1f} s  {result['message']}".rstrip()
        print(line, flush=True)
        with open(os.path.join(context.out, "summary.txt"), "a") as f:
            f.write(line + "\n")
    context.stop_background()
    sys.path.insert(0, os.path.join(ROOT, "bench", "results"))
    from table import gpu_section
    print("\n" + "\n".join(gpu_section(record, "results.json")), flush=True)
    print(f"results: {os.path.relpath(context.out, os.getcwd())}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
