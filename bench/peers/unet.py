"""The U-Net of `ddpm` in plain PyTorch, for machines without diffusers: the blocks, widths and parameters of UNet2DModel.

Written the way a PyTorch user would: channels may lie last, attention is scaled_dot_product_attention, nothing else is tuned;
what torch.compile makes of it is PyTorch's figure.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    def __init__(self, width_in, width, emb, cfg):
        super().__init__()
        self.scale_shift = cfg["scale_shift"]
        self.norm1 = nn.GroupNorm(cfg["norm_groups"], width_in, eps=cfg["norm_eps"])
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1)
        self.time_emb_proj = nn.Linear(emb, 2 * width if self.scale_shift else width)
        self.norm2 = nn.GroupNorm(cfg["norm_groups"], width, eps=cfg["norm_eps"])
        self.dropout = nn.Dropout(cfg["dropout"])
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(width_in, width, 1) if width_in != width else None

    def forward(self, x, emb):
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.time_emb_proj(F.silu(emb))[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    def __init__(self, width, cfg):
        super().__init__()
        self.heads = width // cfg["head_channels"] if cfg["head_channels"] else cfg["num_heads"]
        self.group_norm = nn.GroupNorm(cfg["norm_groups"], width, eps=cfg["norm_eps"])
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x):
        n, c, height, width = x.shape
        h = self.group_norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        q, k, v = self.to_qkv(h).view(n, height * width, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        return x + self.to_out(h).view(n, height, width, c).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    def __init__(self, width, cfg):
        super().__init__()
        self.padding = cfg["downsample_padding"]
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=self.padding)

    def forward(self, x):
        return self.conv(x if self.padding else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class UNet(nn.Module):
    """cfg: the dictionary of train_peer.py. forward(x [N,C,H,W], t [N], class_labels [N] or None) -> [N,C,H,W]."""

    def __init__(self, cfg):
        super().__init__()
        widths = [round(cfg["channels"] * m) for m in cfg["channel_mult"]]
        emb = 4 * widths[0]
        attends = [(cfg["image_height"] >> level) in cfg["attention_resolutions"] for level in range(len(widths))]
        self.cfg, self.width0 = cfg, widths[0]
        self.time_embedding = nn.Sequential(nn.Linear(widths[0], emb), nn.SiLU(), nn.Linear(emb, emb))
        self.class_embedding = nn.Embedding(cfg["num_classes"], emb) if cfg["num_classes"] else None
        self.conv_in = nn.Conv2d(cfg["image_channels"], widths[0], 3, padding=1)

        self.down, kept, width = nn.ModuleList(), [widths[0]], widths[0]
        for level, wide in enumerate(widths):
            for _ in range(cfg["num_res_blocks"]):
                self.down.append(nn.ModuleList([ResBlock(width, wide, emb, cfg)] + [Attention(wide, cfg)] * attends[level]))
                width = wide
                kept.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([Downsample(width, cfg)]))
                kept.append(width)
        self.mid = nn.ModuleList([ResBlock(width, width, emb, cfg), Attention(width, cfg), ResBlock(width, width, emb, cfg)])
        self.up = nn.ModuleList()
        for level, wide in reversed(list(enumerate(widths))):
            for _ in range(cfg["num_res_blocks"] + 1):
                self.up.append(nn.ModuleList([ResBlock(width + kept.pop(), wide, emb, cfg)] + [Attention(wide, cfg)] * attends[level]))
                width = wide
            if level > 0:
                self.up.append(nn.ModuleList([Upsample(width)]))
        self.conv_norm_out = nn.GroupNorm(cfg["norm_groups"], width, eps=cfg["norm_eps"])
        self.conv_out = nn.Conv2d(width, cfg["image_channels"], 3, padding=1)

    def embed(self, t, class_labels):
        half = self.width0 // 2
        rates = torch.exp(-math.log(10000) / (half - self.cfg["embedding_shift"])
                          * torch.arange(half, dtype=torch.float32, device=t.device))
        angles = t[:, None].float() * rates
        parts = [angles.sin(), angles.cos()]
        emb = self.time_embedding(torch.cat(parts if self.cfg["embedding_order"] == "sin-cos" else parts[::-1], dim=1)
                                  .to(self.conv_in.weight.dtype))
        return emb if self.class_embedding is None else emb + self.class_embedding(class_labels)

    def forward(self, x, t, class_labels=None):
        emb = self.embed(t, class_labels)
        h = self.conv_in(x)
        skips = [h]
        for block in self.down:
            for part in block:
                h = part(h, emb) if isinstance(part, ResBlock) else part(h)
            skips.append(h)
        for part in self.mid:
            h = part(h, emb) if isinstance(part, ResBlock) else part(h)
        for block in self.up:
            for part in block:
                h = part(torch.cat([h, skips.pop()], dim=1), emb) if isinstance(part, ResBlock) else part(h)
        return self.conv_out(F.silu(self.conv_norm_out(h)))
