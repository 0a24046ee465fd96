/**
 * Decoded frames to RGB: the tagged colour matrix, square pixels, upright.
 *
 * At full size through FFmpeg's `scale` filter, whose result equals the reference's reader byte for byte on 8-bit
 * video; node-av's own scaler ignores the colour tags. Shrinking is left to the preprocessing in Rust, because
 * FFmpeg's shrinking differs from the reference's.
 */

import { AV_BUFFERSRC_FLAG_KEEP_REF } from 'node-av/constants';
import { FFmpegError, Filter, type FilterContext, FilterGraph, Frame } from 'node-av/lib';
import type { Orientation } from './orientation.js';

/** A filter graph that is made anew when frames change their size or colours. */
export class RgbConverter {
  readonly #orientation: Orientation;
  readonly #pixelAspect: number;
  readonly #output = new Frame();
  #graph: FilterGraph | undefined;
  #source: FilterContext | undefined;
  #sink: FilterContext | undefined;
  #madeFor = '';

  constructor(orientation: Orientation, pixelAspect: number) {
    this.#orientation = orientation;
    this.#pixelAspect = pixelAspect;
  }

  /** Calls `use` with the RGB frame (24 bits a pixel), which is freed when `use` returns. */
  convert<T>(frame: Frame, use: (rgb: Frame) => T): T {
    const { source, sink } = this.#configured(frame);
    check(source.buffersrcAddFrameSync(frame, AV_BUFFERSRC_FLAG_KEEP_REF), 'convert a frame');
    this.#output.alloc();
    try {
      check(sink.buffersinkGetFrameSync(this.#output), 'convert a frame');
      return use(this.#output);
    } finally {
      this.#output.free();
    }
  }

  close(): void {
    this.#graph?.free();
    this.#graph = undefined;
  }

  #configured(frame: Frame): { source: FilterContext; sink: FilterContext } {
    const { width, height, format, colorSpace, colorRange } = frame;
    const key = [width, height, format, colorSpace, colorRange].join(' ');
    if (key === this.#madeFor && this.#source && this.#sink)
      return { source: this.#source, sink: this.#sink };
    this.close();
    const graph = new FilterGraph();
    graph.alloc();
    graph.nbThreads = 1;
    this.#graph = graph;
    // Times play no part; a graph must have a time base.
    const input = `video_size=${width}x${height}:pix_fmt=${format}:time_base=1/1000:colorspace=${colorSpace}:range=${colorRange}`;
    const shown = Math.max(1, Math.round(width * this.#pixelAspect));
    const chain = [
      ['buffer', input],
      ['scale', `w=${shown}:h=${height}:flags=bicubic`],
      ['format', 'pix_fmts=rgb24'],
      ...this.#orientation.filters.map((filter) => filter.split('=')),
      ['buffersink', ''],
    ].map(([name = '', args = ''], place) => {
      const filter = Filter.getByName(name);
      const made = filter && graph.createFilter(filter, `${name}${place}`, args === '' ? null : args);
      if (!made) throw new Error(`FFmpeg has no filter ${name}=${args}`);
      return made;
    });
    chain.forEach((filter, place) => {
      const next = chain[place + 1];
      if (next) check(filter.link(0, next, 0), 'link filters');
    });
    check(graph.configSync(), 'configure filters');
    const source = chain.at(0);
    const sink = chain.at(-1);
    if (!source || !sink) throw new Error('a filter chain has two ends');
    this.#source = source;
    this.#sink = sink;
    this.#madeFor = key;
    return { source, sink };
  }
}

/** The first plane's rows without the gaps between them. */
export function packRgb(rgb: Frame): Uint8Array<ArrayBuffer> {
  const rows = rgb.data?.[0];
  const stride = rgb.linesize[0];
  if (!rows || stride === undefined) throw new Error('an RGB frame without data');
  const { width, height } = rgb;
  const packed = new Uint8Array(width * height * 3);
  for (let row = 0; row < height; row += 1) {
    packed.set(rows.subarray(row * stride, row * stride + width * 3), row * width * 3);
  }
  return packed;
}

function check(status: number, what: string): void {
  if (status < 0) throw new Error(`FFmpeg could not ${what}: ${FFmpegError.strerror(status)}`);
}
