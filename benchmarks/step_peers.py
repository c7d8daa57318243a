"""PyTorch's step of the same size, for `benchmarks.step`."""

import argparse
import time

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AlignConfig, AlignModel, BertConfig, BertModel

from align_jax.models.bert import HEAD_WIDTH
from align_jax.models.efficientnet import EfficientNetConfig
from align_jax.weights.open_clip_config import write_open_clip
from benchmarks.step_flags import Program
from benchmarks.step_towers import (
    BERT_VOCABULARY,
    image_multipliers,
    make_model,
    text_size,
)

SMOOTHING = 0.1


class TimmDualEncoder(nn.Module):
    """timm's EfficientNet and Hugging Face's BERT, both scaled to unit length."""

    def __init__(self, flags: argparse.Namespace):
        super().__init__()
        from timm.models.efficientnet import _gen_efficientnet

        self.image_tower = _gen_efficientnet(
            "efficientnet_b0",
            *image_multipliers(flags),
            num_classes=0,
            drop_path_rate=0.2,
        )
        self.text_tower = BertModel(bert_config(flags), add_pooling_layer=False)
        width = self.image_tower.num_features
        self.projection = nn.Linear(text_size(flags)[1], width)
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, images, tokens):
        """Returns both towers' unit vectors (B, D) and the temperature."""
        image = self.image_tower(images)
        text = self.text_tower(tokens).last_hidden_state[:, 0]
        pair = image, self.projection(text)
        return *(F.normalize(x.float(), dim=-1) for x in pair), self.temperature


class HuggingFaceDualEncoder(nn.Module):
    """Hugging Face's AlignModel, by default EfficientNet-B7 and BERT-Base."""

    def __init__(self, flags: argparse.Namespace):
        super().__init__()
        width, depth = image_multipliers(flags)
        vision = {
            "width_coefficient": width,
            "depth_coefficient": depth,
            "image_size": flags.image_size,
        }
        pooled = EfficientNetConfig(width, depth).output_width
        text = bert_config(flags).to_dict()
        config = AlignConfig(
            text_config=text, vision_config=vision, projection_dim=pooled
        )
        self.model = AlignModel(config)

    def forward(self, images, tokens):
        """Returns both towers' unit vectors (B, D) and the temperature."""
        found = self.model(input_ids=tokens, pixel_values=images)
        return found.image_embeds, found.text_embeds, self.model.temperature


class OpenClipDualEncoder(nn.Module):
    """OpenCLIP's CLIP with a ViT, by the config that we export for our model."""

    def __init__(self, flags: argparse.Namespace):
        super().__init__()
        from open_clip.model import CLIP

        described = write_open_clip(make_model(flags), flags.image_size)
        self.model = CLIP(**described)

    def forward(self, images, tokens):
        """Returns both towers' unit vectors (B, D) and the temperature."""
        image, text, scale = self.model(images, tokens)
        return image, text, 1 / scale


PEERS = {
    "timm": TimmDualEncoder,
    "huggingface": HuggingFaceDualEncoder,
    "open": OpenClipDualEncoder,
}


def bert_config(flags: argparse.Namespace) -> BertConfig:
    """Returns the config of a BERT of the chosen size."""
    layers, hidden = text_size(flags)
    return BertConfig(
        vocab_size=BERT_VOCABULARY,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // HEAD_WIDTH,
    )


def prepare_peer(flags: argparse.Namespace) -> Program:
    """Builds the step of the peer `flags.only`, with autocast and channels_last."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    kind = PEERS[flags.only.partition("_")[0]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = kind(flags).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    side = flags.image_size
    images = torch.randn(flags.batch, 3, side, side, device=device)
    images = images.to(memory_format=torch.channels_last)
    words = make_model(flags).text_tower.vocabulary_size
    tokens = torch.randint(1, words, (flags.batch, flags.tokens), device=device)
    labels = torch.arange(flags.batch, device=device)

    def score(images, tokens):
        with torch.autocast(device, torch.bfloat16, enabled=flags.dtype == "bfloat16"):
            image, text, temperature = model(images, tokens)
            logits = image @ text.T / temperature
        smoothed = dict(label_smoothing=SMOOTHING)
        logits = logits.float()
        return F.cross_entropy(logits, labels, **smoothed) + F.cross_entropy(
            logits.T, labels, **smoothed
        )

    if flags.only == "huggingface_blocks":
        vision, text = model.model.vision_model, model.model.text_model
        for block in [*vision.encoder.blocks, *text.encoder.layer]:
            block.compile()
    elif not flags.only.endswith("eager"):
        score = torch.compile(score)

    def take():
        score(images, tokens).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    start = time.perf_counter()
    take()
    wait()
    seconds = time.perf_counter() - start
    if device == "cuda":
        torch.cuda.empty_cache()  # others may use it before this one's turn

    def finish():
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
        return {"peak_bytes": peak, "compile_seconds": seconds}

    return Program(take, wait, finish)
