"""MMDetection's and MMSegmentation's own configs on the stand-in for mmcv's compiled operators.

Each model is as its config says, with its own backbone and random weights; images are small,
proposals, queries and samples few. What can't be trained or tested for want of an operator is
checked, too: docs/operators.md has the list. `DETECTORS=all python -m pytest
tests/configs/test_detectors.py` tries many more configs.
"""

import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmengine import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

from fcvit_mm.mmcv_ext.registry import OPERATORS
from helpers import ROOT

pytestmark = pytest.mark.official

# not by import statements, which a sorter of imports would put before that of fcvit_mm
PACKAGES = {scope: importlib.import_module(scope) for scope in ("mmdet", "mmseg")}
demo_mm_inputs = importlib.import_module("mmdet.testing").demo_mm_inputs
SegDataSample = importlib.import_module("mmseg.structures").SegDataSample
HEIGHT, WIDTH = 64, 96


def parts(config: Any) -> Iterator[dict]:
    """Every dictionary in a config."""
    if isinstance(config, dict):
        yield config
    if isinstance(config, dict | list | tuple):
        for value in config.values() if isinstance(config, dict) else config:
            yield from parts(value)


def built(name: str) -> Any:
    """The model of a config `scope::path`, every score of which is a detection."""
    scope, path = name.split("::")
    package = PACKAGES[scope]
    assert package.__file__ is not None
    config = Config.fromfile(Path(package.__file__).parent / ".mim/configs" / path).model
    fewer = {
        "max_per_img": 50,
        "num_points": 100,
        "num_proposals": 50,
        "num_queries": 50,
        "subdivision_num_points": 50,
    }
    for part in parts(config):
        for key, most in fewer.items():
            if isinstance(part.get(key), int) and part[key] > most:
                part[key] = most
        if "pos_fraction" in part:
            part["num"] = 8
        if "score_thr" in part or part.get("type") == "ScoreHLRSampler":
            part["score_thr"] = 0.0
        if "batch_augments" in part:  # pads to 1024 x 1024
            part["batch_augments"] = None
        if "size" in part and "PreProcessor" in part.get("type", ""):
            part["size"] = (HEIGHT, WIDTH)
        if "checkpoint" in (part.get("init_cfg") or {}):
            part["init_cfg"] = None
        if "pretrained" in part:
            part["pretrained"] = None
    init_default_scope(scope)
    torch.manual_seed(0)
    model = revert_sync_batchnorm(package.registry.MODELS.build(config))
    model.init_weights()
    for module in model.modules():
        if hasattr(module, "loc_filter_thr"):  # guided anchoring: every place may have an object
            module.loc_filter_thr = 0.0
    # what a runner's loop would say
    for key in ("epoch", "iter"):
        MessageHub.get_current_instance().update_info(key, 0)
    return model


def inputs(name: str, images: int) -> dict:
    """A batch as a data loader collates it."""
    if name.startswith("mmdet"):
        data = demo_mm_inputs(
            images,
            (3, HEIGHT, WIDTH),
            num_items=[3, 2][:images],
            num_classes=3,
            with_mask=True,
            with_semantic=True,
            sem_seg_output_strides=1 if "former" in name or "panoptic" in name else 8,
        )
        for sample in data["data_samples"]:
            sample.set_metainfo({"scale_factor": (1.0, 1.0)})
        return data
    batch = []
    for i in range(images):
        generator = torch.Generator().manual_seed(i)
        sample = SegDataSample(
            metainfo={
                "img_shape": (HEIGHT, WIDTH),
                "ori_shape": (HEIGHT, WIDTH),
                "pad_shape": (HEIGHT, WIDTH),
                "flip": False,
            }
        )
        sample.gt_sem_seg = PixelData(
            data=torch.randint(0, 5, (1, HEIGHT, WIDTH), generator=generator)
        )
        image = torch.randint(0, 256, (3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8)
        batch.append({"inputs": image, "data_samples": sample})
    return pseudo_collate(batch)


def train(model: Any, name: str) -> None:
    """One step: the losses are finite, so are all gradients, and each part has some."""
    model.train()
    data = model.data_preprocessor(inputs(name, 2), training=True)
    loss, log = model.parse_losses(model(**data, mode="loss"))
    assert all(value.isfinite() for value in log.values()), log
    loss.backward()
    for child, module in model.named_children():
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradients = [p.grad for p in parameters if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients), child
        assert not parameters or any(gradient.any() for gradient in gradients), child


@torch.no_grad()
def predict(model: Any, name: str) -> Any:
    model.eval()
    data = model.data_preprocessor(inputs(name, 1), training=False)
    (sample,) = model(**data, mode="predict")
    return sample


DETECTORS = [
    "mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py",
    "mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py",
]


@pytest.mark.parametrize("name", DETECTORS)
def test_detector_trains_and_predicts(name: str) -> None:
    model = built(name)
    train(model, name)
    found = predict(model, name).pred_instances
    assert len(found) > 0
    boxes = found.bboxes
    limits = boxes.new_tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert ((boxes >= 0) & (boxes <= limits + 1e-3)).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.labels >= 0) & (found.labels < 80)).all()
    if "mask" in name.split("::")[1]:
        assert found.masks.shape == (len(found), HEIGHT, WIDTH)


# each uses an operator, or hands it something, that those above do not
OTHERS = [
    "mmdet::dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "mmdet::dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco.py",
    "mmdet::dyhead/atss_r50_fpn_dyhead_1x_coco.py",
    "mmdet::reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "mmdet::tood/tood_r50_fpn_1x_coco.py",
    "mmdet::point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "mmseg::ccnet/ccnet_r50-d8_4xb2-40k_cityscapes-512x1024.py",
    "mmseg::point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py",
    "mmseg::mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py",
]
EVEN_MORE = [
    "mmdet::atss/atss_r50_fpn_1x_coco.py",
    "mmdet::autoassign/autoassign_r50-caffe_fpn_1x_coco.py",
    "mmdet::cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py",
    "mmdet::centernet/centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "mmdet::centripetalnet/centripetalnet_hourglass104_16xb6-crop511-210e-mstest_coco.py",
    "mmdet::condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py",
    "mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "mmdet::cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py",
    "mmdet::crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py",
    "mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "mmdet::ddod/ddod_r50_fpn_1x_coco.py",
    "mmdet::ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
    "mmdet::detr/detr_r50_8xb2-150e_coco.py",
    "mmdet::double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "mmdet::dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py",
    "mmdet::empirical_attention/faster-rcnn_r50-attn1111-dcn_fpn_1x_coco.py",
    "mmdet::foveabox/fovea_r50_fpn_gn-head-align_4xb4-2x_coco.py",
    "mmdet::fpg/retinanet_r50_fpg_crop640_50e_coco.py",
    "mmdet::free_anchor/freeanchor_r50_fpn_1x_coco.py",
    "mmdet::fsaf/fsaf_r50_fpn_1x_coco.py",
    "mmdet::gfl/gfl_r50_fpn_1x_coco.py",
    "mmdet::ghm/retinanet_r50_fpn_ghm-1x_coco.py",
    "mmdet::grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py",
    "mmdet::groie/mask-rcnn_r50_fpn_groie_1x_coco.py",
    "mmdet::htc/htc_r50_fpn_1x_coco.py",
    "mmdet::legacy_1.x/mask-rcnn_r50_fpn_1x_coco_v1.py",
    "mmdet::libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py",
    "mmdet::ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py",
    "mmdet::nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py",
    "mmdet::nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py",
    "mmdet::pafpn/faster-rcnn_r50_pafpn_1x_coco.py",
    "mmdet::pisa/retinanet-r50_fpn_pisa_1x_coco.py",
    "mmdet::queryinst/queryinst_r50_fpn_1x_coco.py",
    "mmdet::rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
    "mmdet::sabl/sabl-retinanet_r50_fpn_1x_coco.py",
    "mmdet::scnet/scnet_r50_fpn_1x_coco.py",
    "mmdet::seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py",
    "mmdet::solo/solo_r50_fpn_1x_coco.py",
    "mmdet::solov2/solov2-light_r18_fpn_ms-3x_coco.py",
    "mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py",
    "mmdet::yolact/yolact_r50_8xb8-55e_coco.py",
    "mmdet::yolo/yolov3_d53_8xb8-320-273e_coco.py",
    "mmdet::yolof/yolof_r50-c5_8xb8-1x_coco.py",
    "mmdet::yolox/yolox_tiny_8xb8-300e_coco.py",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS + (EVEN_MORE if os.environ.get("DETECTORS") else []))
def test_other_models_train_and_predict(name: str) -> None:
    model = built(name)
    train(model, name)
    sample = predict(model, name)
    if name.startswith("mmseg"):
        assert sample.pred_sem_seg.shape == (HEIGHT, WIDTH)
    else:
        assert sample.pred_instances.bboxes.isfinite().all()


# the operator that is wanting, and for what
LACKING = {
    "mmdet::carafe/mask-rcnn_r50_fpn-carafe_1x_coco.py": ("carafe_forward", "training"),
    "mmdet::dcn/faster-rcnn_r50_fpn_dpool_1x_coco.py": ("deform_roi_pool_forward", "training"),
    "mmdet::guided_anchoring/ga-retinanet_r50-caffe_fpn_1x_coco.py": (
        "masked_im2col_forward",
        "prediction",
    ),
    "mmdet::pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py": ("nms_match", "training"),
    "mmseg::psanet/psanet_r50-d8_4xb2-40k_cityscapes-512x1024.py": (
        "psamask_forward",
        "training",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LACKING)
def test_what_cannot_be_done_is_said(name: str) -> None:
    operator, task = LACKING[name]
    model = built(name)
    with pytest.raises(NotImplementedError, match=f"compiled operator '{operator}'"):
        if task == "training":
            train(model, name)
        else:
            predict(model, name)


def test_mmcvs_own_synchronised_normalization_cannot_be_trained() -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        layer = build_norm_layer({"type": "MMSyncBN"}, 4)[1]
        with pytest.raises(NotImplementedError, match="compiled operator 'sync_bn_forward_mean'"):
            layer(torch.ones(2, 4, 3, 3))
        assert layer.eval()(torch.ones(2, 4, 3, 3)).isfinite().all()
    finally:
        torch.distributed.destroy_process_group()


def test_the_page_lists_what_cannot_be_done() -> None:
    page = (ROOT / "docs/operators.md").read_text()
    rows = [line for line in page.partition("| missing operator")[2].splitlines() if "`" in line]
    named = {name for row in rows for name in re.findall(r"^\| `(\w+)` ", row)}
    assert len(named) > len(LACKING) and not named & set(OPERATORS)
    for name, (operator, task) in LACKING.items():
        folder = name.split("::")[1].split("/")[0]
        assert any(f"`{operator}`" in row and folder in row and task in row for row in rows), name
