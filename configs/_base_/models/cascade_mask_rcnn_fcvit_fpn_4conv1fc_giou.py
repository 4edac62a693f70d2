# Cascade Mask R-CNN with box heads of four convolutions and one linear layer, trained with
# the GIoU loss of the decoded boxes, as in ConvNeXt (arXiv 2201.03545) and Swin.
_base_ = "./cascade_mask_rcnn_fcvit_fpn.py"

model = dict(
    roi_head=dict(
        bbox_head=[
            dict(
                head,
                type="ConvFCBBoxHead",
                num_shared_convs=4,
                num_shared_fcs=1,
                conv_out_channels=256,
                norm_cfg=dict(type="SyncBN", requires_grad=True),
                reg_class_agnostic=False,
                reg_decoded_bbox=True,
                loss_bbox=dict(type="GIoULoss", loss_weight=10.0),
            )
            for head in _base_.model.roi_head.bbox_head
        ]
    )
)
