"""A query formulation with nothing of DAB-DETR's but the interface.

Queries are chosen from the encoder's memory, so that each image has its own, and are predicted from
there, too; cross-attention is additive; in training there are groups of queries, and queries made
of the objects, whose matches are known, kept apart by a mask.
"""

from typing import NamedTuple

import torch
from torch import nn

from dab_detr.modeling import Encoding, Matches, Outputs, Queries, QueryFormulation


class AddingAttention(nn.Module):
    """DETR's: positions are added to queries and keys."""

    def __init__(self, width):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, content, encoding, memory):
        keys = memory.cells + memory.key_encoding
        padding = None if memory.valid_mask is None else ~memory.valid_mask[:, 0, 0]
        query = (content + encoding.position).expand(len(keys), -1, -1)
        return self.attention(query, keys, memory.cells, padding)[0]


class State(NamedTuple):
    """Box logits of the queries, and in training the number of objects of each image."""

    boxes: torch.Tensor
    counts: list | None = None


class ChosenQueries(QueryFormulation):
    """The cells that look most like an object."""

    uses_targets = True

    def __init__(self, num_queries, d_model, num_classes, num_groups=2):
        super().__init__()
        self.num_queries, self.num_groups = num_queries, num_groups
        self.class_head = nn.Linear(d_model, num_classes)
        self.box_head = nn.Linear(d_model, 4)
        self.position = nn.Linear(4, d_model)
        self.group = nn.Embedding(num_groups, d_model)
        self.label = nn.Embedding(num_classes, d_model)

    def build_cross_attention(self, index):
        return AddingAttention(self.position.out_features)

    def forward(self, memory, targets=None):
        logits, boxes = self.class_head(memory.cells), self.box_head(memory.cells).float()
        scores = logits.amax(-1).masked_fill(memory.padding_mask.flatten(1), -1e4)
        best = scores.topk(self.num_queries).indices[..., None]  # (B, Q, 1)
        content, start = (
            x.gather(1, best.expand(-1, -1, x.shape[-1])) for x in (memory.cells, boxes)
        )
        if not self.training:
            return Queries(content, State(start))
        content = torch.cat([content + x for x in self.group.weight], dim=1)
        start = start.repeat(1, self.num_groups, 1)
        content, start, group = self._with_objects(content, start, targets)
        return Queries(
            content,
            State(start.detach(), targets.counts),
            attention_mask=group[:, None] == group,
            extra={"encoder": Outputs(logits[None], boxes[None])},
        )

    def _with_objects(self, content, start, targets):
        """Queries made of the objects in front, as many for every image."""
        most = max(targets.counts, default=0)
        objects = content.new_zeros(len(content), most, content.shape[-1])
        boxes = start.new_zeros(len(start), most, 4)
        end = 0
        for image, count in enumerate(targets.counts):
            own = slice(end, end + count)
            objects[image, :count] = self.label(targets.labels[own])
            boxes[image, :count] = targets.boxes_cxcywh[own].logit()
            end += count
        group = torch.arange(self.num_groups).repeat_interleave(self.num_queries)
        group = torch.cat((torch.full((most,), -1), group))
        return torch.cat((objects, content), 1), torch.cat((boxes, start), 1), group

    def encode(self, index, content, state):
        return Encoding(self.position(state.boxes.sigmoid().to(content.dtype)), None)

    def boxes(self, offset, state):
        return offset.float() + state.boxes

    def refine(self, state, content, box_head):
        return state._replace(boxes=(box_head(content) + state.boxes).detach())

    def outputs(self, class_logits, box_logits, queries):
        counts = queries.state.counts
        if counts is None:
            return Outputs(class_logits, box_logits)
        layers, most = len(class_logits), max(counts, default=0)
        pairs = [
            (layer, image, query, sum(counts[:image]) + query)
            for layer in range(layers)
            for image, count in enumerate(counts)
            for query in range(count)
        ]
        known = Matches(*torch.tensor(pairs, dtype=torch.long).reshape(-1, 4).T)
        objects = Outputs(class_logits[:, :, :most], box_logits[:, :, :most], matches=known)
        return Outputs(
            class_logits[:, :, most:],
            box_logits[:, :, most:],
            num_groups=self.num_groups,
            extra={**queries.extra, "objects": objects},
        )
