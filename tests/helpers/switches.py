"""Every switch of the model, away from its default, as the tests go through them."""

SWITCHES = [
    {},
    {"num_patterns": 3},
    {"modulate_hw_attention": False},
    {"update_anchors": False},
    {"query_dim": 2, "modulate_hw_attention": False},
    {"share_box_head": False},
    {"key_temperature": 10, "query_temperature": 20},
    {"anchor_init": "grid", "freeze_anchor_centers": True},
    {"num_encoder_layers": 0, "num_decoder_layers": 1},
    {"dropout": 0.1},
]
