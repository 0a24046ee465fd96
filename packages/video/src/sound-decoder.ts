/** Decoding the sound of a file. */
import {
  AV_CH_LAYOUT_MONO,
  AV_CHANNEL_ORDER_NATIVE,
  AV_CHANNEL_ORDER_UNSPEC,
  AV_NOPTS_VALUE,
  AV_SAMPLE_FMT_FLT,
  AVDISCARD_ALL,
  AVERROR_EOF,
  AVERROR_EXIT,
  AVMEDIA_TYPE_AUDIO,
} from 'node-av/constants';
import {
  Codec,
  CodecContext,
  FFmpegError,
  type FormatContext,
  Frame,
  Packet,
  SoftwareResampleContext,
  type Stream,
} from 'node-av/lib';
import { look } from './open-media.js';
import { type ReadSoundOptions, SOUND_RATE } from './sound.js';
import { aborted, noAudio, unreadable } from './video-errors.js';
import { openContainer } from './video-file.js';

/** One channel. */
const MONO = { nbChannels: 1, order: AV_CHANNEL_ORDER_NATIVE, mask: AV_CH_LAYOUT_MONO };
/** Samples that are given at once: four seconds. */
const PIECE = 4 * SOUND_RATE;
/** Sound that comes later than this behind what was there is behind silence; less is rounding. */
const GAP_SECONDS = 0.1;
/** Without a stated duration, a longer gap is a broken clock. */
const LONGEST_GAP_SECONDS = 3600;
/** Layouts of more channels are no film's. */
const MOST_CHANNELS = 11;

/** What `readSound` gives. */
export async function* decodeSound(
  path: string,
  options: ReadSoundOptions = {},
): AsyncGenerator<Float32Array<ArrayBuffer>, void, undefined> {
  const { name = path, signal, onNote } = options;
  if (signal?.aborted) throw aborted(name, signal.reason);
  const type = await look(path, name);
  if (type === 'folder' || type === 'tar') throw noAudio(name, 'it holds pictures');
  const format = await openContainer(path, name);
  const stop = () => format.interrupt();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    const index = format.findBestStream(AVMEDIA_TYPE_AUDIO);
    const stream = format.streams[index];
    if (index < 0 || stream === undefined) throw noAudio(name, 'it holds no sound track');
    for (const other of format.streams) if (other.index !== stream.index) other.discard = AVDISCARD_ALL;
    using track = await SoundTrack.open(format, stream, name);
    const pieces = new Pieces();
    for await (const samples of track.decode(signal)) yield* pieces.add(samples);
    yield* pieces.rest();
    for (const note of track.notes()) onNote?.(note);
  } finally {
    signal?.removeEventListener('abort', stop);
    format.closeInputSync();
  }
}

/** Joins what decoders give, which may be 20 samples, and cuts what is long. */
class Pieces {
  #samples = new Float32Array(PIECE);
  #count = 0;

  *add(samples: Float32Array): Generator<Float32Array<ArrayBuffer>> {
    for (let taken = 0; taken < samples.length; ) {
      const count = Math.min(PIECE - this.#count, samples.length - taken);
      this.#samples.set(samples.subarray(taken, taken + count), this.#count);
      this.#count += count;
      taken += count;
      if (this.#count === PIECE) yield* this.rest();
    }
  }

  *rest(): Generator<Float32Array<ArrayBuffer>> {
    if (this.#count === 0) return;
    const piece = this.#samples.slice(0, this.#count);
    this.#count = 0;
    yield piece;
  }
}

class SoundTrack implements Disposable {
  readonly #format: FormatContext;
  readonly #stream: Stream;
  readonly #name: string;
  readonly #decoder: CodecContext;
  readonly #packet = new Packet();
  readonly #frame = new Frame();
  #resampler: SoftwareResampleContext | undefined;
  /** What the resampler was made for. */
  #kind = '';
  /** Samples given. */
  #given = 0;
  #damaged = 0;
  #stopped: number | undefined;

  private constructor(format: FormatContext, stream: Stream, name: string, decoder: CodecContext) {
    this.#format = format;
    this.#stream = stream;
    this.#name = name;
    this.#decoder = decoder;
    this.#packet.alloc();
    this.#frame.alloc();
  }

  static async open(format: FormatContext, stream: Stream, name: string): Promise<SoundTrack> {
    const { codecId, codecTagString } = stream.codecpar;
    const codec = Codec.findDecoder(codecId);
    if (codec === null) {
      throw unreadable(name, `there is no decoder for its sound (${codecTagString ?? codecId})`);
    }
    const decoder = new CodecContext();
    decoder.allocContext3(codec);
    decoder.parametersToContext(stream.codecpar);
    decoder.pktTimebase = stream.timeBase;
    const status = await decoder.open2(codec);
    if (status < 0) {
      decoder.freeContext();
      throw unreadable(name, `its sound cannot be decoded (${FFmpegError.strerror(status)})`);
    }
    return new SoundTrack(format, stream, name, decoder);
  }

  async *decode(signal: AbortSignal | undefined): AsyncGenerator<Float32Array> {
    for (;;) {
      const status = await this.#format.readFrame(this.#packet);
      if (signal?.aborted || status === AVERROR_EXIT) throw aborted(this.#name, signal?.reason);
      if (status < 0) {
        if (status !== AVERROR_EOF) this.#stopped = status;
        break;
      }
      if (this.#packet.streamIndex === this.#stream.index) {
        if ((await this.#decoder.sendPacket(this.#packet)) < 0) this.#damaged += 1;
        else yield* this.#frames();
      }
      this.#packet.unref();
    }
    await this.#decoder.sendPacket(null);
    yield* this.#frames();
    yield this.#converted(null, 0);
  }

  /** What went wrong, in words. */
  notes(): string[] {
    const notes: string[] = [];
    if (this.#damaged > 0) notes.push(`sound: ${this.#damaged} damaged packets were left out`);
    if (this.#stopped !== undefined) {
      const seconds = (this.#given / SOUND_RATE).toFixed(1);
      notes.push(`sound: reading stopped at ${seconds} s with "${FFmpegError.strerror(this.#stopped)}"`);
    }
    return notes;
  }

  [Symbol.dispose](): void {
    this.#resampler?.free();
    this.#decoder.freeContext();
    this.#packet.free();
    this.#frame.free();
  }

  async *#frames(): AsyncGenerator<Float32Array> {
    const frame = this.#frame;
    while ((await this.#decoder.receiveFrame(frame)) >= 0) {
      yield* this.#silence(frame);
      yield this.#resampled(frame);
      frame.unref();
    }
  }

  /** What is missing in front of a frame, a piece at a time. */
  *#silence(frame: Frame): Generator<Float32Array> {
    const time = frame.bestEffortTimestamp;
    if (time === AV_NOPTS_VALUE) return;
    const { num, den } = this.#stream.timeBase;
    const start = this.#format.startTime === AV_NOPTS_VALUE ? 0 : Number(this.#format.startTime) / 1e6;
    const seconds = (Number(time) * num) / den - start;
    const duration = Number(this.#format.duration) / 1e6;
    const gap = seconds - this.#given / SOUND_RATE;
    if (gap <= GAP_SECONDS || (duration > 0 ? seconds > duration : gap > LONGEST_GAP_SECONDS)) return;
    for (let left = Math.round(gap * SOUND_RATE); left > 0; left -= PIECE) {
      const samples = new Float32Array(Math.min(left, PIECE));
      this.#given += samples.length;
      yield samples;
    }
  }

  #resampled(frame: Frame): Float32Array {
    const { nbSamples, sampleRate, format, channelLayout } = frame;
    const { nbChannels, order, mask } = channelLayout;
    const kind = `${format} ${sampleRate} ${nbChannels} ${order} ${mask}`;
    let before = new Float32Array();
    if (kind !== this.#kind) {
      before = this.#converted(null, 0);
      this.#resampler?.free();
      this.#resampler = this.#makeResampler(frame);
      this.#kind = kind;
    }
    const samples = this.#converted(frame.extendedData ?? frame.data, nbSamples);
    if (before.length === 0) return samples;
    const joined = new Float32Array(before.length + samples.length);
    joined.set(before);
    joined.set(samples, before.length);
    return joined;
  }

  #makeResampler({ format, sampleRate, channelLayout }: Frame): SoftwareResampleContext {
    const { nbChannels, order } = channelLayout;
    // Where a file does not say which channel is which, they are taken in FFmpeg's order.
    const layout =
      order === AV_CHANNEL_ORDER_UNSPEC && nbChannels <= MOST_CHANNELS
        ? { ...MONO, ...(nbChannels > 1 && { nbChannels, mask: (1n << BigInt(nbChannels)) - 1n }) }
        : channelLayout;
    const resampler = new SoftwareResampleContext();
    const status = resampler.allocSetOpts2(
      MONO,
      AV_SAMPLE_FMT_FLT,
      SOUND_RATE,
      layout,
      format as Parameters<SoftwareResampleContext['allocSetOpts2']>[4],
      sampleRate,
    );
    // As for whole numbers, the reference's: the loudest mix is no louder than a channel.
    if (status >= 0) resampler.setOption('rematrix_maxval', '1');
    const ready = status < 0 ? status : resampler.init();
    if (ready >= 0) return resampler;
    resampler.free();
    const what = `${nbChannels} channels of ${sampleRate} Hz`;
    throw unreadable(this.#name, `its sound, ${what}, cannot be mixed (${FFmpegError.strerror(ready)})`);
  }

  /** What the resampler makes of some samples; without any, what it still holds. */
  #converted(data: Buffer[] | null, count: number): Float32Array<ArrayBuffer> {
    if (this.#resampler === undefined) return new Float32Array();
    const room = this.#resampler.getOutSamples(count);
    if (room <= 0) return new Float32Array();
    const samples = new Float32Array(room);
    const converted = this.#resampler.convertSync([Buffer.from(samples.buffer)], room, data, count);
    if (converted < 0) {
      throw unreadable(this.#name, `its sound cannot be resampled (${FFmpegError.strerror(converted)})`);
    }
    this.#given += converted;
    return samples.subarray(0, converted);
  }
}
