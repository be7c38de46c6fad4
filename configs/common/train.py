"""How a training runs: device, precision, periods, what is written where."""

train = dict(
    output_dir="./output",
    # a file, or an address that Detectron2's path manager knows; "" starts from random weights
    init_checkpoint="",
    # auto: a GPU if there is one
    device="auto",
    # worker r is seeded with seed + r
    seed=42,
    # the length of the training; max_iter, in steps, goes first if it is set
    epochs=50,
    max_iter=None,
    # float16 (with a gradient scaler) or bfloat16
    amp=dict(enabled=False, dtype="float16"),
    # of all gradients together; 0 switches it off
    clip_grad=dict(max_norm=0.1),
    # in steps; None: once an epoch
    eval_period=None,
    checkpointer=dict(period=None, max_to_keep=3),
    log_period=20,
    # predictions that are drawn at the end
    pictures=dict(count=0, score_threshold=0.5),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
)
