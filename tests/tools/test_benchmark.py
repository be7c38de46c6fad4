"""The benchmark: candidates agree or are named, and the results add up."""

import json
import logging
import platform
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from counting import count_threads, count_up, what_is_kept
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d

from benchmarking import candidates as models
from benchmarking import exported, losses
from benchmarking.interleaved import Candidate, CandidateFailed, run_interleaved
from benchmarking.report import disagreements, profiles, rows, table, with_files
from dab_detr.analysis import count_flops
from dab_detr.config import get_config
from dab_detr.exported import ExportMetadata

CONFIG = str(Path(__file__).parents[1] / "assets" / "bench_config.py")
SMALL = ["--config-file", CONFIG, "--repeats", "1", "--warmup", "0"]


@pytest.fixture
def setting(tmp_path):
    """Of two small images, with the weights written."""
    setting = models.Setting(tmp_path, CONFIG, [], 2, 64, 96, "cpu", "float32")
    models.write_transformers(setting, models.write_weights(setting))
    return setting


def assert_same(actual, expected, rtol=1e-4):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=rtol, atol=1e-5, msg=name)


def test_all_predict_the_same(setting):
    expected = models.infer_transformers(setting).outcome()
    assert expected["class logits"].shape == (2, 20, 5)
    # the weights are not those of a start, where every box is its anchor
    assert expected["boxes"].std(dim=0).max() > 1e-4
    assert_same(models.infer_ours(setting).outcome(), expected)
    assert_same(models.infer_ours(setting, fast=True).outcome(), expected)


def test_all_train_the_same(setting):
    expected = models.train_transformers(setting).outcome()
    assert_same(models.train_ours(setting).outcome(), expected)


def test_a_training_step_changes_the_weights_that_learn(setting):
    for prepare in (models.train_ours, models.train_transformers):
        work = prepare(setting)
        before = work.outcome()["loss"]
        for _ in range(20):
            work.run()
        assert work.outcome()["loss"] < before


@pytest.mark.parametrize("prepare", [losses.match, losses.compute_losses])
def test_losses_at_once_and_layer_by_layer_are_the_same(prepare):
    setting = losses.LossSetting(3, 4, queries=12, classes=6, objects=5, device="cpu")
    outcome = prepare(setting, at_once=False).outcome()
    assert_same(prepare(setting, at_once=True).outcome(), outcome)
    if prepare is losses.match:
        assert len(outcome["pairs"]) == 3 * 4 * 5


def test_wrong_gradients_of_the_losses_are_found():
    setting = losses.LossSetting(3, 4, queries=12, classes=6, objects=5, device="cpu")
    reference = losses.compute_losses(setting, at_once=False).outcome()
    right = losses.compute_losses(setting, at_once=True).outcome()
    gradient = right["class gradient"]
    background = gradient > 0
    faults = {
        "none": gradient,
        "larger": gradient * 1.05,
        "no background": gradient.where(~background, 0),
        "flipped background": gradient.where(~background, -gradient),
    }
    outcomes = {name: {**right, "class gradient": wrong} for name, wrong in faults.items()}
    found = disagreements(outcomes, reference, {"*": 1e-4})
    assert [x.split(":")[0] for x in found] == list(faults)[1:]


def test_wrong_gradients_of_a_step_are_found(setting, monkeypatch):
    reference = models.train_ours(setting).outcome()
    right = models.train_transformers(setting).outcome()
    assert not disagreements({"right": right}, reference, {"*": 1e-3})
    load = models.load_ours

    def frozen(setting):
        model = load(setting)
        # too little for the norm of the whole gradient
        model.transformer.decoder.norm.requires_grad_(False)
        return model

    monkeypatch.setattr(models, "load_ours", frozen)
    wrong = models.train_ours(setting).outcome()
    found = disagreements({"wrong": wrong}, reference, {"*": 1e-3})
    assert any("norms of the tensors' gradients" in x for x in found)


def test_what_is_to_be_compiled_is(setting, monkeypatch):
    compiled = []
    copy = models.inference_copy
    monkeypatch.setattr(
        models,
        "inference_copy",
        lambda model, **options: (compiled.append(options), copy(model))[1],
    )
    models.infer_ours(setting, fast=True, compile=True)
    assert compiled == [{"compile": True, "cuda_graphs": False}]
    monkeypatch.setattr(models, "compile_for_training", compiled.append)
    models.train_ours(setting)
    assert len(compiled) == 1
    models.train_ours(setting, compile=True)
    assert len(compiled) == 2


def test_sixteen_bits_are_compared_by_scores(setting):
    expected = models.infer_ours(setting).outcome()
    actual = models.infer_ours(setting._replace(dtype="bfloat16"), fast=True).outcome()
    assert actual.keys() == {"scores", "boxes"} < expected.keys()
    for name, value in actual.items():
        assert 0 < (value - expected[name]).abs().max() < 2e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fault", ["no norms", "flipped image", "no key encoding", "no encoder"])
def test_a_model_that_computes_something_else_is_found(setting, monkeypatch, dtype, fault):
    reference = models.infer_ours(setting).outcome()
    setting = setting._replace(dtype=dtype)
    limits = {"*": {"float32": 1e-3, "bfloat16": 2e-2}[dtype]}
    right = {"right": models.infer_ours(setting, fast=True).outcome()}
    assert not disagreements(right, reference, limits)
    load, images = models.load_ours, models.example_batch

    def faulty(setting):
        model = load(setting)
        if fault == "no norms":
            for module in model.modules():
                if isinstance(getattr(module, "norm", None), FrozenBatchNorm2d):
                    module.norm = None
        elif fault == "no key encoding":
            model.transformer.key_encoding.register_forward_hook(lambda *x: torch.zeros_like(x[2]))
        elif fault == "no encoder":
            model.transformer.encoder.register_forward_hook(lambda *x: x[1][0])
        return model

    def flipped(*args):
        return [{**image, "image": image["image"].flip(2)} for image in images(*args)]

    monkeypatch.setattr(models, "load_ours", faulty)
    if fault == "flipped image":
        monkeypatch.setattr(models, "example_batch", flipped)
    wrong = {"wrong": models.infer_ours(setting, fast=True).outcome()}
    assert disagreements(wrong, reference, limits)


def counting_candidates(log, **fail):
    return [
        Candidate(name, count_up, {"log": str(log), "name": name, "fail": fail.get(name)})
        for name in "AB"
    ]


def test_runs_alternate(tmp_path):
    found = counting_candidates(tmp_path / "log")
    run_interleaved(found, "cpu", repeats=2, warmup=1)
    # at the end one more run each, for the memory
    assert (tmp_path / "log").read_text() == "AB" * 3 + "AB"
    assert [len(candidate.seconds) for candidate in found] == [2, 2]
    assert all(candidate.outcome["answer"] == 1 for candidate in found)
    assert all(candidate.peak_memory is None or candidate.peak_memory > 0 for candidate in found)


def test_nothing_is_timed_before_all_agree(tmp_path):
    found = counting_candidates(tmp_path / "log", B="outcome")

    def check():
        outcomes = {candidate.name: candidate.outcome for candidate in found}
        raise RuntimeError(*disagreements(outcomes, {"answer": torch.tensor(1.0)}, {"*": 0.5}))

    with pytest.raises(RuntimeError, match="B: answer differs by 1, more than 0.5."):
        run_interleaved(found, "cpu", repeats=1, warmup=0, check=check)
    assert not (tmp_path / "log").exists()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_memory_is_kept_where_it_is_to_be():
    found = [Candidate(str(kept), what_is_kept, {}, keep_memory=kept) for kept in (True, False)]
    run_interleaved(found, "cpu", repeats=1, warmup=0)
    kept, given_back = (candidate.outcome["megabytes"].item() for candidate in found)
    assert kept > 90 > given_back


def test_a_candidate_that_fails_is_named(tmp_path):
    with pytest.raises(CandidateFailed, match="(?s)B: .*there is no such model"):
        run_interleaved(
            counting_candidates(tmp_path / "log", B="prepare"), "cpu", repeats=1, warmup=0
        )


def test_all_have_the_same_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        (found,) = [Candidate("threads", count_threads, {})]
        run_interleaved([found], "cpu", repeats=1, warmup=0)
    finally:
        torch.set_num_threads(before)
    assert found.outcome["threads"] == before + 1


def test_disagreements_are_relative_and_see_nan():
    reference = {"loss": torch.tensor([50.0, 1.0]), "boxes": torch.tensor([5e-6])}
    outcomes = {
        "near": {"loss": torch.tensor([50.04, 1.0]), "boxes": torch.tensor([5.004e-6])},
        "off": {"loss": torch.tensor([50.04, 1.0]), "boxes": torch.tensor([5.006e-6])},
        "far": {"loss": torch.tensor([50.06, 1.0]), "boxes": torch.tensor([float("nan")])},
        "other": {"loss": torch.tensor([50.0]), "boxes": torch.tensor([5e-6])},
    }
    found = disagreements(outcomes, reference, {"*": 1e-3})
    assert [x.split(" differs")[0].split(" has")[0] for x in found] == [
        "off: boxes",
        "far: loss",
        "far: boxes",
        "other: loss",
    ]


def test_figures_add_up():
    quick, slow = (Candidate(name, count_up, {}) for name in ("quick", "slow"))
    quick.seconds, slow.seconds = [1.0, 3.0, 2.0], [5.0, 4.0, 9.0]
    quick.peak_memory = 2_500_000_000
    matrix = Candidate("matrix", count_up, {}, seconds=[0.5])
    matrix.outcome = {"flops": torch.tensor(50.0)}
    first, second = rows([quick, slow], images=4, flops=100.0, matrix=matrix)
    assert (first["median_s"], first["fastest_s"], first["slowest_s"]) == (2.0, 1.0, 3.0)
    assert (first["ratio"], second["ratio"]) == (2.5, 1.0)
    assert first["images_per_s"] == 2.0
    assert (first["flops_per_s"], first["share_of_matrix_rate"]) == (50.0, 0.5)
    text = table([first, second])
    assert "slow / this" in text and "2 (1-3)" in text
    assert "2.50" in text and "not measured" in text


def test_files_are_compared_with_what_has_the_same_input():
    candidates = {
        name: Candidate(name, count_up, {}, seconds=[x] * 18 + [10 * x, 20 * x], computes=what)
        for name, x, what in (
            ("a.onnx", 0.5, "onnxruntime"), ("model", 2.0, "PyTorch"),
            ("Predictor, a.onnx", 1.0, "onnxruntime"), ("pipeline", 5.0, "PyTorch"),
        )
    }  # fmt: skip
    first, second, third, fourth = candidates.values()
    found = with_files(
        {"pixels": [first, second], "image": [third, fourth]},
        {"a.onnx": 1_500_000, "Predictor, a.onnx": 1_500_000},
    )
    assert [row["ratio"] for row in found] == [4.0, 1.0, 5.0, 1.0]
    # of 20 runs, the last but one
    assert [row["p95_s"] for row in found] == pytest.approx([5.25, 21.0, 10.5, 52.5])
    head, _, *lines = (line.strip("| ").split("|") for line in table(found).splitlines())
    columns = [x.strip() for x in head]
    cells = [dict(zip(columns, (cell.strip() for cell in line))) for line in lines]
    assert [x["transformers / this"] for x in cells] == ["4.00", "1.00", "5.00", "1.00"]
    assert [x["file, MB"] for x in cells] == ["1.5", "", "1.5", ""]
    assert [x["from"] for x in cells] == ["pixels"] * 2 + ["image"] * 2
    assert cells[0]["computed by"] == "onnxruntime" and cells[0]["95th percentile, s"] == "5.25"


@pytest.fixture
def one(tmp_path):
    """Of one image; the weights are written."""
    setting = models.Setting(tmp_path, CONFIG, [], 1, 96, 128, "cpu", "float32")
    models.write_transformers(setting, models.write_weights(setting))
    return setting


def test_whole_predictions_find_the_same(one, monkeypatch):
    rule = exported.ResizeRule(96, 128)
    expected = exported.expected_of_image(one, rule)
    assert expected.size == (48, 64) and (expected.scores > 0.5).sum() > 10
    ours = exported.predict_ours(one, rule=rule).outcome()
    pipeline = exported.predict_transformers(one, rule=rule).outcome()
    assert exported.difference(ours, expected, "fp32") is None
    assert exported.difference(pipeline, expected, "int8") is None
    other = exported.expected_of_image(one, exported.ResizeRule(64, 128))
    assert "boxes differ by" in exported.difference(ours, other, "fp32")
    wrong = expected._replace(scores=expected.scores[:, ::-1])
    assert "are found again" in exported.difference(pipeline, wrong, "int8")


@pytest.mark.parametrize("rule", [(None, None), (96, None)], ids=str)
def test_images_may_be_resized_by_other_rules(one, rule):
    rule = exported.ResizeRule(*rule)
    expected = exported.expected_of_image(one, rule)
    outcome = exported.predict_ours(one, rule=rule).outcome()
    assert exported.difference(outcome, expected, "fp32") is None
    pipeline = exported.predict_transformers(one, rule=rule).outcome()
    assert exported.difference(pipeline, expected, "int8") is None


@pytest.mark.parametrize(
    "metadata, words",
    [
        ([("abcde", 96), ("abcd", 96)], "1.onnx has 4 classes, the model 5: give --weights"),
        ([("abcde", 96), ("abcde", 64)], "1.onnx resizes images in another way than"),
    ],
)
def test_files_of_another_model_are_refused(
    load_tool, tmp_path, monkeypatch, capsys, metadata, words
):
    files = {}
    for index, (names, edge) in enumerate(metadata):
        (tmp_path / f"{index}.onnx").touch()
        described = ExportMetadata(tuple(names), edge, 128)
        files[tmp_path / f"{index}.onnx"] = SimpleNamespace(metadata=described)
    monkeypatch.setattr(exported, "load_exported", files.get)
    models.write_weights(models.Setting(tmp_path, CONFIG, [], 1, 96, 128, "cpu", "float32"))
    arguments = ["export", "--config-file", CONFIG, "--weights", str(tmp_path / "weights.pth")]
    assert load_tool("benchmark").main([*arguments, "--files", *map(str, files)]) == 1
    assert capsys.readouterr().err.startswith(f"benchmark.py: {tmp_path}/{words}")


def test_profiles_stand_side_by_side():
    found = [
        {"candidate": "quick", "profile": {"conv": 0.25, "add": 0.5}},
        {"candidate": "slow", "profile": {"conv": 1.0, "relu": 0.125}},
    ]
    lines = [line.strip("| ").split("|") for line in profiles(found, longest=2).splitlines()]
    assert [[cell.strip() for cell in line] for line in lines if "-" not in line[0]] == [
        ["operation, ms", "quick", "slow"],
        ["conv", "250.0", "1000.0"],
        ["add", "500.0", "0.0"],
        ["all", "750.0", "1125.0"],
    ]


def test_a_sweep_is_compared_with_its_first_value():
    first, second = (
        {**rows([Candidate(name, count_up, {}, seconds=[s])], images=1)[0], "work_ratio": work}
        for name, s, work in (("batch 1", 2.0, 1.0), ("batch 4", 6.0, 4.0))
    )
    second["ratio"] = 3.0
    text = table([first, second])
    assert "time / first" in text and "work / first" in text and "/ this" not in text
    assert "3.00" in text and "4.00" in text


def test_the_program_measures_and_writes_json(load_tool, tmp_path, capsys):
    benchmark = load_tool("benchmark")
    file = tmp_path / "figures.json"
    arguments = [*SMALL, "--json", str(file)]
    arguments += [
        "--size",
        "64",
        "64",
        "--batch",
        "2",
        "--profile",
        "model.transformer.queries.num_queries=16",
    ]
    assert benchmark.main(["infer", *arguments]) == 0
    report = json.loads(file.read_text())
    names = [row["candidate"] for row in report["rows"]]
    assert names == [
        "as trained",
        "inference_copy",
        "inference_copy, memory kept",
        "transformers",
    ]
    printed = capsys.readouterr().out
    assert all(name in printed for name in names)
    model = get_config(CONFIG, ["model.transformer.queries.num_queries=16"]).model
    gflops = count_flops(instantiate(model), 64, 64)["total"]
    for row in report["rows"]:
        assert row["flops"] == pytest.approx(2 * 2e9 * gflops)  # two images, two a multiply-add
        assert row["images_per_s"] == pytest.approx(2 / row["median_s"])
        assert row["flops_per_s"] > 0 and row["share_of_matrix_rate"] > 0
        seconds = list(row["profile"].values())
        assert seconds == sorted(seconds, reverse=True)
        assert any("convolution" in operation for operation in row["profile"])
    assert "operation, ms" in printed
    assert report["machine"]["torch"] == torch.__version__


@pytest.mark.long
def test_exported_files_are_measured(load_tool, tmp_path, monkeypatch, capsys):
    write = exported.write_files
    monkeypatch.setattr(
        exported, "write_files", lambda x, model: write(x._replace(folder=tmp_path), model)
    )
    figures = tmp_path / "figures.json"
    arguments = ["export", *SMALL, "--size", "96", "128"]
    assert load_tool("benchmark").main([*arguments, "--json", str(figures)]) == 0
    found = {row["candidate"]: row for row in json.loads(figures.read_text())["rows"]}
    files = ["fp32.onnx", "fp32.xml", "int8.onnx", "int8.xml"]
    whole = [f"Predictor, {x}" for x in (*files, "inference_copy")]
    others = ["inference_copy", "transformers"]
    assert list(found) == [*files, *others, *whole, "transformers, pipeline"]
    for name in files:
        program, precision = ("onnxruntime", "OpenVINO")["xml" in name], name.partition(".")[0]
        for row in (found[name], found[f"Predictor, {name}"]):
            assert program in row["computes"] and precision in row["computes"]
            parts = [tmp_path / name] + ([tmp_path / f"{precision}.bin"] if "xml" in name else [])
            assert row["file_bytes"] == sum(part.stat().st_size for part in parts)
            assert row["fastest_s"] <= row["p95_s"] <= row["slowest_s"]
    assert found["transformers"]["file_bytes"] is None
    assert "PyTorch" in found["transformers"]["computes"]
    capsys.readouterr()

    (tmp_path / "other").mkdir()
    setting = models.Setting(tmp_path / "other", CONFIG, [], 1, 96, 128, "cpu", "float32")
    state = models.write_weights(setting).state_dict()
    state["transformer.decoder.class_head.bias"] += 0.1
    weights = tmp_path / "other" / "weights.pth"
    torch.save(state, weights)
    given = ["--weights", str(weights), "--files", str(tmp_path / "fp32.onnx")]
    # trainings of other tests in this process print this project's log
    monkeypatch.setattr(logging.getLogger("dab_detr"), "handlers", [])
    assert load_tool("benchmark").main([*arguments, *given]) == 1
    printed = capsys.readouterr()
    assert not printed.out and "fp32.onnx: boxes differ by" in printed.err
    assert "Predictor, fp32.onnx: boxes differ by" in printed.err
    assert "inference_copy" not in printed.err


MODES = {
    "train": (
        ["--size", "64", "64"],
        ["dab_detr, channels first", "dab_detr", "dab_detr, memory kept", "transformers"],
    ),
    "matcher": (["--objects", "3"], ["all layers at once", "layer by layer"]),
    "criterion": (["--objects", "3"], ["all layers at once", "layer by layer"]),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_measures_its_candidates(load_tool, tmp_path, mode):
    options, names = MODES[mode]
    file = tmp_path / "figures.json"
    arguments = [mode, *SMALL, *options, "--batch", "2", "--json", str(file)]
    assert load_tool("benchmark").main(arguments) == 0
    found = json.loads(file.read_text())["rows"]
    assert [row["candidate"] for row in found] == names
    if mode == "train":
        forward = 2 * 2e9 * count_flops(instantiate(get_config(CONFIG).model), 64, 64)["total"]
        # twice more for what learns; in this model half of the work, stem and res2, does not
        assert 1.5 * forward < found[0]["flops"] < 3 * forward


@pytest.mark.parametrize("mode", ["infer", *MODES])
def test_nothing_is_measured_where_candidates_disagree(load_tool, mode, capsys, monkeypatch):
    # what all are compared with is computed here, they themselves are in other processes
    if mode in ("infer", "train"):
        images = models.example_batch
        monkeypatch.setattr(models, "example_batch", lambda b, h, w, k: images(b + 1, h, w, k)[1:])
        size = ["--size", "64", "64"]
    else:
        monkeypatch.setattr("benchmarking.layer_by_layer._ALPHA", 0.75)
        size = ["--objects", "8"]
    assert load_tool("benchmark").main([mode, *SMALL, *size, "--batch", "2"]) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert "differs by" in printed.err and "more than" in printed.err


def test_sixteen_bits_are_measured(load_tool, capsys):
    arguments = [*SMALL, "--keep-memory", "--size", "64", "64", "--dtype", "bfloat16"]
    assert load_tool("benchmark").main(["infer", *arguments]) == 0
    assert "inference_copy" in capsys.readouterr().out


def test_scaling_compares_with_the_first_of_a_sweep(load_tool, tmp_path, capsys, monkeypatch):
    # transformers is not needed for it
    monkeypatch.setattr("benchmarking.candidates.importlib.util.find_spec", lambda _: None)
    file = tmp_path / "figures.json"
    arguments = [*SMALL, "--json", str(file)]
    assert load_tool("benchmark").main(["scaling", *arguments, "--sweep", "queries"]) == 0
    found = json.loads(file.read_text())["rows"]
    names = [f"queries {x}" for x in (100, 300, 600, 900)]
    assert [row["candidate"] for row in found] == names
    assert found[0]["ratio"] == found[0]["work_ratio"] == 1
    work = [row["work_ratio"] for row in found]
    # more than the queries themselves: each looks at all others
    assert (work[3] - work[2]) / 300 > (work[1] - work[0]) / 200 > 0
    for row in found:
        assert row["ratio"] == row["median_s"] / found[0]["median_s"]
        assert row["flops_per_s"] > 0 and row["peak_memory_bytes"] != 0
    assert "time / first" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["infer", "model.transformer.decoder.share_box_head=False"], "share_box_head"),
        (["infer", "--config-file", "nowhere.py"], "nowhere.py"),
        (["matcher", "model.num_querys=3"], "num_querys"),
        (["infer", "--device", "cuda"], "GPU"),
        (["train", "--dtype", "float16"], "bfloat16"),
        (["export", "--config-file", CONFIG, "--weights", "no.pth"], "no checkpoint file no.pth"),
    ],
)
def test_what_cannot_be_measured_is_reported(load_tool, arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_tool("benchmark").main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "--batch", "0"],
        ["infer", "--size", "9", "99"],
        ["infer", "--warmup", "-1"],
        ["matcher", "--compile"],
        ["scaling", "--batch", "2"],
        ["scaling", "--sweep", "images"],
        ["infer", "--sweep", "queries"],
        ["infer", "--keep-memory", "--device", "cuda"],
        ["infer", "--weights", "model.pth"],
        ["infer", "--threads", "0"],
        ["export", "--files", "model.onnx"],
        ["export", "--device", "cuda"],
        ["export", "--batch", "2"],
    ],
)
def test_wrong_usage_ends_with_two(load_tool, arguments):
    with pytest.raises(SystemExit) as stop:
        load_tool("benchmark").main(arguments)
    assert stop.value.code == 2
