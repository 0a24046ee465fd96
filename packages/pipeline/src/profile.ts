import { callNative, finishProfile, recordPhase, startProfile } from '@llamavid/native';

/** Where time went, and a trace that Perfetto and Chrome open: the whole object, as JSON. */
export interface ProfileTrace {
  readonly summary: ProfileSummary;
  readonly displayTimeUnit: 'ms';
  /** In Chrome's Trace Event Format. */
  readonly traceEvents: readonly TraceEvent[];
}

/** Milliseconds, but for the counts. */
export interface ProfileSummary {
  readonly wallMs: number;
  /**
   * Parts that follow each other: `start` (of the process, up to the profile), `plan`, `load`, `open`, and for each question `frames` (waiting
   * for decoded ones), `encode`, `tokens`, `prefill` and `decode`. Questions that are answered together overlap.
   */
  readonly phases: Readonly<Record<string, number>>;
  /** What is in no phase. */
  readonly otherMs: number;
  /** Work by its kind, of all threads together: how often it was done, and what it took. */
  readonly spans: Readonly<Record<string, { readonly count: number; readonly totalMs: number }>>;
  /** Events that the trace has no room for; the sums have them. */
  readonly droppedEvents: number;
}

export interface TraceEvent {
  readonly name: string;
  /** `X` is a span; `M` names a line. */
  readonly ph: 'X' | 'M';
  /** Microseconds from the beginning of what is profiled. */
  readonly ts: number;
  readonly dur: number;
  readonly pid: number;
  /** The line that it is shown in: a thread's, or one of those of the phases. */
  readonly tid: number;
  readonly cat: 'phase' | 'work' | '';
  readonly args: Readonly<Record<string, unknown>>;
}

/**
 * Records where the time of this process goes, of all models, questions and threads, until it is finished. There is one at a time;
 * while there is none, nothing is recorded and next to nothing spent on it.
 */
export class Profile implements Disposable {
  #finished = false;

  private constructor() {}

  /** Begins to record. Counts the process's time from its start, which is the phase `start`. */
  static start(): Profile {
    const sinceStart = performance.now();
    callNative(() => startProfile(sinceStart));
    recordPhase('start', sinceStart);
    return new Profile();
  }

  /** Ends the recording. */
  finish(): ProfileTrace {
    this.#finished = true;
    return JSON.parse(callNative(() => finishProfile()));
  }

  /** Ends the recording, and nothing comes of it unless it was finished before. */
  [Symbol.dispose](): void {
    if (!this.#finished) this.finish();
  }
}
