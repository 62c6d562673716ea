"""The same training step in PyTorch: diffusers' UNet2DModel from one of our configuration files.

    python bench/peers/train_peer.py configs/ddpm-cifar10.yaml --batch 8 --mode eager

One process measures one mode (eager, channels_last or compile) and prints one JSON object, so that peak memory and
start-up time are the mode's own. The step is algorithm 1 of the DDPM paper as `ddpm train` does it: draw t and eps, noise
the batch, mean squared error, backward, clip by global norm, AdamW, one EMA; fp32 throughout. The fastest forms that
PyTorch offers are used: fused AdamW, foreach EMA, scaled_dot_product_attention (diffusers' own choice).
"""
import argparse
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
    from diffusers import UNet2DModel

    if model["resblock_updown"]:
        sys.exit("train_peer: resblock_updown has no counterpart here")
    widths = [round(model["channels"] * m) for m in model["channel_mult"]]
    head = model["head_channels"] or None
    if head is None and model["num_heads"] != 1:
        if len(set(widths)) != 1:
            sys.exit("train_peer: UNet2DModel takes a head width, not a number of heads")
        head = widths[0] // model["num_heads"]
    attends = [(model["image_height"] >> level) in model["attention_resolutions"] for level in range(len(widths))]
    return UNet2DModel(
        sample_size=(model["image_height"], model["image_width"]), in_channels=model["image_channels"],
        out_channels=model["image_channels"], layers_per_block=model["num_res_blocks"], block_out_channels=widths,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        norm_num_groups=model["norm_groups"], norm_eps=model["norm_eps"], dropout=model["dropout"],
        freq_shift=model["embedding_shift"], flip_sin_to_cos=model["embedding_order"] == "cos-sin",
        downsample_padding=model["downsample_padding"], attention_head_dim=head,
        resnet_time_scale_shift="scale_shift" if model["scale_shift"] else "default",
        num_class_embeds=model["num_classes"] or None)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mode", choices=("eager", "channels_last", "compile"), default="eager")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    import torch
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model_cfg, train, diffusion = read_config(args.config)
    device = torch.device(args.device)
    net = build(model_cfg).to(device).train()
    parameters = sum(p.numel() for p in net.parameters())
    expected = PARAMETERS.get(os.path.basename(args.config))
    if expected and parameters != expected:
        sys.exit(f"train_peer: {parameters} parameters, {expected} expected")
    if args.mode == "channels_last":
        net = net.to(memory_format=torch.channels_last)
    weights = list(net.parameters())
    ema = [w.detach().clone() for w in weights]
    rate = train["ema"][0]
    optimizer = torch.optim.AdamW(weights, lr=train["lr"], betas=(train["beta1"], train["beta2"]), eps=train["adam_eps"],
                                  weight_decay=train["weight_decay"], fused=True)
    run = torch.compile(net) if args.mode == "compile" else net

    beta = torch.linspace(diffusion["beta_start"], diffusion["beta_end"], diffusion["steps"], dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)
    rows = torch.stack([abar.sqrt(), (1 - abar).sqrt()]).float().to(device)
    shape = (args.batch, model_cfg["image_channels"], model_cfg["image_height"], model_cfg["image_width"])
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8).to(device)
    label = torch.zeros(args.batch, dtype=torch.int64, device=device) if model_cfg["num_classes"] else None

    def noised():
        x0 = pixels.float() / 127.5 - 1
        if args.mode == "channels_last":
            x0 = x0.contiguous(memory_format=torch.channels_last)
        eps = torch.randn_like(x0)
        t = torch.randint(0, diffusion["steps"], (args.batch,), device=device)
        a, s = rows[:, t, None, None, None]
        return a * x0 + s * eps, eps, t

    def step():
        xt, eps, t = noised()
        loss = torch.nn.functional.mse_loss(run(xt, t, class_labels=label, return_dict=False)[0], eps)
        loss.backward()
        if train["clip_norm"] > 0:
            torch.nn.utils.clip_grad_norm_(weights, train["clip_norm"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(ema, weights, 1 - rate)
        return loss

    def forward():
        with torch.no_grad():
            xt, _, t = noised()
            return run(xt, t, class_labels=label, return_dict=False)[0]

    def timed(work, warmup):
        for _ in range(warmup):
            work()
        seconds = []
        for _ in range(args.repeats):
            if device.type == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
        return seconds

    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    first = process_age()
    steps = timed(step, args.warmup)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    forwards = timed(forward, min(args.warmup, 1))
    print(json.dumps({"engine": "pytorch", "mode": args.mode, "device": str(device), "torch": torch.__version__,
                      "threads": args.threads, "batch": args.batch, "parameters": parameters,
                      "step_s": statistics.median(steps), "step_all_s": steps,
                      "forward_s": statistics.median(forwards), "forward_all_s": forwards,
                      "peak_bytes": peak, "first_step_s": first}))


if __name__ == "__main__":
    main()
