"""Small models of our own with the module names and calling conventions of the systems: one trap each.

What is taken from no code base, but agrees with one, is how things are called and what is passed around.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QUERIES, WIDTH, CLASSES = 3, 16, 5


# DETR: maps with masks, [L, N, C] inside, views by a batch size that was computed early.


class Nested:
    def __init__(self, tensors: Tensor, mask: Tensor) -> None:
        self.tensors, self.mask = tensors, mask

    def decompose(self):
        return self.tensors, self.mask


class Backbone(nn.Sequential):
    """Two levels and their positions; the masks are of padding."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, WIDTH, 2, stride=2))
        self.num_channels = WIDTH

    def forward(self, samples: Nested):
        x, features, positions = samples.tensors, [], []
        for level in self:
            x = level(x).relu()
            mask = F.interpolate(samples.mask[None].float(), size=x.shape[-2:])[0].bool()
            features.append(Nested(x, mask))
            columns = (~mask).cumsum(2).float()
            positions.append(columns[:, None].sin().expand(-1, WIDTH, -1, -1))
        return features, positions


class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, 4)
        self.norm1 = nn.LayerNorm(WIDTH)

    def forward(self, src, src_mask=None, src_key_padding_mask=None, pos=None):
        q = src + pos
        attended = self.self_attn(q, q, src, attn_mask=src_mask, key_padding_mask=src_key_padding_mask)[0]
        return self.norm1(src + attended)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer() for _ in range(3))

    def forward(self, src, mask=None, src_key_padding_mask=None, pos=None):
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask, pos=pos)
        return src


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.cross = nn.MultiheadAttention(WIDTH, 4)
        self.d_model = WIDTH

    def forward(self, src, mask, query_embed, pos_embed):
        n, c, h, w = src.shape
        src, pos = src.flatten(2).permute(2, 0, 1), pos_embed.flatten(2).permute(2, 0, 1)
        queries, mask = query_embed.unsqueeze(1).repeat(1, n, 1), mask.flatten(1)
        memory = self.encoder(src, src_key_padding_mask=mask, pos=pos)
        hidden = self.cross(queries, memory + pos, memory, key_padding_mask=mask)[0]
        return hidden.transpose(0, 1)[None], memory.permute(1, 2, 0).view(n, c, h, w)


class Detr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.transformer = Backbone(), Transformer()
        self.input_proj = nn.Conv2d(WIDTH, WIDTH, 1)
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)

    def forward(self, samples: Nested):
        features, positions = self.backbone(samples)
        src, mask = features[-1].decompose()
        hidden = self.transformer(self.input_proj(src), mask, self.query_embed.weight, positions[-1])[0]
        return {
            "pred_logits": self.class_embed(hidden)[-1],
            "pred_boxes": self.bbox_embed(hidden).sigmoid()[-1],
        }


class DetrSegm(nn.Module):
    """The panoptic head: it takes maps of all levels, and the batch size of the backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.detr = Detr()
        self.mask_head = nn.Conv2d(WIDTH + WIDTH + 8, QUERIES, 1)

    def forward(self, samples: Nested):
        features, positions = self.detr.backbone(samples)
        n = features[-1].tensors.shape[0]
        src, mask = features[-1].decompose()
        src = self.detr.input_proj(src)
        hidden, memory = self.detr.transformer(src, mask, self.detr.query_embed.weight, positions[-1])
        fine = F.adaptive_avg_pool2d(features[0].tensors, src.shape[-2:])
        masks = self.mask_head(torch.cat([src, memory, fine], 1).masked_fill(mask[:, None], 0))
        return {
            "pred_logits": self.detr.class_embed(hidden)[-1],
            "pred_boxes": self.detr.bbox_embed(hidden).sigmoid()[-1],
            "pred_masks": masks.view(n, QUERIES, *masks.shape[-2:]),
        }


class DeformableEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DeformableLayer() for _ in range(3))

    def forward(self, src, spatial_shapes, valid_ratios, pos, padding_mask):
        for layer in self.layers:
            src = layer(src, pos, valid_ratios, spatial_shapes, len(spatial_shapes), padding_mask)
        return src


class DeformableLayer(nn.Module):
    """[N, L, C]; things of the size of the batch beside things that are not, by position."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.linear1 = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, src, pos, reference_points, spatial_shapes, level_start_index, padding_mask=None):
        assert len(spatial_shapes) == level_start_index == 3
        mixed = self.linear1(src + pos).masked_fill(padding_mask[..., None], 0)
        return self.norm1(src + mixed.mean(1, keepdim=True) * reference_points.mean(1)[:, None, None])


class DeformableTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(3, WIDTH))
        self.encoder, self.d_model = DeformableEncoder(), WIDTH

    def forward(self, srcs, masks, pos_embeds, query_embed=None):
        src = torch.cat([src.flatten(2).transpose(1, 2) for src in srcs], 1)
        pos = torch.cat(
            [p.flatten(2).transpose(1, 2) + e for p, e in zip(pos_embeds, self.level_embed, strict=False)], 1
        )
        mask = torch.cat([mask.flatten(1) for mask in masks], 1)
        valid = torch.stack([(~mask).float().mean((1, 2)) for mask in masks], 1)
        memory = self.encoder(src, [src.shape[-2:] for src in srcs], valid, pos, mask)
        queries = query_embed[None].expand(memory.shape[0], -1, -1)
        return (queries @ memory.transpose(1, 2)).softmax(-1) @ memory


class DeformableDetr(nn.Module):
    """A third level is made from the images' masks, which nobody has doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.transformer = Backbone(), DeformableTransformer()
        self.input_proj = nn.ModuleList(
            [nn.Conv2d(8, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 2, stride=2)]
        )
        self.query_embed = nn.Embedding(QUERIES, WIDTH)
        self.class_embed, self.bbox_embed = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, 4)

    def forward(self, samples: Nested):
        features, positions = self.backbone(samples)
        srcs = [project(f.tensors) for project, f in zip(self.input_proj, features, strict=False)]
        masks = [f.mask for f in features]
        srcs.append(self.input_proj[2](features[-1].tensors))
        masks.append(F.interpolate(samples.mask[None].float(), size=srcs[-1].shape[-2:])[0].bool())
        positions.append(masks[-1][:, None].float().expand(-1, WIDTH, -1, -1))
        hidden = self.transformer(srcs, masks, positions, self.query_embed.weight)
        return {"pred_logits": self.class_embed(hidden), "pred_boxes": self.bbox_embed(hidden).sigmoid()}


class SetCriterion(nn.Module):
    """As many labels as queries; every loss is divided by the number of all boxes in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_dict = {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_mask": 2.0}

    def forward(self, outputs, targets):
        labels = torch.stack([target["labels"] for target in targets])
        boxes = torch.stack([target["boxes"] for target in targets])
        count = sum(len(target["labels"]) for target in targets)
        losses = {
            "loss_ce": F.cross_entropy(outputs["pred_logits"].flatten(0, 1), labels.flatten()),
            "loss_bbox": (outputs["pred_boxes"] - boxes).abs().sum() / count,
        }
        if "pred_masks" in outputs:
            losses["loss_mask"] = outputs["pred_masks"].square().sum() / count
        return losses


# RIDE: experts, a dict as output, a criterion that is called with keywords, a meter that counts rows.


class NormedLinear(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features))

    def forward(self, x):
        return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=0)


class Ride(nn.Module):
    def __init__(self, width: int = WIDTH, *, returns_feat: bool = True) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.num_experts = 3
        self.backbone.linears = nn.ModuleList(NormedLinear(width, CLASSES) for _ in range(3))
        self.backbone.stem = nn.Linear(8, width)
        self.returns_feat = returns_feat

    def forward(self, x):
        features = self.backbone.stem(x)
        self.backbone.logits = logits = [linear(features) for linear in self.backbone.linears]
        mean = torch.stack(logits, 1).mean(1)
        return (
            {"output": mean, "feat": features, "logits": torch.stack(logits, 1)}
            if self.returns_feat
            else mean
        )


class RideLoss(nn.Module):
    """Cross entropy of every expert, and how far it is from the mean."""

    def forward(self, output_logits=None, target=None, extra_info=None):
        loss = F.cross_entropy(output_logits, target)
        mean = output_logits.softmax(1)
        for number, logits in enumerate(extra_info["logits"]):
            loss = loss + number * F.cross_entropy(logits, target)  # experts are not interchangeable
            loss = loss - 0.2 * F.kl_div(logits.log_softmax(1), mean, reduction="batchmean")
        return loss


# Balanced Softmax: a classifier that returns a tuple.


class DotProductClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x, *args):
        return self.fc(x), None


# MoCo: a shuffle over the batch of all processes, a momentum encoder that is zipped, a queue.


def all_gather(x: Tensor) -> Tensor:
    if not torch.distributed.is_initialized():
        return x
    parts = [torch.empty_like(x) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


class ImageEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 8))

    def forward(self, x):
        return self.fc(self.avgpool(self.conv1(x).relu()).flatten(1))


class MoCo(nn.Module):
    def __init__(self, queue_size: int = 64) -> None:
        super().__init__()
        self.encoder_q, self.encoder_k = ImageEncoder(), ImageEncoder()
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data.copy_(q.data)
            k.requires_grad = False
        self.register_buffer("queue", F.normalize(torch.randn(8, queue_size), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    @torch.no_grad()
    def _momentum_update_key_encoder(self):
        for q, k in zip(self.encoder_q.parameters(), self.encoder_k.parameters(), strict=True):
            k.data = k.data * 0.9 + q.data * 0.1

    @torch.no_grad()
    def _dequeue_and_enqueue(self, keys):
        keys, start = all_gather(keys), int(self.queue_ptr)
        self.queue[:, start : start + len(keys)] = keys.T
        self.queue_ptr[0] = (start + len(keys)) % self.queue.shape[1]

    @torch.no_grad()
    def _batch_shuffle_ddp(self, x):
        everything = all_gather(x)
        order = torch.randperm(len(everything))
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(order, src=0)
        return everything[order.view(-1, len(x))[rank()]], order.argsort()

    @torch.no_grad()
    def _batch_unshuffle_ddp(self, x, order):
        everything = all_gather(x)
        return everything[order.view(len(everything) // len(x), -1)[rank()]]

    def forward(self, im_q, im_k):
        q = F.normalize(self.encoder_q(im_q), dim=1)
        with torch.no_grad():
            self._momentum_update_key_encoder()
            im_k, order = self._batch_shuffle_ddp(im_k)
            k = F.normalize(self.encoder_k(im_k), dim=1)
            k = self._batch_unshuffle_ddp(k, order)
        self.last_keys = k
        positive = torch.einsum("nc,nc->n", [q, k]).unsqueeze(1)
        logits = torch.cat([positive, q @ self.queue.clone()], 1) / 0.1
        self._dequeue_and_enqueue(k)
        return logits, torch.zeros(len(logits), dtype=torch.long)


class MoCoV3(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base_encoder, self.momentum_encoder = ImageEncoder(), ImageEncoder()
        self.predictor = nn.Linear(8, 8)
        for base, momentum in zip(
            self.base_encoder.parameters(), self.momentum_encoder.parameters(), strict=True
        ):
            momentum.data.copy_(base.data)
            momentum.requires_grad = False

    def contrastive_loss(self, q, k):
        logits = F.normalize(q, dim=1) @ F.normalize(all_gather(k), dim=1).T
        return F.cross_entropy(logits, torch.arange(len(logits)) + len(logits) * rank())

    def forward(self, x1, x2, m):
        q1, q2 = self.predictor(self.base_encoder(x1)), self.predictor(self.base_encoder(x2))
        with torch.no_grad():
            for base, momentum in zip(
                self.base_encoder.parameters(), self.momentum_encoder.parameters(), strict=True
            ):
                momentum.data = momentum.data * m + base.data * (1 - m)
            k1, k2 = self.momentum_encoder(x1), self.momentum_encoder(x2)
        return self.contrastive_loss(q1, k2) + self.contrastive_loss(q2, k1)


# PaCo: features captured by a hook, labels that are shuffled along.


class PaCo(MoCo):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, CLASSES)
        self.register_buffer("queue_l", torch.randint(CLASSES, (64,)))
        self.encoder_q.avgpool.register_forward_hook(self._capture)

    def _capture(self, module, args, output):
        self.pooled = output.flatten(1)

    def _batch_shuffle_ddp(self, x, y):
        order = torch.randperm(len(x))
        return x[order], y[order], order.argsort()

    def _batch_unshuffle_ddp(self, x, y, order):
        return x[order], y[order]

    def forward(self, im_q, im_k=None, labels=None):
        q = F.normalize(self.encoder_q(im_q), dim=1)
        if not self.training:
            return self.linear(self.pooled)
        with torch.no_grad():
            im_k, labels, order = self._batch_shuffle_ddp(im_k, labels)
            k = F.normalize(self.encoder_k(im_k), dim=1)
            k, labels = self._batch_unshuffle_ddp(k, labels, order)
        features = torch.cat([q, k, self.queue.T])
        return features, torch.cat([labels, labels, self.queue_l]), self.linear(self.pooled)


class PaCoLoss(nn.Module):
    """Every anchor with everything of its label; `sup_logits` has a row for every anchor."""

    def forward(self, features, labels, sup_logits):
        anchors = (len(features) - 64) // 2
        assert len(sup_logits) == anchors
        similarity = features[:anchors] @ features.T
        positive = (labels[:anchors, None] == labels).float()
        contrast = -(similarity.log_softmax(1) * positive).sum(1) / positive.sum(1)
        return contrast.mean() + F.cross_entropy(sup_logits, labels[:anchors])


# DomainBed and SWAD: an update that computes the loss, an optimizer from the constructor.


class Algorithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.featurizer, self.classifier = nn.Linear(8, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.network = nn.Sequential(self.featurizer, self.classifier)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.1)

    def predict(self, x):
        return self.network(x)

    def _step(self, x, y):
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


class ERM(Algorithm):
    """DomainBed's, which takes pairs."""

    def update(self, minibatches, unlabeled=None):
        return self._step(torch.cat([x for x, _ in minibatches]), torch.cat([y for _, y in minibatches]))


class SwadERM(Algorithm):
    """SWAD's, which takes lists by keyword."""

    def update(self, x, y, **kwargs):
        return self._step(torch.cat(x), torch.cat(y))


SwadERM.__name__ = "ERM"


class CORAL(ERM):
    """An algorithm that takes the rows apart by domain."""

    def update(self, minibatches, unlabeled=None):
        raise NotImplementedError


# CGE: features with their targets in a list, the loss inside.


class GraphFull(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dset = type("DataSet", (), {"feat_dim": WIDTH})()
        self.pairs = nn.Parameter(torch.randn(WIDTH, CLASSES))

    def forward(self, x):
        scores = x[0] @ self.pairs
        if self.training:
            assert all(len(each) == len(scores) for each in x)
            return F.cross_entropy(scores, x[3]), None
        return None, scores
