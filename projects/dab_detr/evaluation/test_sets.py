"""The data sets that a config evaluates on, each with a loader and evaluators of its own."""

import contextlib
from collections.abc import Iterator
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.utils.data import DataLoader

from dab_detr.config import build
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
    with _only(cfg, name):
        return build(cfg, "dataloader.test")


def build_evaluators(cfg: DictConfig, name: str, *, suffix: str = "") -> list[DatasetEvaluator]:
    """The evaluators for one of the test data sets.

    An evaluator's ``dataset_name``, if it has one, is that of the data set. What has an
    ``output_dir`` writes into it or, if there are several data sets, into a folder in it.

    Args:
        suffix: is added to the names of these folders.

    Raises:
        InputError: if the section does not work.
    """
    folder = label(cfg, name)
    with _only(cfg, name), contextlib.ExitStack() as stack:
        for node in _evaluator_nodes(cfg):
            values = {"dataset_name": name} if "dataset_name" in node.keys() else {}
            if node.get("output_dir"):
                values["output_dir"] = f"{node.output_dir}{suffix}{folder}"
            stack.enter_context(_replaced(node, values))
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

    Raises:
        InputError: if they cannot.
    """
    for name in evaluated_sets(cfg):
        build_loader(cfg, name)
        for evaluator in build_evaluators(cfg, name):
            check_voc_evaluator(evaluator)


@contextlib.contextmanager
def _only(cfg: DictConfig, name: str) -> Iterator[None]:
    """Inside, the config has one test data set. What refers to its name gets that one."""
    with _replaced(cfg.dataloader.test.dataset, {"names": name}):
        yield


@contextlib.contextmanager
def _replaced(node: DictConfig, values: dict[str, Any]) -> Iterator[None]:
    # unresolved: references to other keys stay such
    before = OmegaConf.to_container(node, resolve=False)
    node.update(values)
    try:
        yield
    finally:
        node.update({key: before[key] for key in values})
