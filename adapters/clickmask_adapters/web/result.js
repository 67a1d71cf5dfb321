// What a person takes away: a COCO dataset of one object, and the mask as a picture.

import { maskInBox } from "./rle.js";

/** A COCO dataset that pycocotools loads; `polygons` and what follows are clickmask's own additions. */
export function cocoDataset(photo, proposal, segmenter) {
  const [x0, y0, x1, y1] = proposal.box ?? [0, 0, 0, 0];
  return {
    images: [{ id: 1, file_name: photo.name, width: photo.width, height: photo.height }],
    categories: [{ id: 1, name: "object" }],
    annotations: [
      {
        id: 1,
        image_id: 1,
        category_id: 1,
        segmentation: proposal.rle,
        area: proposal.area,
        bbox: [x0, y0, x1 - x0, y1 - y0],
        iscrowd: 0,
        score: proposal.score,
        segmenter,
        polygons: proposal.polygons,
        polygons_iou: proposal.iou,
      },
    ],
  };
}

/** The whole mask as a PNG of the photo's size, white on black. */
export function maskPicture(photo, proposal) {
  const canvas = document.createElement("canvas");
  canvas.width = photo.width;
  canvas.height = photo.height;
  const context = canvas.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, photo.width, photo.height);
  const mask = maskInBox(proposal.rle);
  if (mask.width) context.putImageData(tinted(mask, [255, 255, 255, 255], [0, 0, 0, 255]), mask.x, mask.y);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

/** ImageData of a mask in its box: `on` where the object is, `off` elsewhere, as [r, g, b, a]. */
export function tinted({ width, height, bits }, on, off = [0, 0, 0, 0]) {
  const image = new ImageData(width, height);
  const word = (colour) => new Uint32Array(new Uint8ClampedArray(colour).buffer)[0];
  const pixels = new Uint32Array(image.data.buffer);
  const colours = [word(off), word(on)];
  for (let i = 0; i < bits.length; i++) pixels[i] = colours[bits[i]];
  return image;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
