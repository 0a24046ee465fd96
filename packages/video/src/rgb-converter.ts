/**
 * Decoded frames to RGB: the tagged colour matrix, square pixels, upright.
 *
 * At full size by FFmpeg's scaler, whose result equals the reference's reader byte for byte on 8-bit video. Shrinking
 * is left to the preprocessing in Rust, because FFmpeg's shrinking differs from the reference's.
 */

import {
  AV_BUFFERSRC_FLAG_KEEP_REF,
  AV_FRAME_FLAG_INTERLACED,
  AV_PIX_FMT_RGB24,
  AVCHROMA_LOC_CENTER,
  AVCOL_PRI_UNSPECIFIED,
  AVCOL_TRC_UNSPECIFIED,
} from 'node-av/constants';
import {
  FFmpegError,
  Filter,
  type FilterContext,
  FilterGraph,
  Frame,
  SoftwareScaleContext,
} from 'node-av/lib';
import type { Orientation } from './orientation.js';

/** A picture in FFmpeg's memory: 24 bits a pixel, rows top down. */
export interface RgbPicture {
  readonly width: number;
  readonly height: number;
  /** Bytes from one row to the next. */
  readonly stride: number;
  readonly rows: Uint8Array;
}

/** Converts one frame after another into the same memory. */
export class RgbConverter {
  readonly #orientation: Orientation;
  readonly #pixelAspect: number;
  readonly #scaler = new SoftwareScaleContext();
  #stored: Stored | undefined;

  constructor(orientation: Orientation, pixelAspect: number) {
    this.#orientation = orientation;
    this.#pixelAspect = pixelAspect;
    this.#scaler.allocContext();
    check(this.#scaler.setOption('sws_flags', 'bicubic'), 'set up its scaler');
  }

  /** Calls `use` with the RGB picture, which is valid until `use` returns. Changes what `frame` says about its colours. */
  convert<T>(frame: Frame, use: (rgb: RgbPicture) => T): T {
    // Told of these, the scaler would do more than the reference's: move the colour samples of 4:2:0 to the left,
    // convert fields apart, and map brightness and primaries.
    frame.chromaLocation = AVCHROMA_LOC_CENTER;
    frame.clearFlags(AV_FRAME_FLAG_INTERLACED);
    frame.colorPrimaries = AVCOL_PRI_UNSPECIFIED;
    frame.colorTrc = AVCOL_TRC_UNSPECIFIED;
    const { picture, image, turn } = this.#storedFor(frame);
    check(this.#scaler.scaleFrameSync(image, frame), 'convert a frame');
    return turn === undefined ? use(picture) : turn.apply(image, use);
  }

  close(): void {
    this.#free();
    this.#scaler.freeContext();
  }

  #storedFor({ width, height }: Frame): Stored {
    const shown = Math.max(1, Math.round(width * this.#pixelAspect));
    const { picture } = this.#stored ?? {};
    if (this.#stored && picture?.width === shown && picture.height === height) return this.#stored;
    this.#free();
    const image = new Frame();
    image.alloc();
    image.width = shown;
    image.height = height;
    image.format = AV_PIX_FMT_RGB24;
    check(image.getBuffer(0), 'allocate a picture');
    const { filters } = this.#orientation;
    const turn = filters.length > 0 ? new Turn(image, filters) : undefined;
    // One view for all frames: the garbage collector takes each for its megabytes, and runs every few of them.
    this.#stored = { image, picture: pictureOf(image), turn };
    return this.#stored;
  }

  #free(): void {
    this.#stored?.turn?.close();
    this.#stored?.image.free();
    this.#stored = undefined;
  }
}

/** Where frames of one size are converted to, as the file stores them. */
interface Stored {
  readonly image: Frame;
  readonly picture: RgbPicture;
  readonly turn: Turn | undefined;
}

/** Filters that make a stored picture upright. */
class Turn {
  readonly #graph = new FilterGraph();
  readonly #upright = new Frame();
  readonly #source: FilterContext;
  readonly #sink: FilterContext;

  /** For pictures like `image`. */
  constructor({ width, height, format, colorSpace, colorRange }: Frame, filters: readonly string[]) {
    const graph = this.#graph;
    graph.alloc();
    graph.nbThreads = 1;
    // Times play no part; a graph must have a time base.
    const input = `video_size=${width}x${height}:pix_fmt=${format}:time_base=1/1000:colorspace=${colorSpace}:range=${colorRange}`;
    const chain = [['buffer', input], ...filters.map((filter) => filter.split('=')), ['buffersink', '']].map(
      ([name = '', args = ''], place) => {
        const filter = Filter.getByName(name);
        const made = filter && graph.createFilter(filter, `${name}${place}`, args === '' ? null : args);
        if (!made) throw new Error(`FFmpeg has no filter ${name}=${args}`);
        return made;
      },
    );
    chain.forEach((filter, place) => {
      const next = chain[place + 1];
      if (next) check(filter.link(0, next, 0), 'link filters');
    });
    check(graph.configSync(), 'configure filters');
    const [source, sink] = [chain.at(0), chain.at(-1)];
    if (!source || !sink) throw new Error('a filter chain has two ends');
    this.#source = source;
    this.#sink = sink;
  }

  /** Calls `use` with the upright picture, which is freed when `use` returns. */
  apply<T>(image: Frame, use: (rgb: RgbPicture) => T): T {
    check(this.#source.buffersrcAddFrameSync(image, AV_BUFFERSRC_FLAG_KEEP_REF), 'turn a frame');
    this.#upright.alloc();
    try {
      check(this.#sink.buffersinkGetFrameSync(this.#upright), 'turn a frame');
      return use(pictureOf(this.#upright));
    } finally {
      this.#upright.free();
    }
  }

  close(): void {
    this.#graph.free();
  }
}

function pictureOf({ width, height, data, linesize }: Frame): RgbPicture {
  const [rows] = data ?? [];
  const [stride] = linesize;
  if (!rows || stride === undefined) throw new Error('an RGB frame without data');
  return { width, height, stride, rows };
}

/** The rows without the gaps between them. */
export function packRgb({ width, height, stride, rows }: RgbPicture): Uint8Array<ArrayBuffer> {
  const packed = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row += 1) {
    packed.set(rows.subarray(row * stride, row * stride + width * 3), row * width * 3);
  }
  return packed;
}

function check(status: number, what: string): void {
  if (status < 0) throw new Error(`FFmpeg could not ${what}: ${FFmpegError.strerror(status)}`);
}
