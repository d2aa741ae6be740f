"""The official files: caches, mirrors that fail, and the reasons why."""

import contextlib
import errno
import functools
import http.server
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
from conftest import (
    IMAGES,
    LABELS,
    OFFLINE,
    ROOT,
    SMALL,
    files_of_at_most,
    idx_bytes,
    with_variables,
    write,
)

import data
from harness import download

# --- The official files, and caches ---


@pytest.mark.parametrize("other", ["train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz"])
def test_official_files_under_each_others_names_are_refused(other, files, cache, tmp_path):
    files[IMAGES], files[other] = files[other], files[IMAGES]
    with pytest.raises(data.DataError, match=f"{IMAGES}: this is the official {other}"):
        data.load("auto", write(tmp_path / "mine", files))


def test_the_files_in_keras_cache_are_used_if_they_are_official(files, cache, tmp_path):
    folder = write(tmp_path / "keras" / "datasets" / "fashion-mnist", files)
    assert len(data.load("fashion_mnist").train.images) == 30
    assert not cache.exists()
    (folder / LABELS).write_bytes(idx_bytes(np.zeros(30, np.uint8)))
    with pytest.raises(data.DataError, match=f"{LABELS}: missing"):  # and the mirror is dead
        data.load("fashion_mnist")


# --- Download ---

END = re.escape(f"). {data.WHAT_TO_DO}")  # of the message
WRONG_FILE = "what it sent is not the official file"


class Mirror(http.server.BaseHTTPRequestHandler):
    """Sends the file of this name from its server's `contents`, with its server's `send`."""

    def do_GET(self):
        name = self.path.strip("/")
        self.server.asked.append(name)
        self.server.send(self, self.server.contents.get(name))

    def log_message(self, *_):
        pass

    def handle(self):
        with contextlib.suppress(OSError):  # the client gave up and closed the connection
            super().handle()


def send(answer, content, status=200, **headers):
    answer.send_response(404 if content is None else status)
    for name, value in headers.items():
        answer.send_header(name.replace("_", "-"), value)
    answer.end_headers()
    answer.wfile.write(content or b"")


def send_whole(answer, content):
    send(answer, content, Content_Length=str(len(content or b"")))


def send_half(answer, content):
    send(answer, content[: len(content) // 2], Content_Length=str(len(content)))


@pytest.fixture
def mirror(monkeypatch):
    """Starts mirrors on loopback: mirror(contents) returns the server."""
    servers, over = [], threading.Event()

    def start(contents, send=send_whole):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
        server.contents, server.send, server.over, server.asked = contents, send, over, []
        server.address = f"127.0.0.1:{server.server_port}"
        server.url = f"http://{server.address}/"
        threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
        servers.append(server)
        return server

    monkeypatch.setattr(download, "MAX_SILENT_SECONDS", 0.3)
    yield start
    over.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def use(monkeypatch, *servers):
    monkeypatch.setattr(download, "MIRRORS", tuple(server.url for server in servers))


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_download_fills_the_cache_once(files, cache, mirror, monkeypatch, capsys):
    server = mirror(files)
    use(monkeypatch, server)
    for _ in range(2):
        assert len(data.load("fashion_mnist").train.images) == 30
    assert sorted(server.asked) == sorted(files)
    assert contents_of(cache) == files
    shown = capsys.readouterr().err
    assert all(f"Downloading {name}: 100%" in shown for name in files)


def silent(answer, _):
    answer.server.over.wait(60)


FAULTS = {  # how a mirror fails, and the reason that the message gives
    "403": (lambda answer, _: answer.send_error(403), "HTTP 403"),
    "404": (lambda answer, _: send(answer, None), "HTTP 404"),
    "an HTML page": (lambda answer, _: send_whole(answer, b"<html>Log in</html>"), WRONG_FILE),
    "nothing": (lambda answer, _: send_whole(answer, b""), WRONG_FILE),
    "hangs up": (lambda answer, _: None, "Remote end closed connection"),
    "cut half way": (send_half, "IncompleteRead"),
    "cut half way, of no length": (lambda a, c: send(a, c[: len(c) // 2]), WRONG_FILE),
    "silent": (silent, "timed out"),
    "stalls half way": (lambda *args: (send_half(*args), silent(*args)), "timed out"),
    "redirects to nowhere": (
        lambda answer, _: send(answer, b"", 302, Location="ftp://elsewhere.invalid/"),
        "ftp://elsewhere.invalid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_mirror_leaves_no_file_and_the_next_one_is_used(
    fault, files, cache, mirror, monkeypatch
):
    send, reason = FAULTS[fault]
    failing, whole = mirror(files, send), mirror(files)
    look_up = socket.getaddrinfo

    def know_addresses_only(host, *arguments, **options):
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", know_addresses_only)
    mirrors = "http://nowhere.invalid/", "http://127.0.0.1:9/", failing.url
    monkeypatch.setattr(download, "MIRRORS", mirrors)
    others = {name: content for name, content in files.items() if name != IMAGES}
    write(cache, others)
    words = (
        f"^{cache / IMAGES}: missing, and no mirror could be used .nowhere.invalid: cannot resolve"
        f" the name; 127.0.0.1:9: Connection refused; {failing.address}: .*{reason}.*{END}$"
    )
    # A wrong file never leads to the synthetic set.
    kind = data.DataError if reason == WRONG_FILE else data.Unreachable
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("fashion_mnist")
    assert caught.type is kind and contents_of(cache) == others
    monkeypatch.setattr(download, "MIRRORS", (*mirrors, whole.url))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert contents_of(cache) == files
    assert failing.asked == [IMAGES, IMAGES] and whole.asked == [IMAGES]


@pytest.mark.parametrize("headers", [{"Content_Encoding": "gzip"}, {"Content_Length": "unknown"}])
def test_a_mirror_with_odd_headers_is_used(headers, files, cache, mirror, monkeypatch):
    use(monkeypatch, mirror(files, functools.partial(send, **headers)))
    assert len(data.load("fashion_mnist").train.images) == 30
    assert contents_of(cache) == files


def test_two_processes_may_download_at_once(files, cache, mirror):
    both = threading.Barrier(2)

    def send_to_both(answer, content):
        both.wait(60)
        send_whole(answer, content)

    program = (
        "import data; from harness import download\n"
        f"download.FILES, download.VALUES = {download.FILES!r}, {download.VALUES!r}\n"
        f"download.MIRRORS = ({mirror(files, send_to_both).url!r},)\n"
        "download.MAX_SILENT_SECONDS = 60\n"
        "print(len(data.load('fashion_mnist').train.images))"
    )
    command = [sys.executable, "-c", program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for process in [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]:
        output, shown = process.communicate(timeout=120)
        assert output == "30\n"
        assert "Downloading" in shown and "http" not in shown  # pooch's log lines name addresses
    assert contents_of(cache) == files


def test_a_full_disk_does_not_lead_to_the_synthetic_set(cache, files, mirror, monkeypatch):
    use(monkeypatch, mirror({name: bytes(100_000) for name in files}))
    with files_of_at_most(10_000):
        with pytest.raises(data.DataError, match="cannot be saved there"):
            data.load("auto")
    assert list(cache.iterdir()) == []


def refuse(**_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("fault, reason", [
    ("a file", "File exists|Not a directory"), ("a name too long", "File name too long"),
    ("no permission", "Permission denied"),
])  # fmt: skip
def test_a_cache_that_cannot_be_written_is_named_before_a_download(
    fault, reason, files, cache, mirror, tmp_path, monkeypatch
):
    if fault == "a file":
        cache.write_text("a file where the folder should be")
    elif fault == "a name too long":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ("long" * 100)))
    else:  # root may write anywhere
        monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)
    server = mirror(files)
    use(monkeypatch, server)
    words = rf"fashion-mnist: the download cannot be saved there \({reason}"
    with pytest.raises(data.DataError, match=words) as caught:
        data.load("auto")
    assert server.asked == [] and str(caught.value).endswith(data.WHAT_TO_DO)


def test_a_damaged_file_in_the_cache_is_downloaded_again(files, cache, mirror, monkeypatch):
    write(cache, {**files, IMAGES: files[IMAGES][:-1]})
    with pytest.raises(data.DataError, match=f"{IMAGES}: damaged"):  # never the synthetic set
        data.load("auto")
    server = mirror(files)
    use(monkeypatch, server)
    assert len(data.load("auto").train.images) == 30
    assert server.asked == [IMAGES]


def test_without_files_and_network_auto_draws_images(cache, small):
    with pytest.raises(data.DataError, match="missing, and no mirror could be used"):
        data.load("fashion_mnist")
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST.*Connection refused"):
        assert data.load("auto").name == "synthetic"


def test_what_tests_set_before_they_start_the_program_takes_effect(tmp_path):
    """No mirror but this host is tried, and the synthetic set is small."""
    program = f"{OFFLINE}\n{SMALL}\nprint(*(len(s.images) for s in data.load()[1:3]))"
    changes = {data.FOLDER_VARIABLE: None, "XDG_CACHE_HOME": str(tmp_path),
               "KERAS_HOME": str(tmp_path / "keras")}  # fmt: skip
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
        env=with_variables(changes),
    )  # fmt: skip
    assert finished.stdout == "1200 200\n", finished.stderr
    (tried,) = re.findall("no mirror could be used (.*)[)]", finished.stderr)
    assert tried.startswith("(127.0.0.1:9: ")
    assert not any(url.split("/")[2] in tried for url in download.MIRRORS)


def test_without_a_home_the_cache_is_in_the_systems_temporary_folder(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # As os.path.expanduser does for an unknown user without HOME.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert download.cache_folder() == pathlib.Path(tempfile.gettempdir(), "fashion-mnist")


@pytest.fixture
def no_settings(monkeypatch):
    """Removes the environment variables of this machine that concern the network."""
    for name in list(os.environ):
        if name.lower().endswith(("_proxy", "_ca_bundle")) or name == "SSLKEYLOGFILE":
            monkeypatch.delenv(name)


@pytest.mark.parametrize("variable, value, reason", [
    ("ALL_PROXY", "socks5://127.0.0.1:9", "refused|SOCKS"), ("ALL_PROXY", "socks9://me", "SOCKS"),
    ("http_proxy", "http://", "proxy"), ("http_proxy", "http://127.0.0.1:99999", "99999|port"),
    ("http_proxy", "http://.local:9", "label|resolve"),
    ("http_proxy", "http://\udcff:9", "udcff|resolve"),
    ("HTTPS_PROXY", "http://[::1", "::1"), ("HTTPS_PROXY", "http://my proxy:1", "my proxy"),
    ("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem", "/nowhere/ca.pem"),
    ("CURL_CA_BUNDLE", "/dev/null", "certificate|X509|PEM"),
    ("SSLKEYLOGFILE", "/nowhere/keys", "No such file"),
])  # fmt: skip
def test_what_another_program_set_is_named_and_auto_falls_back(
    variable, value, reason, cache, mirror, no_settings, small, monkeypatch
):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(  # the network ends at this machine
        socket, "getaddrinfo", lambda *a, **k: look_up("127.0.0.1", *a[1:], **k)
    )
    monkeypatch.setenv(variable, value)
    address = mirror({}, lambda answer, _: None).address  # it speaks no TLS, and hangs up
    scheme = "http" if variable.lower() in ("http_proxy", "all_proxy") else "https"
    monkeypatch.setattr(download, "MIRRORS", (f"{scheme}://{address}/",))
    with pytest.warns(UserWarning, match="NOT FASHION-MNIST") as caught:
        assert data.load("auto").name == "synthetic"
    message = str(caught[0].message)
    assert message.partition(address)[2] and re.search(reason, message)
    assert f"change how it is reached: {variable})" in message and "\n" not in message
    assert WRONG_FILE not in message and "saved" not in message
    assert list(download.cache_folder().iterdir()) == []


def test_the_password_of_a_proxy_is_not_shown(cache, no_settings, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://me:secret@my proxy:99999")
    with pytest.raises(data.Unreachable, match="my proxy") as caught:
        data.load("fashion_mnist")
    assert "secret" not in str(caught.value)
