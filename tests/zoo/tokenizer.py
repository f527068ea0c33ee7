"""A byte-level BPE vocabulary of a few hundred tokens, with ChatML markup."""

from __future__ import annotations

from gguf import GGUFWriter, TokenType

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIAL = (END_OF_TEXT, TURN_START, TURN_END)
_MERGES = (
    "Ġ t", "h e", "Ġ a", "i n", "Ġt he", "r e", "o n", "Ġ s", "e r", "a t",
    "Ġ w", "Ġ o", "o u", "n d", "Ġ c", "i s", "s s", "Ġ b", "in g", "Ġa nd",
)  # fmt: skip

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)


def byte_symbols() -> list[str]:
    """Return the printable character by which GPT-2's BPE writes each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [symbols[byte] for byte in range(256)]


def vocabulary() -> list[str]:
    """Return all tokens: bytes, merges, markup."""
    return [*byte_symbols(), *(merge.replace(" ", "") for merge in _MERGES), *_SPECIAL]


def add_tokenizer(writer: GGUFWriter) -> None:
    """Write the vocabulary and the chat template as GGUF keys."""
    tokens = vocabulary()
    kinds = [TokenType.NORMAL] * (len(tokens) - len(_SPECIAL)) + [TokenType.CONTROL] * len(_SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(_MERGES)
    # llama.cpp takes 11 for both where a BPE file names none.
    writer.add_bos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eos_token_id(tokens.index(END_OF_TEXT))
    writer.add_eot_token_id(tokens.index(TURN_END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
