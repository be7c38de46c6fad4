"""Weights from elsewhere, which a server on the loopback address has."""

import time

import pytest
from huggingface_hub import constants
from weights_server import serving


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of all caches."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FVCORE_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    return folder


@pytest.fixture
def use_endpoint(monkeypatch):
    """A function that does what HF_ENDPOINT does before the hub's client is imported."""

    def use(url):
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return use


@pytest.fixture
def hub(server, cache, use_endpoint, monkeypatch):
    """The server as the hub, and a client that does not wait before it tries again."""
    use_endpoint(server.url)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return server
