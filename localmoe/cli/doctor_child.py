"""The engine asked in a process of its own: words as arguments, JSON as answer."""

from __future__ import annotations

import json
import sys

from localmoe.doctor.child import answer

if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1:])))
