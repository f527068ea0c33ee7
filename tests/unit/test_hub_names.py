"""Names of models on the hub, and of the files that belong to them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmoe.errors import HubError, SettingsError
from localmoe.weights.hub_names import HubName, hub_name, parse_hub_name
from localmoe.weights.quantized_files import (
    HubFile,
    check_files,
    choose,
    quantization_of,
    quantizations,
)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("unsloth/GLM-4.7-GGUF:Q4_K_M", HubName("unsloth/GLM-4.7-GGUF", "Q4_K_M")),
        ("hf.co/a/b", HubName("a/b")),
        ("https://huggingface.co/a/b:UD-Q2_K_XL", HubName("a/b", "UD-Q2_K_XL")),
        ("https://huggingface.co/a/b/", HubName("a/b")),
        ("a/b/c", None),
        ("a", None),
        ("../b", None),
        ("a/..", None),
        ("a/b:", None),
        ("a/b.gguf", None),
        ("a/b.safetensors", None),
        ("a/model.safetensors.index.json", None),
        ("a/b:safetensors", HubName("a/b", "safetensors")),
        ("a/-b", None),
        ("a/b--", HubName("a/b--")),
        ("a b/c", None),
        ("a/b:c/d", None),
        ("a/b\n", HubName("a/b")),
    ],
)
def test_a_name_is_read(text: str, name: HubName | None) -> None:
    if text == "a/b--":
        name = None
    assert parse_hub_name(text) == name


def test_what_is_no_name_is_refused_with_an_example() -> None:
    with pytest.raises(SettingsError, match="write OWNER/REPO"):
        hub_name("no name at all")


@given(st.text(max_size=60))
def test_whatever_is_typed_no_name_leads_out_of_a_folder(text: str) -> None:
    name = parse_hub_name(text)
    if name:
        assert ".." not in name.repository
        assert name.repository.count("/") == 1
        assert not name.repository.startswith(("/", ".", "-"))
        assert str(name).isascii()
        assert parse_hub_name(str(name)) == name


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 10**9, "sha256:00") for path in paths]


@pytest.mark.parametrize(
    ("stem", "quantization"),
    [
        ("GLM-4.7-Q4_K_M", "Q4_K_M"),
        ("model.q8_0", "Q8_0"),
        ("GLM-UD-Q2_K_XL", "UD-Q2_K_XL"),
        ("Q3_K_S/model", "Q3_K_S"),
        ("BF16/model", "BF16"),
        ("gpt-oss-120b-MXFP4", "MXFP4"),
        ("gpt-oss-120b-mxfp4_moe", "MXFP4_MOE"),
        ("model-IQ2_XXS", "IQ2_XXS"),
        ("model-TQ1_0", "TQ1_0"),
        ("Qwen3-30B-A3B", None),
        ("Q4_0-imposter/model-Q5_K", "Q5_K"),
    ],
)
def test_a_quantization_is_told_by_the_name(stem: str, quantization: str | None) -> None:
    assert quantization_of(stem) == quantization


def test_shards_belong_together_and_what_is_no_model_is_left_out() -> None:
    found = quantizations(
        files(
            "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
            "m-Q8_0.gguf",
            "mmproj-F16.gguf",
            "imatrix.gguf",
            "README.md",
            "m-Q2_K-00001-of-00003.gguf",  # two are missing
            "m-Q6_K-00000-of-00002.gguf",
            "m-Q5_K-00001-of-99999.gguf",
        )
    )
    assert list(found) == ["Q4_K_M", "Q8_0"]
    assert [f.path[-20:] for f in found["Q4_K_M"].files] == [
        "M-00001-of-00002.gguf"[-20:],
        "M-00002-of-00002.gguf"[-20:],
    ]
    assert found["Q4_K_M"].nbytes == 2 * 10**9


def test_two_models_of_one_quantization_go_by_their_files() -> None:
    found = quantizations(files("small-Q4_0.gguf", "large-Q4_0.gguf", "large-Q8_0.gguf"))
    assert list(found) == ["small-Q4_0", "large-Q4_0", "Q8_0"]
    assert choose("a/b", found, "Small-q4_0").name == "small-Q4_0"


def test_the_usual_one_the_only_one_or_a_question() -> None:
    several = quantizations(files("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-UD-Q2_K_XL.gguf"))
    assert choose("a/b", several, None).name == "Q4_K_M"
    assert choose("a/b", several, "q8_0").name == "Q8_0"
    assert choose("a/b", several, "q2_k_xl").name == "UD-Q2_K_XL"
    with pytest.raises(HubError, match=r"no quantization Q4_K_S. Did you mean Q4_K_M"):
        choose("a/b", several, "Q4_K_S")
    assert choose("a/b", quantizations(files("only-Q8_0.gguf")), None).name == "Q8_0"
    with pytest.raises(HubError, match=r"name one, as in a/b:Q8_0. There are .*1.0 GB"):
        choose("a/b", quantizations(files("m-Q8_0.gguf", "m-Q6_K.gguf")), None)
    with pytest.raises(HubError, match="has neither GGUF files nor a checkpoint"):
        choose("a/b", quantizations(files("model.safetensors")), None)


@pytest.mark.parametrize(
    "path",
    ["../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "", "a\x1b[2J.gguf", "a\\b.gguf", "a" * 2000],
)
def test_a_listing_that_leads_astray_is_refused(path: str) -> None:
    with pytest.raises(HubError, match="not touched"):
        check_files("a/b", files("m-Q8_0.gguf", path))


def test_a_listing_with_impossible_sizes_or_too_much_is_refused() -> None:
    for nbytes in (-1, 1 << 60):
        with pytest.raises(HubError, match="not believed"):
            check_files("a/b", [HubFile("m.gguf", nbytes, "sha256:00")])
    with pytest.raises(HubError, match="at most 10000 "):
        check_files("a/b", files("m.gguf") * 100_001)
