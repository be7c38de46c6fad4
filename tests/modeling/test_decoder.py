import pytest
import torch

from dab_detr.modeling import Memory
from dab_detr.modeling.boxes import bounded_logits
from dab_detr.modeling.queries.anchor_boxes import modulate_encoding


def test_doubling_the_width_halves_the_x_half():
    encoding = torch.randn(1, 3, 16)
    reference = torch.rand(1, 3, 2)
    anchors = torch.rand(1, 3, 4) * 0.4 + 0.1
    wide = anchors * torch.tensor([1, 1, 2, 1])
    narrow, doubled = (modulate_encoding(encoding, reference, a) for a in (anchors, wide))
    torch.testing.assert_close(doubled[..., 8:], narrow[..., 8:] / 2)
    torch.testing.assert_close(doubled[..., :8], narrow[..., :8])


def test_modulation_is_the_ratio_of_reference_and_anchor():
    encoding = torch.randn(4, 16)
    reference, anchors = torch.rand(4, 2), torch.rand(4, 4) + 0.1
    expected = encoding.clone()
    expected[:, :8] *= (reference[:, 1] / anchors[:, 3])[:, None]
    expected[:, 8:] *= (reference[:, 0] / anchors[:, 2])[:, None]
    torch.testing.assert_close(modulate_encoding(encoding, reference, anchors), expected)


def test_modulation_stays_in_the_range_of_float16():
    encoding = torch.tensor([3.0, -3.0]).repeat(8)
    tiny, reference = torch.zeros(4), torch.ones(2)
    modulated = modulate_encoding(encoding, reference, tiny)
    assert modulated.half().isfinite().all()
    assert torch.equal(modulated.sign(), encoding.sign())
    assert modulated.abs().min() > 60000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("logit", [-9.0, -12.0, -120.0, -1000.0, 9.0, 1000.0])
def test_extreme_anchors_stay_finite(small_transformer, dtype, logit):
    model = small_transformer()
    with torch.no_grad():
        model.queries.center_logits.fill_(logit)
        model.queries.size_logits.fill_(logit)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        class_logits, box_logits, *_ = model(torch.randn(1, 32, 4, 4))
    assert class_logits.isfinite().all() and box_logits.isfinite().all()
    if dtype == torch.float32:
        (class_logits.sum() + box_logits.sigmoid().sum()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.fixture
def build(small_transformer):
    """A function that builds a decoder with its queries; returns it as a function of a memory."""

    def build(**switches):
        model = small_transformer(num_queries=6, **switches)
        # boxes that do not move would hide which anchors a layer sees
        for head in model.decoder.box_heads:
            torch.nn.init.normal_(head.layers[-1].weight, std=0.3)
        return model

    return build


def memory():
    cells, key_encoding = torch.randn(2, 2, 9, 32)
    return Memory(cells, key_encoding, torch.zeros(1, 3, 3, dtype=torch.bool), None)


def decode(model, **options):
    class_logits, box_logits, *_ = model.decoder(model.queries, memory(), **options)
    return class_logits, box_logits


def test_without_updates_all_layers_predict_from_the_learned_anchors(build):
    model = build(update_anchors=False)
    normed = []
    model.decoder.norm.register_forward_hook(lambda *args: normed.append(args[2]))
    _, box_logits = decode(model)
    learned = torch.cat((model.queries.center_logits, model.queries.size_logits), dim=1)
    for layer in range(3):
        expected = model.decoder.box_heads[0](normed[layer]) + bounded_logits(learned)
        torch.testing.assert_close(box_logits[layer], expected)


def test_updated_anchors_carry_gradient_one_layer_back_only(build):
    """The box loss of a layer reaches the head's work in the layer before, and no further."""
    model = build(share_box_head=False)
    _, box_logits = decode(model)

    def reached(layer):
        heads = [head.layers[-1].weight for head in model.decoder.box_heads]
        grads = torch.autograd.grad(box_logits[layer].sum(), heads, retain_graph=True)
        return [bool(grad.any()) for grad in grads]

    assert reached(0) == [True, False, False]
    assert reached(1) == [True, True, False]
    # layer 2 starts from the anchor that head 1 made from a detached one
    assert reached(2) == [False, True, True]


def test_last_layer_alone_equals_the_last_of_all(build):
    model = build().eval()
    given = memory()
    every, last = (model.decoder(model.queries, given, all_layers=x)[:2] for x in (True, False))
    for all_layers, only in zip(every, last):
        assert only.shape[0] == 1
        torch.testing.assert_close(only[0], all_layers[-1])


def test_points_predict_their_size_from_the_head_alone(build):
    model = build(query_dim=2, modulate_hw_attention=False, update_anchors=False)
    normed = []
    model.decoder.norm.register_forward_hook(lambda *args: normed.append(args[2]))
    _, box_logits = decode(model)
    expected = model.decoder.box_heads[0](normed[0])[..., 2:]
    torch.testing.assert_close(box_logits[0][..., 2:], expected)


def test_points_cannot_be_modulated(build):
    with pytest.raises(ValueError, match="modulate_hw_attention"):
        build(query_dim=2)


@pytest.mark.parametrize("training", [False, True])
def test_each_image_may_have_an_attention_mask_of_its_own(small_transformer, monkeypatch, training):
    """Also where the queries are the same for all images, up to the first cross-attention."""
    transformer = small_transformer(num_queries=6, dropout=0.0).train(training)
    features = torch.randn(2, 32, 3, 4)
    mask = torch.rand(2, 1, 6, 6) > 0.4
    mask |= torch.eye(6, dtype=torch.bool)
    plain, forward = transformer(features), transformer.queries.forward

    def predict(features, mask):
        monkeypatch.setattr(
            transformer.queries,
            "forward",
            lambda memory, targets=None: forward(memory, targets)._replace(attention_mask=mask),
        )
        return transformer(features)

    together = predict(features, mask)
    for image in (0, 1):
        alone = predict(features[image : image + 1], mask[image])
        torch.testing.assert_close(together.class_logits[:, image], alone.class_logits[:, 0])
        torch.testing.assert_close(together.box_logits[:, image], alone.box_logits[:, 0])
    assert (together.class_logits - plain.class_logits).abs().amax((0, 2, 3)).min() > 1e-3
