import inspect

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg, instantiate
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from omegaconf import OmegaConf

import dab_detr
from dab_detr.config import (
    config_directory,
    config_file,
    copy_config,
    get_config,
    list_configs,
)
from dab_detr.errors import InputError


def yaml_config(*overrides):
    cfg = get_cfg()
    dab_detr.add_dab_detr_config(cfg)
    cfg.merge_from_file(str(config_directory() / "yaml" / "dab_detr_r50.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *overrides])
    return cfg


SMALL_YAML = """
    MODEL.DAB_DETR.D_MODEL 32 MODEL.DAB_DETR.NUM_HEADS 4 MODEL.DAB_DETR.FFN_DIM 64
    MODEL.DAB_DETR.NUM_ENCODER_LAYERS 1 MODEL.DAB_DETR.NUM_DECODER_LAYERS 2
    MODEL.DAB_DETR.NUM_QUERIES 10 MODEL.DAB_DETR.NUM_CLASSES 3
    MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64 INPUT.MIN_SIZE_TEST 64
""".split()


@pytest.mark.parametrize("name", list_configs())
def test_every_config_loads_and_instantiates(name):
    cfg = get_config(name)
    # drawing weights takes most of the time; some backbones need numbers while they are built
    with torch.device("cpu" if name.startswith("backbones/") else "meta"):
        model = instantiate(cfg.model)
    assert type(model) is dab_detr.DABDETR
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_groups == {id(p) for p in model.parameters() if p.requires_grad}
    scheduler = instantiate(cfg.lr_multiplier)
    assert 0 < scheduler(0.9999) < scheduler(0.5) <= 1
    # all references to other keys resolve
    OmegaConf.to_container(cfg.train, resolve=True)
    assert cfg.dataloader.evaluator.dataset_name == cfg.dataloader.test.dataset.names


def test_the_parts_have_the_configs_values_as_defaults():
    """Whoever builds them without a config has the paper's model, too."""
    model = OmegaConf.to_container(get_config("models/dab_detr_r50.py").model, resolve=True)
    compared = []

    def visit(node):
        if isinstance(node, dict):
            target = node.get("_target_")
            if getattr(target, "__module__", "").startswith("dab_detr."):
                for name, parameter in inspect.signature(target).parameters.items():
                    # what has to be given, or is built of other parts, has no value to compare
                    if parameter.default not in (inspect.Parameter.empty, None):
                        value = node.get(name, parameter.default)
                        assert parameter.default == (tuple(value) if type(value) is list else value)
                        compared.append(name)
            for value in node.values():
                visit(value)

    visit(model)
    assert {"modulate_hw_attention", "num_heads", "giou_weight", "pixel_mean"} <= set(compared)


def test_a_copy_of_a_config_shares_nothing_but_its_objects():
    cfg = get_config("dab_detr_r50_50ep.py")
    before = OmegaConf.to_container(cfg, resolve=False)
    model = torch.nn.Linear(2, 2)
    cfg.optimizer.params.model = model
    copied = copy_config(cfg)
    assert copied.optimizer.params.model is model and copied == cfg
    copied.optimizer.lr = 5.0
    copied.train.output_dir = "elsewhere"
    copied.dataloader.train.mapper.augmentations.pop()
    del copied.optimizer.params.model
    del cfg.optimizer.params.model
    assert OmegaConf.to_container(cfg, resolve=False) == before
    # what refers to another key means that of its own config
    assert copied.optimizer.params.base_lr == 5.0
    assert copied.dataloader.evaluator.output_dir == "elsewhere/inference"


def test_lazy_config_and_yaml_build_the_same_model():
    lazy = instantiate(get_config("dab_detr_r50_50ep.py").model)
    from_yaml = build_model(yaml_config())
    states = lazy.state_dict(), from_yaml.state_dict()
    assert {k: v.shape for k, v in states[0].items()} == {k: v.shape for k, v in states[1].items()}
    from_yaml.load_state_dict(states[0])
    assert [p.requires_grad for p in lazy.parameters()] == [
        p.requires_grad for p in from_yaml.parameters()
    ]
    inputs = [{"image": torch.randint(256, (3, 96, 128), dtype=torch.uint8)}]
    with torch.no_grad():
        results = [model.eval()(inputs)[0]["instances"] for model in (lazy, from_yaml)]
    assert torch.equal(results[0].scores, results[1].scores)
    assert torch.equal(results[0].pred_boxes.tensor, results[1].pred_boxes.tensor)
    for name in ("class_weight", "bbox_weight", "giou_weight", "focal_alpha", "focal_gamma"):
        first, second = (getattr(m.criterion.matcher, name) for m in (lazy, from_yaml))
        assert first == second
    assert lazy.criterion.weights == from_yaml.criterion.weights


def test_every_key_of_a_yaml_config_reaches_the_model():
    small = dict(zip(SMALL_YAML[::2], SMALL_YAML[1::2]))
    other = {
        "NUM_CLASSES": 4, "NUM_SELECT": 7, "DROPOUT": 0.25, "NUM_PATTERNS": 2, "QUERY_DIM": 2,
        "ANCHOR_INIT": "grid", "FREEZE_ANCHOR_CENTERS": True, "MODULATE_HW_ATTENTION": False,
        "UPDATE_ANCHORS": False, "SHARE_BOX_HEAD": False, "KEY_TEMPERATURE": 11.0,
        "QUERY_TEMPERATURE": 12.0, "NUM_QUERIES": 9, "D_MODEL": 16, "NUM_HEADS": 2,
        "FFN_DIM": 24, "NUM_ENCODER_LAYERS": 2, "NUM_DECODER_LAYERS": 3,
        **{f"LOSS.COST_{x}": i + 21.0 for i, x in enumerate(("CLASS", "BBOX", "GIOU"))},
        **{f"LOSS.WEIGHT_{x}": i + 31.0 for i, x in enumerate(("CLASS", "BBOX", "GIOU"))},
        "LOSS.FOCAL_ALPHA": 0.5, "LOSS.FOCAL_GAMMA": 3.0,
    }  # fmt: skip
    keys = yaml_config().MODEL.DAB_DETR
    every = {k for k in keys if k != "LOSS"} | {f"LOSS.{k}" for k in keys.LOSS}
    assert every - other.keys() == {"IN_FEATURES"}
    overrides = small | {f"MODEL.DAB_DETR.{key}": str(value) for key, value in other.items()}
    model = build_model(yaml_config(*(x for pair in overrides.items() for x in pair)))
    matcher, transformer = model.criterion.matcher, model.transformer
    queries, decoder = transformer.queries, transformer.decoder
    assert (model.num_classes, model.num_select) == (4, 7)
    assert (matcher.class_weight, matcher.bbox_weight, matcher.giou_weight) == (21, 22, 23)
    weights = {f"loss_{x}": i for x, i in (("class", 31), ("bbox", 32), ("giou", 33))}
    assert model.criterion.weights == weights
    assert (matcher.focal_alpha, matcher.focal_gamma) == (0.5, 3)
    assert (model.criterion.focal_alpha, model.criterion.focal_gamma) == (0.5, 3)
    assert transformer.key_encoding.temperature == 11 and queries.temperature == 12
    assert decoder.dropout == 0.25 and not queries.update_anchors
    assert queries.reference_size is None and len(decoder.box_heads) == 3
    assert queries.patterns.weight.shape == (2, 16)
    centers = queries.center_logits
    assert centers.shape == (9, 2) and not centers.requires_grad
    grid = torch.tensor([1 / 6, 3 / 6, 5 / 6])
    torch.testing.assert_close(centers.sigmoid()[:3, 0], grid)
    assert len(transformer.encoder.layers) == 2 and len(decoder.layers) == 3
    assert decoder.layers[0].feed_forward.linear1.weight.shape == (24, 16)
    assert decoder.layers[0].self_attention.num_heads == 2


def test_detectron2s_default_trainer_and_predictor_run_it(tiny_shapes, tmp_path):
    train, val = tiny_shapes
    cfg = yaml_config(*SMALL_YAML, "OUTPUT_DIR", str(tmp_path))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 2
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    trainer = DefaultTrainer(cfg)
    trainer.train()
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    cfg.DATASETS.TEST = (val,)
    predictor = DefaultPredictor(cfg)
    assert predictor.metadata.thing_classes == ["rectangle", "ellipse", "triangle"]
    image = torch.randint(256, (50, 70, 3), dtype=torch.uint8).numpy()
    instances = predictor(image)["instances"]
    assert instances.image_size == (50, 70) and len(instances) == 30
    weights = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    assert weights.keys() == predictor.model.state_dict().keys()


def test_published_recipe():
    cfg = get_config("dab_detr_r50_50ep.py")
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    groups = instantiate(cfg.optimizer).param_groups
    by_id = {id(p): group for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        frozen = name.startswith(("backbone.stem", "backbone.res2"))
        assert parameter.requires_grad != frozen, name
        if not frozen:
            group = by_id[id(parameter)]
            expected = 1e-5 if name.startswith("backbone.") else 1e-4
            assert group["lr"] == pytest.approx(expected), name
            assert group["weight_decay"] == 1e-4, name
    schedule = instantiate(cfg.lr_multiplier)
    epochs = cfg.train.epochs
    assert schedule(0) == 1.0
    assert schedule(39.9 / epochs) == 1.0
    assert schedule(40.1 / epochs) == pytest.approx(0.1)
    assert cfg.train.clip_grad.max_norm == 0.1
    assert cfg.dataloader.train.total_batch_size == 16
    assert not [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [m for m in model.backbone.modules() if isinstance(m, FrozenBatchNorm2d)]
    assert cfg.dataloader.train.dataset.filter_empty is False
    assert cfg.train.seed == 42


def test_published_augmentation():
    loader = get_config("dab_detr_r50_50ep.py").dataloader
    train, test = instantiate(loader.train.mapper), instantiate(loader.test.mapper)
    assert train.image_format == test.image_format == "RGB"
    image = np.zeros((640, 480), np.uint8)
    short_sides, sides_before_crop, cropped, flipped = set(), set(), 0, 0
    crops = []
    for _ in range(600):
        augmented = T.AugInput(image)
        transforms = train.augmentations(augmented)
        height, width = augmented.image.shape[:2]
        short_sides.add(min(height, width))
        assert max(height, width) <= 1333
        names = [type(t).__name__ for t in transforms.transforms]
        cropped += "CropTransform" in names
        flipped += "HFlipTransform" in names
        crop = next((t for t in transforms.transforms if hasattr(t, "x0")), None)
        if crop is not None:
            before = transforms.transforms[names.index("CropTransform") - 1]
            sides_before_crop.add(min(before.new_h, before.new_w))
            crops += [crop.w, crop.h]
    # of 600 with probability a half: five standard deviations are 61
    assert 239 < cropped < 361 and 239 < flipped < 361
    # sides from 384 to 600, which no resized image is too small for at 600
    assert min(crops) >= 384 and 590 < max(crops) <= 600
    # a choice of three, not a range
    assert sides_before_crop == {400, 500, 600}
    # without the crop nothing is bounded by 1333, so all eleven sides are reached
    assert set(range(480, 801, 32)) <= short_sides
    (resize,) = test.augmentations.augs
    assert (list(resize.short_edge_length), resize.max_size) == ([800, 800], 1333)


def test_config_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("dab_detr_r50_50ep.py", "configs/dab_detr_r50_50ep.py"):
        assert dab_detr.get_config(name).model.transformer.queries.num_queries == 300
    with pytest.raises(InputError, match="no_such.py.*dab_detr_r50_50ep.py"):
        config_file("no_such.py")


def test_overrides_change_the_config():
    cfg = get_config(
        "dab_detr_r50_50ep.py",
        ["model.transformer.queries.num_patterns=3", "train.amp.dtype=bfloat16", "+train.note=mine",
         "dataloader.train.mapper.augmentations.0.prob=0.25"],
    )  # fmt: skip
    assert cfg.model.transformer.queries.num_patterns == 3
    assert cfg.train.amp.dtype == "bfloat16"
    assert cfg.train.note == "mine"
    assert cfg.dataloader.train.mapper.augmentations[0].prob == 0.25


@pytest.mark.parametrize(
    "value",
    [
        "runs/lr=1e-4", "a b", "run[1]", "run(1)", r"C:\data\run (2)", "数据/ñandú", "a,b", "it's",
        "https://host/x.pth?a=b&c=d", "2024", "1e-4", "True", "#1;&!", "a{b}", "~user", "[1", "",
    ],
)  # fmt: skip
def test_text_is_taken_as_it_stands(value):
    cfg = get_config("dab_detr_r50_50ep.py", [f"train.output_dir={value}"])
    assert cfg.train.output_dir == value


@pytest.mark.parametrize(
    "override, expected",
    [
        ("train.output_dir='a, b'", "a, b"),
        ('train.output_dir="2024"', "2024"),
        ("train.output_dir=null", None),
        ("train.output_dir=${train.device}/x", "cpu/x"),
        ("dataloader.train.dataset.names=[a,b]", ["a", "b"]),
        ("dataloader.train.dataset.names=[训练,b c]", ["训练", "b c"]),
        ("model.in_features=[~a=1]", ["~a=1"]),
        ("model.pixel_mean=[0,0.5,1e2]", [0, 0.5, 100.0]),
        ("train.max_iter=7", 7),
        # refers to another key, which holds a number
        ("optimizer.params.base_lr=0.5", 0.5),
        ("train.amp={enabled: True}", {"enabled": True, "dtype": "float16"}),
    ],
)
def test_other_values_are_read_as_what_they_are(override, expected):
    cfg = get_config("dab_detr_r50_50ep.py", ["train.device=cpu", override])
    value = OmegaConf.select(cfg, override.split("=")[0])
    assert (OmegaConf.to_container(value) if OmegaConf.is_config(value) else value) == expected


@pytest.mark.parametrize(
    "override, words",
    [
        ("train.max_iter=a=b", "value is not understood.*quotes of its own"),
        ("train.max_iter=1,2", "value is not understood"),
        ("train.output_dir=${train.nowhere}/x", "cannot be applied.*nowhere"),
        ("train.output_dir=${", "cannot be applied"),
        ("train.max_itr=3", "did you mean train.max_iter"),
        ("model.num_querys=3", "model.transformer.queries.num_queries"),
        ("nonsense", "key=value"),
        ("train.max_iter=[1", "cannot be applied"),
        ("model.num_queries.x=1", "no key 'model.num_queries.x'"),
    ],
)
def test_wrong_overrides_are_named(override, words):
    with pytest.raises(InputError, match=words):
        get_config("dab_detr_r50_50ep.py", [override])


def test_a_config_that_does_not_load_says_why(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("from .missing import model\n")
    with pytest.raises(InputError, match="broken.py cannot be loaded.*missing.py does not exist"):
        get_config(broken)
