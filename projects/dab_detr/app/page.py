"""The page: an image in; picture, table and decoder layers out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dab_detr.app.examples import Example
from dab_detr.app.session import COLUMNS, Detector, Found, first_layer
from dab_detr.errors import InputError
from dab_detr.inference.predictor import Predictor
from dab_detr.inference.selection import SCORE_THRESHOLD

if TYPE_CHECKING:
    import gradio

# seconds: how often files that nobody needs any more are removed, and how old they are then
_REMOVE_FILES = (600, 3600)
# pictures that are drawn at the same time
_DRAWING = 4


def build_page(predictor: Predictor, examples: Sequence[Example] = ()) -> "gradio.Blocks":
    """Make the page.

    Every browser window is a session with an image of its own. Its detections are kept: threshold
    and layer only select among them.

    Args:
        predictor: detects; without decoder layers (exported files) their slider is hidden.
        examples: images to choose from.

    Raises:
        InputError: without gradio, an optional dependency of this package.
    """
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise InputError("The page needs gradio: pip install 'dab_detr[app]'.") from error

    detector = Detector(predictor)
    num_layers = detector.num_layers
    with gr.Blocks(title="DAB-DETR", analytics_enabled=False, delete_cache=_REMOVE_FILES) as page:
        session = gr.State()
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                file = gr.File(label="Image", height=140, elem_id="file")
                threshold = gr.Slider(
                    0, 1, SCORE_THRESHOLD, step=0.01, label="Lowest score", elem_id="threshold"
                )
                layer = gr.Slider(
                    0,
                    max(num_layers, 1),
                    num_layers,
                    step=1,
                    precision=0,
                    label="Decoder layer",
                    info="0 is the learned anchor of each detection, the last its box.",
                    visible=num_layers > 0,
                    elem_id="layer",
                )
                gallery = gr.Gallery(
                    [example.thumbnail for example in examples],
                    label="Examples",
                    columns=4,
                    height="auto",
                    object_fit="contain",
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id="examples",
                )
            with gr.Column(scale=2):
                picture = gr.Image(
                    label="Detections",
                    format="jpeg",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="picture",
                )
                summary = gr.Textbox(label="Result", interactive=False, elem_id="summary")
                table = gr.Dataframe(
                    headers=[*COLUMNS],
                    datatype=["str", *["number"] * (len(COLUMNS) - 1)],
                    type="array",
                    interactive=False,
                    label="Boxes in pixels",
                    elem_id="table",
                )
        shown = [picture, table, summary]

        def detect(path: str | None, score_threshold: float) -> tuple[Any, ...]:
            if path is None:
                return clear()
            try:
                found = detector.find(path)
            except InputError as error:
                return None, gr.skip(), None, [], str(error)
            last = gr.skip()
            if num_layers:
                minimum = first_layer(found.instances, num_layers)
                last = gr.Slider(minimum=minimum, maximum=num_layers, value=num_layers)
            return found, last, *detector.view(found, score_threshold)

        def detect_example(score_threshold: float, event: gr.SelectData) -> tuple[Any, ...]:
            return detect(str(examples[event.index].path), score_threshold)

        def show(found: Found | None, score_threshold: float, number: int) -> tuple[Any, ...]:
            if found is None:
                return None, [], ""
            return tuple(detector.view(found, score_threshold, number))

        def clear() -> tuple[Any, ...]:
            return None, gr.skip(), None, [], ""

        results = [session, layer, *shown]
        model = {"outputs": results, "concurrency_id": "model", "concurrency_limit": _DRAWING}
        file.upload(detect, [file, threshold], api_name="detect", **model)
        file.clear(clear, None, results, queue=False, api_name=False)
        gallery.select(detect_example, threshold, api_name="example", **model)
        gr.on(
            [threshold.input, layer.input],
            show,
            [session, threshold, layer],
            shown,
            api_name="show",
            # while a slider moves only its latest position counts
            trigger_mode="always_last",
            concurrency_limit=_DRAWING,
            show_progress="hidden",
        )
    return page
