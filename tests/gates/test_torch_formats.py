"""G16: a checkpoint in each quantized format gives the bits of its decoded weights in BF16."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import zoo_torch
from localmoe.backends.torch.load import load
from localmoe.settings import Settings
from zoo_torch.configuration import tiny_config
from zoo_torch.formats import FORMATS, PLAIN, quantization_config, store
from zoo_torch.late_device import LateTorchDevice
from zoo_torch.references import reference
from zoo_torch.weights import randomize

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PROMPT = [(31 * place + 3) % 128 for place in range(16)]
WIDE = {"hidden_size": 256, "moe_intermediate_size": 128, "head_dim": 32}
RAGGED = {"hidden_size": 320, "moe_intermediate_size": 192, "head_dim": 16}
CASES = [(each, WIDE) for each in FORMATS if each not in (*PLAIN, "mxfp4")]
CASES += [("fp8-block", RAGGED), ("fp8-block-ue8m0", RAGGED)]


def write_plain(folder: Path, model_type: str, **sizes: int) -> Path:
    config = tiny_config(model_type)
    for name, value in sizes.items():
        setattr(config, name, value)
    shape = zoo_torch.TINY[model_type]
    architecture = transformers.AutoModelForCausalLM._model_mapping[type(config)]
    model = architecture._from_config(config, dtype=torch.bfloat16)
    randomize(model, zoo_torch.EXPERTS, shape.gains, 0)
    model.save_pretrained(folder)
    zoo_torch.write_tokenizer(folder)
    return folder


def encode(plain: Path, folder: Path, format_name: str) -> tuple[Path, Path]:
    """Return the checkpoint in a format, and one with the weights that this decodes to."""
    tensors = load_file(plain / "model.safetensors")
    encoded, decoded = {}, {}
    for name, tensor in tensors.items():
        if format_name == "mxfp4":
            is_meant = name.endswith(("experts.gate_up_proj", "experts.down_proj"))
        else:
            is_meant = tensor.dim() == 2 and "proj" in name
        if not is_meant:
            encoded[name] = decoded[name] = tensor
            continue
        stored = store(name, tensor, format_name)
        encoded |= stored
        decoded[name] = reference(name, stored, format_name, torch.bfloat16)
    paths = []
    for kind, values in (("encoded", encoded), ("decoded", decoded)):
        path = Path(shutil.copytree(plain, folder / kind))
        kept = {name: tensor.contiguous().clone() for name, tensor in values.items()}
        save_file(kept, path / "model.safetensors", {"format": "pt"})
        paths.append(path)
    config = json.loads((plain / "config.json").read_text())
    said = {**config, "quantization_config": quantization_config(format_name)}
    (paths[0] / "config.json").write_text(json.dumps(said))
    return paths[0], paths[1]


def check(encoded: Path, decoded: Path) -> None:
    model = zoo_torch.stock(decoded, torch.bfloat16, "eager")
    expected = zoo_torch.logits_of(model, PROMPT, 0).float()
    for slots, device in ((1000, None), (5, LateTorchDevice()), (4, None)):
        settings = Settings(slots=slots, context_tokens=64, threads=1)
        if device:
            settings = replace(settings, vram_bytes=1 << 30)
        with load(encoded, settings, device=device) as engine:
            found = torch.from_numpy(engine.decode(PROMPT, "all"))
            assert torch.equal(found, expected.reshape(found.shape))
            plan, catalog = engine.plan, engine.catalog
    assert expected.std() > 0.01
    # Slots hold what the file holds, not what it decodes to.
    nbytes = sum(layer.n_experts * layer.expert_nbytes for layer in catalog.layers)
    tensors = load_file(decoded / "model.safetensors")
    assert nbytes < 0.6 * sum(t.nbytes for name, t in tensors.items() if ".experts." in name)
    assert plan.slots == 4


@pytest.mark.parametrize(("format_name", "sizes"), CASES)
def test_g16_every_format_computes_what_it_decodes_to(
    tmp_path: Path, format_name: str, sizes: dict[str, int]
) -> None:
    plain = write_plain(tmp_path / "plain", "qwen3_moe", **sizes)
    check(*encode(plain, tmp_path, format_name))


def test_g16_gpt_oss_with_its_own_blocks(tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "plain", "gpt_oss", hidden_size=64, intermediate_size=64)
    check(*encode(plain, tmp_path, "mxfp4"))


def test_g16_latent_attention_with_ragged_blocks(tmp_path: Path) -> None:
    plain = write_plain(tmp_path / "plain", "deepseek_v3", hidden_size=192)
    check(*encode(plain, tmp_path, "fp8-block"))
