"""The test data sets of a config, each with its own loader and evaluators."""

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
    """Names of the test data sets; empty if ``dataloader`` has no test or no evaluator."""
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
    """Suffix of a data set's results and files: "/NAME", or "" if it is the only one."""
    return f"/{name}" if len(evaluated_sets(cfg)) > 1 else ""


def build_loader(cfg: DictConfig, name: str) -> DataLoader:
    """``dataloader.test`` for one of its data sets.

    Raises:
        InputError: if the section cannot be built.
    """
    return build(_only(cfg, name), "dataloader.test")


def build_evaluators(
    cfg: DictConfig, name: str, *, suffix: str = "", root: str = ""
) -> list[DatasetEvaluator]:
    """The evaluators for one of the test data sets.

    An evaluator's ``dataset_name``, if it has one, is set to the data set. An evaluator with an
    ``output_dir`` writes to it or, if there are several data sets, to a folder in it.

    Args:
        suffix: added to the names of these folders.
        root: replaces ``output_dir``; "": keep it.

    Raises:
        InputError: if the section cannot be built.
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
                f"dataloader.evaluator builds {type(evaluator).__name__}, which is not an "
                "evaluator: it needs reset(), process() and evaluate(), like Detectron2's."
            )
    return evaluators


def check_evaluation(cfg: DictConfig) -> None:
    """Check before a training that loaders and evaluators can be built.

    Leaves no files in the folders of the evaluators.

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
    """Check that a folder exists or can be made, and is writable."""
    if not path:
        return
    nearest = next(x for x in (Path(path), *Path(path).absolute().parents) if x.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"dataloader.evaluator.output_dir is {path}, but {nearest} is not writable: choose "
            "another folder."
        )


def _use_no_cached_truth(node: DictConfig) -> None:
    """Keep Detectron2's evaluator from reusing a converted file of an earlier run.

    By default it takes the file that an earlier run has left, whatever the data set was then.
    """
    key, target = "allow_cached_coco", target_of(node)
    if key not in node and target is not None and key in inspect.signature(target).parameters:
        node[key] = False


@contextlib.contextmanager
def _metadata_without_cache(name: str) -> Iterator[None]:
    """A context that removes a converted file of Detectron2's evaluator from the metadata.

    The file does not last: a second training in the same folder moves it away.
    """
    metadata = MetadataCatalog.get(name)
    had_file = hasattr(metadata, "json_file")
    try:
        yield
    finally:
        if not had_file and hasattr(metadata, "json_file"):
            del metadata.json_file


def _only(cfg: DictConfig, name: str) -> DictConfig:
    """A copy of the config with one test data set, also for references to its name."""
    one = copy_config(cfg)
    one.dataloader.test.dataset.names = name
    return one
