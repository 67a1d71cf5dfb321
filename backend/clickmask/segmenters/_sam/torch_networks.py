"""SAM's three networks in torch, from a file in the official format. Import it to load a model.

`import segment_anything` takes four functions from torchvision: two that resize an image and two for
non-maximum suppression. torchvision is 10 MB and must match the installed torch's version, so it stays
optional: if it is missing, functions of this module stand in for it during that import.
"""

import functools
import importlib
import importlib.util
import pickle
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from clickmask.errors import NotReady
from clickmask.segmenters._sam.frame import Floats, Maps, SamPrompt
from clickmask.segmenters._sam.onnx_networks import DEVIATION, MEAN
from clickmask.segmenters._sam.tiny_vit import CLASSIFIER, State, tiny_vit_like
from clickmask.types import Logits, Pixels

DECODER_HEADS, PROMPT_DIM = 8, 256  # the same in every published SAM; a file does not show them
STRIDE = 16  # pixels of the input to one of the features


class TorchSam:
    """`Networks` in float32 on the best device that torch finds."""

    precision = "f32"

    def __init__(self, checkpoint: Path, device: torch.device | None = None) -> None:
        """Read `checkpoint` without executing anything in it. Raises NotReady if it is not a SAM."""
        best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        self.device = device or torch.device(best)
        # Otherwise cuDNN's convolutions round to 10 bits, and masks needlessly differ from a CPU's: by an
        # IoU of 0.997 at worst (H100).
        torch.backends.cudnn.allow_tf32 = False
        networks = _networks(_read(checkpoint))
        for network in networks:
            network.to(self.device).eval().requires_grad_(False)
        self.image_encoder, self.prompt_encoder, self.mask_decoder = networks
        self.side = int(self.image_encoder.img_size)
        self._mean, self._deviation = (
            torch.tensor(values, device=self.device).view(-1, 1, 1) for values in (MEAN, DEVIATION)
        )
        with torch.inference_mode():
            self.positions = self.prompt_encoder.get_dense_pe()

    @property
    def runs_on(self) -> str:
        return f"torch on {self.device}, {self.precision}"

    @property
    def maps(self) -> tuple[str, ...]:
        """Names of the image encoder's outputs."""
        return ("features", "fine") if hasattr(self.mask_decoder, "hf_token") else ("features",)

    def encode(self, pixels: Pixels) -> Maps:
        with torch.inference_mode():
            return self.named(self.image_encoder(self.padded(pixels)))

    def padded(self, pixels: Pixels) -> torch.Tensor:
        """(1, 3, side, side), what the image encoder takes."""
        chw = torch.tensor(pixels, device=self.device).permute(2, 0, 1).contiguous()[None]
        height, width = pixels.shape[:2]
        beyond = 0, self.side - width, 0, self.side - height
        return torch.nn.functional.pad((chw - self._mean) / self._deviation, beyond)

    def named(self, found: Any) -> Maps:
        """The maps in what the image encoder gives: a tensor, or one for each map."""
        outputs: Any = (found,) if len(self.maps) == 1 else found
        return {name: _array(each[0]) for name, each in zip(self.maps, outputs, strict=True)}

    def place(self, maps: Maps) -> State:
        return {
            name: cast("Any", torch).from_numpy(each)[None].to(self.device) for name, each in maps.items()
        }

    def decode(self, placed: State, prompt: SamPrompt, multimask: bool) -> tuple[Logits, Floats]:
        points, labels, box, logits = prompt
        clicks = (self._tensor(points)[None], self._tensor(labels)[None]) if len(points) else None
        corners = None if box is None else self._tensor(box.reshape(1, 4))
        dense = None if logits is None else self._tensor(logits)[None]
        masks, scores = self._decode(placed, clicks, corners, dense, multimask)
        return masks[0], scores[0]

    def decode_clicks(self, placed: State, points: Floats) -> tuple[Logits, Floats]:
        foreground = torch.ones((len(points), 1), dtype=torch.int32, device=self.device)
        clicks = self._tensor(points)[:, None], foreground  # (N, 1, 2), (N, 1)
        return self._decode(placed, clicks, None, None, multimask=True)

    def _decode(
        self, placed: State, clicks: Any, corners: Any, dense: Any, multimask: bool
    ) -> tuple[Logits, Floats]:
        with torch.inference_mode():
            sparse_prompt, dense_prompt = self.prompt_encoder(clicks, corners, dense)
            masks, scores = predict_masks(
                self.mask_decoder, placed, self.positions, sparse_prompt, dense_prompt
            )
            wanted = slice(1, None) if multimask else slice(0, 1)  # the first is for unambiguous prompts
            return _array(masks[:, wanted]), _array(scores[:, wanted])

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(array, device=self.device)  # a copy: arrays may be read-only


def predict_masks(decoder: Any, maps: State, positions: torch.Tensor, sparse: Any, dense: Any) -> Any:
    """Four masks, the first for unambiguous prompts, and the network's estimates of their IoUs."""
    more = {name: each for name, each in maps.items() if name != "features"}
    return decoder.predict_masks(
        image_embeddings=maps["features"],
        image_pe=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        **more,
    )


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    return cast("Any", tensor.cpu()).numpy()


def _read(checkpoint: Path) -> State:
    """The tensors in the file and nothing else: `weights_only` refuses to unpickle objects."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise NotReady(f"{checkpoint.name} is not a file of plain tensors") from error
    named = cast("dict[str, object]", state) if isinstance(state, dict) else {"": state}
    if not all(isinstance(tensor, torch.Tensor) for tensor in named.values()):
        raise NotReady(f"{checkpoint.name} is not a SAM: it holds other things than named tensors")
    return cast("State", named)


def _networks(state: State) -> tuple[Any, Any, Any]:
    """Image encoder, prompt encoder and mask decoder with the weights and the sizes of `state`."""
    modeling = import_segment_anything().modeling
    names = ("image_encoder.", "prompt_encoder.", "mask_decoder.")
    try:
        images, prompts, masks = (
            {key.removeprefix(name): state[key] for key in state if key.startswith(name)} for name in names
        )
        with torch.device("meta"):  # uses no memory or random numbers: each tensor is replaced
            if "patch_embed.seq.0.c.weight" in images:
                images = {key: images[key] for key in images if not key.startswith(CLASSIFIER)}
                image_encoder: Any = tiny_vit_like(images)
            else:
                image_encoder = _vit_like(images, modeling)
            side = image_encoder.img_size
            prompt_encoder = modeling.PromptEncoder(
                embed_dim=PROMPT_DIM,
                image_embedding_size=(side // STRIDE, side // STRIDE),
                input_image_size=(side, side),
                mask_in_chans=prompts["mask_downscaling.3.weight"].shape[0],
            )
            sizes = {
                "transformer_dim": PROMPT_DIM,
                "transformer": modeling.TwoWayTransformer(
                    depth=_count(masks, "transformer.layers."),
                    embedding_dim=PROMPT_DIM,
                    num_heads=DECODER_HEADS,
                    mlp_dim=masks["transformer.layers.0.mlp.lin1.weight"].shape[0],
                ),
                "num_multimask_outputs": masks["mask_tokens.weight"].shape[0] - 1,
                "iou_head_depth": _count(masks, "iou_prediction_head.layers."),
                "iou_head_hidden_dim": masks["iou_prediction_head.layers.0.weight"].shape[0],
            }
            if "hf_token.weight" in masks:
                from clickmask.segmenters._sam.high_quality import HqMaskDecoder

                mask_decoder: Any = HqMaskDecoder(masks["compress_vit_feat.0.weight"].shape[0], **sizes)
            else:
                mask_decoder = modeling.MaskDecoder(**sizes)
        networks = image_encoder, prompt_encoder, mask_decoder
        for network, own in zip(networks, (images, prompts, masks), strict=True):
            network.load_state_dict(own, assign=True)
        if "hf_token.weight" in masks:
            networks = mask_decoder.after(image_encoder), prompt_encoder, mask_decoder
    except (KeyError, RuntimeError) as error:
        raise NotReady("the checkpoint is not a SAM: its tensors have other names or shapes") from error
    return networks


def _vit_like(state: State, modeling: Any) -> Any:
    """SAM's own image encoder, of the sizes of the tensors in `state`. Raises KeyError."""
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    grid = state["pos_embed"].shape[1]
    # A block has one relative position for each offset in its window: 2 * window - 1.
    tables = [state[f"blocks.{block}.attn.rel_pos_h"] for block in range(_count(state, "blocks."))]
    windows = [(table.shape[0] + 1) // 2 for table in tables]
    everywhere = [block for block, window in enumerate(windows) if window == grid]
    heads = dim // tables[0].shape[1]
    network = modeling.ImageEncoderViT(
        img_size=grid * patch,
        patch_size=patch,
        embed_dim=dim,
        depth=len(tables),
        num_heads=heads,
        mlp_ratio=state["blocks.0.mlp.lin1.weight"].shape[0] / dim,
        out_chans=state["neck.0.weight"].shape[0],
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=min(windows),
        global_attn_indexes=everywhere,
    )
    from clickmask.segmenters._sam.attention import AttentionByHead

    for block in everywhere:
        network.blocks[block].attn = AttentionByHead(dim, heads, use_rel_pos=True, input_size=(grid, grid))
    return network


def _count(state: State, prefix: str) -> int:
    """The number of numbered layers under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def import_segment_anything() -> ModuleType:
    """The package `segment_anything`. Afterwards `sys.modules` holds no stand-in for torchvision."""
    if "segment_anything" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("segment_anything")
    pillow = {"resize": resize, "to_pil_image": PillowImage.fromarray}
    functional = _module("torchvision.transforms.functional", **pillow)
    boxes = _module("torchvision.ops.boxes", box_area=box_area, batched_nms=batched_nms)
    transforms = _module("torchvision.transforms", functional=functional)
    ops = _module("torchvision.ops", boxes=boxes)
    whole = _module("torchvision", transforms=transforms, ops=ops)
    stand_ins = {module.__name__: module for module in (whole, transforms, functional, ops, boxes)}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("segment_anything")
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def resize(image: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """`image` at (height, width), like torchvision's default: bilinear, antialiased."""
    height, width = size
    return image.resize((width, height), PillowImage.Resampling.BILINEAR)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(N,) areas of (N, 4) boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Indices of the boxes to keep, best first: those that overlap no better one of their category."""
    areas = box_area(boxes)
    waiting = scores.argsort(descending=True, stable=True)
    kept: list[torch.Tensor] = []
    while waiting.numel():
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[waiting, :2])
        sides = (torch.minimum(boxes[best, 2:], boxes[waiting, 2:]) - top_left).clamp(min=0)
        shared = sides.prod(dim=1)
        overlaps = shared / (areas[best] + areas[waiting] - shared) > iou_threshold
        waiting = waiting[~overlaps | (idxs[waiting] != idxs[best])]
    return torch.stack(kept) if kept else waiting


def _module(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # without a spec, find_spec raises
    vars(module).update(contents)
    return module
