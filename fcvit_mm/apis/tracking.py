"""Follow a detector's objects through the frames of a video."""

from dataclasses import replace

import numpy as np
import supervision as sv

from ..utils.cli import require
from ..utils.errors import ConfigError
from .result import UNTRACKED, Result

# Least score of what continues a track, as in ByteTrack's paper (https://arxiv.org/abs/2110.06864).
LEAST_SCORE = 0.1
# Intersection over union of boxes from which on they are of one object, whatever their classes.
SAME_PLACE = 0.6
# Frames per second where a video does not say, such as a webcam's.
USUAL_RATE = 30.0


class Tracker:
    """ByteTrack: objects that overlap from frame to frame, as they move on, are the same.

    One tracker is for one video, whose frames it gets in their order. A detection that scores at
    least `threshold` begins a track; those that score less, from 0.1 on, only continue one. A track
    that finds nothing for a second ends. Of boxes that cover the same place, whatever their
    classes, the best is followed.

    Args:
        threshold: least score, 0 to 1, of what begins a track.
        frame_rate: frames per second.

    Raises:
        ConfigError: the package `trackers` is not installed.
    """

    def __init__(self, threshold: float = 0.3, frame_rate: float = USUAL_RATE) -> None:
        require("trackers", "track")
        from trackers import ByteTrackTracker

        self._tracker = ByteTrackTracker(
            frame_rate=frame_rate if frame_rate > 0 else USUAL_RATE,
            track_activation_threshold=threshold,
            high_conf_det_threshold=threshold,
        )

    def __call__(self, result: Result) -> Result:
        """Return the next frame's result with `track_ids`.

        They are -1 for what belongs to no track: an object has its number from its second frame on.

        Raises:
            ConfigError: it is not a detector's.
        """
        if result.task != "detection":
            raise ConfigError("a detector's objects can be followed through a video, but not what "
                              f"a model for {result.task} finds")  # fmt: skip
        scores = np.asarray(result.scores)
        rows = np.flatnonzero(scores >= LEAST_SCORE)
        boxes = np.asarray(result.boxes)[rows]
        found = sv.Detections(boxes, confidence=scores[rows], data={"row": rows})
        # an object that goes by two names would change its number with the better one
        found = self._tracker.update(found.with_nms(SAME_PLACE, class_agnostic=True))
        ids = np.full(len(scores), UNTRACKED, np.int64)
        if len(found):
            ids[np.asarray(found.data["row"])] = np.asarray(found.tracker_id)
        return replace(result, track_ids=ids)
