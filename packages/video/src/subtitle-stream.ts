/** The text streams of a video file: found and read without decoding a frame. */
import { LlamaVidError } from '@llamavid/errors';
import {
  AV_CODEC_ID_ASS,
  AV_CODEC_ID_MOV_TEXT,
  AV_CODEC_ID_SSA,
  AV_CODEC_ID_SUBRIP,
  AV_CODEC_ID_TEXT,
  AV_CODEC_ID_WEBVTT,
  AV_DISPOSITION_DEFAULT,
  AV_DISPOSITION_FORCED,
  AV_NOPTS_VALUE,
  AVDISCARD_ALL,
  AVERROR_EXIT,
  AVMEDIA_TYPE_SUBTITLE,
} from 'node-av/constants';
import { Packet, type Stream } from 'node-av/lib';
import { aborted } from './video-errors.js';
import { VideoFile } from './video-file.js';

/** How the stream writes its subtitles. */
export type SubtitleFormat = 'subrip' | 'webvtt' | 'ass' | 'mov_text';

/** A subtitle as the file holds it. */
export interface SubtitleCue {
  /** Seconds on the source's clock, as those of frames. */
  readonly start: number;
  readonly end: number;
  /** In the stream's format. */
  readonly data: Uint8Array;
}

/** The text stream that was taken. */
export interface SubtitleStream {
  /** Its place among the streams of the file, from 0. */
  readonly index: number;
  readonly format: SubtitleFormat;
  /** As the file has it, `eng` for instance. */
  readonly language?: string;
  readonly title?: string;
  /** In order of time. */
  readonly cues: readonly SubtitleCue[];
  /** What was odd, in words. */
  readonly notes: readonly string[];
}

const FORMATS = new Map<number, SubtitleFormat>([
  [AV_CODEC_ID_SUBRIP, 'subrip'],
  [AV_CODEC_ID_TEXT, 'subrip'],
  [AV_CODEC_ID_WEBVTT, 'webvtt'],
  [AV_CODEC_ID_ASS, 'ass'],
  [AV_CODEC_ID_SSA, 'ass'],
  [AV_CODEC_ID_MOV_TEXT, 'mov_text'],
]);

/** A day of talk has 2 MB of subtitles. */
const MAX_BYTES = 64 << 20;

/**
 * Reads the text stream of a video that its viewers most likely understand: one that is meant for all of the video (not "forced"),
 * in English, which the language models were trained on, marked as default, in this order. Undefined where there is none:
 * pictures of subtitles (DVD, Blu-ray) are no text.
 *
 * Runs on FFmpeg's threads; other streams are skipped.
 */
export async function readSubtitleStream(
  path: string,
  name: string,
  signal?: AbortSignal,
): Promise<SubtitleStream | undefined> {
  if (signal?.aborted) throw aborted(name, signal.reason);
  const file = await VideoFile.open(path, name, Number.POSITIVE_INFINITY);
  const { format } = file;
  const stop = () => format.interrupt();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    const stream = chooseStream(format.streams);
    if (stream === undefined) return undefined;
    for (const other of format.streams) if (other.index !== stream.index) other.discard = AVDISCARD_ALL;
    const { cues, notes } = await readCues(file, stream, signal);
    const { language, title } = stream.metadata?.getAll() ?? {};
    return {
      index: stream.index,
      format: formatOf(stream) ?? 'subrip',
      ...(language !== undefined && language !== 'und' && { language }),
      ...(title !== undefined && { title }),
      cues,
      notes,
    };
  } finally {
    signal?.removeEventListener('abort', stop);
    file.close();
  }
}

function formatOf({ codecpar }: Stream): SubtitleFormat | undefined {
  return codecpar.codecType === AVMEDIA_TYPE_SUBTITLE ? FORMATS.get(codecpar.codecId) : undefined;
}

function chooseStream(streams: readonly Stream[]): Stream | undefined {
  const merit = (stream: Stream) => {
    const isForced = (stream.disposition & AV_DISPOSITION_FORCED) !== 0;
    const isEnglish = /^en/i.test(stream.metadata?.get('language') ?? '');
    const isDefault = (stream.disposition & AV_DISPOSITION_DEFAULT) !== 0;
    return (isForced ? 0 : 4) + (isEnglish ? 2 : 0) + (isDefault ? 1 : 0);
  };
  const readable = streams.filter((stream) => formatOf(stream) !== undefined);
  // Of equals the first: sorting is stable.
  return readable.sort((left, right) => merit(right) - merit(left))[0];
}

async function readCues(
  file: VideoFile,
  stream: Stream,
  signal: AbortSignal | undefined,
): Promise<{ cues: SubtitleCue[]; notes: string[] }> {
  const cues: SubtitleCue[] = [];
  let [bytes, untimed, endless] = [0, 0, 0];
  const packet = new Packet();
  packet.alloc();
  try {
    for (;;) {
      const status = await file.format.readFrame(packet);
      if (signal?.aborted || status === AVERROR_EXIT) throw aborted(file.name, signal?.reason);
      if (status < 0) break;
      const { pts, duration, data } = packet;
      if (packet.streamIndex === stream.index && data !== null) {
        bytes += data.length;
        if (bytes > MAX_BYTES) {
          throw new LlamaVidError(
            'MEDIA_TOO_LARGE',
            `Stream ${stream.index} of ${file.name} has more than ${MAX_BYTES} bytes of subtitles.`,
            { hint: 'Ask without subtitles, or give them as a file.' },
          );
        }
        if (pts === AV_NOPTS_VALUE) untimed += 1;
        else {
          if (duration <= 0n) endless += 1;
          const [start, end] = [Number(pts), Number(pts + (duration > 0n ? duration : 0n))];
          cues.push({
            start: file.seconds(start, stream),
            end: file.seconds(end, stream),
            data: Uint8Array.from(data),
          });
        }
      }
      packet.unref();
    }
  } finally {
    packet.free();
  }
  const notes: string[] = [];
  if (untimed > 0) notes.push(`${untimed} of the subtitles have no time and were left out`);
  if (endless > 0) notes.push(`${endless} of the subtitles do not say when they end: their start was taken`);
  return { cues: cues.sort((left, right) => left.start - right.start), notes };
}
