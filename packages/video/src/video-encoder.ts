/** FFmpeg's encoder and muxer for one file of RGB frames. */
import { LlamaVidError } from '@llamavid/errors';
import {
  AV_CODEC_FLAG_GLOBAL_HEADER,
  AV_LOG_QUIET,
  AV_PIX_FMT_RGB24,
  AV_PIX_FMT_YUV420P,
  AVCOL_PRI_BT709,
  AVCOL_RANGE_MPEG,
  AVCOL_SPC_BT709,
  AVCOL_TRC_BT709,
  AVERROR_EAGAIN,
  AVERROR_ENOSPC,
  AVERROR_EOF,
  FF_ENCODER_LIBX264,
} from 'node-av/constants';
import {
  Codec,
  CodecContext,
  FFmpegError,
  Filter,
  type FilterContext,
  FilterGraph,
  FormatContext,
  Frame,
  Log,
  Packet,
  Rational,
  type Stream,
} from 'node-av/lib';
import { diskFull } from './video-errors.js';

/** What the file is to be; checked by the caller. */
export interface EncoderSettings {
  readonly width: number;
  readonly height: number;
  readonly fps: number;
  readonly crf: number;
  readonly preset: string;
  readonly threads: number;
}

/** Times are counted in thousandths of a frame's length, so that rates need not be whole numbers. */
const TICKS = 1000;

/** An MP4 file that is being written. Holds native memory until `close`. */
export class VideoEncoder {
  readonly #name: string;
  readonly #settings: EncoderSettings;
  readonly #output = new FormatContext();
  readonly #context = new CodecContext();
  readonly #graph = new FilterGraph();
  readonly #yuv = new Frame();
  readonly #packet = new Packet();
  #source: FilterContext | undefined;
  #sink: FilterContext | undefined;
  #stream: Stream | undefined;
  #frames = 0;
  #outputIsOpen = false;

  private constructor(name: string, settings: EncoderSettings) {
    this.#name = name;
    this.#settings = settings;
  }

  /** Opens the encoder and writes the header to `path`; `name` is what errors call the file. */
  static async open(path: string, name: string, settings: EncoderSettings): Promise<VideoEncoder> {
    Log.setLevel(AV_LOG_QUIET);
    const encoder = new VideoEncoder(name, settings);
    try {
      encoder.#packet.alloc();
      encoder.#makeConverter();
      await encoder.#begin(path);
      return encoder;
    } catch (error) {
      await encoder.close();
      throw error;
    }
  }

  /** Encodes the next frame. */
  async write(rgb: Uint8Array): Promise<void> {
    const { width, height } = this.#settings;
    const bytes = width * height * 3;
    if (!(rgb instanceof Uint8Array) || rgb.byteLength !== bytes) {
      const given = rgb instanceof Uint8Array ? `${rgb.byteLength} bytes` : typeof rgb;
      throw new LlamaVidError(
        'INVALID_ARGUMENT',
        `Frame ${this.#frames} of ${this.#name} is ${given}, but must be ${width} x ${height} x 3 = ${bytes} bytes.`,
        { hint: 'Give a Uint8Array of red, green and blue, rows without gaps.' },
      );
    }
    const frame = new Frame();
    frame.alloc();
    try {
      this.#fill(frame, rgb);
      this.#check(await this.#source?.buffersrcAddFrame(frame), 'convert a frame');
    } finally {
      frame.free();
    }
    this.#yuv.alloc();
    try {
      this.#check(await this.#sink?.buffersinkGetFrame(this.#yuv), 'convert a frame');
      this.#check(await this.#context.sendFrame(this.#yuv), 'encode a frame');
    } finally {
      this.#yuv.free();
    }
    this.#frames += 1;
    await this.#drain();
  }

  /**
   * Copies the pixels row by row into memory that FFmpeg has laid out. Its converter reads rows in whole vectors, beyond the
   * last pixel: `Frame.fromBuffer` of node-av 6.1.1 makes rows without room behind them, and the process may end there.
   */
  #fill(frame: Frame, rgb: Uint8Array): void {
    const { width, height } = this.#settings;
    frame.width = width;
    frame.height = height;
    frame.format = AV_PIX_FMT_RGB24;
    frame.pts = BigInt(this.#frames * TICKS);
    frame.timeBase = new Rational(this.#timeBase.num, this.#timeBase.den);
    this.#check(frame.getBuffer(), 'make room for a frame');
    const pixels = frame.data?.[0];
    const stride = frame.linesize[0];
    if (pixels === undefined || stride === undefined) throw new Error('FFmpeg made a frame without memory');
    for (let row = 0; row < height; row += 1) {
      pixels.set(rgb.subarray(row * width * 3, (row + 1) * width * 3), row * stride);
    }
  }

  /** Writes what the encoder holds back and the index. */
  async finish(): Promise<void> {
    this.#check(await this.#context.sendFrame(null), 'end the encoding');
    await this.#drain();
    this.#check(await this.#output.writeTrailer(), 'write the index');
  }

  /** Frees the native memory and closes the file. Closing twice does nothing. */
  async close(): Promise<void> {
    if (this.#outputIsOpen) await this.#output.closeOutput();
    this.#outputIsOpen = false;
    this.#packet.free();
    this.#yuv.free();
    this.#context.freeContext();
    this.#graph.free();
  }

  get #timeBase() {
    return { num: 1, den: Math.round(this.#settings.fps * TICKS) };
  }

  /** RGB to 4:2:0 with the matrix that the file is tagged with. */
  #makeConverter(): void {
    const { width, height } = this.#settings;
    const { num, den } = this.#timeBase;
    this.#graph.alloc();
    this.#graph.nbThreads = 1;
    const chain = [
      ['buffer', `video_size=${width}x${height}:pix_fmt=${AV_PIX_FMT_RGB24}:time_base=${num}/${den}`],
      ['scale', 'flags=bicubic+accurate_rnd+full_chroma_int:out_color_matrix=bt709:out_range=tv'],
      ['format', 'pix_fmts=yuv420p'],
      ['buffersink', ''],
    ].map(([name = '', args = ''], place) => {
      const filter = Filter.getByName(name);
      const made = filter && this.#graph.createFilter(filter, `${name}${place}`, args === '' ? null : args);
      if (!made) throw new Error(`FFmpeg has no filter ${name}=${args}`);
      return made;
    });
    chain.forEach((filter, place) => {
      const next = chain[place + 1];
      if (next) this.#check(filter.link(0, next, 0), 'link filters');
    });
    this.#check(this.#graph.configSync(), 'configure filters');
    this.#source = chain.at(0);
    this.#sink = chain.at(-1);
  }

  async #begin(path: string): Promise<void> {
    const { width, height, fps, crf, preset, threads } = this.#settings;
    const { num, den } = this.#timeBase;
    const codec = Codec.findEncoderByName(FF_ENCODER_LIBX264);
    if (!codec) throw new Error('FFmpeg has no libx264');
    this.#check(this.#output.allocOutputContext2(null, 'mp4', path), 'make the file');
    const context = this.#context;
    context.allocContext3(codec);
    context.width = width;
    context.height = height;
    context.pixelFormat = AV_PIX_FMT_YUV420P;
    context.timeBase = new Rational(num, den);
    context.framerate = new Rational(den, TICKS);
    context.sampleAspectRatio = new Rational(1, 1);
    // A key frame at least every five seconds keeps seeking quick.
    context.gopSize = Math.max(1, Math.round(fps * 5));
    context.threadCount = threads;
    context.colorRange = AVCOL_RANGE_MPEG;
    context.colorSpace = AVCOL_SPC_BT709;
    context.colorPrimaries = AVCOL_PRI_BT709;
    context.colorTrc = AVCOL_TRC_BT709;
    context.setFlags(AV_CODEC_FLAG_GLOBAL_HEADER);
    // Not through a dictionary: node-av 6.1.1 frees one that FFmpeg has taken entries from a second time.
    this.#check(context.setOption('preset', preset), `take the preset ${preset}`);
    this.#check(context.setOption('crf', `${crf}`), `take the rate factor ${crf}`);
    this.#check(await context.open2(codec, null), 'open the encoder');
    const stream = this.#output.newStream(null);
    stream.timeBase = context.timeBase;
    stream.avgFrameRate = context.framerate;
    this.#check(stream.codecpar.fromContext(context), 'describe the stream');
    this.#stream = stream;
    this.#check(await this.#output.openOutput(), 'open the file');
    this.#outputIsOpen = true;
    // The index in front lets players start before they have the whole file.
    this.#check(this.#output.setOption('movflags', '+faststart'), 'put the index in front');
    this.#check(await this.#output.writeHeader(null), 'write the header');
  }

  /** Writes the packets that are ready. */
  async #drain(): Promise<void> {
    for (;;) {
      const received = await this.#context.receivePacket(this.#packet);
      if (received === AVERROR_EAGAIN || received === AVERROR_EOF) return;
      this.#check(received, 'encode a frame');
      this.#packet.streamIndex = 0;
      this.#packet.duration = BigInt(TICKS);
      if (this.#stream) this.#packet.rescaleTs(this.#context.timeBase, this.#stream.timeBase);
      this.#check(await this.#output.interleavedWriteFrame(this.#packet), 'write a frame');
    }
  }

  #check(status: number | undefined, what: string): void {
    if (status === undefined || status >= 0) return;
    if (status === AVERROR_ENOSPC) throw diskFull(this.#name);
    throw new LlamaVidError(
      'INTERNAL',
      `FFmpeg could not ${what} (${this.#name}): ${FFmpegError.strerror(status)}.`,
    );
  }
}
