"""What SAM-HQ adds to SAM's networks. Ke et al., "Segment Anything in High Quality", arXiv 2306.01567. Its
tensors have the names of the published files, in which SAM's own are unchanged."""

from typing import Any

import torch
from torch import nn

from clickmask.segmenters._sam.onnx_networks import FINE
from clickmask.segmenters._sam.tiny_vit import TinyViT
from clickmask.segmenters._sam.torch_networks import import_segment_anything

_modeling: Any = import_segment_anything().modeling
_Normed: Any = _modeling.image_encoder.LayerNorm2d


class HqMaskDecoder(_modeling.MaskDecoder):
    """SAM's mask decoder with one token more, whose mask is drawn on a finer map and added to SAM's."""

    def __init__(self, early: int, **sizes: Any) -> None:
        """`early`: channels of the image encoder's early features. `sizes` as for SAM's."""
        super().__init__(**sizes)  # pyright: ignore[reportUnknownMemberType]
        dim: int = self.transformer_dim
        self.hf_token = nn.Embedding(1, dim)
        self.hf_mlp = _modeling.mask_decoder.MLP(dim, dim, FINE, 3)
        self.compress_vit_feat = _enlarging(early, dim)
        self.embedding_encoder = _enlarging(dim, dim // 4)
        first, last = nn.Conv2d(FINE, dim // 4, 3, padding=1), nn.Conv2d(dim // 4, FINE, 3, padding=1)
        self.embedding_maskfeature = nn.Sequential(first, _Normed(dim // 4), nn.GELU(), last)

    def after(self, encoder: Any) -> nn.Module:
        """`encoder`, followed by what of this decoder sees the image alone."""
        return HqImageEncoder(encoder, self)

    def fine(self, features: torch.Tensor, early: torch.Tensor) -> torch.Tensor:
        """(1, 32, 4 h, 4 w) of an image: its features (1, C, h, w) and early ones, fused."""
        return self.embedding_encoder(features) + self.compress_vit_feat(early)

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,  # (1, C, h, w)
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,  # (B, n, C)
        dense_prompt_embeddings: torch.Tensor,
        fine: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As SAM's, whose candidates and scores these are: (B, 4, 4 h, 4 w) and (B, 4)."""
        learnt = torch.cat((self.iou_token.weight, self.mask_tokens.weight, self.hf_token.weight))
        count = sparse_prompt_embeddings.shape[0]
        tokens = torch.cat((learnt[None].expand(count, -1, -1), sparse_prompt_embeddings), dim=1)
        source = torch.repeat_interleave(image_embeddings, count, dim=0) + dense_prompt_embeddings
        positions = torch.repeat_interleave(image_pe, count, dim=0)
        found, flat = self.transformer(source, positions, tokens)
        upscaled = self.output_upscaling(flat.transpose(1, 2).reshape(source.shape))  # (B, 32, 4 h, 4 w)
        finer = self.embedding_maskfeature(upscaled) + fine
        own = self.hf_mlp(found[:, 1 + self.num_mask_tokens])[:, None] @ finer.flatten(2)
        mlps = enumerate(self.output_hypernetworks_mlps)
        weights = torch.stack([mlp(found[:, 1 + number]) for number, mlp in mlps], dim=1)
        masks = weights @ upscaled.flatten(2) + own
        height, width = upscaled.shape[2:]
        return masks.reshape(count, -1, height, width), self.iou_prediction_head(found[:, 0])


class HqImageEncoder(nn.Module):
    """SAM's image encoder, followed by what of the mask decoder sees the image alone."""

    def __init__(self, encoder: Any, decoder: HqMaskDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder, self.img_size = encoder, decoder, encoder.img_size

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The features, and the finer map: (1, 256, h, w) and (1, 32, 4 h, 4 w)."""
        if isinstance(self.encoder, TinyViT):
            stages = self.encoder.stages(pixels)
            features, early = self.encoder.neck(stages[-1]), stages[1]
        else:
            features, early = _vit(self.encoder, pixels)
        return features, self.decoder.fine(features, early)


def _vit(encoder: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The features of SAM's own image encoder, and those after its first block of global attention."""
    x = encoder.patch_embed(pixels) + encoder.pos_embed
    early: list[torch.Tensor] = []
    for block in encoder.blocks:
        x = block(x)
        if block.window_size == 0:
            early.append(x)
    return encoder.neck(x.permute(0, 3, 1, 2)), early[0].permute(0, 3, 1, 2)


def _enlarging(inputs: int, inner: int) -> nn.Sequential:
    """(B, inputs, h, w) -> (B, 32, 4 h, 4 w)."""
    first, last = nn.ConvTranspose2d(inputs, inner, 2, 2), nn.ConvTranspose2d(inner, FINE, 2, 2)
    return nn.Sequential(first, _Normed(inner), nn.GELU(), last)
