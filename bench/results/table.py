"""Keeps the results of a run of tests/gpu.sh, and makes the table of README.md anew from all that are kept.

    python3 bench/results/table.py [RESULTS.json]    keep it as DATE-GPU-COMMIT.json, then write README.md
    python3 bench/results/table.py --check           exit 1 unless README.md is what the files here make

Files of two kinds: those of tests/gpu.sh (a list "parts"), and those of bench/peers/compare.py ("ours" and "peers").
"""
import json
import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
HEAD = """# Figures, by the commit they were measured at

Made by `bench/results/table.py` from the files beside it: change those. Ratios below 1 mean that `ddpm` is faster or smaller.
MFU is 3 forward passes x 2 operations a multiply-add over the maker's rating for dense bf16, for both programs.
"""


def part(run, name):
    return next((p for p in run["parts"] if p["part"] == name), {})


def number(value, digits=3):
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def ratio(ours, theirs):
    return number(ours / theirs) if ours and theirs else "-"


def row(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def table(head, rows):
    return [row(head), "|" + "---|" * len(head), *map(row, rows), ""] if rows else []


# ---- a run on a GPU ----


def about(run):
    gpu, machine = part(run, "properties").get("gpu", {}), part(run, "bench_train").get("machine", {})
    peers = part(run, "peers").get("rows") or [{}]
    name = gpu.get("name") or machine.get("backend", "unknown")
    return [f"GPU {name}", f"driver {gpu.get('driver_version', '-')}", f"PyTorch {peers[0].get('torch', '-')}",
            f"cuDNN {peers[0].get('cudnn', '-')}", f"commit {run['commit']}", run["date"][:10]]


def peer_rows(run, config, batch, key):
    found = [p for p in part(run, "peers").get("rows", []) if p["batch"] == batch and p.get(key)
             and os.path.basename(p["configuration"]) == os.path.basename(config)]
    return sorted(found, key=lambda p: p[key])


def best(rows, compiled):
    return next((p for p in rows if (p["mode"] == "compile") == compiled), {})


def mode_of(p):
    return f"{p['mode']} {p['precision']}" if p else "-"


def train_table(run):
    rated = part(run, "bench_train").get("machine", {}).get("rated_bf16_gflop_per_s")
    rows = []
    for ours in part(run, "bench_train").get("rows", []):
        peers = peer_rows(run, ours["configuration"], ours["batch"], "step_s")
        for p in (best(peers, True), best(peers, False)):
            if not p and rows and rows[-1][0].startswith(f"{os.path.basename(ours['configuration'])}, {ours['batch']},"):
                continue
            step = p.get("step_s")
            mfu = (6 * ours["gmac_per_image"] * ours["batch"] / step / rated if step and rated and ours.get("gmac_per_image") else None)
            rows.append([f"{os.path.basename(ours['configuration'])}, {ours['batch']}, {ours.get('precision', 'fp32')}", number(ours["step_median_ms"]),
                         number(ours["images_per_s"]), number(ours.get("mfu")), number(ours["backend_peak_bytes"] / 1e9),
                         number(ours.get("first_step_s")), mode_of(p), number(step * 1e3 if step else None), number(mfu),
                         number(p["peak_bytes"] / 1e9 if p else None), number(p.get("first_step_s")),
                         ratio(ours["step_median_ms"], step and step * 1e3),
                         ratio(ours["backend_peak_bytes"], p.get("peak_bytes"))])
    return table(["training: configuration, batch, precision", "step, ms", "images/s", "MFU", "memory, GB", "first step, s", "PyTorch's mode",
                  "step, ms", "MFU", "memory, GB", "first step, s", "ratio of time", "of memory"], rows)


def sample_table(run):
    rows = []
    for ours in part(run, "bench_sample").get("rows", []):
        peers = peer_rows(run, ours["configuration"], ours["batch"], "forward_s")
        p = peers[0] if peers else {}
        forward = p.get("forward_s")
        rows.append([f"{os.path.basename(ours['configuration'])}, {ours['batch']}, {ours.get('precision', 'fp32')}", number(ours["step_median_ms"]),
                     number(ours.get("mfu")), mode_of(p), number(forward * 1e3 if forward else None),
                     ratio(ours["step_median_ms"], forward and forward * 1e3)])
    return table(["sampling: configuration, batch, precision", "reverse step, ms", "MFU", "PyTorch's fastest mode", "its forward pass, ms",
                  "ratio"], rows)


def ops_table(run):
    """The slowest rows of bf16 by op, with what they reach of what was measured in the same run."""
    slowest = {}
    for r in part(run, "bench_ops").get("bf16", []):
        if r["op"] not in slowest or r["median_ms"] > slowest[r["op"]]["median_ms"]:
            slowest[r["op"]] = r
    rows = [[f"`{r['op']}`", r["shape"], number(r["median_ms"]), number(r.get("gflop_per_s")), number(r.get("gb_per_s")),
             f"{number(r['share'])} of {r['share_of']}" if r.get("share") is not None else "-"] for r in slowest.values()]
    return table(["op, bf16", "largest shape", "ms", "GFLOP/s", "GB/s", "share"], rows)


def parts_table(run):
    return table(["part", "verdict", "seconds", ""],
                 [[p["part"], p["verdict"], number(p["seconds"]), p["message"].replace("|", "/")] for p in run["parts"]])


def gpu_section(run, name):
    lines = [f"## {part(run, 'properties').get('gpu', {}).get('name', 'GPU')}, {run['date'][:10]}", "",
             ", ".join(about(run)) + f" (`{name}`).", ""]
    return lines + train_table(run) + sample_table(run) + ops_table(run) + parts_table(run)


# ---- a comparison on a CPU ----

PEER_FIGURES = (("step_s", "training step, s"), ("forward_s", "forward (ours: and a reverse step), s"),
                ("peak_bytes", "peak memory, bytes"), ("first_step_s", "process start to first step, s"))


def peers_section(record, name):
    modes = list(record["peers"])
    lines = [f"## {record['configuration']}, batch {record['batch']}, {record['device']}, {record['date'][:10]}", "",
             f"{record['machine']['processor']}, {record['threads']} threads, PyTorch {record['torch']}, commit "
             f"{record['versions']['commit']}, {record['rounds']} rounds (`{name}`).", ""]
    rows = [[title, number(record["ours"][key]), *(number(record["peers"][m][key]) for m in modes), number(record["ratio"][key])]
            for key, title in PEER_FIGURES if key in record["ours"]]
    return lines + table(["figure", "ddpm", *modes, "ratio to the best"], rows)


# ---- all files ----


def readme():
    runs, comparisons = [], []
    for name in sorted(os.listdir(HERE), reverse=True):
        if name.endswith(".json"):
            with open(os.path.join(HERE, name)) as f:
                record = json.load(f)
            (runs if "parts" in record else comparisons).append((record, name))
    lines = [HEAD]
    if not runs:
        lines += ["No run on a GPU is kept here yet: `tests/gpu.sh` makes one.", ""]
    for record, name in runs:
        lines += gpu_section(record, name)
    for record, name in comparisons:
        lines += peers_section(record, name)
    return "\n".join(lines).rstrip("\n") + "\n"


def keep(path):
    with open(path) as f:
        run = json.load(f)
    if run.get("stand_in"):
        sys.exit("table: this run had no GPU; nothing is kept of it")
    gpu = part(run, "properties").get("gpu", {}).get("name", "gpu")
    name = f"{run['date'][:10]}-{re.sub('[^a-z0-9]+', '-', gpu.lower()).strip('-')}-{run['commit']}.json"
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(run, f, indent=1)
        f.write("\n")
    print(f"kept as {os.path.relpath(os.path.join(HERE, name))}")


def main():
    path = os.path.join(HERE, "README.md")
    if sys.argv[1:] == ["--check"]:
        with open(path) as f:
            if f.read() != readme():
                sys.exit(f"{path} is not what its files make: run bench/results/table.py")
        return
    if len(sys.argv) > 2 or sys.argv[1:2] and sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    if len(sys.argv) == 2:
        keep(sys.argv[1])
    text = readme()
    with open(path, "w") as f:
        f.write(text)


if __name__ == "__main__":
    main()
