import math

import pytest
import torch
from parts import core_of
from switches import SWITCHES


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_runs_forward_and_backward(small_transformer, switches):
    model = small_transformer(**switches)
    class_logits, box_logits, *_ = model(torch.randn(2, 32, 3, 4))
    layers, queries = switches.get("num_decoder_layers", 3), 10 * switches.get("num_patterns", 1)
    assert class_logits.shape == (layers, 2, queries, 5)
    assert box_logits.shape == (layers, 2, queries, 4)
    (class_logits.sum() + box_logits.square().sum()).backward()
    # DDP waits for every parameter that can be trained
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []


@torch.no_grad()
def test_an_image_gives_the_same_alone_and_in_a_padded_batch(small_transformer):
    model = small_transformer().eval()
    features = torch.randn(2, 32, 6, 9)
    sizes = [(6, 9), (4, 5)]
    mask = torch.ones(2, 6, 9, dtype=torch.bool)
    for image, (height, width) in enumerate(sizes):
        mask[image, :height, :width] = False
    together = model(features, mask)
    for image, (height, width) in enumerate(sizes):
        alone = model(features[image : image + 1, :, :height, :width])
        for batched, single in zip(together[:2], alone):
            torch.testing.assert_close(batched[:, image], single[:, 0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_mask_without_padding_changes_nothing(small_transformer):
    model = small_transformer().eval()
    features = torch.randn(2, 32, 3, 4)
    masked = model(features, torch.zeros(2, 3, 4, dtype=torch.bool))
    for a, b in zip(masked[:2], model(features)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_start_values_are_the_published_ones(small_transformer):
    model = small_transformer(d_model=64)
    decoder = model.decoder
    assert decoder.class_head.bias.tolist() == pytest.approx([-math.log(99)] * 5)
    assert not decoder.box_heads[0].layers[-1].weight.any()
    assert not decoder.box_heads[0].layers[-1].bias.any()
    # Xavier: uniform within sqrt(6 / (fan_in + fan_out))
    for weight in (
        model.encoder.layers[0].self_attention.out_proj.weight,
        decoder.layers[1].cross_attention.value_proj.weight,
        model.queries.position_mlp.layers[0].weight,
        model.queries.reference_size.layers[0].weight,
        model.encoder.position_scale.layers[1].weight,
    ):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.9 * bound < weight.abs().max() <= bound
    # the encoder's projections start as the packed matrix of PyTorch's attention, 3 * 64 by 64
    bound = math.sqrt(6 / (3 * 64 + 64))
    attention = model.encoder.layers[0].self_attention
    for projection in (attention.query_proj, attention.key_proj, attention.value_proj):
        assert 0.9 * bound < projection.weight.abs().max() <= bound
        assert not projection.bias.any()
    assert not attention.out_proj.bias.any()
    # heads keep PyTorch's own start: within 1 / sqrt(fan_in)
    assert 0.9 / 8 < decoder.class_head.weight.abs().max() <= 1 / 8
    assert decoder.layers[0].feed_forward.activation.weight.shape == (1,)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"d_model": 30}, "d_model"),
        ({"num_decoder_layers": 0}, "num_layers of the decoder"),
        ({"num_queries": 0}, "num_queries"),
    ],
)
def test_impossible_sizes_are_named(small_transformer, wrong, word):
    with pytest.raises(ValueError, match=word):
        small_transformer(**wrong)


def test_bfloat16_autocast_is_close_to_float32_and_keeps_boxes_in_float32(small_transformer):
    model = small_transformer()
    features = torch.randn(2, 32, 4, 4)
    exact = model(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(features)
    assert mixed[1].dtype == torch.float32
    torch.testing.assert_close(mixed[1].sigmoid(), exact[1].sigmoid(), atol=2e-2, rtol=0)
    (mixed[0].float().sum() + mixed[1].sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_in_half_precision_runs(small_transformer, dtype):
    model = small_transformer().to(dtype).eval()
    class_logits, box_logits, *_ = model(torch.randn(1, 32, 4, 4, dtype=dtype))
    assert class_logits.isfinite().all()
    assert box_logits.dtype == torch.float32


@torch.no_grad()
def test_a_trace_takes_batches_of_any_number(small_transformer):
    core = core_of(small_transformer()).eval()
    two, three = (torch.randn(batch, 32, 3, 4) for batch in (2, 3))
    traced = torch.jit.trace(core, two, check_trace=False)
    for actual, expected in zip(traced(three), core(three)):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_dropout_tells_images_apart_and_nothing_else_does(small_transformer):
    features = torch.randn(1, 32, 3, 4).expand(2, -1, -1, -1)
    for dropout in (0.0, 0.5):
        # without an encoder only the decoder's dropout is left
        model = small_transformer(dropout=dropout, num_encoder_layers=0).train()
        content = []
        model.decoder.layers[0].cross_attention.register_forward_pre_hook(
            lambda module, args, content=content: content.append(args[0])
        )
        class_logits = model(features).class_logits
        first, second = content[0].expand(2, -1, -1)
        assert torch.equal(first, second) == (dropout == 0)
        # matrix products need not round all rows of a batch alike
        same = torch.allclose(class_logits[:, 0], class_logits[:, 1], atol=1e-4)
        assert same == (dropout == 0)


@torch.no_grad()
def test_the_first_self_attention_is_computed_once_for_all_images(small_transformer):
    model = small_transformer().eval()
    seen = []
    model.decoder.layers[0].self_attention.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].shape)
    )
    model(torch.randn(5, 32, 3, 4))
    assert seen == [(1, 10, 32)]


@pytest.mark.parametrize("num_patterns", [0, 2])
def test_all_weights_are_drawn_when_the_model_is_complete(small_transformer, num_patterns):
    """Those that parts draw for themselves while they are built would repeat each other."""
    model = small_transformer(num_patterns=num_patterns)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    model.reset_parameters()
    kept = {name for name, x in model.state_dict().items() if torch.equal(x, before[name])}
    assert kept == {name for name, x in before.items() if (x == x.flatten()[0]).all()}
