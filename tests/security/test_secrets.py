"""Passwords in places of shards, commands as sources, and code that lies where a command is started."""

import json
import shlex
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alliance.errors import InputError
from alliance.passwords import hide_in, hide_passwords, holds_password
from datasets.shards import LoaderConfig, ShardLoader, SourceConfig
from engine.log import Metrics, setup_logging
from engine.runs import RunFolder
from tests.helpers.runs import Ranks, arguments_of

PASSWORD = "p4ss"


@pytest.mark.parametrize(
    "place",
    [
        f"https://user:{PASSWORD}@host/shards", f"https://{PASSWORD}@host/shards", f"sftp://a:{PASSWORD}@host:22/x",
        f"http://user:x@y/{PASSWORD}@host/shards", f"https://us%40er:{PASSWORD}@[::1]:80/a", f"ftps://:{PASSWORD}@host/",
        f"https://host/shards?X-Amz-Signature={PASSWORD}&b=1", f"https://host/{{}}?sig={PASSWORD}",
        f"pipe:curl -u me:{PASSWORD} https://host/{{}}", f"pipe:curl --user 'me:{PASSWORD}' https://host/{{}}",
        f"pipe:curl -H 'Authorization: Bearer {PASSWORD}' https://host/{{}}",
        f"pipe:curl -H 'X-Auth-Token: {PASSWORD}' https://host/{{}}", f"pipe:wget --password={PASSWORD} -O - host/{{}}",
        f"pipe:wget --http-password {PASSWORD} -O - host/{{}}", f"pipe:AWS_SECRET_ACCESS_KEY={PASSWORD} aws s3 cp s3://b/{{}} -",
        f"pipe:sshpass -p {PASSWORD} ssh host cat /folder/{{}}", f"pipe:curl https://u:{PASSWORD}@host/{{}} | cat",
    ],
)  # fmt: skip
def test_no_secret_of_a_place_is_shown(place: str) -> None:
    for text in (
        place,
        f"{place}/index.json cannot be fetched",
        json.dumps([{"shards": place}]),
        f"[{{shards: {place}}}]",
    ):
        assert PASSWORD not in hide_passwords(text)
        assert PASSWORD not in str(InputError(text))
        assert PASSWORD not in str(hide_in({"a": [{"b": (text,)}]}))


@pytest.mark.parametrize(
    "text",
    [
        "shards/optical", "https://host/folder/shard-000000.tar", "s3://my bucket/a", "pipe:ssh host cat /data/optical/{}",
        "hf://datasets/a/b", "optim.lr is 3 (token: 5)", "model.encoder.tokens: plain", "a@b", "step 3: key: s0-1",
    ],
)  # fmt: skip
def test_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert hide_passwords(text) == text


REFERENCES = [
    "https://user:${PW}@host/shards", "https://${USER}:${PW}@host/shards", "https://${TOKEN}@host/x", "sftp://a:${P}@host:22/x",
    "https://host/shards?sig=${SIG}", "https://host/{}?v=3&X-Amz-Signature=${SIG}", "s3://${BUCKET}/a",
    "pipe:curl -u me:${PW} https://host/{}", "pipe:curl --user 'me:${PW}' https://host/{}",
    "pipe:curl -H 'Authorization: Bearer ${TOKEN}' https://host/{}", "pipe:curl -H 'X-Auth-Token: ${TOKEN}' https://host/{}",
    "pipe:wget --password=${PW} -O - host/{}", "pipe:wget --http-password ${PW} -O - host/{}",
    "pipe:AWS_SECRET_ACCESS_KEY=${KEY} aws s3 cp s3://b/{} -", "pipe:sshpass -p ${PW} ssh host cat /folder/{}",
]  # fmt: skip


@pytest.mark.parametrize("place", REFERENCES)
def test_a_reference_to_the_environment_is_no_secret_and_stays(place: str) -> None:
    for text in (place, json.dumps([{"shards": place}]), f"[{{shards: {place}}}]", f"{place}: cannot be fetched"):
        assert hide_passwords(text) == text
    assert not holds_password(place)


@pytest.mark.parametrize(
    "place",
    [
        f"https://user:{PASSWORD}${{PW}}@host/shards", f"https://${{USER}}:{PASSWORD}@host/shards",
        f"https://user:${{PW}}@host:{PASSWORD}@other/shards", f"https://user:${{PW}}{PASSWORD}@host/x",
        f"https://u:${{PW}}@host/a https://u:{PASSWORD}@host/b", f"https://host/x?v=${{V}}&X-Amz-Signature={PASSWORD}",
        f"https://host/x?v=${{V}}&sig={PASSWORD}", f"pipe:curl -u ${{USER}}:{PASSWORD} https://host/{{}}",
        f"pipe:wget --password=${{PW}}{PASSWORD} -O - host/{{}}", f"pipe:sshpass -p {PASSWORD}${{PW}} ssh host cat {{}}",
    ],
)  # fmt: skip
def test_a_secret_beside_a_reference_is_hidden_all_the_same(place: str) -> None:
    assert PASSWORD not in hide_passwords(place)
    assert holds_password(place)


class Closed(SimpleHTTPRequestHandler):
    """Serves files to whoever has the password."""

    def do_GET(self) -> None:
        if self.headers["Authorization"] == "Basic dXNlcjpwNHNz":  # user:p4ss
            super().do_GET()
        else:
            self.send_error(401)

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def closed(sar_shards: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Closed, directory=str(sar_shards))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("mode", ["good", "reference", "bad", "misspelt"])
def test_a_password_is_used_and_stands_in_no_file_or_line(mode: str, closed: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    user = "user" if mode in ("good", "reference") else "nobody"
    password = "${SHARDS_PASSWORD}" if mode == "reference" else PASSWORD
    arguments = arguments_of(
        folder, [f"http://{user}:{password}@{closed}"], "--run.steps", "1", "--run.wandb", "offline"
    )
    if mode == "misspelt":
        arguments = [each.replace('"shards"', '"shard"') for each in arguments]
    given = {"no_proxy": "127.0.0.1", "SHARDS_PASSWORD": PASSWORD}
    ((code, output),) = Ranks(arguments, 1, environ=given).wait()
    assert code == (0 if mode in ("good", "reference") else 2), output
    assert output.count("holds a password as it is") == (mode == "good")
    assert PASSWORD not in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if PASSWORD.encode() in path.read_bytes()]
    if mode in ("good", "reference"):
        kept = "***" if mode == "good" else "user:${SHARDS_PASSWORD}"
        assert f"http://{kept}@127.0.0.1" in (folder / "config.yaml").read_text()


def test_logs_and_metrics_hide_what_they_are_told(tmp_path: Path) -> None:
    from engine.log import logger

    folder = RunFolder(tmp_path)
    setup_logging(folder)
    logger.warning("cannot read %s", f"https://u:{PASSWORD}@host")
    for handler in logger.handlers:
        handler.close()
    logger.handlers.clear()
    metrics = Metrics(folder.metrics)
    metrics.write(step=0, samples=[f"https://u:{PASSWORD}@host/x"])
    metrics.close()
    assert "https://***@host" in folder.log.read_text()
    assert PASSWORD not in folder.log.read_text() + folder.metrics.read_text()


def test_a_command_as_a_source_runs_only_if_it_is_allowed(sar_shards: Path, tmp_path: Path) -> None:
    place = f"pipe:touch {shlex.quote(str(tmp_path / 'sprung'))}; cat {sar_shards}/{{}}"
    with pytest.raises(InputError, match="is a command that would be run here"):
        ShardLoader([SourceConfig(shards=place)], LoaderConfig(micro=2), allow_pipe=False)
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"data": {"sources": [{"shards": place}], "allow_pipe": True}}))
    bare = arguments_of(tmp_path / "run", [place], "--run.steps", "1")
    in_a_file = [
        *bare[: bare.index("--data.sources")],
        *bare[bare.index("--data.sources") + 2 :],
        "--config",
        str(config),
    ]
    for given, said in ((bare, "give --data.allow_pipe true"), (in_a_file, "a file of settings says data.allow_pipe")):
        ((code, output),) = Ranks(given, 1).wait()
        assert code == 2, output
        assert said in output
        assert not (tmp_path / "sprung").exists()
    ((code, output),) = Ranks([*bare, "--data.allow_pipe", "true"], 1).wait()
    assert code == 0, output
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["deepspeed", "torch", "multiprocessing", "signal"])
def test_the_converter_runs_no_code_of_the_current_folder(name: str, tmp_path: Path) -> None:
    """It ends, because there is no checkpoint, in its own code and not in that which lies here."""
    import subprocess

    from engine.deepspeed_internals import converter_command

    (tmp_path / f"{name}.py").write_text("open('sprung', 'w')\n")
    command = converter_command(tmp_path, tmp_path / "out")
    assert command[:2] == [sys.executable, "-P"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "site-packages/deepspeed/checkpoint/ds_to_universal.py" in done.stderr
    assert not (tmp_path / "sprung").exists()
