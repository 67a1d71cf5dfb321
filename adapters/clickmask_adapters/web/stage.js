// The photo with what lies on it, zoom and pan, and the pointer and keyboard that point at it.
//
// Two frames: the image's (continuous pixels, origin at the outer corner of the top-left pixel) and
// the stage's (CSS pixels). `view` maps one to the other: stage = image * scale + (left, top).

import { maskInBox } from "./rle.js";
import { tinted } from "./result.js";

const TINT = [47, 143, 255, 97];
const MARGIN = 12; // CSS pixels left free around a photo that is fitted
const MAX_SCALE = 40;
const DRAG = 4; // CSS pixels that a pointer must travel before it draws a box
const STEP = 10; // CSS pixels that an arrow key moves the crosshair
const SVG = "http://www.w3.org/2000/svg";

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const rounded = (value) => Math.round(value * 100) / 100;

function pathOf(rings) {
  return rings.map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`).join("");
}

/** Each vertex as a line of no length: its round cap is a dot of the same size at every zoom. */
function dotsOf(rings) {
  return rings.map((ring) => ring.map(([x, y]) => `M${x} ${y}h0`).join("")).join("");
}

/** The mean distance between neighbouring vertices, in pixels of the image. */
function meanSide(rings) {
  let length = 0;
  let sides = 0;
  for (const ring of rings) {
    ring.forEach(([x, y], index) => {
      const [nextX, nextY] = ring[(index + 1) % ring.length];
      length += Math.hypot(nextX - x, nextY - y);
      sides++;
    });
  }
  return sides ? length / sides : 0;
}

export class Stage {
  /**
   * `onPoint(kind, [x, y])` and `onBox([x0, y0, x1, y1])` tell what was pointed at, in the image's
   * frame and inside the photo; `onView(scale)` that the zoom changed. `kind()` is what a plain
   * click means, "foreground" or "background".
   */
  constructor({ onPoint, onBox, onView, kind }) {
    const part = (id) => document.getElementById(id);
    this.element = part("stage");
    this.photo = part("photo");
    this.mask = part("mask");
    this.frame = part("frame");
    this.outlines = [part("halo"), part("outline")];
    this.vertices = [part("vertices-halo"), part("vertices")];
    this.box = part("box");
    this.points = part("points");
    this.crosshair = part("crosshair");
    Object.assign(this, { onPoint, onBox, onView, kind });
    this.width = this.height = 0;
    this.view = { scale: 1, left: 0, top: 0 };
    this.fitted = true;
    this.spacing = 0;
    this.prompt = { foreground: [], background: [], box: null };
    this.draft = null; // the box that is being drawn
    this.corner = null; // its first corner, if the keyboard draws it
    this.cursor = null; // where the keyboard points
    this.pointers = new Map();
    this.listen();
  }

  /** Show a photo that the browser has loaded: its address and upright size. */
  show(url, width, height) {
    Object.assign(this, { width, height, draft: null, corner: null, cursor: null });
    this.photo.src = url;
    this.photo.style.width = `${width}px`;
    this.photo.style.height = `${height}px`;
    this.element.style.setProperty("--aspect", String(width / height));
    this.fit();
  }

  setPrompt(prompt) {
    this.prompt = prompt;
    this.draw();
  }

  /** Draw a proposal of the server, or nothing for null. */
  setProposal(proposal) {
    const rings = (proposal?.polygons ?? []).flatMap(({ outer, holes }) => [outer, ...holes]);
    for (const path of this.outlines) path.setAttribute("d", pathOf(rings));
    for (const path of this.vertices) path.setAttribute("d", dotsOf(rings));
    this.spacing = meanSide(rings);
    const mask = proposal && maskInBox(proposal.rle);
    this.mask.hidden = !mask?.width;
    this.maskBox = mask ?? null;
    if (mask?.width) {
      this.mask.width = mask.width;
      this.mask.height = mask.height;
      this.mask.getContext("2d").putImageData(tinted(mask, TINT), 0, 0);
    }
    this.draw();
  }

  /** `part` is "mask", "outline" or "vertices". */
  toggle(part, shown) {
    this.element.classList.toggle(`no-${part}`, !shown);
  }

  // ---- the view

  fit() {
    const { clientWidth, clientHeight } = this.element;
    const room = (size) => Math.max(size - 2 * MARGIN, 1);
    const scale = Math.min(room(clientWidth) / this.width, room(clientHeight) / this.height, 8);
    this.fitScale = scale;
    this.fitted = true;
    this.look(scale, (clientWidth - this.width * scale) / 2, (clientHeight - this.height * scale) / 2);
  }

  /** Zoom by `factor`; the point of the photo at `at` (stage frame, by default the middle) stays there. */
  zoom(factor, at) {
    const [x, y] = at ?? [this.element.clientWidth / 2, this.element.clientHeight / 2];
    const { scale, left, top } = this.view;
    const next = clamp(scale * factor, Math.min(this.fitScale, 1) / 2, MAX_SCALE);
    this.fitted = false;
    this.look(next, x - ((x - left) / scale) * next, y - ((y - top) / scale) * next);
  }

  pan(dx, dy) {
    this.fitted = false;
    this.look(this.view.scale, this.view.left + dx, this.view.top + dy);
  }

  look(scale, left, top) {
    const keep = 40; // CSS pixels of the photo that stay in sight
    this.view = {
      scale,
      left: clamp(left, keep - this.width * scale, this.element.clientWidth - keep),
      top: clamp(top, keep - this.height * scale, this.element.clientHeight - keep),
    };
    this.draw();
    this.onView(scale);
  }

  toImage([x, y]) {
    const { scale, left, top } = this.view;
    return [rounded(clamp((x - left) / scale, 0, this.width)), rounded(clamp((y - top) / scale, 0, this.height))];
  }

  toStage([x, y]) {
    const { scale, left, top } = this.view;
    return [x * scale + left, y * scale + top];
  }

  /** Whether a place of the stage lies on the photo, give or take a finger's tremble. */
  onPhoto(place) {
    const [left, top] = this.toStage([0, 0]);
    const [right, bottom] = this.toStage([this.width, this.height]);
    const slack = 3;
    return (
      place[0] >= left - slack && place[0] <= right + slack && place[1] >= top - slack && place[1] <= bottom + slack
    );
  }

  // ---- drawing

  draw() {
    if (!this.width) return;
    const { scale, left, top } = this.view;
    this.element.classList.toggle("pixels", scale >= 3);
    this.element.classList.toggle("dense", this.spacing * scale < 10); // large dots would hide the outline
    this.photo.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    if (this.maskBox) {
      const [x, y] = this.toStage([this.maskBox.x, this.maskBox.y]);
      this.mask.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    }
    this.frame.setAttribute("transform", `translate(${left} ${top}) scale(${scale})`);
    this.drawBox(this.draft ?? this.prompt.box);
    const marks = [
      ...this.prompt.foreground.map((point) => this.mark("foreground", point)),
      ...this.prompt.background.map((point) => this.mark("background", point)),
    ];
    this.points.replaceChildren(...marks);
    this.crosshair.setAttribute("visibility", this.cursor ? "visible" : "hidden");
    if (this.cursor) {
      const [x, y] = this.toStage(this.cursor);
      this.crosshair.setAttribute("transform", `translate(${x} ${y})`);
    }
  }

  drawBox(box) {
    this.box.setAttribute("visibility", box ? "visible" : "hidden");
    if (!box) return;
    const [x0, y0] = this.toStage([box[0], box[1]]);
    const [x1, y1] = this.toStage([box[2], box[3]]);
    for (const [name, value] of Object.entries({ x: x0, y: y0, width: x1 - x0, height: y1 - y0 })) {
      this.box.setAttribute(name, String(value));
    }
  }

  mark(kind, point) {
    const mark = document.createElementNS(SVG, "g");
    const [x, y] = this.toStage(point);
    mark.setAttribute("class", `mark ${kind}`);
    mark.setAttribute("transform", `translate(${x} ${y})`);
    const disc = document.createElementNS(SVG, "circle");
    disc.setAttribute("r", "7");
    const sign = document.createElementNS(SVG, "path");
    sign.setAttribute("d", kind === "foreground" ? "M-3.5 0h7M0 -3.5v7" : "M-3.5 0h7");
    mark.append(disc, sign);
    return mark;
  }

  // ---- pointing

  listen() {
    const on = (name, listener) => this.element.addEventListener(name, listener.bind(this));
    on("pointerdown", this.pointerDown);
    on("pointermove", this.pointerMove);
    on("pointerup", this.pointerUp);
    on("pointercancel", this.pointerCancel);
    on("keydown", this.keyDown);
    on("contextmenu", (event) => event.preventDefault());
    on("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-clamp(event.deltaY, -120, 120) * (event.ctrlKey ? 0.01 : 0.0022)), this.placeOf(event));
    });
    new ResizeObserver(() => this.width && (this.fitted ? this.fit() : this.pan(0, 0))).observe(this.element);
  }

  placeOf(event) {
    const { left, top } = this.element.getBoundingClientRect();
    return [event.clientX - left - this.element.clientLeft, event.clientY - top - this.element.clientTop];
  }

  pointerDown(event) {
    if (!this.width || event.target.closest(".message")) return;
    this.element.focus({ preventScroll: true });
    if (event.button === 1) event.preventDefault(); // no autoscroll
    this.element.setPointerCapture(event.pointerId);
    const place = this.placeOf(event);
    const moves = event.button === 1 || event.shiftKey;
    this.pointers.set(event.pointerId, { from: place, at: place, button: event.button, moves, dragged: false });
    if (this.pointers.size === 2) {
      for (const pointer of this.pointers.values()) pointer.moves = pointer.dragged = true; // two fingers: zoom
      this.setDraft(null);
    }
    this.corner = this.cursor = null;
    this.draw();
  }

  pointerMove(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const before = pointer.at;
    pointer.at = this.placeOf(event);
    pointer.dragged ||= Math.hypot(pointer.at[0] - pointer.from[0], pointer.at[1] - pointer.from[1]) > DRAG;
    if (this.pointers.size === 2) this.pinch(pointer, before);
    else if (pointer.moves) this.pan(pointer.at[0] - before[0], pointer.at[1] - before[1]);
    else if (pointer.dragged && pointer.button === 0) this.setDraft(this.boxBetween(pointer.from, pointer.at));
  }

  pinch(pointer, before) {
    const other = [...this.pointers.values()].find((candidate) => candidate !== pointer).at;
    const apart = (place) => Math.max(Math.hypot(place[0] - other[0], place[1] - other[1]), 1);
    this.zoom(apart(pointer.at) / apart(before), other);
  }

  pointerUp(event) {
    const pointer = this.pointers.get(event.pointerId);
    this.pointers.delete(event.pointerId);
    if (!pointer || pointer.moves) return;
    const box = this.draft;
    this.setDraft(null);
    if (pointer.dragged && pointer.button === 0) {
      if (box) this.onBox(box);
    } else if (this.onPhoto(pointer.from)) {
      const other = event.altKey || event.ctrlKey || pointer.button === 2; // Ctrl+click: a Mac's right click
      this.onPoint(other ? "background" : this.kind(), this.toImage(pointer.from));
    }
  }

  pointerCancel(event) {
    this.pointers.delete(event.pointerId);
    this.setDraft(null);
  }

  /** The box between two places of the stage, cut to the photo; null if that has no area. */
  boxBetween(from, to) {
    const [a, b] = [this.toImage(from), this.toImage(to)];
    const box = [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
    return box[0] < box[2] && box[1] < box[3] ? box : null;
  }

  setDraft(box) {
    this.draft = box;
    this.draw();
  }

  /** Give up the box that is being drawn; false if there is none. */
  cancelBox() {
    const drawing = this.corner !== null || this.draft !== null;
    this.corner = null;
    this.pointers.clear();
    this.setDraft(null);
    return drawing;
  }

  // ---- the keyboard

  keyDown(event) {
    if (!this.width || event.target !== this.element || event.ctrlKey || event.metaKey) return;
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const acts = arrow || ["Enter", " ", "r", "R"].includes(event.key);
    if (!acts) return;
    event.preventDefault();
    // The first key only shows where the crosshair is: in the middle of what is in sight.
    const hidden = this.cursor === null;
    this.cursor ??= this.toImage([this.element.clientWidth / 2, this.element.clientHeight / 2]);
    if (arrow && !hidden) this.moveCursor(arrow, event.shiftKey ? 1 : STEP / this.view.scale);
    if (!event.repeat && (event.key === "Enter" || event.key === " ")) {
      if (this.corner) this.finishBox();
      else this.onPoint(event.altKey ? "background" : this.kind(), [...this.cursor]);
    }
    if (!event.repeat && event.key.toLowerCase() === "r") {
      if (this.corner) this.finishBox();
      else this.corner = [...this.cursor];
    }
    this.draft = this.corner && this.boxBetween(this.toStage(this.corner), this.toStage(this.cursor));
    this.draw();
  }

  moveCursor([dx, dy], step) {
    this.cursor = [
      rounded(clamp(this.cursor[0] + dx * step, 0, this.width)),
      rounded(clamp(this.cursor[1] + dy * step, 0, this.height)),
    ];
    const [x, y] = this.toStage(this.cursor);
    const { clientWidth, clientHeight } = this.element;
    const outside = (value, size) => (value < 0 ? -value + size / 4 : value > size ? size - value - size / 4 : 0);
    const [left, top] = [outside(x, clientWidth), outside(y, clientHeight)];
    if (left || top) this.pan(left, top);
  }

  finishBox() {
    const box = this.boxBetween(this.toStage(this.corner), this.toStage(this.cursor));
    this.corner = this.draft = null;
    if (box) this.onBox(box);
  }
}
