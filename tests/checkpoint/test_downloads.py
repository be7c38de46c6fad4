"""Weights from elsewhere: whole or not at all, continued, checked; each failure is one sentence."""

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.utils.file_io import PathManager
from huggingface_hub import constants
from weights_server import COMMIT, serving

from dab_detr.checkpoint import addresses, zoo
from dab_detr.checkpoint.addresses import locate
from dab_detr.checkpoint.downloads import ResumingHandler
from dab_detr.errors import InputError

CONTENT = os.urandom(300_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(hub):
    hub.files["/someone/model/model.safetensors"] = CONTENT
    hub.files["/someone/model/config.json"] = b"{}"
    return hub


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]


@pytest.fixture
def url(server, cache):
    server.files["/v1/weights.pth"] = CONTENT
    return f"{server.url}/v1/weights.pth"


def test_a_file_is_downloaded_once(server, url, capfd):
    path = Path(locate(url).path)
    assert path.read_bytes() == CONTENT
    assert DIGEST in capfd.readouterr().err
    assert locate(url).path == str(path)
    assert server.sent("/v1/weights.pth") == [None]
    # Detectron2's own calls
    assert PathManager.open(url, "rb").read() == CONTENT
    assert not capfd.readouterr().err


def test_a_broken_connection_is_continued(server, url):
    server.cuts = [100_000, 50_000]
    assert Path(locate(url).path).read_bytes() == CONTENT
    assert server.sent("/v1/weights.pth") == [None, "bytes=100000-", "bytes=150000-"]


def test_an_interrupted_download_lands_later_and_whole(server, url, cache):
    server.cuts = [100_000, 0]
    with pytest.raises(InputError, match="cannot be downloaded: the connection.*100000 of 300000"):
        locate(url)
    assert "weights.pth" not in {path.name for path in files_in(cache)}
    assert Path(locate(url).path).read_bytes() == CONTENT
    assert server.sent("/v1/weights.pth") == [None, "bytes=100000-", "bytes=100000-"]


def test_a_part_that_is_the_whole_file_is_no_obstacle(server, url):
    file = Path(locate(url).path)
    # as if the program had been stopped before the end
    file.rename(file.with_name(".weights.pth.unfinished"))
    file.with_name(".weights.pth.version").write_text(f'"{DIGEST}"')
    assert Path(locate(url).path).read_bytes() == CONTENT
    assert server.sent("/v1/weights.pth") == [None, "bytes=300000-", None]


def test_a_wrong_part_is_not_appended(server, url):
    server.cuts, server.shifted = [100_000], 1
    with pytest.raises(InputError, match="another part of the file than it was asked for"):
        locate(url)


def test_another_version_is_not_appended(server, url):
    server.cuts = [100_000, 0]
    with pytest.raises(InputError, match="cannot be downloaded"):
        locate(url)
    server.files["/v1/weights.pth"] = other = os.urandom(200_000)
    assert Path(locate(url).path).read_bytes() == other


def test_equal_paths_of_two_hosts_are_two_files(server, url):
    with serving() as second:
        second.files["/v1/weights.pth"] = b"other"
        first = locate(url).path
        assert Path(locate(f"{second.url}/v1/weights.pth").path).read_bytes() == b"other"
    assert Path(first).read_bytes() == CONTENT


def test_detectron2s_files_are_found_where_its_own_handler_puts_them(cache):
    file = cache / "detectron2" / "ImageNetPretrained" / "torchvision" / "R-50.pkl"
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    assert locate("detectron2://ImageNetPretrained/torchvision/R-50.pkl").path == str(file)


def test_the_known_digest_is_checked(server, url, cache, monkeypatch, capfd):
    monkeypatch.setattr(PathManager, "_path_handlers", PathManager._path_handlers.copy())
    PathManager.register_handler(ResumingHandler({url: "0" * 64}))
    with pytest.raises(InputError, match=f"SHA-256 is {DIGEST} instead of 0000"):
        locate(url)
    assert not files_in(cache)
    PathManager.register_handler(ResumingHandler({url: DIGEST}))
    assert Path(locate(url).path).read_bytes() == CONTENT
    assert not capfd.readouterr().err


def test_a_hubs_model_is_a_folder_that_is_downloaded_once(hub, capfd):
    folder = Path(locate("hf://someone/model").path)
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert (folder / "config.json").read_bytes() == b"{}"
    assert f"hf://someone/model is {DIGEST}" in capfd.readouterr().err
    for address in ("hf://someone/model", "hf://someone/model@v1", f"hf://someone/model@{COMMIT}"):
        assert locate(address).path == str(folder)
    assert hub.sent(f"/large/{DIGEST}") == [None]
    # of the same revision as the weights
    configs = {path for _, path, _ in hub.requests if path.endswith("config.json")}
    assert configs == {f"/someone/model/resolve/{COMMIT}/config.json"}
    assert f"hf://someone/model is {DIGEST}" not in capfd.readouterr().err


def test_a_hubs_broken_connection_is_continued(hub, monkeypatch):
    # the client continues after whole chunks
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)
    hub.cuts = [100_000, 50_000]
    assert (Path(locate("hf://someone/model").path) / "model.safetensors").read_bytes() == CONTENT
    assert hub.sent(f"/large/{DIGEST}") == [None, "bytes=100000-", "bytes=150000-"]


def test_a_hubs_truncated_file_does_not_land(hub, cache):
    hub.cuts = [100_000] + 20 * [0]
    with pytest.raises(InputError, match="hf://someone/model cannot be downloaded"):
        locate("hf://someone/model")
    assert not list(cache.rglob("model.safetensors"))
    hub.cuts = []
    assert (Path(locate("hf://someone/model").path) / "model.safetensors").read_bytes() == CONTENT


def test_a_hubs_damaged_file_does_not_land(hub, cache):
    hub.changed = True
    with pytest.raises(InputError, match=f"SHA-256 is [0-9a-f]+ instead of {DIGEST}"):
        locate("hf://someone/model")
    assert not list(cache.rglob("model.safetensors"))
    hub.changed = False
    assert (Path(locate("hf://someone/model").path) / "model.safetensors").read_bytes() == CONTENT


def test_a_hubs_model_needs_no_config(hub, use_endpoint):
    del hub.files["/someone/model/config.json"]
    folder = Path(locate("hf://someone/model").path)
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors"]
    use_endpoint("http://127.0.0.1:9")
    assert locate("hf://someone/model").path == str(folder)


def test_a_config_that_cannot_be_read_is_not_taken_for_none(hub):
    hub.failing = "config.json"
    with pytest.raises(InputError, match="hf://someone/model cannot be downloaded"):
        locate("hf://someone/model")
    hub.failing = None
    assert (Path(locate("hf://someone/model").path) / "config.json").is_file()


def test_without_a_network_the_cache_is_enough(hub, use_endpoint, monkeypatch):
    path = locate("hf://someone/model").path
    use_endpoint("http://127.0.0.1:9")
    assert locate("hf://someone/model").path == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate("hf://someone/model").path == path


@pytest.mark.parametrize(
    "address, words",
    [
        ("hf://someone/other", "has no repository someone/other"),
        ("hf://someone/model@v2", "someone/model has no revision v2"),
        ("hf://someone/pickled", "has no model.safetensors; only this format"),
        ("hf://someone", "'hf://someone' is not of the form hf://OWNER/REPO"),
        ("hf://someone/model/weights.bin", "is not of the form hf://OWNER/REPO"),
        ("URL/missing.pth", "127.0.0.1:[0-9]+ answers 404"),
        ("http://127.0.0.1:9/weights.pth", "connection to 127.0.0.1:9 fails: .*refused"),
        ("dab_detr_r50_3pats", "no checkpoint file.*did you mean dab_detr_r50_3pat"),
        ("model_final.pth", "no checkpoint file model_final.pth; dab-detr zoo lists"),
    ],
    ids=str,
)
def test_what_is_not_there_gets_a_sentence(hub, address, words):
    hub.files["/someone/pickled/pytorch_model.bin"] = CONTENT
    with pytest.raises(InputError, match=words) as error:
        locate(address.replace("URL", hub.url))
    assert "\n" not in str(error.value)


def test_no_network_gets_a_sentence(hub, use_endpoint):
    use_endpoint("http://127.0.0.1:9")
    with pytest.raises(InputError, match="http://127.0.0.1:9 cannot be reached, and it is not in"):
        locate("hf://someone/model")


def test_without_the_hubs_client_there_is_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"hf://.*pip install 'dab_detr\[hub\]'"):
        locate("dab_detr_r50")


@pytest.mark.parametrize("address", ["hf://someone/model", "URL/weights.pth"])
def test_no_space_is_noticed_before_the_download(hub, cache, monkeypatch, address):
    hub.files["/weights.pth"] = CONTENT
    usage = shutil.disk_usage(cache.parent)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=f"not enough space in {cache}.*HF_HOME or FVCORE_CACHE"):
        locate(address.replace("URL", hub.url))
    assert not [path for path in files_in(cache) if path.stat().st_size > 10_000]


@pytest.mark.parametrize("address", ["hf://someone/model", "URL/weights.pth"])
def test_a_disk_that_becomes_full_leaves_no_file(hub, cache, monkeypatch, address):
    hub.files["/weights.pth"] = CONTENT
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match="not enough space"):
            locate(address.replace("URL", hub.url))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not {"weights.pth", "model.safetensors"} & {path.name for path in cache.rglob("*")}
    located = Path(locate(address.replace("URL", hub.url)).path)
    file = located / "model.safetensors" if located.is_dir() else located
    assert file.read_bytes() == CONTENT


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dab_detr_r50").write_bytes(b"own")
    assert locate("dab_detr_r50") == ("dab_detr_r50", None)


def test_names_have_configs_and_what_the_documents_say():
    from dab_detr.config import list_configs

    table = (Path(__file__).parents[2] / "docs" / "MODEL_ZOO.md").read_text()
    for name, published in zoo.PUBLISHED.items():
        assert published.config in list_configs()
        assert f"{published.parameters:,}" in table
        # the paper's
        if published.source.startswith("hf://"):
            assert f"(../configs/{published.config}) | {published.ap} |" in table
        assert addresses.require_known(name) is None


def test_the_variables_of_the_hub_are_respected(hub, tmp_path):
    program = (
        "import sys\n"
        "from dab_detr.checkpoint.hub import folder_of, is_cached\n"
        "print(folder_of('hf://someone/model'), is_cached('hf://someone/model'))\n"
        "assert 'torch' not in sys.modules\n"
    )

    def run(**variables):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), **variables}
        return subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip

    failed = run(HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert failed.returncode == 1 and "HF_HUB_OFFLINE is set" in failed.stderr
    assert not hub.requests
    done = run(HF_ENDPOINT=hub.url)
    folder, is_cached = done.stdout.split()
    assert Path(folder).is_relative_to(tmp_path / "home" / "hub") and is_cached == "True"
    assert run(HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="1").stdout == done.stdout
