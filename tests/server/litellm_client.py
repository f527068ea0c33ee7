"""What litellm makes of a server: asked by its URL, with messages and tools on standard input."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    """Print as JSON what litellm found, over both APIs that it speaks."""
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for one
    import litellm

    url, given = sys.argv[1], {"api_key": "x", **json.load(sys.stdin)}
    found: dict[str, Any] = {}
    for model, base in (("openai/tiny", f"{url}/v1"), ("anthropic/tiny", url)):
        message = litellm.completion(model=model, api_base=base, **given).choices[0].message
        chunks = list(litellm.completion(model=model, api_base=base, stream=True, **given))
        calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
        found[model] = {
            "tools": [call.function.name for call in message.tool_calls],
            "reasoning": message.reasoning_content,
            "streamed tools": [call.function.name for call in calls if call.function.name],
        }
    try:
        litellm.completion(model="openai/none", api_base=f"{url}/v1", num_retries=0, **given)
    except litellm.NotFoundError as error:
        found["unknown model"] = type(error).__name__
    print(json.dumps(found))


if __name__ == "__main__":
    main()
