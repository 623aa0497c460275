"""TensorFlow's usual messages stay away from standard error, and nothing else does."""

from __future__ import annotations

import subprocess
import sys

import pytest

QUIET = "from featherfed.models.importing import importing_tensorflow, without_noise\n"
NOISE = b"""\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795842937.219631   22498 port.cc:153] oneDNN custom operations are on. You may see
I0000 00:00:1795842937.221195   22498 cudart_stub.cc:31] Could not find cuda drivers on your machine
fully_quantize: 0, inference_type: 6, input_inference_type: UINT8, output_inference_type: UINT8
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
loc(callsite(fused["TensorListReserve:", callsite("model/conv_lstm1d/TensorArrayV2_1@__inference"
<unknown>:0: error: failed while converting: 'main'
model.py:15:1: note: called from
Some ops in the model are custom ops, See instructions to implement custom ops: https://www.tens
Custom ops: ResizeArea
Details:
\ttf.ResizeArea(tensor<?x6x3x1xf32>, tensor<2xi32>) -> (tensor<?x12x6x1xf32>) : {T = f32}

error: Lowering tensor list ops is failed. Please consider using Select TF ops
"""


def python(code: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", QUIET + code], capture_output=True, check=False)


def test_the_import_says_nothing() -> None:
    done = python(
        "import gc, os, sys\n"
        "os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
        "with importing_tensorflow():\n    import tensorflow\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 100_000\n"
        "with importing_tensorflow():\n    os.write(2, b'seen')\n"
    )
    assert (done.returncode, done.stderr) == (0, b"seen")


def test_everything_else_is_passed_on_in_order() -> None:
    done = python(
        "import os, sys\n"
        "print('before', file=sys.stderr)\n"
        "with without_noise():\n"
        f"    os.write(2, {NOISE!r})\n"
        "    print('I am told', file=sys.stderr)\n"
        "    os.write(2, b'E0000 00:00:1 2 port.cc:1] an error\\nno line')\n"
        "print(' after', file=sys.stderr)\n"
    )
    assert done.returncode == 0
    assert done.stderr == (
        b"before\nI am told\nE0000 00:00:1 2 port.cc:1] an error\nno line after\n"
    )


@pytest.mark.parametrize("end", ["os.abort()", "os._exit(1)", "raise ImportError('no tensorflow')"])
def test_last_words_arrive(end: str) -> None:
    done = python(
        f"import os\nwith without_noise():\n    os.write(2, b'needs AVX\\n')\n    {end}\n"
    )
    assert done.returncode != 0
    assert done.stderr.startswith(b"needs AVX\n")
    assert ("ImportError" in end) == (b"no tensorflow" in done.stderr)


def test_a_process_without_standard_error_starts() -> None:
    done = python("import os\nos.close(2)\nwith without_noise():\n    print('started')\n")
    assert (done.returncode, done.stdout) == (0, b"started\n")
