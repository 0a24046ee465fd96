/** The decoding worker: opens one video at its start, then reads it whenever asked. */
import { parentPort, workerData } from 'node:worker_threads';
import { Control } from './control.js';
import { chooseFrames, chooseInside, DEFAULT_FPS, type FrameChoice } from './frame-choice.js';
import { packRgb, RgbConverter, type RgbPicture } from './rgb-converter.js';
import { type Deliver, decodeSamples } from './sample-decoder.js';
import { invalidRange, truncated } from './video-errors.js';
import { indexVideo, VideoFile, type VideoIndex } from './video-file.js';
import {
  type FrameMessage,
  type OpenRequest,
  toPlainError,
  type VideoFacts,
  type WorkerReply,
  type WorkerRequest,
} from './worker-messages.js';

const request = workerData as OpenRequest;
const port = parentPort;
if (port === null) throw new Error('decode-worker.js is started by @llamavid/video as a worker thread');

function reply(message: WorkerReply): void {
  const data = message.kind === 'frame' ? message.data : undefined;
  port?.postMessage(message, data === undefined ? [] : [data.buffer]);
}

/** A video that was opened and looked through. */
interface OpenedVideo {
  readonly index: VideoIndex;
  readonly chosen: FrameChoice | undefined;
  readonly chosenSeconds: number[] | undefined;
  readonly facts: VideoFacts;
  readonly makeConverter: () => RgbConverter;
}

const openFile = () => VideoFile.open(request.path, request.name, request.maxPixels);

async function openVideo(): Promise<OpenedVideo | undefined> {
  const { name, sampling, strict } = request;
  const file = await openFile();
  try {
    const index = await indexVideo(file, request.path, new Control(request.control));
    if (index === undefined) return undefined;
    if (strict && index.truncation !== undefined) throw truncated(name, index.truncation);
    const { displayTimes, averageFps, durationSeconds, endSeconds } = index;
    const { start = 0 } = sampling;
    const known = Math.max(durationSeconds, endSeconds) || Number.POSITIVE_INFINITY;
    const seconds = displayTimes?.map((pts) => file.seconds(pts));
    const chosen = seconds && chooseFrames(seconds, averageFps, endSeconds, sampling);
    if (chosen?.indices.length === 0 || (chosen === undefined && start > 0 && start >= known)) {
      throw invalidRange(name, sampling, endSeconds);
    }
    const { orientation, pixelAspect } = file;
    const { width, height } = file.stream.codecpar;
    const square = [Math.max(1, Math.round(width * pixelAspect)), height] as const;
    const [shownWidth = 0, shownHeight = 0] = orientation.swapsSides ? square.toReversed() : square;
    const notes = [...index.notes];
    if (!orientation.exact)
      notes.push('rotation: the file asks for a turn that is no multiple of 90 degrees; left as stored');
    const { fps = DEFAULT_FPS } = sampling;
    if (sampling.frames === undefined && fps > averageFps * 1.001) {
      notes.push(
        `fps: ${fps} frames a second were asked for, the video has ${round3(averageFps)}; every frame is taken`,
      );
    }
    const expected = chosen ?? chooseInside(index.frameCount, averageFps, sampling);
    const facts: VideoFacts = {
      durationSeconds: durationSeconds > 0 ? durationSeconds : undefined,
      fps: averageFps,
      frameCount: index.frameCount,
      width: shownWidth,
      height: shownHeight,
      codec: file.codecName,
      expectedSamples: expected.indices.length,
      notes,
    };
    const chosenSeconds = chosen?.indices.map((frame) => seconds?.[frame] ?? Number.NaN);
    return {
      index,
      chosen,
      chosenSeconds,
      facts,
      makeConverter: () => new RgbConverter(orientation, pixelAspect),
    };
  } finally {
    file.close();
  }
}

async function read(
  video: OpenedVideo,
  control: Control,
  channel: number | undefined,
  after: readonly number[],
): Promise<void> {
  const { send, decoded, close } = channel === undefined ? rgbSender : await pixelSender(channel);
  let decodingSince = performance.now();
  const converter = video.makeConverter();
  const deliver: Deliver = (frame, index, timestamp) => {
    decoded(performance.now() - decodingSince);
    if (!control.takeCredit()) return false;
    reply(converter.convert(frame, (rgb) => ({ kind: 'frame', index, timestamp, ...send(rgb) })));
    decodingSince = performance.now();
    return true;
  };
  const { sampling, strict, maxPixels, decoderThreads: threads } = request;
  const { index, chosen, chosenSeconds } = video;
  try {
    const decoding = {
      reopen: openFile,
      index,
      chosen,
      chosenSeconds,
      after,
      sampling,
      strict,
      maxPixels,
      threads,
      control,
      deliver,
    };
    const outcome = await decodeSamples(decoding);
    reply({ kind: 'done', outcome });
  } finally {
    converter.close();
    close();
  }
}

type Sent = Pick<FrameMessage, 'width' | 'height' | 'data'>;

/** Hands RGB frames over. */
interface Sender {
  readonly send: (rgb: RgbPicture) => Sent;
  /** Told for each frame before it is handed over: how long its decoding took. */
  readonly decoded: (milliseconds: number) => void;
  readonly close: () => void;
}

const rgbSender: Sender = {
  send: (rgb) => ({ width: rgb.width, height: rgb.height, data: packRgb(rgb) }),
  decoded: () => undefined,
  close: () => undefined,
};

/** Rust reads the decoder's own memory during the call; no copy of the full-size frame is made. */
async function pixelSender(id: number): Promise<Sender> {
  const { callNative, PixelChannel, recordWork } = await import('@llamavid/native');
  const channel = callNative(() => PixelChannel.open(id));
  const send = ({ rows, width, height, stride }: RgbPicture): Sent => {
    callNative(() => channel.push(rows, width, height, stride));
    return { width, height };
  };
  const decoded = (milliseconds: number) => recordWork('decode video', milliseconds);
  return { send, decoded, close: () => channel.close() };
}

function round3(value: number): number {
  return Math.round(value * 1000) / 1000;
}

try {
  const video = await openVideo();
  if (video !== undefined) {
    reply({ kind: 'opened', facts: video.facts });
    port.on('message', async (message: WorkerRequest) => {
      if (message.kind === 'close') {
        port.close();
        return;
      }
      try {
        await read(video, new Control(message.control), message.channel, message.after);
      } catch (error) {
        reply({ kind: 'failed', error: toPlainError(error) });
      }
    });
  }
} catch (error) {
  reply({ kind: 'failed', error: toPlainError(error) });
}
