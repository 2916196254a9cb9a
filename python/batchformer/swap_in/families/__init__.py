"""Every family of models that attach() knows, in the order in which they are asked."""

from batchformer.swap_in.families.balanced_softmax import BalancedSoftmax
from batchformer.swap_in.families.clip import Clip
from batchformer.swap_in.families.czsl import CompositionalZeroShot
from batchformer.swap_in.families.deformable_detr import DeformableDetr
from batchformer.swap_in.families.detr import Detr
from batchformer.swap_in.families.domainbed import DomainBed
from batchformer.swap_in.families.eomt import Eomt
from batchformer.swap_in.families.mask2former import Mask2Former
from batchformer.swap_in.families.maskformer import MaskFormer
from batchformer.swap_in.families.moco_v2 import MoCoV2
from batchformer.swap_in.families.moco_v3 import MoCoV3
from batchformer.swap_in.families.oneformer import OneFormer
from batchformer.swap_in.families.paco import PaCo
from batchformer.swap_in.families.projected_detr import ProjectedDetr
from batchformer.swap_in.families.ride import Ride
from batchformer.swap_in.families.rt_detr import RTDetr
from batchformer.swap_in.families.siglip2 import Siglip2
from batchformer.swap_in.families.timm_classifier import TimmClassifier
from batchformer.swap_in.families.torchvision_classifier import TorchvisionClassifier
from batchformer.swap_in.families.torchvision_detector import TorchvisionDetector
from batchformer.swap_in.families.transformers_classifier import TransformersClassifier
from batchformer.swap_in.families.transformers_detr import TransformersDetr
from batchformer.swap_in.families.transformers_last_token import TransformersLastToken
from batchformer.swap_in.families.vision_transformer import VisionTransformer
from batchformer.swap_in.family import Family

FAMILIES: tuple[type[Family], ...] = (
    TransformersDetr,
    RTDetr,
    ProjectedDetr,
    Mask2Former,
    OneFormer,
    MaskFormer,
    Eomt,
    Detr,
    DeformableDetr,
    TorchvisionDetector,
    Siglip2,
    Clip,
    VisionTransformer,
    Ride,
    PaCo,
    MoCoV2,
    MoCoV3,
    DomainBed,
    CompositionalZeroShot,
    BalancedSoftmax,
    TransformersLastToken,
    TransformersClassifier,
    TimmClassifier,
    TorchvisionClassifier,
)
