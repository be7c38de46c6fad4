"""COCO 2017 with DETR's augmentation, on Detectron2's loaders."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader

from dab_detr.data.catalog import checked_records
from dab_detr.data.mapper import DetectionMapper
from dab_detr.evaluation.coco_evaluator import BoxEvaluator

_SHORT_SIDES = list(range(480, 801, 32))

dataloader = dict(
    train=L(build_detection_train_loader)(
        # images without objects are kept, as published
        dataset=L(checked_records)(names="coco_2017_train", filter_empty=False),
        mapper=L(DetectionMapper)(
            is_train=True,
            augmentations=[
                L(T.RandomFlip)(prob=0.5, horizontal=True),
                L(T.RandomApply)(
                    tfm_or_aug=L(T.AugmentationList)(
                        augs=[
                            L(T.ResizeShortestEdge)(
                                short_edge_length=[400, 500, 600], sample_style="choice"
                            ),
                            L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
                        ]
                    ),
                    prob=0.5,
                ),
                L(T.ResizeShortestEdge)(
                    short_edge_length=_SHORT_SIDES, max_size=1333, sample_style="choice"
                ),
            ],
            image_format="RGB",
        ),
        total_batch_size=16,
        # the published code mixes wide and tall images in a batch
        aspect_ratio_grouping=False,
        num_workers=4,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(checked_records)(names="coco_2017_val", filter_empty=False),
        mapper=L(DetectionMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
            image_format="RGB",
        ),
        batch_size=1,
        num_workers=4,
    ),
    # each of several test sets is evaluated by itself, under its own name
    evaluator=L(BoxEvaluator)(
        dataset_name="${..test.dataset.names}",
        output_dir="${train.output_dir}/inference",
        # or pycocotools, or faster-coco-eval: the same numbers
        backend="auto",
    ),
)
