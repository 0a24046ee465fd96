/** Video files for tests, made with the FFmpeg that reads them, and the plain way to read them. */
import { createHash } from 'node:crypto';
import {
  AV_BUFFERSRC_FLAG_KEEP_REF,
  AV_CODEC_FLAG_GLOBAL_HEADER,
  AV_CODEC_FLAG_INTERLACED_DCT,
  AV_CODEC_FLAG_INTERLACED_ME,
  AV_DISPOSITION_DEFAULT,
  AV_DISPOSITION_FORCED,
  AV_LOG_QUIET,
  type AVCodecID,
  AVFMT_GLOBALHEADER,
  AVMEDIA_TYPE_AUDIO,
  AVMEDIA_TYPE_SUBTITLE,
  AVMEDIA_TYPE_VIDEO,
  type AVMediaType,
  type FFEncoderCodec,
} from 'node-av/constants';
import {
  avGetPixFmtFromName,
  Codec,
  CodecContext,
  Dictionary,
  FFmpegError,
  Filter,
  type FilterContext,
  FilterGraph,
  FormatContext,
  Frame,
  Log,
  Packet,
} from 'node-av/lib';
import { packRgb } from '../dist/rgb-converter.js';

Log.setLevel(AV_LOG_QUIET);

export interface Recipe {
  /** Size, rate and duration of FFmpeg's test picture. */
  source?: string;
  filters?: string[];
  codec?: string;
  pixel?: string;
  format?: string;
  codecOptions?: Record<string, string>;
  muxerOptions?: Record<string, string>;
  gop?: number;
  bframes?: number;
  interlaced?: boolean;
}

/** Writes a clip of FFmpeg's test picture. */
export function makeClip(path: string, recipe: Recipe = {}): string {
  const { source = 's=320x240:r=25:d=6', filters = [], codec = 'libx264', pixel = 'yuv420p' } = recipe;
  const {
    codecOptions = {},
    muxerOptions = {},
    gop = 25,
    bframes = 2,
    interlaced = false,
    format = null,
  } = recipe;
  const graph = new FilterGraph();
  graph.alloc();
  const { sink } = chained(graph, [`testsrc2=${source}`, ...filters, `format=${pixel}`, 'buffersink']);
  const encoder = Codec.findEncoderByName(codec as FFEncoderCodec);
  if (!encoder) throw new Error(`no encoder ${codec}`);

  const output = new FormatContext();
  check(output.allocOutputContext2(null, format, path));
  const context = new CodecContext();
  context.allocContext3(encoder);
  context.width = sink.buffersinkGetWidth();
  context.height = sink.buffersinkGetHeight();
  context.pixelFormat = avGetPixFmtFromName(pixel);
  const timeBase = sink.buffersinkGetTimeBase();
  context.timeBase = timeBase;
  context.framerate = sink.buffersinkGetFrameRate();
  context.sampleAspectRatio = sink.buffersinkGetSampleAspectRatio();
  context.gopSize = gop;
  context.maxBFrames = bframes;
  context.bitRate = 400_000n;
  context.threadCount = 1;
  if (((output.oformat?.flags ?? 0) & AVFMT_GLOBALHEADER) !== 0)
    context.setFlags(AV_CODEC_FLAG_GLOBAL_HEADER);
  if (interlaced) context.setFlags(AV_CODEC_FLAG_INTERLACED_DCT, AV_CODEC_FLAG_INTERLACED_ME);
  // Not through a dictionary: node-av 6.1.1 frees one that FFmpeg has taken entries from a second time.
  for (const [name, value] of Object.entries(codecOptions)) check(context.setOption(name, value));
  check(context.open2Sync(encoder, null));
  const stream = output.newStream(null);
  stream.timeBase = timeBase;
  check(stream.codecpar.fromContext(context));
  stream.avgFrameRate = context.framerate;
  stream.sampleAspectRatio = context.sampleAspectRatio;
  check(output.openOutputSync());
  for (const [name, value] of Object.entries(muxerOptions)) check(output.setOption(name, value));
  check(output.writeHeaderSync(null));

  const frame = new Frame();
  frame.alloc();
  const packet = new Packet();
  packet.alloc();
  const write = () => {
    while (context.receivePacketSync(packet) >= 0) {
      packet.streamIndex = 0;
      packet.rescaleTs(timeBase, stream.timeBase);
      check(output.interleavedWriteFrameSync(packet));
    }
  };
  while (sink.buffersinkGetFrameSync(frame) >= 0) {
    check(context.sendFrameSync(frame));
    frame.unref();
    write();
  }
  check(context.sendFrameSync(null));
  write();
  check(output.writeTrailerSync());
  output.closeOutputSync();
  packet.free();
  frame.free();
  context.freeContext();
  graph.free();
  return path;
}

/** Opens a file and another for a copy of its best stream of this type, which is the copy's first. */
function openCopy(from: string, to: string, type: AVMediaType) {
  const input = new FormatContext();
  check(input.openInputSync(from));
  check(input.findStreamInfoSync());
  const index = input.findBestStream(type);
  const source = input.streams[index];
  if (!source) throw new Error(`${from} has no stream of type ${type}`);
  const output = new FormatContext();
  check(output.allocOutputContext2(null, null, to));
  const stream = output.newStream(null);
  check(source.codecpar.copy(stream.codecpar));
  stream.codecpar.codecTag = 0;
  stream.timeBase = source.timeBase;
  return { input, index, source, output, stream };
}

/** Copies the stream's packets, ends the copy and closes both files. Frees `packet`. */
function finishCopy(copy: ReturnType<typeof openCopy>, packet: Packet): void {
  const { input, index, source, output, stream } = copy;
  while (input.readFrameSync(packet) >= 0) {
    if (packet.streamIndex === index) {
      packet.streamIndex = 0;
      packet.rescaleTs(source.timeBase, stream.timeBase);
      check(output.interleavedWriteFrameSync(packet));
    }
    packet.unref();
  }
  packet.free();
  check(output.writeTrailerSync());
  output.closeOutputSync();
  input.closeInputSync();
}

/** Copies the sound of a file into another, without its video. */
export function copySound(from: string, to: string): string {
  const copy = openCopy(from, to, AVMEDIA_TYPE_AUDIO);
  check(copy.output.openOutputSync());
  check(copy.output.writeHeaderSync(null));
  const packet = new Packet();
  packet.alloc();
  finishCopy(copy, packet);
  return to;
}

/** A stream of subtitles for {@link addSubtitles}. */
export interface SubtitleRecipe {
  codec: AVCodecID;
  language?: string;
  forced?: boolean;
  default?: boolean;
  header?: string;
  /** Milliseconds and bytes. */
  cues: [start: number, duration: number, data: string][];
}

/** Copies the video of a file into another, with subtitles beside it. */
export function addSubtitles(from: string, to: string, recipes: readonly SubtitleRecipe[]): string {
  const copy = openCopy(from, to, AVMEDIA_TYPE_VIDEO);
  const { output } = copy;
  const streams = recipes.map(({ codec, language, forced, default: isDefault, header }) => {
    const stream = output.newStream(null);
    stream.codecpar.codecType = AVMEDIA_TYPE_SUBTITLE;
    stream.codecpar.codecId = codec;
    if (header !== undefined) stream.codecpar.extradata = Buffer.from(header);
    stream.timeBase = { num: 1, den: 1000 };
    if (language !== undefined) stream.metadata = Dictionary.fromObject({ language });
    stream.disposition = (forced ? AV_DISPOSITION_FORCED : 0) | (isDefault ? AV_DISPOSITION_DEFAULT : 0);
    return stream;
  });
  check(output.openOutputSync());
  check(output.writeHeaderSync(null));
  const packet = new Packet();
  packet.alloc();
  recipes.forEach(({ cues }, place) => {
    const stream = streams[place];
    if (!stream) return;
    for (const [start, duration, data] of cues) {
      packet.data = Buffer.from(data, 'latin1');
      packet.streamIndex = stream.index;
      packet.pts = BigInt(start);
      packet.dts = BigInt(start);
      packet.duration = BigInt(duration);
      packet.isKeyframe = true;
      packet.rescaleTs({ num: 1, den: 1000 }, stream.timeBase);
      check(output.interleavedWriteFrameSync(packet));
      packet.unref();
    }
  });
  finishCopy(copy, packet);
  return to;
}

/**
 * Counts the displayed frames and hashes some of them, decoding one after another by one thread: what sampling is held
 * against.
 */
export function decodePlainly(
  path: string,
  wanted: ReadonlySet<number>,
  width?: number,
): { count: number; hashes: Map<number, string> } {
  const input = new FormatContext();
  check(input.openInputSync(path));
  check(input.findStreamInfoSync());
  const index = input.findBestStream(AVMEDIA_TYPE_VIDEO);
  const stream = input.streams[index];
  const codec = stream && Codec.findDecoder(stream.codecpar.codecId);
  if (!stream || !codec) throw new Error(`${path} has no video`);
  const context = new CodecContext();
  context.allocContext3(codec);
  check(context.parametersToContext(stream.codecpar));
  context.threadCount = 1;
  check(context.open2Sync(codec, null));
  const packet = new Packet();
  packet.alloc();
  const frame = new Frame();
  frame.alloc();
  const scale = new ScaleFilter();
  const hashes = new Map<number, string>();
  let count = 0;
  const receive = () => {
    while (context.receiveFrameSync(frame) >= 0) {
      if (wanted.has(count)) hashes.set(count, hash(scale.convert(frame, width)));
      count += 1;
      frame.unref();
    }
  };
  while (input.readFrameSync(packet) >= 0) {
    if (packet.streamIndex === index) {
      context.sendPacketSync(packet);
      receive();
    }
    packet.unref();
  }
  context.sendPacketSync(null);
  receive();
  scale.close();
  packet.free();
  frame.free();
  context.freeContext();
  input.closeInputSync();
  return { count, hashes };
}

interface Ends {
  readonly source: FilterContext;
  readonly sink: FilterContext;
}

/** Full-size RGB by FFmpeg's filter of this name. */
class ScaleFilter {
  #graph: FilterGraph | undefined;
  #ends: Ends | undefined;

  convert(frame: Frame, width = frame.width): Uint8Array {
    this.#ends ??= this.#configure(frame, width);
    const { source, sink } = this.#ends;
    const rgb = new Frame();
    rgb.alloc();
    check(source.buffersrcAddFrameSync(frame, AV_BUFFERSRC_FLAG_KEEP_REF));
    check(sink.buffersinkGetFrameSync(rgb));
    const [rows = Buffer.alloc(0)] = rgb.data ?? [];
    const packed = packRgb({ width, height: rgb.height, stride: rgb.linesize[0] ?? 0, rows });
    rgb.free();
    return packed;
  }

  close(): void {
    this.#graph?.free();
  }

  /** For frames like this one. */
  #configure(frame: Frame, shownWidth: number): Ends {
    const { width, height, format, colorSpace, colorRange } = frame;
    const graph = new FilterGraph();
    graph.alloc();
    this.#graph = graph;
    const input = `video_size=${width}x${height}:pix_fmt=${format}:time_base=1/1000:colorspace=${colorSpace}:range=${colorRange}`;
    return chained(graph, [
      `buffer=${input}`,
      `scale=w=${shownWidth}:h=${height}:flags=bicubic`,
      'format=pix_fmts=rgb24',
      'buffersink',
    ]);
  }
}

/** Makes filters, each written `name=arguments`, one behind the other; gives both ends. */
function chained(graph: FilterGraph, chain: readonly string[]): Ends {
  const filters = chain.map((written, place) => {
    const [name = '', ...args] = written.split('=');
    const filter = Filter.getByName(name);
    const made = filter && graph.createFilter(filter, `${name}${place}`, args.join('=') || null);
    if (!made) throw new Error(`no filter ${name}`);
    return made;
  });
  filters.forEach((filter, place) => {
    const next = filters[place + 1];
    if (next) check(filter.link(0, next, 0));
  });
  check(graph.configSync());
  const [source, sink] = [filters.at(0), filters.at(-1)];
  if (!source || !sink) throw new Error('a filter chain has two ends');
  return { source, sink };
}

export function hash(data: Uint8Array): string {
  return createHash('md5').update(data).digest('hex');
}

function check(status: number): void {
  if (status < 0) throw new Error(FFmpegError.strerror(status));
}
