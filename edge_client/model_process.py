"""A server's .tflite of the final model, in a process of its own (step_worker.py)."""

from __future__ import annotations

from collections.abc import Sequence

from featherfed.compression.arrays import Array
from featherfed.edge_client.model_interpreter import MAX_TENSORS, seen_tensors
from featherfed.edge_client.step_messages import array_bytes
from featherfed.edge_client.step_process import FileProcess, peak_memory
from featherfed.edge_client.step_tensors import StepTensors
from featherfed.tasks.records import together
from featherfed.tasks.task import Task, Values


class ModelProcess(FileProcess):
    """A model file that answers examples, and measures the ranges of its values if asked."""

    what = "model file"

    def __init__(
        self,
        content: bytes,
        task: Task,
        inputs: Sequence[int],
        outputs: Sequence[int],
        threads: int = 1,
        measured: bool = False,
    ) -> None:
        """Load a file; raise ClientError if it is not a model of the task.

        `inputs`: the places of the task's inputs among the file's; `outputs`: of its targets'.
        """
        super().__init__(content, seen_tensors(StepTensors.of(task)))
        self._task = task
        header = {
            "do": "load_model",
            "size": len(content),
            "tensors": self._tensors,
            "inputs": [int(place) for place in inputs],
            "outputs": [int(place) for place in outputs],
            "threads": threads,
            "measured": measured,
        }
        answer, _ = self._call(header, [content])
        self._shapes = self._output_shapes(answer.get("output_shapes"))
        self._num_measured = self._number(answer.get("measured"), int)
        if not 0 <= self._num_measured <= MAX_TENSORS:
            raise self._refusal(f"has {self._num_measured} tensors to measure", header)

    def answer(self, inputs: Sequence[Values]) -> Values:
        """Return answers [N, ...] to prepared inputs [N, ...] of the task, as trainers do."""
        count = len(inputs[0])
        seen = [given.seen(x) for given, x in zip(self._task.inputs, inputs, strict=True)]
        header = {"do": "answer_model", "count": count}
        shapes = [(count, *shape) for shape in self._shapes.values()]
        _, arrays = self._call(header, map(array_bytes, seen), shapes)
        return together(arrays, self._tensors.names)

    def ranges(self) -> Array:
        """Return the smallest and largest value of each measured tensor, float32 [tensors, 2]."""
        _, arrays = self._call({"do": "ranges"}, shapes=[(self._num_measured, 2)])
        return arrays[0]

    def close(self) -> None:
        """End the process, whose memory counts among the client's."""
        peak_memory()
        self._end()
