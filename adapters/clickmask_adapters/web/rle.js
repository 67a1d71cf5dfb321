// Compressed COCO RLE, as pycocotools writes it: column-major runs, background first, each number
// in 5-bit groups from character 48 up, from the fourth number on as the difference to the one
// two places before.

/** Run lengths of the string `counts`. */
export function runLengths(counts) {
  const runs = [];
  let position = 0;
  while (position < counts.length) {
    let value = 0;
    let shift = 0;
    let group;
    do {
      group = counts.charCodeAt(position++) - 48;
      value |= (group & 0x1f) << shift;
      shift += 5;
    } while (group & 0x20);
    if (group & 0x10) value |= -1 << shift;
    if (runs.length > 2) value += runs[runs.length - 2];
    runs.push(value);
  }
  return runs;
}

/** `[start, end)` of each foreground run, as column-major pixel numbers. */
function foregroundRuns(counts) {
  const spans = [];
  let at = 0;
  runLengths(counts).forEach((length, index) => {
    if (index % 2 && length) spans.push([at, at + length]);
    at += length;
  });
  return spans;
}

/**
 * The mask within its bounding box: {x, y, width, height, bits}, where `bits` is row-major and 1 on
 * the object. A mask without a pixel has width and height 0.
 */
export function maskInBox({ size: [rows], counts }) {
  const spans = foregroundRuns(counts);
  if (!spans.length) return { x: 0, y: 0, width: 0, height: 0, bits: new Uint8Array(0) };
  const x = Math.floor(spans[0][0] / rows);
  const right = Math.floor((spans[spans.length - 1][1] - 1) / rows) + 1;
  let y = rows;
  let bottom = 0;
  for (const [start, end] of spans) {
    const oneColumn = Math.floor(start / rows) === Math.floor((end - 1) / rows);
    y = Math.min(y, oneColumn ? start % rows : 0);
    bottom = Math.max(bottom, oneColumn ? ((end - 1) % rows) + 1 : rows);
  }
  const width = right - x;
  const height = bottom - y;
  const bits = new Uint8Array(width * height);
  for (const [start, end] of spans) {
    let row = start % rows;
    let column = Math.floor(start / rows);
    for (let left = end - start; left > 0; left--) {
      bits[(row - y) * width + column - x] = 1;
      if (++row === rows) {
        row = 0;
        column++;
      }
    }
  }
  return { x, y, width, height, bits };
}
