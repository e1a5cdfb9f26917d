"""Contents of public TransUNet weights: names and shapes of both kinds of file."""

import numpy as np
import torch

#: Arrays of the ImageNet file that no TransUNet uses.
UNUSED = ["cls", "head/bias", "head/kernel", "pre_logits/bias", "pre_logits/kernel"]


def official_state(network):
    """Random tensors under the names of the authors' code, of this network's shapes."""
    config, state = network.config, {}

    def add(name, *shape, bias=None):
        state[f"{name}.weight"] = torch.randn(shape) * 0.2
        if bias:
            state[f"{name}.bias"] = torch.randn(bias) * 0.2

    def batch_norm(name, channels):
        add(name, channels, bias=channels)
        state[f"{name}.running_mean"] = torch.randn(channels)
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    root, width = config.root, config.width
    cnn = "transformer.embeddings.hybrid_model"
    add(f"{cnn}.root.conv", root, 3, 7, 7)
    add(f"{cnn}.root.gn", root, bias=root)
    channels = root
    for block, units in enumerate(config.units):
        middle, out = root * 2**block, 4 * root * 2**block
        for unit in range(units):
            name = f"{cnn}.body.block{block + 1}.unit{unit + 1}"
            add(f"{name}.conv1", middle, channels, 1, 1)
            add(f"{name}.conv2", middle, middle, 3, 3)
            add(f"{name}.conv3", out, middle, 1, 1)
            for n, c in ((1, middle), (2, middle), (3, out)):
                add(f"{name}.gn{n}", c, bias=c)
            if unit == 0:
                add(f"{name}.downsample", out, channels, 1, 1)
                add(f"{name}.gn_proj", out, bias=out)
            channels = out
    add("transformer.embeddings.patch_embeddings", width, channels, 1, 1, bias=width)
    state["transformer.embeddings.position_embeddings"] = torch.randn(1, config.grid**2, width)
    for n in range(config.depth):
        name = f"transformer.encoder.layer.{n}"
        for part in ("query", "key", "value", "out"):
            add(f"{name}.attn.{part}", width, width, bias=width)
        for part in ("attention_norm", "ffn_norm"):
            add(f"{name}.{part}", width, bias=width)
        add(f"{name}.ffn.fc1", config.hidden, width, bias=config.hidden)
        add(f"{name}.ffn.fc2", width, config.hidden, bias=width)
    add("transformer.encoder.encoder_norm", width, bias=width)
    first, *ups = config.decoder
    add("decoder.conv_more.0", first, width, 3, 3)
    batch_norm("decoder.conv_more.1", first)
    before = first
    for n, (out, skip) in enumerate(zip(ups, (8 * root, 4 * root, root, 0), strict=True)):
        for conv, c in ((1, before + skip), (2, out)):
            add(f"decoder.blocks.{n}.conv{conv}.0", out, c, 3, 3)
            batch_norm(f"decoder.blocks.{n}.conv{conv}.1", out)
        before = out
    add("segmentation_head.0", config.classes, before, 3, 3, bias=config.classes)
    return state


def imagenet_arrays(config, **changes):
    """The file's arrays by name, each filled with a constant of its own."""
    root, width, hidden = config.root, config.width, config.hidden
    by_head = (config.heads, width // config.heads)
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (1, 1, 16 * root, width),
        "embedding/bias": (width,),
        "pre_logits/kernel": (width, width),
        "pre_logits/bias": (width,),
        "head/kernel": (width, 21843),
        "head/bias": (21843,),
        "Transformer/posembed_input/pos_embedding": (1, 197, width),
        "conv_root/kernel": (7, 7, 3, root),
    }

    def norm(name, channels, ones=0):
        for kind in ("scale", "bias"):
            shapes[f"{name}/{kind}"] = (1,) * ones + (channels,)

    norm("gn_root", root, 3)
    norm("Transformer/encoder_norm", width)
    for b in range(config.depth):
        name = f"Transformer/encoderblock_{b}"
        norm(f"{name}/LayerNorm_0", width)
        norm(f"{name}/LayerNorm_2", width)
        attention = f"{name}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes |= {f"{attention}/{part}/kernel": (width, *by_head)}
            shapes |= {f"{attention}/{part}/bias": by_head}
        shapes |= {f"{attention}/out/kernel": (*by_head, width), f"{attention}/out/bias": (width,)}
        mlp = f"{name}/MlpBlock_3"
        shapes |= {f"{mlp}/Dense_0/kernel": (width, hidden), f"{mlp}/Dense_0/bias": (hidden,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (hidden, width), f"{mlp}/Dense_1/bias": (width,)}
    channels = root
    for s, units in enumerate(config.units):
        middle, out = root * 2**s, 4 * root * 2**s
        for u in range(units):
            name = f"block{s + 1}/unit{u + 1}"
            shapes[f"{name}/conv1/kernel"] = (1, 1, channels, middle)
            shapes[f"{name}/conv2/kernel"] = (3, 3, middle, middle)
            shapes[f"{name}/conv3/kernel"] = (1, 1, middle, out)
            for n, c in ((1, middle), (2, middle), (3, out)):
                norm(f"{name}/gn{n}", c, 3)
            if u == 0:
                shapes[f"{name}/conv_proj/kernel"] = (1, 1, channels, out)
                norm(f"{name}/gn_proj", out, 3)
            channels = out
    shapes |= changes
    return {
        name: np.full(shape, number + 0.5, np.float32)
        for number, (name, shape) in enumerate(shapes.items())
        if shape is not None
    }
