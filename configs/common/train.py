"""Settings of a training: device, precision, periods, output. See docs/TRAINING.md."""

train = dict(
    output_dir="./output",
    # a file, a name of `dab-detr zoo`, or an address; "" starts from random weights
    init_checkpoint="",
    # auto: a GPU if there is one
    device="auto",
    # of weights, data order, augmentation and dropout; negative: another seed every time
    seed=42,
    # length of the training; max_iter, in steps, takes precedence if it is set
    epochs=50,
    max_iter=None,
    # gradient accumulation: number of micro-batches per step; less memory, the same gradient
    accumulate=1,
    # multiplies optimizer.lr by total_batch_size / base_batch_size
    auto_scale_lr=dict(enabled=False, base_batch_size=16),
    # float16 (with a gradient scaler) or bfloat16
    amp=dict(enabled=False, dtype="float16"),
    # compiles the transformer for training, which takes minutes at the first step
    compile=False,
    # channels-last memory format for the convolutions; results differ only by rounding
    channels_last=True,
    # on a CPU, reuse freed memory: faster, but the process stays as large as its peak
    keep_freed_memory=True,
    # recomputes activations of these parts in the backward pass instead of storing them
    activation_checkpointing=dict(backbone=False, encoder=False, decoder=False),
    # L2 norm of all gradients together; 0 switches clipping off
    clip_grad=dict(max_norm=0.1),
    # an exponential moving average of the weights, which is also evaluated
    ema=dict(enabled=False, decay=0.9997),
    # number of unreadable or missing images, and of steps skipped because a loss or gradient is not
    # finite, before the training stops
    max_unreadable_images=10,
    max_nonfinite_steps=0,
    # in steps; None: once per epoch
    eval_period=None,
    checkpointer=dict(period=None, max_to_keep=3),
    log_period=20,
    # further event writers of Detectron2, as LazyCalls
    writers=[],
    # number of images whose predictions are drawn: in files at the end, in TensorBoard at each
    # evaluation
    pictures=dict(count=0, score_threshold=0.5, tensorboard=4),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
)
