"""What takes the place of an image's rows when it is left out of a coreset."""

from __future__ import annotations

import torch

from patchcore.methods.patchcore.stand_ins import stand_ins


def test_by_hand_on_a_line():
    # Images of two points: {0, 20}, {1, 10}, {2, 11}. The bank has 20, 0 and 10; everything is within 2 of it.
    points = torch.tensor([[0.0], [20.0], [1.0], [10.0], [2.0], [11.0]])
    found = stand_ins(points, torch.tensor([1, 0, 3]), per_image=2)
    # Without 0 and 20 the points 1 and 2 are 9 and 8 from 10: 1 is taken, and covers 2.
    # Without 10, 11 is 9 from 20. Of the last image there are no rows to replace.
    assert [rows.tolist() for rows in found] == [[2], [5], []]


def test_all_others_are_within_the_radius_again():
    generator = torch.Generator().manual_seed(0)
    points, per_image = torch.randn(60, 3, generator=generator), 10
    chosen = torch.randperm(60, generator=generator)[:12]
    images = torch.arange(60) // per_image
    radius = torch.cdist(points, points[chosen]).amin(dim=1).max()
    found = stand_ins(points, chosen, per_image)
    assert any(len(rows) for rows in found)
    for image, rows in enumerate(found):
        assert (images[rows] != image).all()
        kept = torch.cat([chosen[images[chosen] != image], rows])
        others = points[images != image]
        assert torch.cdist(others, points[kept]).amin(dim=1).max() <= radius * (1 + 1e-6)
        for row in rows:  # none is idle: each was farther than the radius from all taken before it
            earlier = torch.cat([chosen[images[chosen] != image], rows[: rows.tolist().index(row)]])
            assert torch.cdist(points[row, None], points[earlier]).min() > radius
