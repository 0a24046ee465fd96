/**
 * A video file opened with FFmpeg, and its packet table: pass 1, which reads all packets and decodes none.
 *
 * Runs in the decoding worker.
 */
import { open as openFile } from 'node:fs/promises';
import {
  AV_CODEC_ID_HEVC,
  AV_CODEC_ID_VP8,
  AV_DISPOSITION_ATTACHED_PIC,
  AV_LOG_QUIET,
  AV_NOPTS_VALUE,
  AV_PKT_DATA_DISPLAYMATRIX,
  AV_PKT_FLAG_CORRUPT,
  AV_PKT_FLAG_DISCARD,
  AVERROR_EOF,
  AVERROR_EXIT,
  AVERROR_STREAM_NOT_FOUND,
  AVMEDIA_TYPE_VIDEO,
} from 'node-av/constants';
import { Codec, Dictionary, FFmpegError, FormatContext, Log, Packet, type Stream } from 'node-av/lib';
import type { Control } from './control.js';
import { readDeclaredSize } from './declared-size.js';
import type { PacketTable } from './decode-plan.js';
import { type Orientation, orientationOf, UPRIGHT } from './orientation.js';
import { noVideo, tooLarge, truncated, unreadable } from './video-errors.js';

/**
 * Formats that hold their own pictures. Playlists (HLS, DASH, concat) are left out: they name other files and
 * addresses, and a media file must not make us read those.
 */
const FORMATS = [
  'mov,mp4,m4a,3gp,3g2,mj2',
  'matroska,webm,avi,mpeg,mpegts,mpegvideo,mpegtsraw,m4v,h264,hevc,av1,obu,ivf,vc1,dirac',
  'flv,live_flv,asf,ogg,gif,apng,mxf,nut,rm,wtv,dv,yuv4mpegpipe,mjpeg,mjpeg_2000,swf,roq,smk,bink,nsv,gxf',
  // Known so that a sound file is told from garbage.
  'wav,mp3,aac,flac,ac3,eac3,aiff,au,caf,w64,ape,wv,tta,amr,dts,truehd',
].join(',');

/** Bad files keep some demuxers busy for long; good ones open in milliseconds. */
const OPEN_SECONDS = 8;

/** A shorter tail than this is missing from many whole files: their duration is rounded, or the sound's. */
const MISSING_SECONDS = 1;

/** An opened file with its video stream. Holds native memory until `close`. */
export class VideoFile {
  readonly name: string;
  readonly format: FormatContext;
  readonly stream: Stream;
  readonly codec: Codec;

  private constructor(name: string, format: FormatContext, stream: Stream, codec: Codec) {
    this.name = name;
    this.format = format;
    this.stream = stream;
    this.codec = codec;
  }

  /** Opens the file and finds its video stream, within some seconds. */
  static async open(path: string, name: string, maxPixels: number): Promise<VideoFile> {
    // A small file can hold a huge picture; probing must not decode it either, where the header gives its size.
    const format = await openContainer(path, name, (stream) => checkSize(stream, name, maxPixels));
    try {
      return new VideoFile(name, format, ...chooseStream(format, name, maxPixels));
    } catch (error) {
      format.closeInputSync();
      throw error;
    }
  }

  get codecName(): string {
    return this.codec.name === 'libdav1d' ? 'av1' : (this.codec.name ?? 'unknown');
  }

  /** Seconds on the file's clock, which players start at 0, of a time in a stream's time base. */
  seconds(pts: number, { timeBase: { num, den } }: Stream = this.stream): number {
    return toMicroseconds((pts * num) / den - this.startSeconds);
  }

  /** Where the file's clock starts. */
  get startSeconds(): number {
    return toNumber(this.format.startTime) / 1e6 || 0;
  }

  /** Where the video starts, in the stream's time base; where the file does not say, with the file. */
  get streamStart(): number {
    const { num, den } = this.stream.timeBase;
    const start = toNumber(this.stream.startTime);
    return Number.isNaN(start) ? (this.startSeconds * den) / num : start;
  }

  /** The container's own answer. */
  get statedDuration(): number | undefined {
    const duration = toNumber(this.format.duration) / 1e6;
    return duration > 0 ? duration : undefined;
  }

  /** Width ÷ height of a stored pixel. */
  get pixelAspect(): number {
    for (const { num, den } of [this.stream.sampleAspectRatio, this.stream.codecpar.sampleAspectRatio]) {
      // Beyond 1:8 it is a broken header, not a format.
      if (num > 0 && den > 0 && num / den >= 1 / 8 && num / den <= 8) return num / den;
    }
    return 1;
  }

  /** How the stored picture is turned for display. */
  get orientation(): Orientation {
    const matrix = this.stream.codecpar.getCodedSideData(AV_PKT_DATA_DISPLAYMATRIX);
    return matrix === null ? UPRIGHT : orientationOf(matrix);
  }

  /** Whether pictures may be stored as two fields, each a packet of its own. */
  get fieldsMayBeApart(): boolean {
    const { fieldOrder } = this.stream.codecpar.toJSON() as { fieldOrder?: number };
    // MP4 and Matroska keep both fields in a sample.
    return (fieldOrder ?? 0) > 1 && !/mov|matroska/.test(this.format.iformat?.name ?? '');
  }

  /**
   * Whether the decoder may leave out frames that nothing refers to. Not in HEVC with temporal layers: there,
   * "not referred to" counts within a layer only.
   */
  get mayLeaveOutFrames(): boolean {
    const { codecId, extradata } = this.stream.codecpar;
    if (codecId !== AV_CODEC_ID_HEVC) return true;
    const [version] = extradata ?? [];
    const layers = ((extradata?.[21] ?? 0) >> 3) & 7;
    return version === 1 && layers === 1;
  }

  close(): void {
    this.format.closeInputSync();
  }
}

/** Opens a file and looks at its streams, within some seconds; `check` may refuse one before it is probed. */
export async function openContainer(
  path: string,
  name: string,
  check: (stream: Stream) => void = () => {},
): Promise<FormatContext> {
  Log.setLevel(AV_LOG_QUIET);
  const format = new FormatContext();
  const deadline = setTimeout(() => format.interrupt(), OPEN_SECONDS * 1000);
  const options = Dictionary.fromObject({
    // `file:` and the list keep a path from being taken for an address.
    protocol_whitelist: 'file',
    format_whitelist: FORMATS,
  });
  try {
    const opened = await format.openInput(`file:${path}`, null, options);
    if (opened < 0) throw await openingError(path, name, opened);
    for (const stream of format.streams) check(stream);
    const found = await format.findStreamInfo(null);
    if (found < 0) throw await openingError(path, name, found);
    return format;
  } catch (error) {
    format.closeInputSync();
    throw error;
  } finally {
    clearTimeout(deadline);
    options.free();
  }
}

/** What pass 1 found. */
export interface VideoIndex {
  readonly table: PacketTable;
  /** Times of displayed frames in the stream's time base, rising; undefined where the file does not give all. */
  readonly displayTimes: Float64Array | undefined;
  /** Number of displayed frames; an estimate without `displayTimes`. */
  readonly frameCount: number;
  readonly averageFps: number;
  /** Seconds up to the end of the last frame that is there. */
  readonly endSeconds: number;
  readonly durationSeconds: number;
  /** Why the file counts as cut off. */
  readonly truncation: string | undefined;
  readonly notes: readonly string[];
}

/** Reads all packets. Returns undefined when cancelled. */
export async function indexVideo(
  file: VideoFile,
  path: string,
  control: Control,
): Promise<VideoIndex | undefined> {
  const { format, stream } = file;
  const table = new GrowingTable();
  const packet = new Packet();
  packet.alloc();
  const isVp8 = stream.codecpar.codecId === AV_CODEC_ID_VP8;
  const timeBases = format.streams.map(({ timeBase: { num, den } }) => num / den);
  let fileEnd = Number.NEGATIVE_INFINITY; // seconds, over all streams
  let lastEnd = Number.NEGATIVE_INFINITY; // stream time base, of displayed frames
  let corrupt = 0;
  let status = 0;
  try {
    for (;;) {
      status = format.readFrameSync(packet);
      if (status < 0 || control.cancelled) break;
      control.beat();
      const pts = packet.pts === AV_NOPTS_VALUE ? Number.NaN : Number(packet.pts);
      const time = Number.isNaN(pts) ? toNumber(packet.dts) : pts;
      const end = time + Math.max(0, toNumber(packet.duration) || 0);
      const scale = timeBases[packet.streamIndex];
      if (scale !== undefined && end * scale > fileEnd) fileEnd = end * scale;
      if (packet.streamIndex === stream.index) {
        const shown = (packet.flags & AV_PKT_FLAG_DISCARD) === 0 && !(isVp8 && isHiddenVp8(packet.data));
        if ((packet.flags & AV_PKT_FLAG_CORRUPT) !== 0) corrupt += 1;
        if (shown && end > lastEnd) lastEnd = end;
        table.push(pts, packet.isKeyframe, shown);
      }
      packet.unref();
    }
  } finally {
    packet.free();
  }
  if (control.cancelled) return undefined;
  if (table.count === 0) throw await emptyStream(path, file.name);

  const { shownCount, displayTimes } = displayOrder(table, file);
  const endSeconds = Number.isFinite(lastEnd) ? Math.max(0, file.seconds(lastEnd)) : 0;
  const durationSeconds = file.statedDuration ?? endSeconds;
  const averageFps = averageRate(stream, shownCount, endSeconds);
  const truncation = await findTruncation(file, path, {
    brokenOff: status !== AVERROR_EOF ? status : undefined,
    stated: shownCount === table.count ? Number(stream.nbFrames) : 0,
    there: shownCount,
    endSeconds,
    fileSeconds: fileEnd - file.startSeconds,
    averageFps,
  });
  const notes: string[] = [];
  if (truncation !== undefined) notes.push(`truncated: ${truncation}`);
  if (corrupt > 0) notes.push(`damaged: ${corrupt} of ${table.count} packets are incomplete`);
  const outside = isVp8 ? 0 : table.count - shownCount;
  if (outside > 0)
    notes.push(`edit list: ${outside} of ${table.count} frames lie outside of it and are not displayed`);
  return {
    table,
    displayTimes,
    frameCount: shownCount,
    averageFps,
    endSeconds,
    durationSeconds,
    truncation:
      truncation ?? (corrupt > 0 ? `${corrupt} of ${table.count} packets are incomplete` : undefined),
    notes,
  };
}

/** A table that grows as packets are read. */
class GrowingTable implements PacketTable {
  count = 0;
  pts = new Float64Array(1024);
  key = new Uint8Array(1024);
  shown = new Uint8Array(1024);

  push(pts: number, key: boolean, shown: boolean): void {
    if (this.count === this.pts.length) {
      this.pts = grown(this.pts, new Float64Array(this.count * 2));
      this.key = grown(this.key, new Uint8Array(this.count * 2));
      this.shown = grown(this.shown, new Uint8Array(this.count * 2));
    }
    this.pts[this.count] = pts;
    this.key[this.count] = key ? 1 : 0;
    this.shown[this.count] = shown ? 1 : 0;
    this.count += 1;
  }
}

function grown<A extends Float64Array | Uint8Array>(from: A, to: A): A {
  to.set(from);
  return to;
}

function displayOrder(table: PacketTable, file: VideoFile) {
  const times = table.pts.slice(0, table.count).filter((_, packet) => table.shown[packet] === 1);
  times.sort();
  // NaN sorts to the end. Frames without a time, or with another's, can only be told apart by counting.
  const complete =
    !file.fieldsMayBeApart && times.every((time, frame) => !Number.isNaN(time) && time !== times[frame - 1]);
  return { shownCount: times.length, displayTimes: complete && times.length > 0 ? times : undefined };
}

function averageRate(stream: Stream, frames: number, seconds: number): number {
  for (const { num, den } of [stream.avgFrameRate, stream.rFrameRate]) {
    if (num > 0 && den > 0) return num / den;
  }
  return seconds > 0 ? frames / seconds : 25;
}

interface Found {
  /** Frames that the container says it has; 0 where it does not, or displays a part only. */
  readonly stated: number;
  readonly brokenOff: number | undefined;
  readonly there: number;
  readonly endSeconds: number;
  readonly fileSeconds: number;
  readonly averageFps: number;
}

async function findTruncation(file: VideoFile, path: string, found: Found): Promise<string | undefined> {
  const stated = file.statedDuration;
  const missing = stated === undefined ? 0 : stated - Math.max(found.fileSeconds, found.endSeconds);
  const { bytes, size } = await declaredSize(path);
  const short = bytes !== undefined && bytes > size;
  if (
    found.brokenOff === undefined &&
    !short &&
    !(missing > Math.max(MISSING_SECONDS, 0.01 * (stated ?? 0)))
  ) {
    return undefined;
  }
  // FFmpeg shortens a cut-off AVI's duration by what is missing; the number of frames in its header stays.
  const expected = Math.max(Math.round((stated ?? 0) * found.averageFps), found.stated);
  const of = expected === 0 ? '' : ` of about ${expected}`;
  const seconds = expected === 0 ? '' : ` of ${(expected / found.averageFps).toFixed(1)}`;
  const why = short
    ? `, ${size} of ${bytes} bytes`
    : found.brokenOff !== undefined
      ? `, reading stopped with "${FFmpegError.strerror(found.brokenOff)}"`
      : '';
  return `${found.there}${of} frames are there (${found.endSeconds.toFixed(1)}${seconds} s${why})`;
}

async function declaredSize(path: string) {
  const handle = await openFile(path);
  try {
    const { size } = await handle.stat();
    return { ...(await readDeclaredSize(handle, size)), size };
  } finally {
    await handle.close();
  }
}

async function openingError(path: string, name: string, status: number): Promise<Error> {
  if (status === AVERROR_EXIT) return unreadable(name, `it could not be opened within ${OPEN_SECONDS} s`);
  const { bytes, indexMissing, size } = await declaredSize(path);
  if (indexMissing) {
    return truncated(name, 'its index (the "moov" box, which many programs write last) is missing');
  }
  if (bytes !== undefined && bytes > size) return truncated(name, `${size} of ${bytes} bytes are there`);
  return unreadable(name, `no known video format (${FFmpegError.strerror(status)})`);
}

async function emptyStream(path: string, name: string): Promise<Error> {
  const { bytes, size } = await declaredSize(path);
  return bytes !== undefined && bytes > size
    ? truncated(name, `no frame is there, ${size} of ${bytes} bytes`)
    : noVideo(name, 'its video stream is empty');
}

function chooseStream(format: FormatContext, name: string, maxPixels: number): [Stream, Codec] {
  const index = format.findBestStream(AVMEDIA_TYPE_VIDEO);
  const stream = format.streams[index];
  if (index < 0 || stream === undefined) {
    const why = index === AVERROR_STREAM_NOT_FOUND ? 'it holds no video stream' : FFmpegError.strerror(index);
    throw noVideo(name, why);
  }
  if ((stream.disposition & AV_DISPOSITION_ATTACHED_PIC) !== 0) {
    throw noVideo(name, 'its only picture is a cover');
  }
  checkSize(stream, name, maxPixels);
  const { width, height, codecId, codecTagString } = stream.codecpar;
  const codec = Codec.findDecoder(codecId);
  if (codec === null)
    throw unreadable(name, `there is no decoder for its video (${codecTagString ?? codecId})`);
  if (!(width > 0 && height > 0)) throw unreadable(name, 'the size of its pictures cannot be found');
  return [stream, codec];
}

function checkSize({ codecpar: { width, height } }: Stream, name: string, maxPixels: number): void {
  if (width * height <= maxPixels) return;
  const hint = `At most ${maxPixels} pixels a picture are decoded: scale it down first, or raise maxPixels.`;
  throw tooLarge(name, `its pictures have ${width}x${height} pixels`, hint);
}

/** VP8 has frames that are only referred to; the fifth bit of the first byte says "displayed". */
function isHiddenVp8(data: Buffer | null): boolean {
  const [first] = data ?? [];
  return first !== undefined && (first & 0x10) === 0;
}

function toNumber(value: bigint): number {
  return value === AV_NOPTS_VALUE ? Number.NaN : Number(value);
}

function toMicroseconds(seconds: number): number {
  return Math.round(seconds * 1e6) / 1e6;
}
