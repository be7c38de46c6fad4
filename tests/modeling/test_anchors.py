import pytest
import torch

from dab_detr.modeling import AnchorBoxQueries, Memory


def start(queries):
    """Content and anchors before the first layer."""
    memory = Memory(torch.zeros(2, 6, queries.d_model), None, None, None)
    content, state, mask, extra = queries(memory)
    assert mask is None and extra is None
    assert torch.equal(state.anchor_logits, state.reference_logits)
    return content, state.anchor_logits


def build(num_queries, d_model, **switches):
    switches.setdefault("modulate_hw_attention", switches.get("query_dim", 4) == 4)
    return AnchorBoxQueries(num_queries, d_model=d_model, num_heads=1, **switches)


def test_patterns_come_first_then_anchors():
    queries = build(4, 8, num_patterns=3)
    content, anchor_logits = start(queries)
    # the same for all images
    assert content.shape == (1, 12, 8)
    assert anchor_logits.shape == (1, 12, 4)
    for pattern in range(3):
        for anchor in range(4):
            row = pattern * 4 + anchor
            assert torch.equal(content[0, row], queries.patterns.weight[pattern])
            assert torch.equal(anchor_logits[0, row, :2], queries.center_logits[anchor])
            assert torch.equal(anchor_logits[0, row, 2:], queries.size_logits[anchor])


def test_without_patterns_content_is_zero():
    content, anchor_logits = start(build(4, 8))
    assert content.shape == (1, 4, 8) and not content.any()
    assert anchor_logits.shape == (1, 4, 4)


def test_points_have_no_size():
    queries = build(4, 8, query_dim=2)
    assert start(queries)[1].shape == (1, 4, 2)
    own = [name for name, _ in queries.named_parameters(recurse=False)]
    assert own == ["center_logits"]


def test_normal_start_is_standard_normal_in_logits():
    queries = build(20000, 4)
    for logits in (queries.center_logits, queries.size_logits):
        assert logits.mean().abs() < 0.03
        assert (logits.std() - 1).abs() < 0.03


def test_uniform_start_is_uniform_in_the_image():
    queries = build(20000, 4, anchor_init="uniform")
    counts = torch.histc(queries.center_logits.sigmoid(), bins=4, min=0, max=1)
    assert (counts / counts.sum() - 0.25).abs().max() < 0.02
    assert (queries.size_logits.std() - 1).abs() < 0.03


@pytest.mark.parametrize("count", [1, 2, 9, 25, 30, 300])
def test_grid_start_spreads_centres_evenly(count):
    queries = build(count, 4, anchor_init="grid")
    centers = queries.center_logits.sigmoid()
    assert centers.shape == (count, 2)
    assert len({tuple(c) for c in centers.mul(1e4).round().tolist()}) == count
    torch.testing.assert_close(centers.mean(0), torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)
    torch.testing.assert_close(queries.size_logits.sigmoid(), torch.full((count, 2), 0.25))


def test_a_square_grid_is_regular():
    centers = build(9, 4, anchor_init="grid").center_logits.sigmoid()
    thirds = [1 / 6, 3 / 6, 5 / 6]
    expected = torch.tensor([[x, y] for y in thirds for x in thirds])
    torch.testing.assert_close(centers, expected)


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_centres_stay_bit_equal_while_sizes_move(small_transformer, freeze):
    model = small_transformer(freeze_anchor_centers=freeze, anchor_init="uniform")
    before = {name: p.detach().clone() for name, p in model.queries.named_parameters()}
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.1
    )
    for _ in range(3):
        class_logits, box_logits, *_ = model(torch.randn(2, 32, 4, 5))
        optimizer.zero_grad()
        (class_logits.square().mean() + box_logits.sigmoid().square().mean()).backward()
        optimizer.step()
    assert torch.equal(model.queries.center_logits, before["center_logits"]) == freeze
    assert not torch.equal(model.queries.size_logits, before["size_logits"])


@pytest.mark.parametrize("wrong", [{"query_dim": 3}, {"anchor_init": "gird"}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        build(4, 8, **wrong)
