"""TransUNet against its definition written out, and its loaders on files of known content."""

import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn
from torch.nn import functional as F

from cmrfast import FileError
from cmrfast.models import build
from cmrfast.models.transunet import Config, Layer, StdConv, TransUNet
from cmrfast.models.transunet_weights import resize_positions
from tests.support.transunet_files import UNUSED, imagenet_arrays, official_state

SMALL = {"image": 32, "root": 32, "units": (2, 1, 2), "width": 24, "depth": 2, "heads": 3}
SMALL |= {"hidden": 40, "decoder": (16, 16, 8, 8, 4)}


def small(**changes):
    torch.manual_seed(0)
    network = TransUNet(Config(**SMALL | changes)).eval()
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.5, 1.5)
    return network


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 105_276_066),
        ({"skips": 0}, 103_764_642),
        ({"skips": 1}, 104_944_290),
        ({"skips": 2}, 105_239_202),
        ({"classes": 1}, 105_275_921),
        ({"classes": 9}, 105_277_081),
        ({"image": 256}, 105_322_146),
    ],
)
def test_parameters(changes, parameters):
    with torch.device("meta"):
        assert count(TransUNet(Config(**changes))) == parameters


def test_published_sizes():
    with torch.device("meta"):
        network = TransUNet()
        images = torch.empty(2, 1, 224, 224)
    encoder = network.encoder
    assert count(encoder.resnet) == 11_894_848
    assert count(encoder.embed) == 787_200
    assert encoder.positions.numel() == 150_528
    assert count(encoder.layers) + count(encoder.norm) == 85_056_000
    assert count(network.decoder) - count(network.decoder.head) == 7_387_200
    tokens, skips = network.encode(images)
    assert tokens.shape == (2, 196, 768)
    sides = [(512, 28), (256, 56), (64, 112)]
    assert [tuple(s.shape) for s in skips] == [(2, c, n, n) for c, n in sides]
    assert network(images).shape == (2, 2, 224, 224)


def official_logits(state, config, images):
    """The network of the specification, step by step, in float64."""
    state = {name: x.double() for name, x in state.items()}

    def std_conv(x, name, stride=1, padding=0):
        w = state[f"{name}.weight"]
        variance, mean = torch.var_mean(w, (1, 2, 3), correction=0, keepdim=True)
        return F.conv2d(x, (w - mean) / (variance + 1e-5).sqrt(), None, stride, padding)

    def affine(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def conv_bn_relu(x, name):
        x = F.conv2d(x, state[f"{name}.0.weight"], padding=1)
        mean, var = state[f"{name}.1.running_mean"], state[f"{name}.1.running_var"]
        return F.batch_norm(x, mean, var, *affine(f"{name}.1")).relu()

    x = images.double().expand(-1, 3, -1, -1)
    cnn = "transformer.embeddings.hybrid_model"
    x = F.group_norm(std_conv(x, f"{cnn}.root.conv", 2, 3), 32, *affine(f"{cnn}.root.gn"), 1e-6)
    skips = [x := x.relu()]
    x = F.max_pool2d(x, 3, 2)
    for block, units in enumerate(config.units):
        for unit in range(units):
            name = f"{cnn}.body.block{block + 1}.unit{unit + 1}"
            stride = 2 if block and not unit else 1
            rest = x
            if unit == 0:
                rest = std_conv(x, f"{name}.downsample", stride)
                rest = F.group_norm(rest, rest.shape[1], *affine(f"{name}.gn_proj"), 1e-5)
            y = F.group_norm(std_conv(x, f"{name}.conv1"), 32, *affine(f"{name}.gn1"), 1e-6)
            y = std_conv(y.relu(), f"{name}.conv2", stride, 1)
            y = F.group_norm(y, 32, *affine(f"{name}.gn2"), 1e-6)
            y = std_conv(y.relu(), f"{name}.conv3")
            x = (rest + F.group_norm(y, 32, *affine(f"{name}.gn3"), 1e-6)).relu()
        skips.append(F.pad(x, (0, 1, 0, 1)) if block == 0 else x)
    x = F.conv2d(x, *affine("transformer.embeddings.patch_embeddings"))
    x = x.flatten(2).mT + state["transformer.embeddings.position_embeddings"]
    size = config.width // config.heads
    for n in range(config.depth):
        name = f"transformer.encoder.layer.{n}"
        y = F.layer_norm(x, x.shape[2:], *affine(f"{name}.attention_norm"), 1e-6)
        q, k, v = (
            F.linear(y, *affine(f"{name}.attn.{part}")).unflatten(2, (-1, size)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        y = ((q @ k.mT / size**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + F.linear(y, *affine(f"{name}.attn.out"))
        y = F.layer_norm(x, x.shape[2:], *affine(f"{name}.ffn_norm"), 1e-6)
        y = F.gelu(F.linear(y, *affine(f"{name}.ffn.fc1")))
        x = x + F.linear(y, *affine(f"{name}.ffn.fc2"))
    x = F.layer_norm(x, x.shape[2:], *affine("transformer.encoder.encoder_norm"), 1e-6)
    x = conv_bn_relu(x.mT.unflatten(2, (config.grid, -1)), "decoder.conv_more")
    for n, skip in enumerate((skips[2], skips[1], skips[0], None)):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = x if skip is None else torch.cat((x, skip), 1)
        for conv in (1, 2):
            x = conv_bn_relu(x, f"decoder.blocks.{n}.conv{conv}")
    return F.conv2d(x, *affine("segmentation_head.0"), padding=1)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_official_state_gives_the_specified_logits(tmp_path, prefix):
    network = small()
    state = official_state(network)
    torch.save({prefix + name: x for name, x in state.items()}, tmp_path / "epoch_149.pth")
    network.load_official(tmp_path / "epoch_149.pth")
    images = torch.rand(3, 1, 32, 32)
    wanted = official_logits(state, network.config, images)
    torch.testing.assert_close(network.double()(images.double()), wanted)
    torch.testing.assert_close(network(images.double().expand(-1, 3, -1, -1)), wanted)


def test_skip_b_ends_in_zeros():
    _, (a, b, c) = small().encode(torch.rand(1, 1, 32, 32))
    assert not b[..., -1].any()
    assert not b[..., -1, :].any()
    assert b[..., :-1, :-1].amax() > 0
    for other in (a, c):
        assert other[..., -1].any()


def test_std_conv_standardises():
    kernel = StdConv(5, 7, 3).standardised_weight()
    torch.testing.assert_close(kernel.mean((1, 2, 3)), torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        kernel.var((1, 2, 3), correction=0), torch.ones(7), atol=2e-3, rtol=0
    )


def test_layer_is_pytorchs():
    config = Config(**SMALL | {"dropout": 0.0})
    ours = Layer(config)
    theirs = nn.TransformerEncoderLayer(
        config.width, config.heads, config.hidden, 0.0, "gelu", 1e-6, True, norm_first=True
    )
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(ours.query_key_value.weight)
        theirs.self_attn.in_proj_bias.copy_(ours.query_key_value.bias)
        for a, b in (
            (theirs.self_attn.out_proj, ours.out),
            (theirs.linear1, ours.expand),
            (theirs.linear2, ours.contract),
            (theirs.norm1, ours.norm1),
            (theirs.norm2, ours.norm2),
        ):
            a.load_state_dict(b.state_dict())
    x = torch.randn(2, 9, config.width)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("grid", [2, 13, 14, 16, 32])
def test_positions_are_resized_as_scipy_does(grid):
    old = torch.randn(1, 196, 5)
    wanted = zoom(old.view(14, 14, 5).numpy(), (grid / 14, grid / 14, 1), order=1)
    found = resize_positions(old, grid)
    torch.testing.assert_close(found, torch.from_numpy(wanted).reshape(1, -1, 5))


def constants(encoder):
    """The constant that fills each parameter, thirds of the fused projection apart."""
    found = []
    for name, parameter in encoder.named_parameters():
        for part in parameter.detach().chunk(3 if "query_key_value" in name else 1):
            assert (part == part.flatten()[0]).all(), name
            found.append(part.flatten()[0].item())
    return found


def test_imagenet_fills_every_parameter_of_the_encoder(tmp_path):
    network = small()
    decoder = [p.clone() for p in network.decoder.parameters()]
    arrays = imagenet_arrays(network.config)
    np.savez(tmp_path / "R50.npz", **arrays)
    assert network.load_imagenet(tmp_path / "R50.npz") == UNUSED
    used = [x.flat[0] for name, x in arrays.items() if name not in UNUSED]
    assert sorted(constants(network.encoder)) == sorted(used)
    for before, after in zip(decoder, network.decoder.parameters(), strict=True):
        assert torch.equal(before, after)
    for name, value in {
        "resnet.blocks.0.1.conv2.weight": arrays["block1/unit2/conv2/kernel"],
        "resnet.blocks.2.0.project.1.bias": arrays["block3/unit1/gn_proj/bias"],
        "layers.1.norm2.weight": arrays["Transformer/encoderblock_1/LayerNorm_2/scale"],
        "layers.1.contract.bias": arrays["Transformer/encoderblock_1/MlpBlock_3/Dense_1/bias"],
    }.items():
        assert network.encoder.get_parameter(name).flatten()[0] == value.flat[0]


def test_imagenet_turns_kernels(tmp_path):
    """Products with the file's own layout: by row, column and head."""
    network = small()
    config, rng = network.config, np.random.default_rng(0)
    arrays = imagenet_arrays(config)
    arrays = {name: rng.standard_normal(x.shape, np.float32) for name, x in arrays.items()}
    np.savez(tmp_path / "R50.npz", **arrays)
    network.load_imagenet(tmp_path / "R50.npz")
    encoder = network.encoder
    x = rng.standard_normal((1, config.width), np.float32)
    attention = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1"
    heads = np.einsum("nd,dhk->nhk", x, arrays[f"{attention}/key/kernel"])
    wanted = (heads + arrays[f"{attention}/key/bias"]).reshape(1, -1)
    found = encoder.layers[1].query_key_value(torch.from_numpy(x)).chunk(3, 1)[1]
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4, atol=1e-5)
    mixed = x.reshape(1, config.heads, -1)
    wanted = np.einsum("nhk,hkd->nd", mixed, arrays[f"{attention}/out/kernel"])
    found = F.linear(torch.from_numpy(x), encoder.layers[1].out.weight)
    np.testing.assert_allclose(found.detach(), wanted, rtol=1e-4, atol=1e-5)
    kernel = arrays["conv_root/kernel"]
    assert encoder.resnet.conv.weight[3, 2, 1, 6].item() == kernel[1, 6, 2, 3]
    positions = torch.from_numpy(arrays["Transformer/posembed_input/pos_embedding"][:, 1:])
    torch.testing.assert_close(encoder.positions.detach(), resize_positions(positions, config.grid))


@pytest.mark.slow
def test_imagenet_at_full_size(tmp_path):
    network = TransUNet()
    arrays = imagenet_arrays(network.config)
    assert len(arrays) == 358
    assert sum(x.size for x in arrays.values()) == 115_277_971
    np.savez(tmp_path / "R50+ViT-B_16.npz", **arrays)
    assert network.load_imagenet(tmp_path / "R50+ViT-B_16.npz") == UNUSED
    assert count(network.encoder) == 97_888_576
    used = [x.flat[0] for name, x in arrays.items() if name not in UNUSED]
    assert sorted(constants(network.encoder)) == sorted(used)
    images = torch.rand(1, 1, 224, 224)
    assert network.eval()(images).isfinite().all()


def test_imagenet_without_what_is_not_used(tmp_path):
    network = small()
    np.savez(tmp_path / "a.npz", **imagenet_arrays(network.config, **dict.fromkeys(UNUSED)))
    assert network.load_imagenet(tmp_path / "a.npz") == []


def test_imagenet_into_both_networks_of_joint_scar(tmp_path):
    model = build("joint_scar", **SMALL)
    np.savez(tmp_path / "a.npz", **imagenet_arrays(model.config))
    model.load_pretrained(tmp_path / "a.npz")
    assert constants(model.myocardium.encoder) == constants(model.scar.encoder)


def test_imagenet_names_every_fault_and_changes_nothing(tmp_path):
    network = small()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    name = "block1/unit1/conv1/kernel"
    arrays = imagenet_arrays(network.config, **{name: (1, 1, 4, 32), "embedding/bias": None})
    np.savez(tmp_path / "a.npz", **arrays)
    message = (
        r"load_imagenet: a.npz must fit this network; got 2 faults: "
        r"block1/unit1/conv1/kernel \(1, 1, 4, 32\) for \(1, 1, 32, 32\), no embedding/bias$"
    )
    with pytest.raises(FileError, match=message):
        network.load_imagenet(tmp_path / "a.npz")
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_arrays_that_nobody_asked_for_are_not_inflated(tmp_path):
    network, path = small(), tmp_path / "a.npz"
    np.savez(path, **imagenet_arrays(network.config, **dict.fromkeys(UNUSED)))
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("more.npy", "w") as member,
    ):
        for _ in range(64):
            member.write(bytes(1 << 20))
    network.load_imagenet(path)  # imports happen once, outside the measurement
    tracemalloc.start()
    assert network.load_imagenet(path) == ["more"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_imagenet_in_any_floating_dtype_and_order(tmp_path, dtype, order):
    network = small()
    arrays = imagenet_arrays(network.config, **dict.fromkeys(UNUSED))
    for name, x in arrays.items():
        x[...] = np.arange(x.size).reshape(x.shape) % 50
        arrays[name] = np.asarray(x, dtype, order=order)
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    network.load_imagenet(tmp_path / "a.npz")
    kernel = arrays["block1/unit1/conv2/kernel"].astype(np.float32).transpose(3, 2, 0, 1)
    loaded = network.encoder.get_parameter("resnet.blocks.0.0.conv2.weight").detach()
    np.testing.assert_array_equal(loaded.numpy(), kernel)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.to_sparse(), "that is no plain tensor"),
        (lambda x: torch.empty_like(x, device="meta"), "that is no plain tensor"),
        (lambda x: torch.zeros(1).expand(x.shape), "that is no plain tensor"),
        (lambda x: x.to(torch.complex64), "of torch.complex64 for torch.float32"),
        (lambda x: x.to(torch.int64), "of torch.int64 for torch.float32"),
    ],
)
def test_tensors_that_cannot_be_copied_change_nothing(tmp_path, change, message):
    network, path = small(), tmp_path / "w.pth"
    state, before = official_state(network), network.decoder.head.weight.detach().clone()
    name = "decoder.conv_more.0.weight"
    torch.save(state | {name: change(state[name])}, path)
    with pytest.raises(FileError, match=rf"got 1 faults: {name} {message}"):
        network.load_official(path)
    assert torch.equal(network.decoder.head.weight, before)


def test_files_that_are_no_weights(tmp_path):
    network, path = small(), tmp_path / "w.npz"
    for load, who in ((network.load_imagenet, "load_imagenet"), (network.load_official, "load_of")):
        with pytest.raises(FileError, match=rf"^{who}.*: w.npz must be a file; got none$"):
            load(path)
        path.write_bytes(b"no archive at all")
        with pytest.raises(FileError, match=rf"^{who}.*: w.npz must be .*; got"):
            load(path)
        path.unlink()
    np.savez(path, **{"embedding/bias": np.array([{}], dtype=object)})  # would need unpickling
    with pytest.raises(
        FileError, match=r"^load_imagenet: w.npz must be an archive of plain arrays"
    ):
        network.load_imagenet(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(FileError, match=r"^load_imagenet: one.npy must be an archive"):
        network.load_imagenet(tmp_path / "one.npy")
    torch.save(TransUNet, path)  # a class, not tensors
    with pytest.raises(FileError, match=r"^load_official: w.npz must be a saved state of tensors"):
        network.load_official(path)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(
        FileError, match=r"^load_official: w.npz must hold tensors by name; got list$"
    ):
        network.load_official(path)
    state = official_state(network) | {"more.weight": torch.zeros(3)}
    del state["segmentation_head.0.bias"]
    torch.save(state, path)
    message = r"got 2 faults: no segmentation_head.0.bias, unexpected more.weight$"
    with pytest.raises(FileError, match=message):
        network.load_official(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": 100}, r"image must be a multiple of 16, at least 32; got 100"),
        ({"image": 16}, r"image must be a multiple of 16, at least 32; got 16"),
        ({"root": 48}, r"root must be a multiple of 32, at least 32; got 48"),
        ({"width": 25}, r"width must be a multiple of heads \(3\); got 25"),
        ({"skips": 4}, r"skips must be 0 to 3; got 4"),
    ],
)
def test_config_messages(changes, message):
    with pytest.raises(ValueError, match=rf"^transunet: {message}$"):
        Config(**SMALL | changes)


def test_image_messages():
    network = small()
    with pytest.raises(ValueError, match=r"^transunet: images must be \(B, 1, 32, 32\), or of 3"):
        network(torch.zeros(1, 2, 32, 32))
    with pytest.raises(ValueError, match=r"; got \(1, 1, 48, 32\)$"):
        network.encode(torch.zeros(1, 1, 48, 32))
    with pytest.raises(TypeError, match=r"^transunet: images must be a floating tensor; got"):
        network(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    holed = torch.zeros(1, 1, 32, 32)
    holed[0, 0, 3, 5] = torch.nan
    with pytest.raises(ValueError, match=r"^transunet: images must be finite; got 1 NaN"):
        network(holed)
