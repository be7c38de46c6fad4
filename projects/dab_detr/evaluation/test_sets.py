"""The data sets that a config evaluates on, each with a loader and evaluators of its own."""

import contextlib
import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, ListConfig
from torch.utils.data import DataLoader

from dab_detr.config import build, copy_config, target_of
from dab_detr.data.datasets import dataset_names
from dab_detr.errors import InputError
from dab_detr.evaluation.voc_evaluator import check_voc_evaluator


def evaluated_sets(cfg: DictConfig) -> list[str]:
    """Names of the data sets to evaluate on; none if ``dataloader`` has no test or no evaluator."""
    return list(dict.fromkeys(dataset_names(cfg, "test")))


def _evaluator_nodes(cfg: DictConfig) -> list[DictConfig]:
    found = cfg.dataloader.evaluator
    nodes = list(found) if isinstance(found, ListConfig) else [found]
    for node in nodes:
        if not isinstance(node, DictConfig):
            raise InputError(
                f"dataloader.evaluator is {found}; an evaluator, a list of them or null is needed."
            )
    return nodes


def label(cfg: DictConfig, name: str) -> str:
    """What tells a data set's results and files from others': "/NAME", or "" if it is alone."""
    return f"/{name}" if len(evaluated_sets(cfg)) > 1 else ""


def build_loader(cfg: DictConfig, name: str) -> DataLoader:
    """``dataloader.test`` for one of its data sets.

    Raises:
        InputError: if the section does not work.
    """
    return build(_only(cfg, name), "dataloader.test")


def build_evaluators(
    cfg: DictConfig, name: str, *, suffix: str = "", root: str = ""
) -> list[DatasetEvaluator]:
    """The evaluators for one of the test data sets.

    An evaluator's ``dataset_name``, if it has one, is that of the data set. What has an
    ``output_dir`` writes into it or, if there are several data sets, into a folder in it.

    Args:
        suffix: is added to the names of these folders.
        root: takes the place of ``output_dir``; "": none.

    Raises:
        InputError: if the section does not work.
    """
    folder = label(cfg, name)
    cfg = _only(cfg, name)
    for node in _evaluator_nodes(cfg):
        if "dataset_name" in node.keys():
            node.dataset_name = name
        if node.get("output_dir"):
            node.output_dir = f"{root or node.output_dir}{suffix}{folder}"
        _use_no_cached_truth(node)
    with _metadata_without_cache(name):
        built = build(cfg, "dataloader.evaluator")
    evaluators = list(built) if isinstance(built, ListConfig) else [built]
    for evaluator in evaluators:
        if not all(hasattr(evaluator, use) for use in ("reset", "process", "evaluate")):
            raise InputError(
                f"dataloader.evaluator gives {type(evaluator).__name__}, which is no evaluator: "
                "it needs reset(), process() and evaluate(), as Detectron2's have."
            )
    return evaluators


def check_evaluation(cfg: DictConfig) -> None:
    """See that loaders and evaluators can be built, before a training that would end with them.

    Nothing is left in the folders of the evaluators.

    Raises:
        InputError: if they cannot.
    """
    for name in evaluated_sets(cfg):
        build_loader(cfg, name)
        for node in _evaluator_nodes(cfg):
            _require_folder(node.get("output_dir"))
        with tempfile.TemporaryDirectory() as folder:
            for evaluator in build_evaluators(cfg, name, root=folder):
                check_voc_evaluator(evaluator)


def _require_folder(path: str | None) -> None:
    """See that a folder is there or can be made, and can be written into."""
    if not path:
        return
    nearest = next(x for x in (Path(path), *Path(path).absolute().parents) if x.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"dataloader.evaluator.output_dir is {path}, but nothing can be written into "
            f"{nearest}: choose another folder."
        )


def _use_no_cached_truth(node: DictConfig) -> None:
    """Let an evaluator of Detectron2's kind convert a data set that has no JSON file anew.

    By default it takes the file that an earlier run has left, whatever the data set was then.
    """
    key, target = "allow_cached_coco", target_of(node)
    if key not in node and target is not None and key in inspect.signature(target).parameters:
        node[key] = False


@contextlib.contextmanager
def _metadata_without_cache(name: str) -> Iterator[None]:
    """Detectron2's evaluator enters the file that it has converted, and read, as the data set's.

    A second training in the same folder moves that file away.
    """
    metadata = MetadataCatalog.get(name)
    had_file = hasattr(metadata, "json_file")
    try:
        yield
    finally:
        if not had_file and hasattr(metadata, "json_file"):
            del metadata.json_file


def _only(cfg: DictConfig, name: str) -> DictConfig:
    """A copy with one test data set. What refers to its name gets that one."""
    one = copy_config(cfg)
    one.dataloader.test.dataset.names = name
    return one
