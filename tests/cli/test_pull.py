"""`localmoe pull`, `list`, `remove`, `inspect` and models by name: against a hub made here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo
from hub import HubServer, Repository
from hub.commands import Localmoe, blobs, error_of
from localmoe.weights.gguf import read_catalog

NAME, QUANT = "some/model-GGUF", "Q8_0"
FULL = f"{NAME}:{QUANT}"
FILE = "model-Q8_0.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return zoo.write(tmp_path_factory.mktemp("hub"), "qwen3moe").read_bytes()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("shards")
    zoo.write(folder, "qwen3moe", shards=3, alignment=32)
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.gguf"))}


def test_a_model_is_pulled_listed_run_and_removed(
    localmoe: Localmoe, server: HubServer, model: bytes, unexplained: Callable[[Any], list[str]]
) -> None:
    server.repositories[NAME] = Repository({FILE: model, "README.md": b"words"})
    done = localmoe("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{FULL} is here: localmoe run {FULL}\n"
    again = localmoe("pull", FULL, "--json")
    assert json.loads(again.stdout)["bytes"] == len(model)
    assert len(server.bodies()) == 1  # the second time nothing is fetched
    listed = json.loads(localmoe("list", "--json").stdout)
    assert unexplained(listed) == []
    assert [(m["name"], m["bytes"], m["complete"]) for m in listed["models"]] == [
        (FULL, len(model), True)
    ]
    assert FULL in localmoe("list").stdout

    asked = len(server.requests)
    offline = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = localmoe("run", NAME, "Hello", "--max-tokens", "3", "--memory", "1GiB", **offline)
    assert done.returncode == 0, done.stderr
    done = localmoe("inspect", FULL, "--json", **offline)
    assert json.loads(done.stdout)["architecture"] == "qwen3moe"
    assert len(server.requests) == asked

    assert "add --yes" in error_of(localmoe("remove", FULL))
    done = localmoe("remove", FULL, "--yes")
    assert done.returncode == 0
    assert "is gone" in done.stdout
    assert json.loads(localmoe("list", "--json").stdout)["models"] == []
    assert "is not on this machine" in error_of(localmoe("remove", FULL, "--yes"))
    assert f"localmoe pull {FULL}" in error_of(localmoe("run", FULL, "Hello"))
    assert f"localmoe pull {FULL}" in error_of(localmoe("bench", "decode", FULL))


def test_all_shards_come_and_only_what_belongs_to_the_quantization_goes(
    localmoe: Localmoe, server: HubServer, model: bytes, shards: dict[str, bytes]
) -> None:
    files = {f"Q4_0/{name.replace('qwen3moe', 'm-Q4_0')}": data for name, data in shards.items()}
    server.repositories[NAME] = Repository({FILE: model, **files})
    assert localmoe("pull", f"{NAME}:q4_0").returncode == 0
    assert len(server.bodies()) == 3
    assert localmoe("pull", FULL).returncode == 0
    done = localmoe("inspect", f"{NAME}:Q4_0", "--tensors")
    assert "in 3 files" in done.stdout
    assert "of file 3" in done.stdout
    assert localmoe("remove", f"{NAME}:Q4_0", "--yes").returncode == 0
    left = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [m["name"] for m in left] == [FULL]


@pytest.mark.usefixtures("python_handler")
def test_a_download_that_was_stopped_is_incomplete_and_goes_on(
    localmoe: Localmoe, server: HubServer, model: bytes, home: dict[str, str]
) -> None:
    server.repositories[NAME] = Repository({FILE: model}, breaks_after=4096, times_to_break=99)
    done = subprocess.Popen(
        [sys.executable, "-m", "localmoe", "pull", FULL],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=home,
    )
    while not server.sent_nbytes:
        assert done.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)  # it waits before it tries again
    done.send_signal(signal.SIGINT)
    output, errors = done.communicate(timeout=30)
    assert (done.returncode, output) == (130, "")
    assert "goes on from here" in errors
    assert "Traceback" not in errors
    assert all("partial" in name for name in blobs(home))
    listed = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [(m["name"], m["complete"]) for m in listed] == [(FULL, False)]
    assert "is not on this machine" in error_of(localmoe("run", FULL, "Hello"))

    server.repositories[NAME].times_to_break = 0
    server.requests.clear()
    assert localmoe("pull", FULL).returncode == 0
    ranges = [wanted for method, path, wanted in server.requests if "/resolve/" in path and wanted]
    assert ranges
    assert not ranges[0].startswith("bytes=0-")
    assert json.loads(localmoe("list", "--json").stdout)["models"][0]["complete"]


def test_a_broken_connection_is_taken_up_again_by_itself(
    localmoe: Localmoe, server: HubServer, model: bytes
) -> None:
    server.repositories[NAME] = Repository({FILE: model}, breaks_after=8192, times_to_break=1)
    assert localmoe("pull", FULL).returncode == 0
    assert len(server.bodies()) == 2


def test_wrong_content_is_removed(
    localmoe: Localmoe, server: HubServer, model: bytes, home: dict[str, str]
) -> None:
    server.repositories[NAME] = Repository({FILE: model}, wrong_content=True)
    assert "arrived with other content" in error_of(localmoe("pull", FULL))
    assert [name for name in blobs(home) if not name.endswith(".lock")] == []


def test_models_of_several_commits_are_all_there(
    localmoe: Localmoe, server: HubServer, model: bytes
) -> None:
    other = model[:-1] + bytes([model[-1] ^ 1])
    server.repositories[NAME] = Repository({FILE: model})
    assert localmoe("pull", FULL).returncode == 0
    server.repositories[NAME] = Repository({"model-Q4_0.gguf": other}, commit="1" * 40)
    assert localmoe("pull", f"{NAME}:Q4_0").returncode == 0
    listed = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [m["name"] for m in listed] == [f"{NAME}:Q4_0", FULL]
    assert localmoe("inspect", FULL).returncode == 0


def test_what_is_left_of_a_pull_is_listed_and_removed_alone(
    localmoe: Localmoe, server: HubServer, model: bytes, shards: dict[str, bytes], home: Any
) -> None:
    names = [name.replace("qwen3moe", "m-Q4_0") for name in shards]
    broken = dict(zip(names, shards.values(), strict=True))
    server.repositories[NAME] = Repository(broken)
    wrong = Repository({**broken, names[1]: bytes(len(broken[names[1]]))})
    wrong.sha256 = server.repositories[NAME].sha256  # type: ignore[method-assign]
    server.repositories[NAME] = wrong
    assert "arrived with other content" in error_of(localmoe("pull", f"{NAME}:Q4_0"))
    server.repositories[NAME] = Repository({FILE: model}, breaks_after=4096, times_to_break=99)
    assert "Check the network" in error_of(localmoe("pull", FULL))
    listed = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [(m["name"], m["complete"]) for m in listed] == [(f"{NAME}:Q4_0", False), (FULL, False)]
    assert f"localmoe pull {FULL} goes on" in localmoe("list").stdout
    assert localmoe("remove", f"{NAME}:Q4_0", "--yes").returncode == 0
    listed = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [m["name"] for m in listed] == [FULL]
    assert localmoe("remove", NAME, "--yes").returncode == 0
    assert list(Path(home["HF_HOME"]).glob("hub/models--*")) == []


def test_a_file_that_was_there_before_is_compared(
    localmoe: Localmoe, server: HubServer, model: bytes, home: dict[str, str]
) -> None:
    repository = server.repositories[NAME] = Repository({FILE: model})
    blob = Path(
        home["HF_HOME"], "hub", "models--some--model-GGUF", "blobs", repository.sha256(FILE)
    )
    blob.parent.mkdir(parents=True)
    blob.write_bytes(bytes(len(model)))
    assert localmoe("pull", FULL).returncode == 0
    assert blob.read_bytes() == model


def test_a_server_without_ranges_and_a_disk_without_room(
    localmoe: Localmoe, server: HubServer, model: bytes, home: dict[str, str]
) -> None:
    server.repositories[NAME] = Repository(
        {FILE: model}, ignores_ranges=True, breaks_after=8192, times_to_break=1
    )
    assert localmoe("pull", FULL).returncode == 0
    assert localmoe("remove", FULL, "--yes").returncode == 0
    limited = f"import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (65536,) * 2); {_MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", limited, "pull", FULL],
        capture_output=True,
        text=True,
        env=home,
        timeout=60,
    )
    assert "cannot write into" in error_of(done)


_MAIN = "import sys; from localmoe.cli.app import main; main()"


@pytest.mark.parametrize(
    ("repository", "said"),
    [
        (Repository({FILE: b""}, gated=True), "is gated: accept its terms"),
        (Repository({FILE: b""}, status=503), "it answered 503"),
        (Repository({FILE: b""}, status=401), "log in with `hf auth login`"),
        (Repository({"model.safetensors": b"x"}), "has neither GGUF files nor a checkpoint"),
        (Repository({"a-Q4_0.gguf": b"x", "a-Q5_0.gguf": b"x"}), "no quantization Q8_0. Did you"),
        (Repository({"../Q8_0.gguf": b"x"}), "not touched"),
        (Repository({FILE: b"x"}, listed_nbytes={FILE: 1 << 55}), "not believed"),
        (Repository({FILE: b"x"}, listed_nbytes={FILE: 1 << 49}), "make room, or set HF_HOME"),
        (Repository({}, answer=b"<html>a proxy</html>"), "cannot be understood"),
        (Repository({}, answer=b"[]"), "cannot be understood"),
        (Repository({}, answer=b'{"id": "a", "sha": 3, "siblings": []}'), "cannot be understood"),
        (
            Repository(
                {},
                answer=b'{"id":"a/b","sha":"' + b"0" * 40 + b'","siblings":[{"rfilename":'
                b'"m-Q8_0.gguf","size":"x","blobId":"y"}]}',
            ),
            "has no checksum",
        ),
        (Repository({FILE: b"x" * 9}, wrong_place=True), "not from byte 0 on"),
        (None, "there is no repository some/model-GGUF on the hub"),
    ],
)
def test_what_cannot_be_pulled_is_one_message_and_leaves_nothing(
    localmoe: Localmoe, server: HubServer, home: dict[str, str], repository: Any, said: str
) -> None:
    if repository:
        server.repositories[NAME] = repository
    done = localmoe("pull", FULL, HF_TOKEN="hf_secret")
    assert said in error_of(done)
    assert "hf_secret" not in done.stdout + done.stderr
    assert blobs(home) == []


def test_no_network_is_one_message(localmoe: Localmoe) -> None:
    done = localmoe("pull", FULL, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot reach the hub for some/model-GGUF" in error_of(done)


def test_what_is_no_name_is_refused(localmoe: Localmoe) -> None:
    for command in (("pull", "no name"), ("remove", "no name", "--yes")):
        assert "write OWNER/REPO" in error_of(localmoe(*command))


def test_a_header_is_read_without_its_weights(
    localmoe: Localmoe, server: HubServer, shards: dict[str, bytes], tmp_path: Path
) -> None:
    padded = {name: data + bytes(8 << 20) for name, data in shards.items()}
    files = {name.replace("qwen3moe", "m-Q4_0"): data for name, data in padded.items()}
    server.repositories[NAME] = Repository(files)
    done = localmoe("inspect", NAME, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    for name, data in shards.items():
        (tmp_path / name).write_bytes(data)
    catalog = read_catalog(tmp_path / next(iter(shards)))
    assert answer["expert_bytes"] == catalog.expert_nbytes
    assert answer["file_bytes"] == sum(len(data) for data in padded.values())
    assert server.sent_nbytes <= 1 << 20
    planned = localmoe("plan", NAME, "--memory", "1GiB", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["plan"]["experts"] == catalog.n_experts_total
    assert list(tmp_path.glob("localmoe-headers-*")) == []


def test_a_hub_that_ignores_ranges_is_not_read_to_the_end(
    localmoe: Localmoe, server: HubServer, model: bytes
) -> None:
    server.repositories[NAME] = Repository({FILE: model}, ignores_ranges=True)
    assert "as a whole only" in error_of(localmoe("inspect", FULL))
    server.repositories[NAME] = Repository({FILE: model}, listed_nbytes={FILE: 1 << 49})
    assert "cannot keep the header of" in error_of(localmoe("inspect", FULL))
    server.repositories[NAME] = Repository({FILE: b"no model" * 1000})
    assert "is not a GGUF file" in error_of(localmoe("inspect", FULL))


def test_inspect_shows_a_file_and_no_control_characters(
    localmoe: Localmoe, tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    path = zoo.write(tmp_path, "afmoe", metadata={"general.name": "bad\x1b[31m name"})
    done = localmoe("inspect", str(path), "--tensors")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    for wanted in ("afmoe", "16 per layer, 2 used", "chat template", "routed", "token_embd.weight"):
        assert wanted in done.stdout
    answer = json.loads(localmoe("inspect", str(path), "--tensors", "--json").stdout)
    assert unexplained({**answer, "types": {}, "sampling": {}}) == []
    assert sum(row["nbytes"] for row in answer["tensors"]) == sum(answer["types"].values())
    assert {row["tier"] for row in answer["tensors"]} == {"resident", "routed"}
    assert "there is no model file" in error_of(localmoe("inspect", "none.gguf"))


def test_help_has_examples(localmoe: Localmoe) -> None:
    for command in ("pull", "list", "remove", "inspect"):
        done = localmoe(command, "--help")
        assert "Examples:" in done.stdout
        assert f"localmoe {command}" in done.stdout
