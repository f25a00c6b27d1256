import pytest
import torch
import torch.nn.functional as F
from numpy import load

from golden import GOLDEN, needs_golden
from patchcore.methods.patchcore.patches import PatchEmbedding, pooling_matrix


def unfolded(maps, patchsize, pretrain_dimension, target_dimension):
    """The definition, step by step: unfold, resize, pool each layer, lay end to end, pool again."""
    grid, layers = None, []
    for layer in maps:
        batch, _, height, width = layer.shape
        padding = (patchsize - 1) // 2
        patches = F.unfold(layer, patchsize, padding=padding)  # (B, C*p*p, H*W)
        size = (height + 2 * padding - patchsize + 1, width + 2 * padding - patchsize + 1)
        patches = patches.reshape(batch, -1, *size)
        grid = grid or size
        if size != grid:
            patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
        values = patches.permute(0, 2, 3, 1).flatten(0, 2)  # (B*H*W, C*p*p)
        layers.append(F.adaptive_avg_pool1d(values[:, None], pretrain_dimension)[:, 0])
    return F.adaptive_avg_pool1d(torch.cat(layers, dim=1)[:, None], target_dimension)[:, 0]


@needs_golden
@pytest.mark.parametrize("name", sorted(path.name for path in GOLDEN.glob("embedding_*.npz")))
def test_golden_embeddings(name):
    case = load(GOLDEN / name)
    maps = [torch.from_numpy(case[f"layer{i}"]) for i in range(3) if f"layer{i}" in case]
    embedding = PatchEmbedding(
        [layer.shape[1] for layer in maps],
        patchsize=int(case["patchsize"]),
        pretrain_dimension=int(case["pretrain_embed_dimension"]),
        target_dimension=int(case["target_embed_dimension"]),
    )
    result = embedding(maps).flatten(0, 2)
    assert (result - torch.from_numpy(case["expected"])).abs().max() <= 2e-6


@pytest.mark.parametrize(
    ("channels", "sizes", "patchsize", "pretrain", "target"),
    [
        ((6, 10), ((7, 5), (4, 3)), 3, 8, 5),  # a target bin straddles the layers
        ((6, 10), ((7, 5), (4, 3)), 2, 8, 4),  # an even patch loses a row and a column
        ((7,), ((6, 6),), 5, 50, 21),
        ((3, 5, 4), ((8, 8), (4, 4), (2, 2)), 1, 64, 96),
        ((3, 4), ((3, 4), (6, 8)), 3, 16, 16),  # the first layer is the coarser one
    ],
)
def test_convolution_equals_unfolding(channels, sizes, patchsize, pretrain, target):
    torch.manual_seed(0)
    maps = [torch.randn(2, count, *size) for count, size in zip(channels, sizes, strict=True)]
    embedding = PatchEmbedding(channels, patchsize=patchsize, pretrain_dimension=pretrain, target_dimension=target)
    expected = unfolded(maps, patchsize, pretrain, target)
    torch.testing.assert_close(embedding(maps).flatten(0, 2), expected, atol=2e-6, rtol=0)


def test_pooling_bins_solved_by_hand():
    expected = [[1 / 2, 1 / 2, 0], [0, 1 / 2, 1 / 2]]  # [0, ceil(1.5)) and [floor(1.5), 3)
    assert pooling_matrix(3, 2).tolist() == expected
    assert pooling_matrix(1, 3).tolist() == [[1], [1], [1]]


def test_wrong_number_of_layers_and_sizes_are_refused():
    embedding = PatchEmbedding([4], patchsize=3, pretrain_dimension=8, target_dimension=8)
    with pytest.raises(ValueError, match="shorter"):
        embedding([torch.zeros(1, 4, 3, 3)] * 2)
    with pytest.raises(ValueError, match="patchsize must be at least 1, got 0"):
        PatchEmbedding([4], patchsize=0, pretrain_dimension=8, target_dimension=8)
