"""Images of any size, brought to one size together with their dense targets."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from PIL import Image

# How often a box of random area and shape is drawn before the whole is taken.
_TRIES = 10


class Box(NamedTuple):
    """A part of an image, in pixels, which may begin and end within one."""

    top: float
    left: float
    height: float
    width: float


@dataclasses.dataclass(frozen=True)
class Framing:
    """How images of any size are brought to one size.

    Attributes:
      shorter: for testing, the shorter side is resized to this, in pixels.
      size: then the centre is cropped, to this height and width; random crops for
        training are resized to it.
      area: the smallest and largest share of an image that a random crop keeps.
      ratio: the smallest and largest ratio of a random crop's width to its height.
    """

    shorter: int
    size: tuple[int, int]
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def centre(self, height: int, width: int) -> Box:
        """Returns the part of an image that is tested on.

        The largest part of the shape of ``size``, if the resized image is smaller.
        """
        scale = min(height, width) / self.shorter
        fits = min(1.0, height / (scale * self.size[0]), width / (scale * self.size[1]))
        rows, columns = (fits * scale * side for side in self.size)
        return Box((height - rows) / 2, (width - columns) / 2, rows, columns)

    def drawn(self, height: int, width: int, random: np.random.Generator) -> Box:
        """Returns a random part of an image, of random area and shape.

        The area is uniform, and so is the logarithm of the ratio of the sides.
        """
        low, high = (math.log(ratio) for ratio in self.ratio)
        for _ in range(_TRIES):
            area = random.uniform(*self.area) * height * width
            ratio = math.exp(random.uniform(low, high))
            rows, columns = math.sqrt(area / ratio), math.sqrt(area * ratio)
            if rows <= height and columns <= width:
                top = random.uniform(0, height - rows)
                left = random.uniform(0, width - columns)
                return Box(top, left, rows, columns)
        return self.centre(height, width)

    def image(self, image: np.ndarray, box: Box) -> np.ndarray:
        """Returns a part of an image of bytes, resized by linear interpolation."""
        height, width = self.size
        grey = image.shape[-1] == 1
        part = (box.left, box.top, box.left + box.width, box.top + box.height)
        resized = Image.fromarray(image[..., 0] if grey else image).resize(
            (width, height), Image.Resampling.BILINEAR, box=part
        )
        return np.asarray(resized).reshape(height, width, -1)

    def target(self, target: np.ndarray, box: Box) -> np.ndarray:
        """Returns the same part of a dense target, every value that of one pixel.

        Nothing is interpolated: classes have no mean, and neither has a depth with the
        mark of a pixel that has none.
        """
        rows = _nearest(box.top, box.height, self.size[0], target.shape[0])
        columns = _nearest(box.left, box.width, self.size[1], target.shape[1])
        return target[rows[:, None], columns]


def _nearest(start: float, length: float, count: int, limit: int) -> np.ndarray:
    """Returns the pixels that hold the centres of equal parts of an interval."""
    centres = start + (np.arange(count) + 0.5) * length / count
    return np.clip(np.floor(centres).astype(int), 0, limit - 1)
