"""Layers' arithmetic, forward and backward, in operators that TFLite has built in.

TensorFlow's own gradients of convolutions, pools and activations (Conv2DBackpropFilter,
MaxPoolGrad, ReluGrad, ...) have no TFLite operator, so each function here brings its own.
Convolutions are matrix products over patches: XNNPACK runs those, but no convolution whose filter
is not a constant. All shapes are static; images are NHWC.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import tensorflow as tf

_FEW_CHANNELS = 8  # 32 bytes: a copy of fewer costs as much
_HUGE = 3.0e38

Tensor = Any
"""A symbolic float32 tf.Tensor of static shape."""
Gradients = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From the gradient of the output to those of the two inputs."""
Function = TypeVar("Function", bound=Callable[..., Any])


def with_gradient(function: Function) -> Function:
    """Mark a function that returns its value and the function of its gradient."""
    return cast(Function, tf.custom_gradient(function))


@dataclass(frozen=True)
class Window:
    """Where a kernel of `size` stands on an image: strides, dilation and padding, by axis."""

    image: tuple[int, int]
    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    """Rows and columns added at the top and the left."""
    out: tuple[int, int]

    @classmethod
    def of(
        cls,
        image: Sequence[int],
        size: Sequence[int],
        strides: Sequence[int],
        padding: str,
        dilation: Sequence[int] = (1, 1),
    ) -> Window:
        """Return the window on an image [height, width]; `padding` is Keras' valid or same."""
        spread = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
        if padding == "same":
            out = [-(-n // s) for n, s in zip(image, strides, strict=True)]
            lacking = [
                max(0, (o - 1) * s + e - n)
                for o, s, e, n in zip(out, strides, spread, image, strict=True)
            ]
            before = [total // 2 for total in lacking]
        else:
            out = [(n - e) // s + 1 for n, e, s in zip(image, spread, strides, strict=True)]
            before = [0, 0]
        return cls(*(_pair(v) for v in (image, size, strides, dilation, before, out)))

    @property
    def offsets(self) -> list[tuple[int, int]]:
        """The kernel's cells in row-major order, as offsets into the padded image."""
        (rows, columns), (down, right) = self.size, self.dilation
        return [(i * down, j * right) for i, j in itertools.product(range(rows), range(columns))]

    @property
    def padded(self) -> tuple[int, int]:
        """The least padded image that holds every cell, a whole number of strides in each axis."""
        return _pair(
            math.ceil(max((o - 1) * s + (k - 1) * d + 1, b + n) / s) * s
            for o, s, k, d, b, n in zip(
                self.out, self.strides, self.size, self.dilation, self.before, self.image,
                strict=True,
            )
        )  # fmt: skip

    @property
    def is_tiling(self) -> bool:
        """Whether windows lie side by side: no padding, overlap or gaps."""
        return (
            self.size == self.strides
            and self.dilation == (1, 1)
            and self.before == (0, 0)
            and (
                all(o * s <= n for o, s, n in zip(self.out, self.strides, self.image, strict=True))
            )
        )


def _pair(values: Any) -> tuple[int, int]:
    first, second = (int(value) for value in values)
    return first, second


def cells(x: Tensor, window: Window, fill: float = 0.0) -> list[Tensor]:
    """Return, for each cell of the window, what it sees of x [B, H, W, C]: [B, oh, ow, C]."""
    x = _padded(x, window, fill)
    (rows, columns), (down, across) = window.out, window.strides
    batch, channels = x.shape[0], x.shape[3]
    if window.strides == (1, 1):
        return [
            tf.slice(x, [0, i, j, 0], [batch, rows, columns, channels]) for i, j in window.offsets
        ]
    return [
        tf.strided_slice(
            x,
            [0, i, j, 0],
            [batch, i + (rows - 1) * down + 1, j + (columns - 1) * across + 1, channels],
            [1, down, across, 1],
        )
        for i, j in window.offsets
    ]


def _padded(x: Tensor, window: Window, fill: float = 0.0) -> Tensor:
    (top, left), (height, width) = window.before, window.padded
    below, right = height - top - window.image[0], width - left - window.image[1]
    if not (top or left or below or right):
        return x
    return tf.pad(x, [[0, 0], [top, below], [left, right], [0, 0]], constant_values=fill)


def scatter(parts: Sequence[Tensor], window: Window) -> Tensor:
    """Return the adjoint of `cells`: parts [B, oh, ow, C] added up on the image [B, H, W, C]."""
    down, across = window.strides
    height, width = window.padded
    rows, columns = height // down, width // across
    # First along the rows, which are then moved as a whole.
    lines: dict[tuple[int, int], Tensor] = {}
    for part, (i, j) in zip(parts, window.offsets, strict=True):
        left = j // across
        moved = tf.pad(part, [[0, 0], [0, 0], [left, columns - left - window.out[1]], [0, 0]])
        _add_to(lines, (i, j % across), moved)
    phases: dict[tuple[int, int], Tensor] = {}
    for (i, phase), line in lines.items():
        top = i // down
        moved = tf.pad(line, [[0, 0], [top, rows - top - window.out[0]], [0, 0], [0, 0]])
        _add_to(phases, (i % down, phase), moved)
    image = _interleave(phases, window, parts[0])
    (top, left), (rows, columns) = window.before, window.image
    return tf.slice(image, [0, top, left, 0], [image.shape[0], rows, columns, image.shape[3]])


def _add_to(sums: dict[tuple[int, int], Tensor], key: tuple[int, int], x: Tensor) -> None:
    sums[key] = sums[key] + x if key in sums else x


def _interleave(phases: dict[tuple[int, int], Tensor], window: Window, like: Tensor) -> Tensor:
    """Weave images that are one stride apart into one."""
    down, across = window.strides
    if (down, across) == (1, 1):
        return phases[0, 0]
    batch, channels = like.shape[0], like.shape[3]
    rows, columns = window.padded[0] // down, window.padded[1] // across
    empty = tf.zeros([batch, rows, columns, channels])
    lines = [
        tf.reshape(
            tf.concat([phases.get((i, j), empty) for j in range(across)], axis=3),
            [batch, rows, columns * across, channels],
        )
        for i in range(down)
    ]
    woven = tf.concat(lines, axis=2)
    return tf.reshape(woven, [batch, rows * down, columns * across, channels])


def convolution(x: Tensor, kernel: Tensor, window: Window, groups: int = 1) -> Tensor:
    """Convolve x [B, H, W, C] with a kernel [kh, kw, C / groups, F]: [B, oh, ow, F]."""
    if groups == 1:
        return _convolution(window)(x, kernel)
    channels, filters = x.shape[3] // groups, kernel.shape[3] // groups
    return tf.concat(
        [
            _convolution(window)(
                tf.slice(x, [0, 0, 0, g * channels], [*x.shape[:3], channels]),
                tf.slice(kernel, [0, 0, 0, g * filters], [*kernel.shape[:3], filters]),
            )
            for g in range(groups)
        ],
        axis=3,
    )


def _convolution(window: Window) -> Callable[[Tensor, Tensor], Tensor]:
    @with_gradient
    def apply(x: Tensor, kernel: Tensor) -> tuple[Tensor, Gradients]:
        out = [x.shape[0], *window.out, kernel.shape[3]]
        patches = _Patches(x, window)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            return _of_image(dy, kernel, window), patches.of_kernel(patches.rows(dy), kernel)

        return tf.reshape(patches.image_rows(patches.times(kernel)), out), gradient

    return apply


def transposed_convolution(x: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """Return the adjoint of `convolution`: x [B, oh, ow, F], kernel [kh, kw, C, F]: [B, H, W, C].

    `window` is that of the convolution which would lead from the output back to x.
    """

    @with_gradient
    def apply(x: Tensor, kernel: Tensor) -> tuple[Tensor, Gradients]:
        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            patches = _Patches(dy, window)
            of_x = tf.reshape(patches.image_rows(patches.times(kernel)), x.shape)
            return of_x, patches.of_kernel(patches.rows(x), kernel)

        return _of_image(x, kernel, window), gradient

    return apply(x, kernel)


def convolution_max_pool(x: Tensor, kernel: Tensor, window: Window, pool: Window) -> Tensor:
    """Return the max pool of a convolution, for pools whose windows lie side by side.

    One product for each cell of the pool gives what the pool compares, without a whole image that
    would have to be cut up; and what no window of the pool sees is not computed.
    """
    size, strides = pool.size, window.strides
    phases = list(itertools.product(range(size[0]), range(size[1])))
    covered = _pair(o * k for o, k in zip(pool.out, size, strict=True))

    @with_gradient
    def apply(x: Tensor, kernel: Tensor) -> tuple[Tensor, Gradients]:
        batch, filters = x.shape[0], kernel.shape[3]
        patches = [
            _Patches(x, window, [
                (np.arange(o) * k + first) * s
                for o, k, first, s in zip(pool.out, size, phase, strides, strict=True)
            ])
            for phase in phases
        ]  # fmt: skip
        seen = [part.times(kernel) for part in patches]
        largest = _largest(seen)

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            parts = _to_first_largest(seen, largest, patches[0].rows(dy))
            pairs = list(zip(patches, parts, strict=True))
            of_kernel = _sum([seer.of_kernel(part, kernel) for seer, part in pairs])
            tiles = [
                tf.reshape(seer.image_rows(part), [batch * pool.out[0], 1, pool.out[1], filters])
                for seer, part in pairs
            ]
            whole = _untile(tiles, pool, [batch, *covered, filters])
            return _of_image(whole, kernel, replace(window, out=covered)), of_kernel

        return tf.reshape(patches[0].image_rows(largest), [batch, *pool.out, filters]), gradient

    return apply(x, kernel)


class _Patches:
    """What a convolution's windows see of an image [B, H, W, C], as a matrix.

    With many channels its rows are places, image by image. With few it is transposed, its columns
    image after image at every place: so a whole batch is copied at a time, not a few channels.
    """

    def __init__(self, x: Tensor, window: Window, starts: Sequence[Any] | None = None) -> None:
        """Copy the cells; `starts`: the windows' first rows and columns, if not all of them."""
        x = _padded(x, window)
        self._batch, height, width, self._channels = x.shape
        if starts is None:
            starts = [np.arange(o) * s for o, s in zip(window.out, window.strides, strict=True)]
        corners = (starts[0][:, None] * width + starts[1]).reshape(-1)
        offsets = np.array([i * width + j for i, j in window.offsets])
        self._places, self._cells = len(corners), len(offsets)
        self._transposed = self._channels < _FEW_CHANNELS
        flat = tf.reshape(x, [self._batch, height * width, self._channels])
        if self._transposed:
            places = (offsets[:, None] + corners).reshape(-1).astype(np.int32)
            chosen = tf.gather(tf.transpose(flat, [2, 1, 0]), places, axis=1)
            shape = [self._channels * self._cells, self._places * self._batch]
        else:
            places = (corners[:, None] + offsets).reshape(-1).astype(np.int32)
            chosen = tf.gather(flat, places, axis=1)
            shape = [self._batch * self._places, self._cells * self._channels]
        self._matrix = tf.reshape(chosen, shape)

    def times(self, kernel: Tensor) -> Tensor:
        """Return the products with a kernel [kh, kw, C, F], as rows of F."""
        filters = kernel.shape[3]
        flat = tf.reshape(kernel, [self._cells, self._channels, filters])
        if self._transposed:
            flat = tf.transpose(flat, [1, 0, 2])
        flat = tf.reshape(flat, [-1, filters])
        return _product(self._matrix, flat, transpose_a=self._transposed)

    def of_kernel(self, rows: Tensor, kernel: Tensor) -> Tensor:
        """Return the kernel's gradient from that of the products."""
        gradient = _product(self._matrix, rows, transpose_a=not self._transposed)
        if self._transposed:
            by_channel = tf.reshape(gradient, [self._channels, self._cells, -1])
            gradient = tf.transpose(by_channel, [1, 0, 2])
        return tf.reshape(gradient, kernel.shape)

    def rows(self, image: Tensor) -> Tensor:
        """Return an image [B, ..., F] of the windows' places as rows in the order of the products.

        `image_rows` is the way back.
        """
        return _rows(image, (self._batch, self._places), swap=self._transposed)

    def image_rows(self, rows: Tensor) -> Tensor:
        """Return products as rows image by image."""
        return _rows(rows, (self._places, self._batch), swap=True) if self._transposed else rows


def _rows(x: Tensor, order: tuple[int, int], *, swap: bool) -> Tensor:
    """Return x, ordered by (outer, inner), as rows [outer * inner, F]; `swap` reverses that."""
    rows = tf.reshape(x, [*order, -1])
    if swap:
        rows = tf.transpose(rows, [1, 0, 2])
    return tf.reshape(rows, [math.prod(order), -1])


def _of_image(dy: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """Return the gradient of a convolution's image from that of its output."""
    _, _, channels, filters = kernel.shape
    flat = tf.reshape(dy, [1, -1, filters])
    # A product for each cell: one for all would have to be taken apart again.
    parts = [
        tf.reshape(tf.matmul(flat, cell, transpose_b=True), [*dy.shape[:3], channels])
        for cell in _split(tf.reshape(kernel, [-1, channels, filters]))
    ]
    return scatter(parts, window)


def _product(
    a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False
) -> Tensor:
    """Multiply two matrices, as batches of one.

    XNNPACK is faster with transposed ones so; and behind a product of plain matrices the converter
    loses a ReLU: it fuses it into a fully connected layer, which it then takes back.
    """
    a, b = (tf.reshape(x, [1, *x.shape]) for x in (a, b))
    y = tf.matmul(a, b, transpose_a=transpose_a, transpose_b=transpose_b)
    return tf.reshape(y, y.shape[1:])


def _split(x: Tensor) -> list[Tensor]:
    """Return x [N, ...] as N tensors [1, ...]."""
    rest = x.shape[1:]
    zeros = [0] * len(rest)
    return [tf.slice(x, [k, *zeros], [1, *rest]) for k in range(x.shape[0])]


def depthwise(x: Tensor, kernel: Tensor, window: Window) -> Tensor:
    """Convolve every channel of x [B, H, W, C] by itself; kernel [kh, kw, C, M]: [.., C * M]."""
    channels, multiplier = kernel.shape[2], kernel.shape[3]

    @with_gradient
    def apply(x: Tensor, kernel: Tensor) -> tuple[Tensor, Gradients]:
        out = [x.shape[0], *window.out]
        seen = [_repeated(part, multiplier) for part in cells(x, window)]
        weights = [
            tf.reshape(w, [1, 1, 1, channels * multiplier])
            for w in _split(tf.reshape(kernel, [-1, channels, multiplier]))
        ]
        y = _sum([part * w for part, w in zip(seen, weights, strict=True)])

        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            of_kernel = tf.concat([_column_sums(part * dy)[tf.newaxis] for part in seen], axis=0)
            parts = [
                tf.reduce_sum(tf.reshape(dy * w, [*out, channels, multiplier]), axis=4)
                if multiplier > 1
                else dy * w
                for w in weights
            ]
            return scatter(parts, window), tf.reshape(of_kernel, kernel.shape)

        return y, gradient

    return apply(x, kernel)


def _repeated(x: Tensor, times: int) -> Tensor:
    """Return x [B, H, W, C] with every channel `times` times in a row."""
    if times == 1:
        return x
    batch, height, width, channels = x.shape
    wide = tf.reshape(x, [-1, channels, 1]) * tf.ones([1, 1, times])
    return tf.reshape(wide, [batch, height, width, channels * times])


def _sum(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _column_sums(x: Tensor) -> Tensor:
    """Return the sums [C] over all axes but the last."""
    return tf.reduce_sum(tf.reshape(x, [-1, x.shape[-1]]), axis=0)


@with_gradient
def matmul(x: Tensor, kernel: Tensor) -> Any:
    """Multiply x [N, I] with a kernel [I, O]."""

    def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
        return _product(dy, kernel, transpose_b=True), _product(x, dy, transpose_a=True)

    return _product(x, kernel), gradient


def batch_matmul(a: Tensor, b: Tensor, *, transpose_b: bool = False) -> Tensor:
    """Multiply the matrices of a [N, I, K] with those of b [N, K, J], or [N, J, K] transposed."""

    @with_gradient
    def apply(a: Tensor, b: Tensor) -> tuple[Tensor, Gradients]:
        def gradient(dy: Tensor) -> tuple[Tensor, Tensor]:
            if transpose_b:
                return tf.matmul(dy, b), tf.matmul(dy, a, transpose_a=True)
            return tf.matmul(dy, b, transpose_b=True), tf.matmul(a, dy, transpose_a=True)

        return tf.matmul(a, b, transpose_b=transpose_b), gradient

    return apply(a, b)


@with_gradient
def add_bias(x: Tensor, bias: Tensor) -> Any:
    """Add a bias [C] to x [..., C]."""
    return x + bias, lambda dy: (dy, _column_sums(dy))


@with_gradient
def scale(x: Tensor, factors: Tensor) -> Any:
    """Multiply x [..., C] by factors [C]."""
    return x * factors, lambda dy: (dy * factors, _column_sums(dy * x))


def is_positive(x: Tensor) -> Tensor:
    """Return 1.0 where x > 0 and 0.0 where it is 0; XNNPACK has no comparisons, but these two."""
    return tf.minimum(x * _HUGE, 1.0)


def max_pool(x: Tensor, window: Window) -> Tensor:
    """Return the largest of each window; the gradient goes to the first of equals, as in TF."""

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        batch, _, _, channels = x.shape
        tiled = window.is_tiling
        seen = _tiles(x, window) if tiled else cells(x, window, fill=-_HUGE)
        y = _largest(seen)

        def gradient(dy: Tensor) -> Tensor:
            parts = _to_first_largest(seen, y, tf.reshape(dy, y.shape))
            return _untile(parts, window, x.shape) if tiled else scatter(parts, window)

        return tf.reshape(y, [batch, *window.out, channels]), gradient

    return apply(x)


def _tiles(x: Tensor, window: Window) -> list[Tensor]:
    """Return `cells` of windows that lie side by side, as [B * oh, 1, ow, C]: cheaper."""
    (rows, columns), (oh, ow), channels = window.size, window.out, x.shape[3]
    cropped = tf.slice(x, [0, 0, 0, 0], [x.shape[0], oh * rows, ow * columns, channels])
    folded = tf.reshape(cropped, [x.shape[0] * oh, rows, ow, columns * channels])
    size = [x.shape[0] * oh, 1, ow, channels]
    return [
        tf.slice(folded, [0, i, 0, j * channels], size)
        for i, j in itertools.product(range(rows), range(columns))
    ]


def _largest(parts: Sequence[Tensor]) -> Tensor:
    largest = parts[0]
    for part in parts[1:]:
        largest = tf.maximum(largest, part)
    return largest


def _to_first_largest(parts: Sequence[Tensor], largest: Tensor, dy: Tensor) -> list[Tensor]:
    """Return the gradient of each part: all of dy for the first that is largest, as in TF."""
    gradients = []
    for part in parts[:-1]:
        rest = dy * is_positive(largest - part)
        gradients.append(dy - rest)
        dy = rest
    return [*gradients, dy]


def _untile(parts: Sequence[Tensor], window: Window, shape: Sequence[int]) -> Tensor:
    """Return the adjoint of `_tiles`, of this shape."""
    (rows, columns), (oh, ow) = window.size, window.out
    batch, height, width, channels = shape
    lines = [tf.concat(parts[i * columns : (i + 1) * columns], axis=3) for i in range(rows)]
    whole = tf.reshape(tf.concat(lines, axis=1), [batch, oh * rows, ow * columns, channels])
    return tf.pad(whole, [[0, 0], [0, height - oh * rows], [0, width - ow * columns], [0, 0]])


def average_pool(x: Tensor, window: Window) -> Tensor:
    """Return the mean of each window, over the cells that lie on the image."""
    count = _cells_on_image(window)

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(dy: Tensor) -> Tensor:
            return scatter([dy / count] * len(window.offsets), window)

        return _sum(cells(x, window)) / count, gradient

    return apply(x)


def _cells_on_image(window: Window) -> Any:
    """Return for every place of the window how many of its cells are not padding: [oh, ow, 1]."""
    by_axis = [
        sum(((at := np.arange(o) * s + k * d - b) >= 0) & (at < n) for k in range(size)).astype("f")
        for o, s, d, b, n, size in zip(
            window.out, window.strides, window.dilation, window.before, window.image, window.size,
            strict=True,
        )
    ]  # fmt: skip
    return np.multiply.outer(*by_axis)[..., None]


@with_gradient
def global_average(x: Tensor) -> Any:
    """Return the mean [B, C] of x [B, H, W, C]."""
    batch, height, width, channels = x.shape
    spread = tf.ones([1, height, width, 1]) / (height * width)

    def gradient(dy: Tensor) -> Tensor:
        return tf.reshape(dy, [batch, 1, 1, channels]) * spread

    return tf.reduce_mean(x, axis=[1, 2]), gradient


@with_gradient
def global_max(x: Tensor) -> Any:
    """Return the maximum [B, C] of x [B, H, W, C]; the gradient is shared by equals, as in TF."""
    y = tf.reduce_max(x, axis=[1, 2], keepdims=True)

    def gradient(dy: Tensor) -> Tensor:
        chosen = tf.cast(tf.equal(x, y), tf.float32)
        number = tf.reduce_sum(chosen, axis=[1, 2], keepdims=True)
        return chosen * (tf.reshape(dy, y.shape) / number)

    return tf.reshape(y, [x.shape[0], x.shape[3]]), gradient


def masked_average(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean [B, C] of the time steps of x [B, T, C] that the float32 mask [B, T] keeps.

    The mean of no steps at all is 0, not NaN as in Keras.
    """
    batch, length, channels = x.shape
    kept = tf.reshape(mask, [batch, length, 1])
    count = tf.maximum(tf.reduce_sum(kept, axis=1), 1.0)

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(dy: Tensor) -> Tensor:
            return tf.reshape(dy / count, [batch, 1, channels]) * kept

        return tf.reduce_sum(x * kept, axis=1) / count, gradient

    return apply(x)


def embedding(codes: Tensor, table: Tensor) -> Tensor:
    """Look up integer codes [B, T] in a table [V, D]: [B, T, D]."""
    size, depth = table.shape

    @with_gradient
    def apply(table: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(dy: Tensor) -> Tensor:
            # Adds up what equal codes get; a product with one-hot rows would need V floats a code.
            rows = tf.reshape(codes, [-1, 1])
            return tf.scatter_nd(rows, tf.reshape(dy, [-1, depth]), [size, depth])

        return tf.gather(table, codes), gradient

    return apply(table)


def batch_norm(
    x: Tensor, importance: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise x [B, ..., C] by its batch; return it, mean [C], variance [C] and their count [1].

    `importance` [B] is 1 for examples and 0 for what only fills the batch.
    """
    shape = x.shape
    per_example = math.prod(shape[1:-1])
    mask = tf.reshape(tf.reshape(importance, [-1, 1]) * tf.ones([1, per_example]), [-1, 1])
    count = tf.reduce_sum(importance, keepdims=True) * float(per_example)
    rows = tf.reshape(x, [-1, shape[-1]])
    mean = tf.reduce_sum(rows * mask, axis=0) / count
    centred = rows - mean
    variance = tf.reduce_sum(tf.square(centred) * mask, axis=0) / count
    inverse = tf.math.rsqrt(variance + epsilon)

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y = centred * inverse

        def gradient(dy: Tensor) -> Tensor:
            flat = tf.reshape(dy, [-1, shape[-1]]) * mask
            of_mean = tf.reduce_sum(flat, axis=0) / count
            of_scale = tf.reduce_sum(flat * y, axis=0) / count
            return tf.reshape((flat - of_mean - y * of_scale) * inverse * mask, shape)

        return tf.reshape(y, shape), gradient

    return apply(x), mean, variance, count


def layer_norm(x: Tensor, axes: int, epsilon: float) -> Tensor:
    """Normalise x over its last `axes` axes, example by example."""
    shape = x.shape
    width = math.prod(shape[len(shape) - axes :])
    rows = tf.reshape(tf.stop_gradient(x), [-1, width])
    mean = tf.reduce_mean(rows, axis=1, keepdims=True)
    centred = rows - mean
    variance = tf.reduce_mean(tf.square(centred), axis=1, keepdims=True)
    inverse = tf.math.rsqrt(variance + epsilon)

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        y = centred * inverse

        def gradient(dy: Tensor) -> Tensor:
            flat = tf.reshape(dy, [-1, width])
            of_mean = tf.reduce_mean(flat, axis=1, keepdims=True)
            of_scale = tf.reduce_mean(flat * y, axis=1, keepdims=True)
            return tf.reshape((flat - of_mean - y * of_scale) * inverse, shape)

        return tf.reshape(y, shape), gradient

    return apply(x)


def part(x: Tensor, axis: int, start: int, size: int) -> Tensor:
    """Return x[start : start + size] along an axis; indexing would have no TFLite gradient."""
    begin, extent = [0] * len(x.shape), list(x.shape)
    begin[axis], extent[axis] = start, size
    return tf.slice(x, begin, extent)


def repeat(x: Tensor, axis: int, times: int) -> Tensor:
    """Return x with every slice along an axis `times` times in a row."""
    if times == 1:
        return x
    shape = list(x.shape)
    outer, inner = math.prod(shape[: axis + 1]), math.prod(shape[axis + 1 :])
    longer = [*shape[:axis], shape[axis] * times, *shape[axis + 1 :]]

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def gradient(dy: Tensor) -> Tensor:
            return tf.reshape(tf.reduce_sum(tf.reshape(dy, [outer, times, inner]), axis=1), shape)

        y = tf.tile(tf.reshape(x, [outer, 1, inner]), [1, times, 1])
        return tf.reshape(y, longer), gradient

    return apply(x)


def broadcast(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return x [B, ...] with axes of 1 repeated to the size in `shape`, of as many axes as x."""
    for axis, size in enumerate(shape):
        if x.shape[axis] != size:
            x = repeat(x, axis, size)
    return x


def resample(x: Tensor, axis: int, matrix: Any) -> Tensor:
    """Multiply x along an axis of size N with a constant float32 matrix [M, N]."""
    shape = list(x.shape)
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])

    def product(x: Tensor, matrix: Any) -> Tensor:
        new, old = matrix.shape
        rows = tf.transpose(tf.reshape(x, [outer, old, inner]), [0, 2, 1])
        rows = _product(tf.reshape(rows, [-1, old]), tf.constant(matrix), transpose_b=True)
        y = tf.transpose(tf.reshape(rows, [outer, inner, new]), [0, 2, 1])
        return tf.reshape(y, [*shape[:axis], new, *shape[axis + 1 :]])

    @with_gradient
    def apply(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return product(x, matrix), lambda dy: product(dy, matrix.T)

    return apply(x)


@with_gradient
def unstack(x: Tensor) -> Any:
    """Return the time steps of x [B, T, C] as T tensors [B, C]."""
    return tf.unstack(x, axis=1), lambda *dys: tf.stack(dys, axis=1)


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return `new` [B, C] where the mask [B, 1] is 1, and `old` [B, C] where it is 0."""

    @with_gradient
    def apply(new: Tensor, old: Tensor) -> tuple[Tensor, Gradients]:
        return new * mask + old * (1.0 - mask), lambda dy: (dy * mask, dy * (1.0 - mask))

    return apply(new, old)
