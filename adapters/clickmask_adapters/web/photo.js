// A photo: the bytes as they were chosen, what the browser shows of them, and what the server calls them.

import { Failure } from "./api.js";

const UNKNOWN_TO_SERVER = 410; // it forgot the pixels: send the bytes again

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Failure("The browser cannot read this file any more. Choose it again.", 0));
    reader.readAsDataURL(blob);
  });
}

/** The first picture of an animation, which is what the server sees, standing still. */
async function still(file) {
  const picture = await createImageBitmap(file);
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

export class Photo {
  /** Read `file`; throws Failure if the browser cannot show it. */
  static async read(file) {
    const photo = new Photo();
    photo.file = file;
    photo.name = file.name || "photo";
    const image = new Image();
    try {
      photo.url = URL.createObjectURL(file.type === "image/gif" ? await still(file) : file);
      image.src = photo.url;
      await image.decode();
    } catch {
      URL.revokeObjectURL(photo.url);
      throw new Failure(`The browser cannot show “${photo.name}”. JPEG, PNG, WebP, GIF, BMP and AVIF work here.`, 0);
    }
    // The browser turns photos upright as their EXIF says; so does the server.
    photo.width = image.naturalWidth;
    photo.height = image.naturalHeight;
    return photo;
  }

  /**
   * POST `body`, which names the segmenter, about this photo to `path` by `send(path, body)`. The
   * bytes travel once; after that the digest stands for them, unless the server no longer knows it.
   */
  async ask(send, path, body) {
    for (let again = true; ; again = false) {
      try {
        return await send(path, { image: { digest: await this.digest(send, body.segmenter) }, ...body });
      } catch (error) {
        if (error.status !== UNKNOWN_TO_SERVER || !again) throw error;
        this.known = null;
      }
    }
  }

  /** The server's name for this photo; asked for once, which also lets `segmenter` start to encode. */
  digest(send, segmenter) {
    if (!this.known) {
      const known = this.upload(send, segmenter);
      known.catch(() => {
        if (this.known === known) this.known = null; // the next one tries anew
      });
      this.known = known;
    }
    return this.known;
  }

  async upload(send, segmenter) {
    const answer = await send("/v1/images", { image: { data: await base64(this.file) }, segmenter });
    if (answer.width !== this.width || answer.height !== this.height) {
      throw new Failure(
        `The server sees ${answer.width} × ${answer.height} pixels where the browser shows ` +
          `${this.width} × ${this.height}: clicks would land elsewhere. Save the photo anew and try that.`,
        0,
      );
    }
    return answer.digest;
  }

  close() {
    URL.revokeObjectURL(this.url);
  }
}
