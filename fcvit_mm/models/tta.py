"""Test-time augmentation for instance segmentation.

MMDetection's DetTTAModel merges the boxes of several views of an image and refuses masks; this one
lets each box that survives the merging keep the mask it was predicted with. Importing this module
needs MMDetection, and registers the class.
"""

from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.structures import DetDataSample
from mmengine.registry import MODELS
from mmengine.structures import InstanceData

# the axes of masks (n, height, width) that undo a flip of the image
_FLIPPED_AXES = {"horizontal": [-1], "vertical": [-2], "diagonal": [-2, -1]}


@MODELS.register_module()
class InstanceSegTTAModel(DetTTAModel):
    """A detector whose predictions of flipped and resized views are merged, masks included.

    Args:
        tta_cfg: `nms`, the settings of `mmcv.ops.batched_nms`, and `max_per_img`, the number of
            instances to keep.
        module: the detector, as a config or a module.
    """

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Predict each view and merge the predictions, as BaseTTAModel does.

        The detector is not told that a view is flipped: MMDetection's CascadeRoIHead would flip
        masks back itself, and fails.
        """
        for samples in data["data_samples"]:
            for sample in samples:
                sample.set_metainfo(dict(flip=False))
        return super().test_step(data)

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        """Merge the views of one image, in its original size, into the first view's sample.

        Its `pred_instances` have bboxes (n, 4), scores (n), best first, labels (n) and masks
        (n, height, width).
        """
        merged = data_samples[0]
        views = [sample.pred_instances for sample in data_samples]
        metas = [
            dict(sample.metainfo, flip=sample.flip_direction is not None) for sample in data_samples
        ]
        boxes, scores = self.merge_aug_bboxes(
            [view.bboxes for view in views], [view.scores for view in views], metas
        )
        if len(boxes) == 0:
            return merged
        for view, meta in zip(views, metas, strict=True):
            if meta["flip"]:
                view.masks = view.masks.flip(_FLIPPED_AXES[meta["flip_direction"]])
        instances = InstanceData.cat(views)
        instances.bboxes = boxes
        detections, kept = batched_nms(boxes, scores, instances.labels, self.tta_cfg["nms"])
        most = self.tta_cfg["max_per_img"]
        merged.pred_instances = instances[kept[:most]]
        # soft NMS lowers them
        merged.pred_instances.scores = detections[:most, 4]
        return merged
