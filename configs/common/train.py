"""How a training runs: device, precision, periods, what is written where. See docs/TRAINING.md."""

train = dict(
    output_dir="./output",
    # a file, or an address that Detectron2's path manager knows; "" starts from random weights
    init_checkpoint="",
    # auto: a GPU if there is one
    device="auto",
    # of weights, order of the data, augmentation and dropout; negative: another every time
    seed=42,
    # the length of the training; max_iter, in steps, goes first if it is set
    epochs=50,
    max_iter=None,
    # a step's batch in so many parts, one after the other: less memory, the same gradient
    accumulate=1,
    # multiplies optimizer.lr by total_batch_size / base_batch_size
    auto_scale_lr=dict(enabled=False, base_batch_size=16),
    # float16 (with a gradient scaler) or bfloat16
    amp=dict(enabled=False, dtype="float16"),
    # compiles the transformer for training, which takes minutes at the first step
    compile=False,
    # convolutions' weights and features with channels last: the same numbers but for rounding
    channels_last=True,
    # on a CPU, for the next tensors: quicker, and the process stays as large as it once was
    keep_freed_memory=True,
    # computes these again in the backward pass instead of keeping them
    activation_checkpointing=dict(backbone=False, encoder=False, decoder=False),
    # of all gradients together; 0 switches it off
    clip_grad=dict(max_norm=0.1),
    # a moving average of the weights, evaluated beside them
    ema=dict(enabled=False, decay=0.9997),
    # images that may turn out unreadable or missing, and steps that may be skipped because a loss
    # or gradient is not finite, before the training stops
    max_unreadable_images=10,
    max_nonfinite_steps=0,
    # in steps; None: once an epoch
    eval_period=None,
    checkpointer=dict(period=None, max_to_keep=3),
    log_period=20,
    # further event writers of Detectron2, as LazyCalls
    writers=[],
    # predictions that are drawn into files at the end, and in TensorBoard at each evaluation
    pictures=dict(count=0, score_threshold=0.5, tensorboard=4),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
)
