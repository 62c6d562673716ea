"""The same training step in PyTorch: diffusers' UNet2DModel, or unet.py where diffusers is missing, from one of our
configuration files.

    python bench/peers/train_peer.py configs/ddpm-cifar10.yaml --batch 8 --mode eager
    python bench/peers/train_peer.py configs/ddpm-cifar10.yaml --batch 128,512 --device cuda --mode compile --precision bf16

One process measures one mode and precision, so that start-up time is its own, and prints one JSON object for each batch as it
ends; peak memory is the batch's own on a GPU, the process's on a CPU. The step is algorithm 1 of the DDPM paper as `ddpm train`
does it: draw t and eps, noise the batch, mean squared error, backward, clip by global norm, AdamW, one EMA. The fastest forms
that PyTorch offers are used: fused AdamW, foreach EMA, scaled_dot_product_attention, cudnn.benchmark, and for `compile`
max-autotune over noising, network and loss as one function, with its CUDA graphs.

  precision  fp32      no TF32
             autocast  bf16 products by torch.autocast, weights and moments in f32
             bf16      weights, moments and the EMA in bf16 too: less exact than `ddpm train`, and less to move
"""
import argparse
import contextlib
import importlib.util
import json
import os
import resource
import statistics
import sys
import time

# Defaults of include/ddpm/config.h that matter here; the file overrides them.
MODEL = dict(image_height=32, image_width=32, image_channels=3, channels=128, channel_mult=[1, 2, 2, 2],
             num_res_blocks=2, attention_resolutions=[16], num_heads=1, head_channels=0, dropout=0.0, norm_groups=32,
             norm_eps=1e-6, embedding_order="sin-cos", embedding_shift=1.0, downsample_padding=0, scale_shift=False,
             resblock_updown=False, num_classes=0)
TRAIN = dict(lr=2e-4, beta1=0.9, beta2=0.999, adam_eps=1e-8, weight_decay=0.0, clip_norm=1.0, ema=[0.9999])
DIFFUSION = dict(steps=1000, beta_start=1e-4, beta_end=0.02)
PARAMETERS = {"ddpm-cifar10.yaml": 35746307, "ddpm-256.yaml": 113673219}


def process_age():
    """Seconds since this process was started, by the kernel's own record (10 ms steps)."""
    with open("/proc/self/stat") as f:
        ticks = int(f.read().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def as_list(value, kind):
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, (list, tuple)):
        value = [value]
    return [kind(v) for v in value]


def read_config(path):
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    # YAML 1.1 reads 2e-4 as a string; our parser reads it as a number.
    import re
    Loader.add_implicit_resolver("tag:yaml.org,2002:float",
                                 re.compile(r"^[-+]?[0-9][0-9]*(?:\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
    with open(path) as f:
        text = yaml.load(f, Loader=Loader) or {}
    model = {**MODEL, **text.get("model", {})}
    train = {**TRAIN, **{k: v for k, v in text.get("train", {}).items() if k in TRAIN}}
    diffusion = {**DIFFUSION, **{k: v for k, v in text.get("diffusion", {}).items() if k in DIFFUSION}}
    model["channel_mult"] = as_list(model["channel_mult"], float)
    model["attention_resolutions"] = as_list(model["attention_resolutions"], int)
    train["ema"] = as_list(train["ema"], float)
    return model, train, diffusion


def build(model):
    if model["resblock_updown"]:
        sys.exit("train_peer: resblock_updown has no counterpart here")
    if importlib.util.find_spec("diffusers") is None:
        sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
        from unet import UNet
        return UNet(model), "unet.py"
    return build_diffusers(model), "diffusers"


def build_diffusers(model):
    from diffusers import UNet2DModel

    widths = [round(model["channels"] * m) for m in model["channel_mult"]]
    head = model["head_channels"] or None
    if head is None and model["num_heads"] != 1:
        if len(set(widths)) != 1:
            sys.exit("train_peer: UNet2DModel takes a head width, not a number of heads")
        head = widths[0] // model["num_heads"]
    attends = [(model["image_height"] >> level) in model["attention_resolutions"] for level in range(len(widths))]
    net = UNet2DModel(
        sample_size=(model["image_height"], model["image_width"]), in_channels=model["image_channels"],
        out_channels=model["image_channels"], layers_per_block=model["num_res_blocks"], block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        norm_num_groups=model["norm_groups"], norm_eps=model["norm_eps"], dropout=model["dropout"],
        freq_shift=model["embedding_shift"], flip_sin_to_cos=model["embedding_order"] == "cos-sin",
        downsample_padding=model["downsample_padding"], attention_head_dim=head,
        resnet_time_scale_shift="scale_shift" if model["scale_shift"] else "default",
        num_class_embeds=model["num_classes"] or None)
    inner = net.forward
    net.forward = lambda x, t, class_labels=None: inner(x, t, class_labels=class_labels, return_dict=False)[0]
    return net


class Training:
    """The network, its optimiser and EMA, and the step, for one mode and precision."""

    def __init__(self, args):
        import torch
        self.torch, self.args = torch, args
        self.device = torch.device(args.device)
        self.model_cfg, train, diffusion = read_config(args.config)
        self.net, self.net_from = build(self.model_cfg)
        self.net = self.net.to(self.device).train()
        self.parameters = sum(p.numel() for p in self.net.parameters())
        expected = PARAMETERS.get(os.path.basename(args.config))
        if expected and self.parameters != expected:
            sys.exit(f"train_peer: {self.parameters} parameters, {expected} expected")
        # a GPU's convolutions want channels last in every mode but plain eager; gcc's do not all
        self.channels_last = args.mode == "channels_last" or (args.mode == "compile" and self.device.type == "cuda")
        if self.channels_last:
            self.net = self.net.to(memory_format=torch.channels_last)
        self.dtype = torch.bfloat16 if args.precision == "bf16" else torch.float32
        self.net = self.net.to(self.dtype)
        self.weights = list(self.net.parameters())
        self.ema = [w.detach().clone() for w in self.weights]
        self.rate, self.clip = train["ema"][0], train["clip_norm"]
        self.optimizer = torch.optim.AdamW(self.weights, lr=train["lr"], betas=(train["beta1"], train["beta2"]),
                                           eps=train["adam_eps"], weight_decay=train["weight_decay"], fused=True)
        beta = torch.linspace(diffusion["beta_start"], diffusion["beta_end"], diffusion["steps"], dtype=torch.float64)
        abar = torch.cumprod(1 - beta, 0)
        self.rows = torch.stack([abar.sqrt(), (1 - abar).sqrt()]).float().to(self.device)
        self.T = diffusion["steps"]
        self.loss_of, self.answer_of = self.loss, self.answer
        if args.mode == "compile":
            # Inductor's graphs are CUDA's; a CPU has its default mode alone
            mode = "max-autotune" if self.device.type == "cuda" else None
            # dynamic=False: a second batch is compiled for its own size, like the first
            self.loss_of = torch.compile(self.loss, mode=mode, dynamic=False)
            self.answer_of = torch.compile(self.answer, mode=mode, dynamic=False)

    def batch(self, n):
        c = self.model_cfg
        shape = (n, c["image_channels"], c["image_height"], c["image_width"])
        self.pixels = self.torch.randint(0, 256, shape, dtype=self.torch.uint8).to(self.device)
        self.label = self.torch.zeros(n, dtype=self.torch.int64, device=self.device) if c["num_classes"] else None

    def precision(self):
        if self.args.precision != "autocast":
            return contextlib.nullcontext()
        return self.torch.autocast(self.device.type, dtype=self.torch.bfloat16)

    def noised(self, pixels):
        x0 = pixels.float() / 127.5 - 1
        if self.channels_last:
            x0 = x0.contiguous(memory_format=self.torch.channels_last)
        eps = self.torch.randn_like(x0)
        t = self.torch.randint(0, self.T, (len(pixels),), device=self.device)
        a, s = self.rows[:, t, None, None, None]
        return (a * x0 + s * eps).to(self.dtype), eps, t

    def answer(self, pixels, label):
        xt, _, t = self.noised(pixels)
        with self.precision():
            return self.net(xt, t, class_labels=label)

    def loss(self, pixels, label):
        xt, eps, t = self.noised(pixels)
        with self.precision():
            out = self.net(xt, t, class_labels=label)
        return self.torch.nn.functional.mse_loss(out.float(), eps)

    def step(self):
        if self.args.mode == "compile":
            self.torch.compiler.cudagraph_mark_step_begin()
        loss = self.loss_of(self.pixels, self.label)
        loss.backward()
        if self.clip > 0:
            self.torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with self.torch.no_grad():
            self.torch._foreach_lerp_(self.ema, self.weights, 1 - self.rate)

    def forward(self):
        with self.torch.no_grad():
            if self.args.mode == "compile":
                self.torch.compiler.cudagraph_mark_step_begin()
            self.answer_of(self.pixels, self.label)

    def wait(self):
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def timed(self, work, warmup):
        """Seconds of one, `repeats` times; on a GPU each the mean of a span of calls between two waits."""
        span = self.args.span if self.device.type == "cuda" else 1
        for _ in range(warmup):
            work()
        seconds = []
        for _ in range(self.args.repeats):
            self.wait()
            begin = time.perf_counter()
            for _ in range(span):
                work()
            self.wait()
            seconds.append((time.perf_counter() - begin) / span)
        return seconds

    def peak_bytes(self):
        if self.device.type == "cuda":
            return self.torch.cuda.max_memory_allocated()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def integers(text):
    return [int(word) for word in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--batch", type=integers, default=[8], help="one or more, separated by commas")
    parser.add_argument("--forward-batch", type=integers, default=[], help="further batches, forward passes alone")
    parser.add_argument("--mode", choices=("eager", "channels_last", "compile"), default="eager")
    parser.add_argument("--precision", choices=("fp32", "autocast", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--span", type=int, default=4, help="GPU: calls between two waits")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    training, first = Training(args), None
    about = {"engine": "pytorch", "mode": args.mode, "precision": args.precision, "device": args.device,
             "torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "network": training.net_from,
             "threads": args.threads, "parameters": training.parameters}
    for n in args.batch:
        training.batch(n)
        if training.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        training.step()
        training.wait()
        first = first or process_age()
        ready = time.perf_counter() - begin
        steps = training.timed(training.step, args.warmup)
        peak = training.peak_bytes()
        forwards = training.timed(training.forward, max(args.warmup, 1))
        print(json.dumps({**about, "batch": n, "step_s": statistics.median(steps), "step_all_s": steps,
                          "forward_s": statistics.median(forwards), "forward_all_s": forwards, "peak_bytes": peak,
                          "first_step_s": first, "first_of_batch_s": ready}), flush=True)
    for n in args.forward_batch:
        training.batch(n)
        forwards = training.timed(training.forward, max(args.warmup, 1))
        print(json.dumps({**about, "batch": n, "forward_s": statistics.median(forwards), "forward_all_s": forwards}), flush=True)


if __name__ == "__main__":
    main()
