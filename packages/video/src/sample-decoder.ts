/**
 * Decoding the chosen frames: pass 2.
 *
 * Runs in the decoding worker, synchronously, and never holds more than the decoder's own frames.
 */

import {
  AV_FRAME_FLAG_CORRUPT,
  AV_NOPTS_VALUE,
  AV_PICTURE_TYPE_I,
  AVDISCARD_DEFAULT,
  AVDISCARD_NONREF,
  AVERROR_EOF,
} from 'node-av/constants';
import { CodecContext, FFmpegError, Frame, Packet } from 'node-av/lib';
import type { Control } from './control.js';
import { PacketStep, planPackets } from './decode-plan.js';
import {
  beforeRange,
  behindRange,
  chooseInside,
  DEFAULT_FPS,
  type FrameChoice,
  frameStep,
  type Sampling,
} from './frame-choice.js';
import { unreferencedTest } from './unreferenced-frames.js';
import { invalidRange, truncated, unreadable } from './video-errors.js';
import type { VideoFile, VideoIndex } from './video-file.js';
import type { ReadOutcome } from './worker-messages.js';

/** Takes a chosen frame, which is valid during the call only; false stops. */
export type Deliver = (frame: Frame, index: number, timestamp: number) => boolean;

export interface Decoding {
  /** Opens the file again, from its beginning. */
  readonly reopen: () => Promise<VideoFile>;
  readonly index: VideoIndex;
  /** Indices into `index.displayTimes`; undefined where frames must be counted. */
  readonly chosen: FrameChoice | undefined;
  /** Their seconds. */
  readonly chosenSeconds: readonly number[] | undefined;
  /** Seconds of the frames that an earlier reading gave, which are not delivered again. */
  readonly after: readonly number[];
  readonly sampling: Sampling;
  readonly strict: boolean;
  readonly maxPixels: number;
  readonly threads: number;
  readonly control: Control;
  readonly deliver: Deliver;
}

/**
 * How frames are found. `planned`: by their times, decoding only what they need. `thorough`: by their times, decoding
 * all. `counted`: by counting what the decoder gives, where times are missing or wrong.
 */
type Way = 'planned' | 'thorough' | 'counted';

/** Why a pass ended before its end. */
type Verdict = 'complete' | 'cancelled' | 'unreliable';

/** Decodes and delivers all chosen frames; undefined when cancelled. */
export async function decodeSamples(decoding: Decoding): Promise<ReadOutcome | undefined> {
  const { chosen, sampling, control } = decoding;
  let way: Way = chosen === undefined ? 'counted' : 'planned';
  // Every step-th frame is taken as it is counted; for anything else the whole number must be known first.
  const countFirst = sampling.frames !== undefined || sampling.maxFrames !== undefined;
  let counted: FrameChoice | undefined;
  if (way === 'counted' && countFirst) {
    counted = await countFrames(decoding);
    if (counted === undefined) return undefined;
  }
  const last = decoding.after.at(-1) ?? Number.NEGATIVE_INFINITY;
  // Those that could not be decoded are behind us too.
  let delivered = decoding.chosenSeconds?.filter((seconds) => seconds <= last).length ?? 0;
  const droppedBefore = Math.max(0, delivered - decoding.after.length);
  let decodedBefore = 0;
  for (;;) {
    const file = await decoding.reopen();
    const pass = new Pass(decoding, file, way, { wanted: counted?.indices, delivered, droppedBefore });
    let verdict: Verdict;
    try {
      verdict = pass.run();
    } finally {
      pass.close();
      file.close();
    }
    delivered = pass.delivered;
    if (verdict === 'cancelled' || control.cancelled) return undefined;
    if (verdict === 'complete') {
      if (delivered === 0 && decoding.after.length === 0) throw nothingDecoded(decoding, pass);
      return pass.outcome(decodedBefore, (counted ?? chosen)?.omitted ?? 0);
    }
    // The plan relies on what the container says about its packets. Where that proves wrong, say less and decode more.
    decodedBefore += pass.framesDecoded;
    way = way === 'thorough' ? 'counted' : 'thorough';
    if (way === 'counted' && countFirst) {
      counted = await countFrames(decoding);
      if (counted === undefined) return undefined;
    }
  }
}

/** Chooses among the frames that are there, by decoding everything once; undefined when cancelled. */
async function countFrames(decoding: Decoding): Promise<FrameChoice | undefined> {
  const file = await decoding.reopen();
  const inside: number[] = [];
  const pass = new Pass({ ...decoding, strict: false }, file, 'counted', {
    delivered: 0,
    droppedBefore: 0,
    onlyCount: (frame) => inside.push(frame),
  });
  try {
    if (pass.run() !== 'complete') return undefined;
  } finally {
    pass.close();
    file.close();
  }
  const { index, sampling } = decoding;
  const { indices, omitted } = chooseInside(inside.length, index.averageFps, sampling);
  return { indices: indices.map((place) => inside[place] ?? 0), omitted };
}

function nothingDecoded({ index, sampling }: Decoding, pass: Pass): Error {
  const { name } = pass.file;
  const { start = 0, end } = sampling;
  if (pass.framesDecoded > 0 && (start > 0 || end !== undefined)) {
    return invalidRange(name, sampling, index.endSeconds);
  }
  if (index.truncation !== undefined) return truncated(name, `no frame can be decoded; ${index.truncation}`);
  return unreadable(name, 'not one frame of its video can be decoded');
}

interface PassOptions {
  /** Chosen frames that earlier passes delivered. */
  readonly delivered: number;
  /** Chosen frames that an earlier reading could not decode. */
  readonly droppedBefore: number;
  /** For counting: the chosen indices; without them every step-th frame in range is taken. */
  readonly wanted?: readonly number[] | undefined;
  /** For counting: called with the index of every frame in range, none of which is delivered. */
  readonly onlyCount?: (index: number) => void;
}

/** One way through the file. */
class Pass {
  readonly file: VideoFile;
  framesDecoded = 0;
  delivered: number;
  readonly #decoding: Decoding;
  readonly #way: Way;
  readonly #options: PassOptions;
  readonly #context = new CodecContext();
  readonly #frame = new Frame();
  readonly #packet = new Packet();
  /** Display times of the chosen frames. */
  readonly #times: readonly number[];
  #damagedFrames = 0;
  #damagedSamples = 0;
  #refusedPackets = 0;
  #dropped: number;
  #nextSample: number;
  #displayed = 0;
  #firstInRange = -1;
  readonly #clock: CountedClock;
  /** Display time of a key packet behind dropped ones, whose frame must not refer to those. */
  #keyTime = Number.NaN;
  #verdict: Verdict | undefined;

  constructor(decoding: Decoding, file: VideoFile, way: Way, options: PassOptions) {
    this.file = file;
    this.delivered = options.delivered;
    this.#decoding = decoding;
    this.#way = way;
    this.#options = options;
    this.#nextSample = options.delivered;
    this.#dropped = options.droppedBefore;
    this.#clock = new CountedClock(file, decoding.index.averageFps);
    const { displayTimes } = decoding.index;
    this.#times = (decoding.chosen?.indices ?? []).map((frame) => displayTimes?.[frame] ?? Number.NaN);
    this.#frame.alloc();
    this.#packet.alloc();
    const context = this.#context;
    context.allocContext3(file.codec);
    context.parametersToContext(file.stream.codecpar);
    context.pktTimebase = file.stream.timeBase;
    // Frame threads hand a picture out before they know all of its damage, so only one thread tells surely.
    context.threadCount = decoding.strict ? 1 : decoding.threads;
    context.setOption('max_pixels', BigInt(decoding.maxPixels));
    const status = context.open2Sync(file.codec, null);
    if (status < 0) {
      throw unreadable(
        file.name,
        `its decoder (${file.codecName}) does not start: ${FFmpegError.strerror(status)}`,
      );
    }
  }

  run(): Verdict {
    const { index, control } = this.#decoding;
    const { format, stream } = this.file;
    const packet = this.#packet;
    const times = this.#times.slice(this.#nextSample);
    // An earlier reading has them all.
    if (this.#way !== 'counted' && times.length === 0) return 'complete';
    const steps = this.#way === 'planned' ? planPackets(index.table, new Set(times)) : undefined;
    const mayLeaveOut = this.file.mayLeaveOutFrames;
    const { codecId, extradata } = stream.codecpar;
    const isUnreferenced = mayLeaveOut ? unreferencedTest(codecId, extradata) : undefined;
    let number = 0;
    let skipping = AVDISCARD_DEFAULT;
    let afterDrop = false;
    while (this.#verdict === undefined && number < index.table.count && format.readFrameSync(packet) >= 0) {
      control.beat();
      if (control.cancelled) return 'cancelled';
      if (packet.streamIndex === stream.index) {
        const step = steps === undefined ? PacketStep.Sample : steps[number];
        if (step === PacketStep.Drop) {
          afterDrop = true;
        } else {
          if (afterDrop && index.table.key[number] === 1) this.#jumpTo(index.table.pts[number] ?? Number.NaN);
          afterDrop = false;
          const leaveOut = step === PacketStep.Reference && mayLeaveOut;
          if (!(leaveOut && isUnreferenced !== undefined && holds(packet, isUnreferenced))) {
            const discard = leaveOut ? AVDISCARD_NONREF : AVDISCARD_DEFAULT;
            if (discard !== skipping) this.#context.setOption('skip_frame', discard);
            skipping = discard;
            this.#send(packet);
          }
        }
        number += 1;
      }
      packet.unref();
    }
    packet.unref();
    if (this.#verdict === undefined) this.#drain();
    if (this.#verdict === undefined && !(this.#way === 'counted') && this.#nextSample < this.#times.length)
      this.#miss(Number.POSITIVE_INFINITY);
    return this.#verdict ?? 'complete';
  }

  outcome(decodedBefore: number, omitted: number): ReadOutcome {
    const { index } = this.#decoding;
    const notes: string[] = [];
    if (this.#damagedFrames > 0) {
      notes.push(
        `damaged: ${this.#damagedFrames} of ${this.framesDecoded} decoded frames were concealed, ${this.#damagedSamples} of them taken`,
      );
    }
    if (this.#refusedPackets > 0) notes.push(`damaged: ${this.#refusedPackets} packets could not be decoded`);
    if (this.#dropped > 0) notes.push(`dropped: ${this.#dropped} chosen frames could not be decoded`);
    if (this.#way === 'counted')
      notes.push('times: the file does not give all frames a time of their own, so frames were counted');
    return {
      framesDecoded: decodedBefore + this.framesDecoded,
      dropped: this.#dropped,
      omitted,
      // Counting may stop at the end of the range; the table is the better answer then.
      frameCount: this.#way === 'counted' && this.#verdict === undefined ? this.#displayed : index.frameCount,
      notes,
    };
  }

  close(): void {
    this.#context.freeContext();
    this.#frame.free();
    this.#packet.free();
  }

  /** Starts anew at a key packet, so that nothing of before the gap is referred to. */
  #jumpTo(pts: number): void {
    this.#drain();
    this.#context.flushBuffers();
    this.#keyTime = pts;
  }

  #send(packet: Packet): void {
    const status = this.#context.sendPacketSync(packet);
    // The decoder was emptied before, so it takes the packet or finds it broken.
    if (status < 0 && status !== AVERROR_EOF) {
      this.#refusedPackets += 1;
      this.#damage(`a packet cannot be decoded (${FFmpegError.strerror(status)})`);
    }
    this.#receive();
  }

  #drain(): void {
    this.#context.sendPacketSync(null);
    this.#receive();
  }

  #receive(): void {
    while (this.#verdict === undefined) {
      const status = this.#context.receiveFrameSync(this.#frame);
      if (status < 0) return; // wants more, or is at the end
      this.framesDecoded += 1;
      this.#decoding.control.beat();
      try {
        this.#take(this.#frame);
      } finally {
        this.#frame.unref();
      }
    }
  }

  #take(frame: Frame): void {
    const damaged = frame.decodeErrorFlags !== 0 || (frame.flags & AV_FRAME_FLAG_CORRUPT) !== 0;
    if (damaged) {
      this.#damagedFrames += 1;
      this.#damage('a frame is damaged');
    }
    if (this.#way === 'counted') this.#takeCounted(frame, damaged);
    else this.#takeTimed(frame, damaged);
  }

  #takeTimed(frame: Frame, damaged: boolean): void {
    const pts = Number(frame.pts);
    if (pts === this.#keyTime) {
      this.#keyTime = Number.NaN;
      if (frame.pictType !== AV_PICTURE_TYPE_I && frame.keyFrame !== 1) {
        this.#verdict = 'unreliable'; // marked as a key frame, and is none
        return;
      }
    }
    const time = this.#times[this.#nextSample];
    if (time === undefined || pts < time) return;
    if (pts > time && !this.#miss(pts)) return;
    if (pts !== this.#times[this.#nextSample]) return;
    const chosen = this.#decoding.chosen?.indices[this.#nextSample] ?? 0;
    this.#nextSample += 1;
    this.#deliver(frame, chosen, this.file.seconds(pts), damaged);
    // The last sample is out: what follows is not needed, and in a damaged file only costs time.
    if (this.#nextSample === this.#times.length) this.#verdict ??= 'complete';
  }

  /** Chosen frames before `pts` did not come. Says whether this pass goes on without them. */
  #miss(pts: number): boolean {
    if (this.#way === 'planned' || this.delivered === 0) {
      this.#verdict = 'unreliable';
      return false;
    }
    while (this.#nextSample < this.#times.length && (this.#times[this.#nextSample] ?? pts) < pts) {
      this.#dropped += 1;
      this.#nextSample += 1;
    }
    this.#damage('a chosen frame is missing');
    return true;
  }

  #takeCounted(frame: Frame, damaged: boolean): void {
    const { sampling, index } = this.#decoding;
    const seconds = this.#clock.seconds(frame);
    const displayed = this.#displayed;
    this.#displayed += 1;
    if (beforeRange(seconds, sampling)) return;
    if (behindRange(seconds, sampling)) {
      this.#verdict = 'complete';
      return;
    }
    this.#options.onlyCount?.(displayed);
    if (this.#options.onlyCount !== undefined) return;
    if (this.#firstInRange < 0) this.#firstInRange = displayed;
    if (this.#options.wanted === undefined) {
      const step = frameStep(index.averageFps, sampling.fps ?? DEFAULT_FPS);
      if ((displayed - this.#firstInRange) % step !== 0) return;
    } else if (this.#options.wanted[this.#nextSample] !== displayed) {
      return;
    }
    this.#nextSample += 1;
    if (seconds > (this.#decoding.after.at(-1) ?? Number.NEGATIVE_INFINITY))
      this.#deliver(frame, displayed, seconds, damaged);
    if (this.#nextSample === this.#options.wanted?.length) this.#verdict ??= 'complete';
  }

  #deliver(frame: Frame, index: number, seconds: number, damaged: boolean): void {
    if (damaged) this.#damagedSamples += 1;
    if (this.#decoding.deliver(frame, index, seconds)) this.delivered += 1;
    else this.#verdict = 'cancelled';
  }

  #damage(what: string): void {
    if (this.#decoding.strict) throw truncated(this.file.name, what);
  }
}

/** Times of frames that come without reliable ones. */
class CountedClock {
  readonly #file: VideoFile;
  readonly #frameSeconds: number;
  /** By how much the decoder's guesses, from decoding times, are late. */
  #late: number | undefined;
  #last: number | undefined;

  constructor(file: VideoFile, averageFps: number) {
    this.#file = file;
    this.#frameSeconds = 1 / averageFps;
  }

  /** The frame's second; where it is not known, or does not rise, one frame behind the last one's. */
  seconds(frame: Frame): number {
    const guess = toNumber(frame.bestEffortTimestamp);
    if (this.#late === undefined && !Number.isNaN(guess)) {
      const isGuess = Number.isNaN(toNumber(frame.pts));
      this.#late = isGuess ? guess - this.#file.streamStart : 0;
    }
    let seconds = this.#file.seconds(guess - (this.#late ?? 0));
    if (Number.isNaN(seconds)) seconds = this.#last === undefined ? 0 : Number.NaN;
    if (this.#last !== undefined && !(seconds > this.#last)) {
      seconds = Math.round((this.#last + this.#frameSeconds) * 1e6) / 1e6;
    }
    this.#last = seconds;
    return seconds;
  }
}

/** Whether the bytes of a packet pass a test. */
function holds({ data }: Packet, test: (bytes: Uint8Array) => boolean): boolean {
  if (data === null) return false;
  try {
    return test(data);
  } finally {
    // Detached, the view lets go of the packet's memory now, not when garbage is collected some megabytes later.
    (data.buffer as ArrayBuffer).transfer(0);
  }
}

function toNumber(timestamp: bigint): number {
  return timestamp === AV_NOPTS_VALUE ? Number.NaN : Number(timestamp);
}
