import math

import pytest
import torch

from dab_detr.modeling.position_encoding import SineKeyEncoding, encode_anchors, sine_encoding


def encode_number(value, num_features, temperature):
    """The formula of the paper, one number at a time."""
    out = []
    for i in range(num_features // 2):
        angle = 2 * math.pi * value / temperature ** (2 * i / num_features)
        out += [math.sin(angle), math.cos(angle)]
    return out


@pytest.mark.parametrize("temperature", [1, 20, 10000])
def test_sine_encoding_is_the_formula(temperature):
    values = torch.tensor([0.0, 0.125, 0.5, 0.99, 1.0])
    expected = torch.tensor([encode_number(v, 16, temperature) for v in values.tolist()])
    torch.testing.assert_close(sine_encoding(values, 16, temperature), expected, atol=1e-5, rtol=0)


def test_anchors_are_encoded_in_the_order_y_x_w_h():
    x, y, w, h = 0.1, 0.7, 0.3, 0.9
    encoding = encode_anchors(torch.tensor([x, y, w, h]), 32, 10000)
    expected = sum((encode_number(v, 16, 10000) for v in (y, x, w, h)), [])
    torch.testing.assert_close(encoding, torch.tensor(expected), atol=1e-5, rtol=0)
    points = encode_anchors(torch.tensor([x, y]), 32, 10000)
    torch.testing.assert_close(points, encoding[:32])


def test_keys_count_valid_cells_and_end_at_one():
    mask = torch.zeros(2, 3, 4, dtype=torch.bool)
    mask[1, 2:], mask[1, :, 3:] = True, True
    encoding = SineKeyEncoding(16, 20)(mask)
    for image, (rows, columns) in enumerate([(3, 4), (2, 3)]):
        for row in range(rows):
            for column in range(columns):
                y, x = (row + 1) / (rows + 1e-6), (column + 1) / (columns + 1e-6)
                expected = encode_number(y, 8, 20) + encode_number(x, 8, 20)
                torch.testing.assert_close(
                    encoding[image, row, column], torch.tensor(expected), atol=1e-5, rtol=0
                )


def test_encoding_stays_finite_where_everything_is_padding():
    assert SineKeyEncoding(16)(torch.ones(1, 2, 2, dtype=torch.bool)).isfinite().all()
