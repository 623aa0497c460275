"""Copies standard input to standard output without the lines that TensorFlow always says.

`python noise.py` is the filter that `importing.py` puts before standard error. It is a process of
its own: what TensorFlow says before it crashes must arrive, for example that it needs AVX.
"""

from __future__ import annotations

import re
import sys

NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog\(\) is called"
    rb"|I\d{4} .*\b(port|cudart_stub)\.cc:\d+\] "  # oneDNN is used, and there is no GPU
    rb"|fully_quantize: \d+, inference_type: "
    rb"|INFO: (Created|Initialized) TensorFlow Lite "
    # LLVM's of a failed conversion, hundreds of kB; the exception names the cause.
    rb"|loc\(|<unknown>:\d+: |(\S+:\d+:\d+: )?(error|note): "
    # Advice on operators that TFLite does not have; the exception names them, too.
    rb"|Some ops in the model are custom ops|Custom ops: |Details:$|\ttf\.|$"
)
"""How a line begins that says nothing: TF_CPP_MIN_LOG_LEVEL does not silence these."""


def _main() -> None:
    for line in sys.stdin.buffer:
        if not NOISE.match(line):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    _main()
