"""What tests/gpu.sh makes of outputs that only a GPU gives, and whether its comparisons see a difference."""
import argparse
import json
import os
import struct
import sys
import tempfile
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "..", "bench", "results")]
import context  # noqa: E402
import figures  # noqa: E402
import parts  # noqa: E402
import table  # noqa: E402

NCU = """==PROF== Connected to process 1
"ID","Kernel Name","dram__throughput.avg.pct_of_peak_sustained_elapsed","gpu__time_duration.sum","sm__throughput.avg.pct_of_peak_sustained_elapsed"
"","","%","us","%"
"0","void spread<float, 4>(small_image, float)","40.0","1,000.0","10.0"
"1","void spread<float, 4>(small_image, float)","80.0","3,000.0","30.0"
"2","adamw(int)","90.0","500.0","5.0"
"""


def checkpoint(folder, name, values):
    header = {"__metadata__": {"run": name}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
              "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}
    text = json.dumps(header).encode()
    path = os.path.join(folder, name)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + struct.pack("<3f", *values))
    return path


def run_of(step_ms, peers):
    ours = {"configuration": "configs/x.yaml", "batch": 128, "step_median_ms": step_ms, "images_per_s": 1e3, "mfu": 0.4,
            "backend_peak_bytes": 2e9, "first_step_s": 1.0, "gmac_per_image": 6.0}
    return {"date": "2026-01-01T00:00:00+00:00", "commit": "c", "parts": [
        {"part": "bench_train", "verdict": "passed", "seconds": 1, "message": "", "rows": [ours],
         "machine": {"rated_bf16_gflop_per_s": 1e6}},
        {"part": "peers", "verdict": "passed", "seconds": 1, "message": "", "rows": peers}]}


def peer(mode, precision, step_s, peak=4e9):
    return {"configuration": "configs/x.yaml", "batch": 128, "mode": mode, "precision": precision, "step_s": step_s,
            "peak_bytes": peak, "first_step_s": 9.0}


class Figures(unittest.TestCase):
    def test_kernels_are_added_up_by_name(self):
        rows = figures.kernels_of(NCU)
        self.assertEqual([row["kernel"] for row in rows], ["void spread<float, 4>", "adamw"])
        self.assertEqual((rows[0]["launches"], rows[0]["dram_percent"], rows[0]["sm_percent"]), (2, 70.0, 25.0))
        self.assertAlmostEqual(rows[0]["ms"], 4.0)
        self.assertRaises(context.Failed, figures.kernels_of, "==ERROR== no permission")

    def test_the_table_compares_with_the_fastest_compiled_and_the_fastest_plain(self):
        run = run_of(10.0, [peer("compile", "autocast", 0.025), peer("compile", "bf16", 0.020), peer("channels_last", "bf16", 0.040)])
        lines = table.train_table(run)
        self.assertEqual(len(lines), 5)
        self.assertIn("| compile bf16 | 20 |", lines[2])
        self.assertTrue(lines[2].endswith("| 0.5 | 0.5 |"), lines[2])
        self.assertIn("| channels_last bf16 | 40 |", lines[3])
        self.assertTrue(lines[3].endswith("| 0.25 | 0.5 |"), lines[3])
        self.assertIn("| 0.23 |", lines[2])  # 6 x 6 GMAC x 128 / 20 ms of 1e6 GFLOP/s

    def test_without_peers_our_row_stands_alone(self):
        lines = table.train_table(run_of(10.0, []))
        self.assertEqual(len(lines), 4)
        self.assertTrue(lines[2].endswith("| - | - |"))

    def test_a_compiled_start_is_the_cold_one(self):
        out = "warning: x\n" + json.dumps(peer("compile", "bf16", 0.02)) + "\n" + json.dumps(peer("eager", "bf16", 0.03)) + "\n"
        compiled, eager = figures.peer_rows(("configs/x.yaml",), out, 80.0)
        self.assertEqual((compiled["first_step_s"], compiled["first_step_warm_s"], eager["first_step_s"]), (80.0, 9.0, 9.0))

    def test_a_command_that_takes_too_long_is_ended_and_its_output_kept(self):
        with tempfile.TemporaryDirectory() as folder:
            c = context.Context(argparse.Namespace(stand_in=True, out=folder, build=folder))
            c.end = time.monotonic() + 60
            begin = time.monotonic()
            with self.assertRaises(context.TimedOut):
                c.run(["sh", "-c", "echo told; sleep 60 & wait"], seconds=1)
            self.assertLess(time.monotonic() - begin, 30)
            self.assertEqual(c.last_output, "told\n")
            with self.assertRaisesRegex(context.Failed, "ended with 3: why"):
                c.run(["sh", "-c", "echo why >&2; exit 3"])
            c.end = 0
            self.assertRaises(context.TimedOut, c.run, ["true"])
            self.assertEqual(c.last_output, "")

    def test_a_differing_tensor_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            a, same = checkpoint(folder, "x", [1, 2, 3]), checkpoint(folder, "y", [1, 2, 3])
            self.assertEqual(parts.compare_checkpoints(a, same), 2)
            with self.assertRaisesRegex(context.Failed, "^b differs"):
                parts.compare_checkpoints(a, checkpoint(folder, "z", [1, 2, 4]))


if __name__ == "__main__":
    unittest.main()
