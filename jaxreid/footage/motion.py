"""What moves in front of a fixed camera, to tell people from parts of the scene that a detector takes for people."""

from __future__ import annotations

import cv2
import numpy as np

WIDTH = 384  # pixels; finer detail than this only adds noise
# Looked-at frames of the background model's memory. Somebody who stops turns into background after about a tenth of
# it; a longer memory takes the slow drift of daylight for motion.
MEMORY = 200


class MotionModel:
    """Shares of boxes that do not look like the background of the frames before (Gaussian mixture per pixel).

    Before a moving camera everything moves, so every box has a large share: a lower bound then does nothing.
    """

    def __init__(self) -> None:
        self._background = cv2.createBackgroundSubtractorMOG2(history=MEMORY, varThreshold=16, detectShadows=True)
        self._first = True

    def update(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Takes the next frame.

        Args:
          image: u8[H, W, 3].
          boxes: f[N, 4], (x, y, width, height) in pixels of it.

        Returns:
          f64[N] in [0, 1], the share of each box's pixels that move; 0 on the first frame, which has no past.
        """
        scale = WIDTH / image.shape[1]
        small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        # The model marks shadows with a value between background and 255.
        moving = self._background.apply(small, learningRate=1 / MEMORY) == 255
        shares = np.zeros(len(boxes))
        if not self._first:
            for row, (x, y, w, h) in enumerate(np.asarray(boxes) * scale):
                left, top = max(0, round(float(x))), max(0, round(float(y)))
                inside = moving[top : max(top, round(float(y + h))), left : max(left, round(float(x + w)))]
                shares[row] = inside.mean() if inside.size else 0.0
        self._first = False
        return shares
