"""Safetensors checkpoints by name: pulled, listed, inspected, planned for, run and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import raw_checkpoint as made
import zoo_torch
from hub import HubServer, Repository
from hub.commands import Localmoe, blobs
from localmoe.planning.checkpoint_plan import plan_checkpoint
from localmoe.settings import Settings
from localmoe.weights.checkpoint_description import describe_checkpoint, describe_stored_tensors
from localmoe.weights.checkpoint_layout import read_layout

NAME = "some/model"
FULL = f"{NAME}:safetensors"
SHARDS = 3
OTHERS = {
    "README.md": b"words",
    "pytorch_model.bin": b"\x80\x02",
    "consolidated.safetensors": b"once more",
    "consolidated.00.pth": b"\x80\x02",
    "original/model.safetensors": b"once more",
    "original/config.json": b"{}",
    "onnx/model.onnx": b"another kind",
    "training_args.pkl": b"\x80\x02",
    "modeling_made.py": b"import os",
    "adapter.safetensors": b"not named by the index",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
}
INDEX = "model.safetensors.index.json"
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}


@pytest.fixture
def script(home: dict[str, str]) -> Callable[[str], Any]:
    """Return a function that runs some lines of Python as on such a machine, all in one process.

    What they put into `found` comes back.
    """
    start = (
        "import json; found = {}\n"
        "from localmoe.errors import LocalMoeError\n"
        "from localmoe.weights.hub import look_up\n"
        "from localmoe.weights.hub_cache import find_pulled, pulled_models, remove_pulled\n"
        "from localmoe.weights.hub_download import Download\n"
        "from localmoe.weights.hub_names import hub_name\n"
        "def pull(name): return Download(look_up(hub_name(name)), retry_seconds=0).run().name\n"
        "def message(call):\n"
        "    try: return str(call())\n"
        "    except LocalMoeError as error: return str(error)\n"
        "def listed(): return [[m.name, m.nbytes, m.is_complete] for m in pulled_models()]\n"
    )

    def run(lines: str) -> Any:
        code = f"{start}{lines}\nprint(json.dumps(found))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=home,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def fetched(server: HubServer) -> list[str]:
    """Return the files whose content was asked for."""
    return [path.partition("/resolve/")[2].partition("/")[2] for path in server.bodies()]


def test_what_belongs_to_a_checkpoint_comes_and_goes_and_nothing_else(
    localmoe: Localmoe, server: HubServer, home: dict[str, str]
) -> None:
    files = made.files(shards=SHARDS)
    server.repositories[NAME] = Repository({**files, **OTHERS})
    wanted = {**files, "additional_chat_templates/tools.jinja": b"{{ tools }}"}
    done = localmoe("pull", NAME)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{FULL} is here: localmoe run {FULL}\n"
    assert set(fetched(server)) == set(wanted)
    nbytes = sum(map(len, wanted.values()))
    models = json.loads(localmoe("list", "--json").stdout)["models"]
    assert [(m["name"], m["bytes"], m["complete"]) for m in models] == [(FULL, nbytes, True)]
    asked = len(server.requests)
    answer = json.loads(localmoe("inspect", NAME, "--json", **OFFLINE).stdout)
    assert (answer["name"], answer["architecture"]) == ("model", "qwen3_moe")
    assert len(server.requests) == asked
    assert localmoe("remove", FULL, "--yes").returncode == 0
    assert list(Path(home["HF_HOME"]).glob("hub/models--*")) == []


def test_a_repository_with_both_gives_what_is_named(
    server: HubServer, script: Callable[[str], Any]
) -> None:
    files = made.files(shards=SHARDS)
    server.repositories[NAME] = Repository({**files, "m-Q8_0.gguf": b"GGUF" * 9})
    found = script(
        "from localmoe.backends.opening import engine_name\n"
        "from localmoe.cli.request import read_request\n"
        "from localmoe.cli.serve import default_names\n"
        "found['usual'] = pull('some/model'), listed()\n"
        "found['other'] = message(lambda: pull('some/model:Q4_0'))\n"
        "found['named'] = pull('some/model:Safetensors'), listed()\n"
        "found['again'] = pull('some/model:safetensors')\n"
        "found['paths'] = [find_pulled(hub_name(f'some/model{q}')).name\n"
        "                  for q in ('', ':q8_0', ':safetensors')]\n"
        "remove_pulled(hub_name('some/model:Q8_0'))\n"
        "found['left'] = listed(), find_pulled(hub_name('some/model')).name\n"
        "request = read_request('some/model', 'Hello')\n"
        "found['run'] = request.model.name, request.prompt, engine_name(request.model)\n"
        "found['serve'] = default_names(request.model, [])\n"
    )
    gguf, whole = [f"{NAME}:Q8_0", 36, True], [FULL, sum(map(len, files.values())), True]
    assert found["usual"] == ["m-Q8_0.gguf", [gguf]]
    assert "There are Q8_0 (0.0 GB), safetensors (0.0 GB)" in found["other"]
    assert found["named"] == [INDEX, [gguf, whole]]
    assert found["again"] == INDEX
    # The second time only the index is fetched, to know what it names.
    assert sorted(fetched(server)) == sorted(["m-Q8_0.gguf", INDEX, *files, INDEX])
    assert found["paths"] == ["m-Q8_0.gguf", "m-Q8_0.gguf", INDEX]
    assert found["left"] == [[whole], INDEX]
    assert found["run"] == [INDEX, "Hello", "torch"]
    assert found["serve"] == ["model"]


def test_of_what_others_have_fetched_models_with_experts_are_listed(
    server: HubServer, script: Callable[[str], Any]
) -> None:
    dense = made.files(made.resident(), {"num_experts": None})
    server.repositories[NAME] = Repository(made.files())
    server.repositories["some/dense"] = Repository(dense)
    found = script(
        "import pathlib, huggingface_hub\n"
        "pull('some/model'), pull('some/dense')\n"
        "found['pulled'] = [name for name, *_ in listed()]\n"
        "cache = pathlib.Path(huggingface_hub.constants.HF_HUB_CACHE)\n"
        "for note in cache.glob('*/localmoe/*.json'): note.unlink()\n"
        "found['others'] = [name for name, *_ in listed()]\n"
        "found['dense'] = find_pulled(hub_name('some/dense')).name\n"
    )
    assert found["pulled"] == ["some/dense:safetensors", FULL]
    assert found["others"] == [FULL]
    assert found["dense"] == "model.safetensors"


def test_a_download_that_broke_off_is_incomplete_and_goes_on(
    server: HubServer, script: Callable[[str], Any]
) -> None:
    files = made.files(shards=SHARDS)
    first = len(files[INDEX]) + 512
    server.repositories[NAME] = Repository(files, breaks_after=first, times_to_break=12)
    found = script(
        "found['broken'] = message(lambda: pull('some/model')), listed()\n"
        "found['run'] = message(lambda: find_pulled(hub_name('some/model')))\n"
        "while 'there' not in found:\n"
        "    said = message(lambda: pull('some/model'))\n"
        "    if said.endswith('.json'): found['there'] = listed()\n"
    )
    assert "cannot reach the hub for some/model/model-00001-of-" in found["broken"][0]
    assert [(name, complete) for name, _, complete in found["broken"][1]] == [(FULL, False)]
    assert f"localmoe pull {NAME}" in found["run"]
    assert found["there"] == [[FULL, sum(map(len, files.values())), True]]
    ranges = [wanted for _, path, wanted in server.requests if path.endswith(".safetensors")]
    assert any(wanted and not wanted.startswith("bytes=0-") for wanted in ranges)


def test_whole_weights_are_no_model_before_all_of_a_pull_is_there(
    server: HubServer, script: Callable[[str], Any]
) -> None:
    right = Repository(made.files())
    wrong = server.repositories[NAME] = Repository({**right.files, "tokenizer.json": b"[]"})
    wrong.blob_id = right.blob_id  # type: ignore[method-assign]
    found = script(
        "found['wrong'] = message(lambda: pull('some/model')), listed()\n"
        "found['freed'] = remove_pulled(hub_name('some/model')), listed()\n"
    )
    assert "tokenizer.json arrived with other content" in found["wrong"][0]
    (name, nbytes, is_complete) = found["wrong"][1][0]
    assert (name, is_complete) == (FULL, False)
    assert nbytes >= len(right.files["model.safetensors"])
    assert found["freed"] == [nbytes, []]


def index(*names: str) -> dict[str, bytes]:
    """Return a repository whose index names these files."""
    files = made.files(shards=SHARDS)
    return {**files, INDEX: json.dumps({"weight_map": dict(enumerate(names))}).encode()}


PLAIN_NAME = "should have the plain name of a .safetensors file"
LIES: dict[str, tuple[Repository, str]] = {
    "up": (Repository(index("../../x.safetensors")), PLAIN_NAME),
    "down": (Repository(index("original/x.safetensors")), PLAIN_NAME),
    "pickle": (Repository(index("pytorch_model.bin")), "nothing is unpickled here"),
    "lacks": (Repository(index("none.safetensors")), "lacks 1 of the 1 files that model."),
    "broken": (Repository({**index(), INDEX: b"{"}), "of its JSON. It is damaged"),
    "empty": (Repository({**index(), INDEX: b"{}"}), "name the files of tensors in weight_map"),
    "long": (Repository(index(), listed_nbytes={INDEX: 1 << 40}), "no index has over 100000000"),
    "plain": (Repository({"model.safetensors": b"x"}), "nor a checkpoint of config.json"),
    "two": (
        Repository({"a.safetensors": b"x", "b.safetensors": b"x", "config.json": b"{}"}),
        "nor a checkpoint",
    ),
    "large": (
        Repository(made.files(), listed_nbytes={"config.json": 1 << 30}),
        "config.json of some/large is said to have 1073741824 bytes: not believed",
    ),
    "whole": (Repository(made.files(), ignores_ranges=True), "as a whole only"),
    "elsewhere": (
        Repository({**made.files(), "model.safetensors": b"no model" * 1000}),
        "some/elsewhere/model.safetensors is no .safetensors file",
    ),
    "endless": (
        Repository({**made.files(), "model.safetensors": b"\xff" * 8 + b"{}"}),
        "should be 2 to 100000000",
    ),
    "short": (
        Repository({**made.files(), "model.safetensors": b"\0\1\0\0\0\0\0\0{}"}),
        "is truncated",
    ),
    "changed": (Repository(made.files(), wrong_content=True), "arrived with other content"),
}


def test_a_repository_that_lies_is_one_message_and_leaves_nothing(
    server: HubServer, home: dict[str, str], tmp_path: Path, script: Callable[[str], Any]
) -> None:
    for name, (repository, _) in LIES.items():
        server.repositories[f"some/{name}"] = repository
    (tmp_path / "stands").mkdir()
    found = script(
        "import pathlib\nfrom localmoe.weights.remote import write_stand_ins\n"
        f"for name in {list(LIES)}:\n"
        f"    folder = pathlib.Path({str(tmp_path / 'stands')!r}, name); folder.mkdir()\n"
        "    found[name] = message(\n"
        "        lambda: write_stand_ins(look_up(hub_name(f'some/{name}')), folder))\n"
    )
    for name, (_, said) in LIES.items():
        assert said in found[name], name
        assert "\n" not in found[name]
    assert blobs(home) == []
    assert server.sent_nbytes < 1 << 20


def test_headers_are_read_without_weights(
    localmoe: Localmoe, server: HubServer, tmp_path: Path, unexplained: Callable[[Any], list[str]]
) -> None:
    tensors = {**made.resident(), **made.experts()}
    tensors |= {f"model.layers.{n}.large.weight": ("BF16", (1024, 2048)) for n in range(3)}
    files = made.files(tensors, shards=SHARDS)
    server.repositories[NAME] = Repository({**files, **OTHERS})
    folder = made.write(tmp_path / "Made-4B", tensors, shards=SHARDS)
    layout = read_layout(folder)
    local = {**describe_checkpoint(layout), "tensors": describe_stored_tensors(layout)}
    done = localmoe("inspect", NAME, "--tensors", "--json")
    assert done.returncode == 0, done.stderr
    remote = json.loads(done.stdout)
    assert unexplained({**remote, "types": {}, "sampling": {}}) == []
    assert remote["name"] == "model"
    assert remote["file_bytes"] > 12 << 20
    for answer in (local, remote):
        del answer["files"], answer["name"]
    assert remote == local
    assert server.sent_nbytes < 1 << 20
    assert {row["tier"] for row in remote["tensors"]} == {"resident", "routed"}
    answer = json.loads(
        localmoe("plan", NAME, "--memory", "1GiB", "--context", "64", "--json").stdout
    )
    planned = plan_checkpoint(folder, Settings(context_tokens=64), 1 << 30)
    assert answer["plan"] == asdict(planned.slot_plan.plan)
    assert answer["plan"]["experts"] == made.LAYERS * made.EXPERTS
    assert unexplained(answer) == []
    assert list(tmp_path.glob("localmoe-headers-*")) == []


def test_a_plan_is_a_page_and_needs_no_torch(localmoe: Localmoe, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "Made-4B")
    (tmp_path / "none").mkdir()
    for package in ("torch", "transformers"):
        (tmp_path / "none" / f"{package}.py").write_text("raise RuntimeError('imported')\n")
    done = localmoe(
        *("plan", str(folder), "--machine", "dgx-spark", "--context", "1024"),
        PYTHONPATH=os.pathsep.join([str(tmp_path / "none"), *filter(None, sys.path)]),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Made-4B on NVIDIA DGX Spark, 128 GB: fits as a whole")
    for wanted in ("KV cache, 1,024 tokens ", "all 12 experts", "the torch engine computes"):
        assert wanted in done.stdout
    assert "--mirror" not in done.stdout


def test_the_doctor_tells_whether_a_checkpoint_runs(localmoe: Localmoe, tmp_path: Path) -> None:
    folder = made.write(tmp_path / "model")
    done = localmoe("doctor", str(folder), "--memory", "1GiB")
    assert done.returncode == 0, done.stdout
    assert "runs safetensors checkpoints" in done.stdout
    assert "qwen3_moe, 250 KiB, 12 experts; needs " in done.stdout
    small = localmoe("doctor", str(folder), "--memory", "100MiB")
    assert small.returncode == 1
    assert f"localmoe run {folder} --memory" in small.stdout


@pytest.mark.slow
def test_it_runs_by_name(localmoe: Localmoe, server: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "written"
    zoo_torch.write(folder, "qwen3_moe", max_shard_size="100KB")
    zoo_torch.write_tokenizer(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    server.repositories[NAME] = Repository(files)
    assert localmoe("pull", NAME).returncode == 0
    short = ("--max-tokens", "3", "--temperature", "0", "--context", "64", "--threads", "1")
    done = localmoe("run", NAME, "Hello", *short, "--memory", "1GiB", "--device", "cpu", **OFFLINE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
