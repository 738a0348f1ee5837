"""Tests of the network probe and of TFDS downloads, against a server on this machine."""

import functools
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_dataset import TEST, TINY, RapTestTiny, assert_same, load_tiny, raw_bytes, raw_file, write_raw

from rap_jax.data import load, prepared
from rap_jax.data.prepared import why_unreachable


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves the raw folder; returns its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(load._PREPARED, "tiny", TINY)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=write_raw(tmp_path / "raw"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_what_the_network_has_is_downloaded(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "why_unreachable", why_unreachable)
    monkeypatch.setattr(RapTestTiny, "FILES", (raw_file(raw_bytes(), f"{server}/tiny.npz"),))
    assert_same(load_tiny(str(tmp_path)).test, TEST)


def test_what_was_downloaded_is_verified(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared, "why_unreachable", why_unreachable)
    monkeypatch.setattr(RapTestTiny, "FILES", (raw_file(b"another file", f"{server}/tiny.npz"),))
    with pytest.raises(ValueError, match=f"downloads.*SHA-256.*Delete it and get it again from {server}/tiny.npz"):
        load_tiny(str(tmp_path))
    assert not list(tmp_path.glob("rap_test_tiny/1*"))


def test_a_download_that_fails_says_what_to_put_where(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared, "why_unreachable", lambda url: None)
    monkeypatch.setattr(RapTestTiny, "FILES", (raw_file(raw_bytes(), f"{server}/none.npz"),))
    with pytest.raises(prepared.DownloadError, match=r"none.*--raw_data_dir=FOLDER.*404"):
        load_tiny(str(tmp_path))


def test_the_probe_tells_a_file_from_none(server: str) -> None:
    assert why_unreachable(f"{server}/tiny.npz") is None
    assert "404" in str(why_unreachable(f"{server}/none.npz"))


def test_the_probe_follows_redirections(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = lambda handler: (
        handler.send_response(301),
        handler.send_header("Location", f"{server}{handler.path.removeprefix('/old')}"),
        handler.end_headers(),
    )
    answer = http.server.SimpleHTTPRequestHandler.do_HEAD
    redirect = lambda handler: moved(handler) if handler.path.startswith("/old") else answer(handler)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_HEAD", redirect)
    assert why_unreachable(f"{server}/old/tiny.npz") is None
    assert "404" in str(why_unreachable(f"{server}/old/none.npz"))


def test_the_probe_survives_a_refusing_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "ProxyError" in str(why_unreachable("https://example.invalid/file"))


def test_the_probe_keeps_its_time_when_a_server_or_the_name_look_up_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,example.invalid")
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert why_unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/file", seconds=0.5) is not None
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(30) and [])
    assert "no answer" in str(why_unreachable("https://example.invalid/file", seconds=0.5))
    released.set()
    assert time.monotonic() - start < 20  # the name look-up alone hangs for 30
