"""Export of models to ONNX, OpenVINO and torch.export files."""

from dab_detr.inference.export.export import FORMATS, check_output, export_model, metadata_of

__all__ = ["FORMATS", "check_output", "export_model", "metadata_of"]
