"""Feature extraction: the maps of named layers, and nothing that runs after them."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from patchcore.backbones.build import Backbone, checksum, load_backbone
from patchcore.backbones.registry import BACKBONES
from patchcore.features.extractor import FeatureExtractor, default_layers, normalise
from patchcore.features.workspace import Workspace
from patchcore.system.timing import StageTimer
from patchcore.types import PatchCoreError

pytestmark = pytest.mark.usefixtures("one_thread")


def images(height=64, width=64, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def random_backbone(name):
    """With batch normalisation that does something, unlike a fresh one."""
    backbone = load_backbone(name, weights="random")
    generator = torch.Generator().manual_seed(2)
    for module in backbone.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(std=0.1, generator=generator)
    return backbone


def wrap(module, **facts):
    return Backbone(name="toy", module=module.eval().requires_grad_(False), weights="random", **facts)


def assert_same(value, expected, tolerance=1e-5):
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def norms(module):
    return sum(isinstance(child, nn.BatchNorm2d) for child in module.modules())


# Convolutional networks


@torch.no_grad()
def test_resnet_maps_are_those_of_the_truncated_network():
    backbone = random_backbone("resnet18")
    net = backbone.module
    x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images())))))
    expected = {"layer2": net.layer2(x), "layer1": x}
    maps = FeatureExtractor(backbone, ["layer2", "layer1"])(images())
    assert list(maps) == ["layer2", "layer1"]
    for layer, value in maps.items():
        assert_same(value, expected[layer])
        assert value.dtype == torch.float32


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stem"),
    [("efficientnet_lite0", 3), ("timm/mnasnet_small", 2), ("timm/tf_efficientnet_lite0", 2)],
)
def test_efficientnet_maps_are_those_of_the_truncated_network(name, stem):
    backbone = random_backbone(name)
    net = backbone.module
    x = net.bn1(net.conv_stem(images(70, 90)))
    x = net.act(x) if stem == 3 else x
    expected = {f"blocks.{index}": net.blocks[: index + 1](x.clone()) for index in (1, 3)}
    maps = FeatureExtractor(backbone, list(expected))(images(70, 90))
    for layer, value in maps.items():
        assert_same(value, expected[layer])


@torch.no_grad()
def test_densenet_maps_are_those_of_the_truncated_network():
    backbone = random_backbone("densenet121")
    expected = backbone.module.features[:5](images())
    maps = FeatureExtractor(backbone, ["features.denseblock1"])(images())
    assert_same(maps["features.denseblock1"], expected)


def test_batch_normalisation_is_folded_and_the_backbone_left_alone():
    backbone = random_backbone("resnet18")
    before = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    extractor = FeatureExtractor(backbone, ["layer2"])
    extractor(images())
    assert norms(backbone.module) == 20
    assert norms(extractor.module) == 10  # those of layer3 and layer4, which never ran
    assert all(torch.equal(value, before[key]) for key, value in backbone.module.state_dict().items())
    assert not any(child._forward_hooks for child in backbone.module.modules())
    shared = dict(backbone.module.named_parameters())
    assert extractor.module.layer4[0].conv1.weight is shared["layer4.0.conv1.weight"]


@torch.no_grad()
def test_a_convolution_asked_for_is_not_folded():
    backbone = random_backbone("resnet18")
    maps = FeatureExtractor(backbone, ["conv1", "layer1"])(images())
    assert_same(maps["conv1"], backbone.module.conv1(images()))


class Awkward(nn.Module):
    """The normalisation's input is used a second time, which folding would not notice."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Identity()
        nn.init.constant_(self.norm.running_var, 4.0)

    def forward(self, x):
        x = self.conv(x)
        return self.last(x + self.norm(x))


@torch.no_grad()
def test_folding_that_would_change_a_map_is_not_done():
    backbone = wrap(Awkward())
    extractor = FeatureExtractor(backbone, ["last"])
    assert norms(extractor.module) == 1
    assert_same(extractor(images())["last"], backbone.module(images()))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.last = nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.norm(self.conv(x))
        z = self.relu(y)
        z += 1
        return self.last(z)


@torch.no_grad()
def test_later_in_place_operations_do_not_reach_a_captured_map():
    backbone = wrap(InPlace())
    maps = FeatureExtractor(backbone, ["norm", "relu", "last"])(images())
    expected = backbone.module.norm(backbone.module.conv(images()))
    assert expected.min() < 0
    assert_same(maps["norm"], expected)
    assert_same(maps["relu"], expected.relu())
    assert_same(maps["last"], backbone.module(images()))


@pytest.mark.parametrize(
    ("name", "layers"),
    [("efficientnet_lite0", ("blocks.2", "blocks.4")), ("timm/deit_tiny_distilled_patch16_224", ("blocks.3",))],
)
def test_maps_in_bfloat16_are_those_of_float32_but_for_rounding(name, layers):
    backbone = load_backbone(name, weights="random")
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    whole, rounded = (FeatureExtractor(backbone, layers, precision)(images) for precision in ("float32", "bfloat16"))
    for layer in layers:
        assert rounded[layer].dtype == torch.float32
        error = (rounded[layer] - whole[layer]).norm() / whole[layer].norm()
        assert 1e-4 < error < 0.05


def test_what_follows_the_last_layer_does_not_run():
    extractor = FeatureExtractor(random_backbone("resnet18"), ["layer2", "layer1"])
    ran = []
    for name, child in extractor.module.named_children():
        child.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    extractor(images())
    assert ran == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2"]


def test_maps_feed_a_trainable_head():
    extractor = FeatureExtractor(random_backbone("resnet18"), ["layer1"])
    maps = extractor(images())["layer1"]
    assert not maps.requires_grad
    head = nn.Conv2d(64, 1, 1)
    head(maps).sum().backward()
    assert head.weight.grad.abs().sum() > 0


def test_it_can_be_built_and_used_in_inference_mode():
    backbone = random_backbone("resnet18")
    expected = FeatureExtractor(backbone, ["layer1"])(images())["layer1"]
    with torch.inference_mode():
        extractor = FeatureExtractor(backbone, ["layer1"])
        assert torch.equal(extractor(images())["layer1"], expected)
    head = nn.Conv2d(64, 1, 1)
    head(extractor(images())["layer1"]).sum().backward()


def test_it_stays_in_evaluation_mode():
    extractor = FeatureExtractor(random_backbone("resnet18"), ["layer1"])
    expected = extractor(images())["layer1"]
    extractor.train()
    assert not extractor.module.training
    assert torch.equal(extractor(images())["layer1"], expected)


def test_a_moved_extractor_still_works():
    """`to` replaces tensors that the backbone shares; and the memory format is chosen anew."""
    extractor = FeatureExtractor(random_backbone("resnet18"), ["layer1"])
    expected = extractor(images())["layer1"]
    extractor.to(memory_format=torch.contiguous_format).double().float()
    assert_same(extractor(images())["layer1"], expected)


# Transformers


@torch.no_grad()
@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
@pytest.mark.parametrize("size", [(224, 224), (96, 64)])
def test_tokens_become_the_patch_grid(name, prefix, size):
    backbone = load_backbone(f"timm/{name}", weights="random")
    assert (backbone.prefix_tokens, backbone.image_size) == (prefix, None)
    net = backbone.module
    x = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images(*size)))))
    tokens = net.blocks[:3](x)
    rows, columns = size[0] // 16, size[1] // 16
    assert tokens.shape[1] == prefix + rows * columns
    value = FeatureExtractor(backbone, ["blocks.2"])(images(*size))["blocks.2"]
    assert value.shape == (2, 192, rows, columns)
    for row, column in [(0, 1), (1, 0), (rows - 1, columns - 2)]:
        assert_same(value[:, :, row, column], tokens[:, prefix + row * columns + column])


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_r_s16_p8_224"])
def test_a_change_in_the_image_shows_at_its_place_in_the_map(name):
    backbone = load_backbone(f"timm/{name}", weights="random")
    extractor = FeatureExtractor(backbone, ["patch_embed", "blocks.0"])
    changed = images(256, 128)
    changed[:, :, 160:192, 32:64] += 3
    for layer, value in extractor(changed).items():
        difference = (value - extractor(images(256, 128))[layer]).abs().sum(dim=(0, 1))
        step = 256 // len(difference)
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        assert (160 <= row * step < 192, 32 <= column * step < 64) == (True, True), layer


@torch.no_grad()
def test_swin_maps_have_channels_first_at_any_size():
    backbone = load_backbone("timm/swin_tiny_patch4_window7_224", weights="random")
    net = backbone.module
    expected = net.layers[:2](net.patch_embed(images(224, 224))).permute(0, 3, 1, 2)
    extractor = FeatureExtractor(backbone, ["layers.1", "patch_embed.proj"])
    maps = extractor(images(224, 224))
    assert_same(maps["layers.1"], expected)
    assert_same(maps["patch_embed.proj"], net.patch_embed.proj(images(224, 224)))
    assert extractor.layer_shapes((320, 256)) == {"layers.1": (192, 40, 32), "patch_embed.proj": (96, 80, 64)}


class ChannelsLast(nn.Module):
    """Seven channels on a 7 x 7 grid: the shape does not tell which is which."""

    def __init__(self, output_fmt):
        super().__init__()
        self.output_fmt = output_fmt
        self.pool, self.widen, self.last = nn.AvgPool2d(32), nn.Conv2d(3, 7, 1), nn.Identity()

    def forward(self, x):
        x = self.widen(self.pool(x))
        return self.last(x.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else x)


@torch.no_grad()
@pytest.mark.parametrize("output_fmt", ["NHWC", "NCHW"])
def test_the_networks_word_decides_where_the_shape_does_not(output_fmt):
    backbone = wrap(ChannelsLast(output_fmt))
    net = backbone.module
    value = FeatureExtractor(backbone, ["last"])(images(224, 160))["last"]
    assert_same(value, net.widen(net.pool(images(224, 160))))


class Tokens(nn.Module):
    def __init__(self, grid=None, extra=0):
        super().__init__()
        self.patch_embed, self.extra, self.last = nn.Conv2d(3, 6, 16, stride=16), extra, nn.Identity()
        if grid:
            self.patch_embed.dynamic_feat_size = grid

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.last(torch.cat([x[:, : self.extra], x], dim=1))


def test_tokens_that_fit_no_grid_are_refused():
    with pytest.raises(PatchCoreError, match=r"\(1, 196, 6\), but the network tells no patch grid"):
        FeatureExtractor(wrap(Tokens()), ["last"])
    with pytest.raises(PatchCoreError, match="199 tokens for 224 x 224 images, expected 14 x 14 patches and 1"):
        FeatureExtractor(wrap(Tokens(lambda size: (14, 14), extra=3), prefix_tokens=1), ["last"])


# Refusals


def test_unknown_layers_are_answered_with_what_there_is():
    backbone = random_backbone("resnet18")
    with pytest.raises(PatchCoreError, match=r"'layer22'; did you mean layer2.*at the top there is conv1, bn1"):
        FeatureExtractor(backbone, ["layer22"])
    with pytest.raises(PatchCoreError, match=r"in layer2 there is layer2\.0, layer2\.1"):
        FeatureExtractor(backbone, ["layer2.7"])
    for layers in ([], ["layer1", "layer1"]):
        with pytest.raises(PatchCoreError, match="one or more different layers"):
            FeatureExtractor(backbone, layers)


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.pair, self.idle = nn.Conv2d(3, 2, 3), Pair(), nn.Conv2d(3, 2, 3)
        self.head = nn.LazyLinear(5)

    def forward(self, x):
        return self.head(self.pair(self.body(x))[0].flatten(1))


class Pair(nn.Module):
    def forward(self, x):
        return x, x.shape


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("pair", "layer pair of toy gives a tuple, not a feature map"),
        ("head", r"layer head of toy gives a tensor of shape \(1, 5\), not a feature map"),
        ("idle", "layer idle of toy is never run"),
    ],
)
def test_layers_without_a_map_are_refused(layer, message):
    net = Odd()
    net(torch.zeros(1, 3, 224, 224))
    with pytest.raises(PatchCoreError, match=message):
        FeatureExtractor(wrap(net), ["body", layer])


def test_image_sizes_that_a_network_cannot_take_are_refused():
    fixed = wrap(nn.Sequential(nn.Conv2d(3, 2, 3)), image_size=(48, 48))
    with pytest.raises(PatchCoreError, match="takes 48 x 48 images only, got 64 x 64"):
        FeatureExtractor(fixed, ["0"])(images())
    small = wrap(nn.Sequential(nn.Conv2d(3, 2, 3), nn.MaxPool2d(9)))
    with pytest.raises(PatchCoreError, match="does not take 8 x 10 images: "):
        FeatureExtractor(small, ["1"]).layer_shapes((8, 10))
    patches = load_backbone("timm/vit_tiny_patch16_224", weights="random")
    with pytest.raises(PatchCoreError, match=r"does not take 100 x 100 images: .*patch size"):
        FeatureExtractor(patches, ["blocks.1"])(images(100, 100))


def test_layer_shapes_are_those_of_the_maps():
    extractor = FeatureExtractor(random_backbone("resnet18"), ["layer1", "layer3"])
    assert extractor.layer_shapes((96, 64)) == {"layer1": (64, 24, 16), "layer3": (256, 6, 4)}


# Scales


@pytest.mark.parametrize("name", [name for name, entry in BACKBONES.items() if entry.layers])
def test_the_table_of_layers_is_right(name):
    """Shapes on the meta device: no memory, no arithmetic."""
    entry, shapes = BACKBONES[name], {}
    model = "tf_efficientnet_lite0" if entry.library == "builtin" else entry.model
    library = timm.create_model if entry.library == "builtin" else torchvision.models.get_model
    with torch.device("meta"):
        module = library(model).eval()
        for layer in entry.layers:
            module.get_submodule(layer).register_forward_hook(
                lambda *args, layer=layer: shapes.update({layer: args[2].shape})
            )
        module(torch.zeros(1, 3, 224, 224))
    layers = default_layers(wrap(nn.Identity(), layers=entry.layers))
    assert [shapes[layer][2:] for layer in layers] == [(224 // 4,) * 2, (224 // 8,) * 2, (224 // 16,) * 2]


def test_the_layers_of_timm_networks_come_from_timm():
    backbone = random_backbone("timm/mnasnet_small")
    layers = default_layers(backbone)
    shapes = FeatureExtractor(backbone, layers).layer_shapes((224, 224))
    assert [shapes[layer][1:] for layer in layers] == [(224 // 4,) * 2, (224 // 8,) * 2, (224 // 16,) * 2]
    transformer = load_backbone("timm/vit_tiny_patch16_224", weights="random")
    assert default_layers(transformer) == ("blocks.7",)
    with pytest.raises(PatchCoreError, match="name the layers"):
        default_layers(wrap(nn.Conv2d(3, 3, 1)))


def test_normalisation_equals_torchvision_bit_for_bit():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    from torchvision import transforms

    reference = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(normalise(levels), reference(levels.float() / 255))
    # 124/255 = 0.48627 is 0.00127 above the mean of red, and so 0.0056 standard deviations.
    assert normalise(levels)[0, 0].flatten()[124].item() == pytest.approx(0.005566, abs=1e-6)


# Encoders of a workspace


def test_an_encoder_tells_its_maps_and_whose_weights_made_them():
    space = Workspace([torch.device("cpu")])
    encoder = space.encoder("efficientnet_lite0.seed-3", weights="random", size=(64, 96))
    assert encoder.layers == ("blocks.1", "blocks.2", "blocks.4")  # the backbone's own
    assert encoder.shapes == [(24, 16, 24), (40, 8, 12), (112, 4, 6)]
    assert encoder.nbytes_per_image == 4 * (24 * 16 * 24 + 40 * 8 * 12 + 112 * 4 * 6)
    assert (encoder.backbone, encoder.weights) == ("efficientnet_lite0.seed-3", "random seed 3")
    network = load_backbone("efficientnet_lite0.seed-3", weights="random")
    assert encoder.checksum == checksum(network.module)
    assert encoder.checksum != space.encoder("efficientnet_lite0", weights="random", size=(64, 96)).checksum
    assert encoder.device == torch.device("cpu")
    pixels = torch.randint(256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    maps = encoder(pixels, StageTimer(encoder.device))
    expected = FeatureExtractor(network, encoder.layers)(normalise(pixels))
    assert [tuple(x.shape[1:]) for x in maps] == encoder.shapes
    for x, layer in zip(maps, encoder.layers, strict=True):
        assert torch.equal(x, expected[layer])
        assert not x.requires_grad


def test_a_workspace_makes_every_encoder_once_and_checksums_only_where_asked():
    space = Workspace([torch.device("cpu")], checksums=False)
    settings = {"weights": "random", "size": (64, 64)}
    first = space.encoder("efficientnet_lite0", ("blocks.2",), **settings)
    assert first.checksum is None
    assert space.encoder("efficientnet_lite0", ["blocks.2"], device=space.device, **settings) is first
    assert space.encoder("efficientnet_lite0", ("blocks.3",), **settings) is not first
    assert space.encoder("efficientnet_lite0", ("blocks.2",), weights="random", size=(64, 72)) is not first


def test_an_encoder_refuses_image_sizes_that_its_network_does_not_take():
    with pytest.raises(PatchCoreError, match=r"does not take 100 x 100 images: .*patch size"):
        Workspace.on("cpu").encoder("timm/vit_tiny_patch16_224", ("blocks.1",), weights="random", size=(100, 100))
