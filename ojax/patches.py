"""The patches of an image that a kernel shared over positions multiplies.

A convolution multiplies every patch of its input by one kernel. Its layer is thus an ordinary layer whose samples are the
positions: `pre` is the matrix of patches P, one row per position, and `post` the outputs Y. Oja's rule for it is::

    learning_rate * (P^T Y - W Y^T Y) / positions

P is as many times larger than the image as the kernel's window has pixels. An activity therefore holds a :class:`Patches`,
the image and the convolution's geometry, which costs nothing until a rule needs the matrix. The convolution itself,
`Patches @ kernel`, forms the matrix only under a gradient, and the rule then shares it.

This choice was measured on a CPU, with 3 x 3 kernels of 16 channels on MNIST. The time with products with P, relative to
`lax.conv_general_dilated` and its gradients, is a quarter for one sample at a time, less than a tenth in batches of 8 and
more, and a fifth for 8 vmapped runs. The convolution's gradient with respect to the kernel takes 20 times as long as the
product `P^T E`. For prediction alone the convolution is as fast, and needs no memory.

Rules average over positions as over a batch, so a rate does not depend on the size of the images. Lagani et al.
(https://arxiv.org/abs/2012.12229) average too. SoftHebb's code and ngc-learn sum: multiply their rates by the number of
positions.

Patches that overlap are not independent samples: several of them explain each pixel. :func:`ojax.oja` ignores this;
:func:`ojax.oja_tied`, Oja's rule of the whole convolution, takes it into account.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float

# Paddings by pixels of the image instead of zeros: Flax's name, and NumPy's.
_PADDED_BY_IMAGE = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


class Geometry(NamedTuple):
    """The positions of patches; one entry per spatial axis.

    Attributes:
      window: Size of the kernel.
      strides: Steps between patches.
      padding: Pixels before and after the image, zeros unless there is a `border`; negative numbers crop it.
      dilation: Steps between the pixels of a patch.
      input_dilation: 1 more than the zeros between the image's pixels.
      border: None, or how the image's own pixels are its padding, a mode of `jnp.pad`.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    border: str | None = None


@partial(jax.tree_util.register_dataclass, data_fields=["image"], meta_fields=["geometry"])
@dataclasses.dataclass(frozen=True)
class Patches:
    """All patches of an image, or of a batch of images, that a shared kernel multiplies; made by :meth:`of`.

    Attributes:
      image: Shape (..., *space, channels), channels last and without the padding; leading axes are a batch.
      geometry: Where the patches are taken.
    """

    image: Float[Array, "*batch_and_space channels"]
    geometry: Geometry

    @classmethod
    def of(
        cls,
        image: Float[Array, "*batch_and_space channels"],
        window: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
        dilation: int | Sequence[int] = 1,
        input_dilation: int | Sequence[int] = 1,
    ) -> Patches:
        """Returns the patches that a convolution with these arguments multiplies by its kernel, in Flax's conventions.

        Args:
          image: Shape (..., *space, channels), with as many spatial axes as `window`.
          window: Size of the kernel along each spatial axis.
          strides: Steps between patches.
          padding: `SAME`, `VALID`, `CIRCULAR`, `REFLECT`, `CAUSAL` (for one axis), or numbers of zeros.
          dilation: Steps between the pixels of a patch.
          input_dilation: 1 more than the zeros between the image's pixels.

        Raises:
          ValueError: If the image has too few axes, or is smaller than a patch.
        """
        window = tuple(window)
        rank = len(window)
        if jnp.ndim(image) <= rank:
            raise ValueError(
                f"A kernel over {rank} axes needs an image of shape (..., {'size, ' * rank}channels), got "
                f"{jnp.shape(image)}."
            )

        def each(steps: int | Sequence[int]) -> tuple[int, ...]:
            return _each(steps, rank)

        spans = [(size - 1) * step + 1 for size, step in zip(window, each(dilation), strict=True)]
        border = _PADDED_BY_IMAGE.get(padding) if isinstance(padding, str) else None
        if border is not None:
            padding = [((span - 1) // 2, span // 2) for span in spans]
        if padding == "CAUSAL":
            padding = [(span - 1, 0) for span in spans]
        space = image.shape[-1 - rank : -1]
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(space, spans, each(strides), padding)
        elif isinstance(padding, int):
            padding = [padding] * rank
        pairs = tuple((side, side) if isinstance(side, int) else (int(side[0]), int(side[1])) for side in padding)
        patches = cls(image, Geometry(window, each(strides), pairs, each(dilation), each(input_dilation), border))
        if min(patches.positions) < 1:
            raise ValueError(f"Not one patch of size {window} fits in an image of shape {jnp.shape(image)}.")
        return patches

    @property
    def positions(self) -> tuple[int, ...]:
        """Number of patches along each spatial axis."""
        space = self.image.shape[-1 - len(self.geometry.window) : -1]
        pads = [low + high for low, high in self.geometry.padding]
        if self.geometry.border is not None:  # A border is put around the image before the zeros between its pixels.
            space, pads = tuple(size + pad for size, pad in zip(space, pads, strict=True)), [0] * len(pads)
        padded = [
            (size - 1) * step + 1 + pad for size, step, pad in zip(space, self.geometry.input_dilation, pads, strict=True)
        ]
        spans = [(size - 1) * step + 1 for size, step in zip(self.geometry.window, self.geometry.dilation, strict=True)]
        return tuple(
            (size - span) // step + 1 for size, span, step in zip(padded, spans, self.geometry.strides, strict=True)
        )

    def groups(self, kernel: Array) -> int:
        """Returns the number of groups into which a kernel of Flax's shape divides the channels."""
        return self.image.shape[-1] // kernel.shape[-2]

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes of the image."""
        return self.image.shape[: -1 - len(self.geometry.window)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an array of all patches, (*batch, *positions, *window, channels)."""
        return (*self.batch, *self.positions, *self.geometry.window, self.image.shape[-1])

    def matrix(self, groups: int = 1) -> Float[Array, "rows n_in"]:
        """Returns all patches, one per row; in a row the window's axes come in their order, and the channels last.

        With groups of channels, a row has all pixels of the first group, then all of the second, and so on.
        """
        if self.geometry.border is not None:
            return self._with_border().matrix(groups)
        window, strides, padding, dilation, input_dilation, _ = self.geometry
        # A single sample gets a batch axis too: a rule treats it as a batch of one, and shares the matrix.
        rank = len(window)
        taken = self.image.reshape(-1, *self.image.shape[-1 - rank :])
        for axis in reversed(range(rank)):  # Axis by axis, the last one first, so that the first comes slowest in a row.
            at = taken.ndim - 1 - rank + axis
            config = [(0, 0, 0)] * taken.ndim
            config[at] = (*padding[axis], input_dilation[axis] - 1)
            if config[at] != (0, 0, 0):
                taken = lax.pad(taken, jnp.zeros((), taken.dtype), config)
            last = (self.positions[axis] - 1) * strides[axis] + 1
            starts = [tap * dilation[axis] for tap in range(window[axis])]
            taps = [lax.slice_in_dim(taken, start, start + last, strides[axis], at) for start in starts]
            taken = jnp.concatenate(taps, axis=-1)
        if groups == 1:
            return taken.reshape(-1, taken.shape[-1])
        pixels, channels = math.prod(window), self.image.shape[-1] // groups
        return taken.reshape(-1, pixels, groups, channels).swapaxes(1, 2).reshape(-1, taken.shape[-1])

    def __matmul__(
        self, kernel: Float[Array, "*window channels_of_group n_out"]
    ) -> Float[Array, "*batch_and_positions n_out"]:
        """Returns the convolution: each patch times the kernel, which has Flax's shape and may have groups of channels."""
        patches = self._with_border()
        dtype = jnp.result_type(self.image, kernel)  # A convolution would refuse an image of bytes.
        return _convolution(patches.geometry, jnp.asarray(patches.image, dtype), jnp.asarray(kernel, dtype))

    def _with_border(self) -> Patches:
        """Returns the same patches, of an image that contains its border if its own pixels are its padding.

        The image itself is kept without them: a pixel that is repeated is still one input, and its error is the sum over
        all its places.
        """
        padding, border = self.geometry.padding, self.geometry.border
        if border is None:
            return self
        pads = [(0, 0)] * len(self.batch) + [*padding, (0, 0)]
        geometry = self.geometry._replace(padding=((0, 0),) * len(padding), border=None)
        return Patches(jnp.pad(self.image, pads, mode=border), geometry)


def transposed(matrix: Float[Array, "n m"]) -> Float[Array, "m n"]:
    """Returns the transposed matrix, and keeps XLA from fusing it with the product that makes or reads it.

    XLA would turn `(E^T P)^T` into `P^T E`, which takes twice as long on a CPU for the many rows of patches P.
    """
    return lax.optimization_barrier(matrix).T


def seen_by(layer: Any, image: Float[Array, "*batch_and_space channels"]) -> Patches:
    """Returns the input's patches for a convolution of Flax, e.g. an `nnx.Conv` or a `linen.ConvTranspose`.

    Raises:
      ValueError: If its kernel does not multiply patches, see :func:`why_no_patches`.
    """
    if reason := why_no_patches(layer):
        raise ValueError(reason)
    window = (layer.kernel_size,) if isinstance(layer.kernel_size, int) else tuple(layer.kernel_size)
    dilation, strides = layer.kernel_dilation or 1, layer.strides or 1
    if not hasattr(layer, "transpose_kernel"):
        options = {"strides": strides, "padding": layer.padding, "input_dilation": layer.input_dilation or 1}
        return Patches.of(image, window, dilation=dilation, **options)
    # Its strides are zeros between the pixels of the image.
    steps, spread = (_each(number, len(window)) for number in (strides, dilation))
    spans = [(size - 1) * step + 1 for size, step in zip(window, spread, strict=True)]
    padding = layer.padding
    if isinstance(padding, str):
        padding = [_transposed_padding(*sizes, padding) for sizes in zip(spans, steps, strict=True)]
    return Patches.of(image, window, padding=padding, dilation=spread, input_dilation=steps)


def why_no_patches(layer: Any) -> str | None:
    """Returns why a convolution of Flax has no plastic kernel; None if it has one."""
    if layer.mask is not None:
        return "A masked convolution has no plastic kernel: its rule would need the mask too. Leave the mask out."
    if getattr(layer, "transpose_kernel", False) or (hasattr(layer, "transpose_kernel") and layer.padding == "CIRCULAR"):
        return "ConvTranspose has no plastic kernel with transpose_kernel=True or padding='CIRCULAR'. Leave them out."
    return None


def _transposed_padding(span: int, stride: int, padding: str) -> tuple[int, int]:
    """Returns the zeros before and after an image in `lax.conv_transpose`, along one axis."""
    if padding == "VALID":
        return span - 1, stride - 1 + max(span - stride, 0)
    both = span + stride - 2
    before = span - 1 if stride > span - 1 else -(-both // 2)
    return before, both - before


def _each(number: int | Sequence[int], rank: int) -> tuple[int, ...]:
    return (number,) * rank if isinstance(number, int) else tuple(number)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _convolution(geometry: Geometry, image: Array, kernel: Array) -> Array:
    """Convolves without forming the patches: without a gradient they are used only once."""
    rank, channels = len(geometry.window), image.shape[-1]
    space = tuple(range(1, rank + 1))
    numbers = lax.ConvDimensionNumbers((0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space))
    found = lax.conv_general_dilated(
        image.reshape(-1, *image.shape[-1 - rank :]),
        kernel,
        geometry.strides,
        geometry.padding,
        lhs_dilation=geometry.input_dilation,
        rhs_dilation=geometry.dilation,
        dimension_numbers=numbers,
        feature_group_count=channels // kernel.shape[-2],
    )
    return found.reshape(*image.shape[: -1 - rank], *found.shape[1:])


@partial(_convolution.defjvp, symbolic_zeros=True)
def _convolution_jvp(geometry: Geometry, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (image, kernel), (image_dot, kernel_dot) = primals, tangents
    patches, groups = Patches(image, geometry), image.shape[-1] // kernel.shape[-2]
    shape = (*patches.batch, *patches.positions, kernel.shape[-1])

    def product(rows: Array, kernel: Array) -> Array:
        matrix = kernel.reshape(-1, kernel.shape[-1])
        if groups == 1:
            return (rows @ transposed(transposed(matrix))).reshape(shape)
        each = rows.reshape(len(rows), groups, -1), matrix.reshape(len(matrix), groups, -1)
        return jnp.einsum("rgn,ngm->rgm", *each).reshape(shape)

    rows = patches.matrix(groups)
    parts = []
    if not isinstance(image_dot, SymbolicZero):
        parts.append(product(Patches(image_dot, geometry).matrix(groups), kernel))
    if not isinstance(kernel_dot, SymbolicZero):
        parts.append(product(rows, kernel_dot))
    output = product(rows, kernel)
    return output, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(output)
